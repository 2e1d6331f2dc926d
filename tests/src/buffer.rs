//! Message buffers that notice a write beyond their ends.

use std::ptr::NonNull;

use mpi::ffi;

use crate::payload::Mismatch;
use crate::universe::succeed;

/// Bytes before and after the payload that nobody may touch.
const GUARD: usize = 64;
const GUARD_BYTE: u8 = 0xa5;
/// Payload offsets are counted from this alignment (a cache line).
const LINE: usize = 64;

/// Memory for one message, with guard bytes around it.
#[derive(Debug)]
pub struct Buffer {
    memory: Memory,
    start: usize,
    length: usize,
}

#[derive(Debug)]
enum Memory {
    Heap(Vec<u8>),
    Mpi(MpiMemory),
}

impl Buffer {
    /// A buffer on the heap for `length` bytes, all zero.
    pub fn new(length: usize) -> Buffer {
        Buffer::at_offset(length, 0)
    }

    /// A buffer on the heap whose payload begins `offset` bytes (less than 64) past a cache line.
    pub fn at_offset(length: usize, offset: usize) -> Buffer {
        let heap = vec![0; length + 2 * GUARD + 2 * LINE];
        let to_line = (LINE - heap.as_ptr().addr() % LINE) % LINE;
        Buffer::over(Memory::Heap(heap), GUARD + to_line + offset % LINE, length)
    }

    /// A buffer from `MPI_Alloc_mem`, which may lie in memory that peers can read.
    pub fn from_mpi(length: usize) -> Buffer {
        Buffer::from_mpi_at(length, 0)
    }

    /// The same, with the payload `offset` bytes further on than it needs to be.
    pub fn from_mpi_at(length: usize, offset: usize) -> Buffer {
        let start = GUARD + offset;
        Buffer::over(Memory::Mpi(MpiMemory::new(start + length + GUARD)), start, length)
    }

    /// A heap buffer that holds `bytes`.
    pub fn holding(bytes: &[u8]) -> Buffer {
        let mut buffer = Buffer::new(bytes.len());
        buffer.payload_mut().copy_from_slice(bytes);
        buffer
    }

    fn over(memory: Memory, start: usize, length: usize) -> Buffer {
        let mut buffer = Buffer { memory, start, length };
        let (before, after) = buffer.guards();
        let all = buffer.memory.bytes_mut();
        all[before].fill(GUARD_BYTE);
        all[after].fill(GUARD_BYTE);
        buffer
    }

    fn guards(&self) -> (std::ops::Range<usize>, std::ops::Range<usize>) {
        let end = self.start + self.length;
        (self.start - GUARD..self.start, end..end + GUARD)
    }

    /// The message's bytes.
    pub fn payload(&self) -> &[u8] {
        &self.memory.bytes()[self.start..self.start + self.length]
    }

    /// The message's bytes, to be written.
    pub fn payload_mut(&mut self) -> &mut [u8] {
        let range = self.start..self.start + self.length;
        &mut self.memory.bytes_mut()[range]
    }

    /// Size of the payload in bytes.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether the payload has no bytes.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Looks whether a write went beyond the payload's ends.
    ///
    /// # Errors
    /// The first guard byte that changed; its offset is counted from 64 bytes before the payload.
    pub fn guards_intact(&self) -> Result<(), Mismatch> {
        let (before, after) = self.guards();
        let all = self.memory.bytes();
        let guard = [&all[before], &all[after]].concat();
        crate::payload::compare(&[GUARD_BYTE; 2 * GUARD], &guard)
    }
}

impl Memory {
    fn bytes(&self) -> &[u8] {
        match self {
            Memory::Heap(heap) => heap,
            Memory::Mpi(memory) => memory.bytes(),
        }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Memory::Heap(heap) => heap,
            Memory::Mpi(memory) => memory.bytes_mut(),
        }
    }
}

/// Memory from `MPI_Alloc_mem`, freed on drop.
#[derive(Debug)]
struct MpiMemory {
    base: NonNull<u8>,
    length: usize,
}

// SAFETY: the memory has one owner, and MPI_Free_mem may be called by any thread.
unsafe impl Send for MpiMemory {}
// SAFETY: shared access only reads.
unsafe impl Sync for MpiMemory {}

impl MpiMemory {
    fn new(length: usize) -> MpiMemory {
        let size = ffi::MPI_Aint::try_from(length).expect("a buffer is smaller than the address space");
        let mut base: *mut u8 = std::ptr::null_mut();
        // SAFETY: MPI writes the base address through the pointer to `base`.
        succeed(unsafe { ffi::MPI_Alloc_mem(size, ffi::RSMPI_INFO_NULL, (&raw mut base).cast()) });
        let base = NonNull::new(base).expect("MPI_Alloc_mem gave a null pointer");
        // SAFETY: MPI gave `length` bytes at `base`.
        unsafe { base.write_bytes(0, length) };
        MpiMemory { base, length }
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: `base` has `length` initialised bytes, which only this value's owner changes.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.length) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: `base` has `length` initialised bytes, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr(), self.length) }
    }
}

impl Drop for MpiMemory {
    fn drop(&mut self) {
        // SAFETY: the memory came from MPI_Alloc_mem and nothing refers to it any more.
        succeed(unsafe { ffi::MPI_Free_mem(self.base.as_ptr().cast()) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_payload_begins_at_the_asked_offset() {
        for offset in 0..LINE {
            let buffer = Buffer::at_offset(10, offset);
            assert_eq!(buffer.payload().as_ptr().addr() % LINE, offset);
            assert_eq!(buffer.payload(), [0; 10]);
            assert_eq!(buffer.guards_intact(), Ok(()));
        }
    }

    #[test]
    fn a_write_beyond_either_end_is_noticed() {
        for beyond in [-1_isize, 10] {
            let mut buffer = Buffer::new(10);
            let at = buffer.start.checked_add_signed(beyond).unwrap();
            buffer.memory.bytes_mut()[at] = 0;
            assert!(buffer.guards_intact().is_err());
        }
    }
}
