//! A page-aligned message buffer, and the data that is written to it and looked for after it has travelled.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::hint::black_box;
use std::ptr::NonNull;

use mpi::ffi;

const PAGE: usize = 4096;
const WORD: usize = size_of::<u64>();
/// From one word of the data to the next; odd, so that no two words of a turn are the same.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// Where a buffer's memory comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The program's own heap.
    Heap,
    /// `MPI_Alloc_mem`.
    Mpi,
}

/// Page-aligned memory, as OSU uses for its messages. MPI may be working on it while this value is
/// borrowed by nobody, so it is only reached through raw pointers.
#[derive(Debug)]
pub struct Buffer {
    base: NonNull<u8>,
    length: usize,
    memory: Memory,
}

#[derive(Debug)]
enum Memory {
    Heap(Layout),
    /// Memory of `MPI_Alloc_mem`, which need not be aligned to a page.
    Mpi(*mut u8),
    /// Somebody else's, who keeps it for longer than this value lives.
    Borrowed,
}

/// Tells the data of one rank's turn from that of others. Its first byte is not 0, so that the
/// smallest message differs from memory that was cleared.
pub fn seed(rank: usize, turn: u32) -> u64 {
    let mixed = ((rank as u64 + 1) << 32 | u64::from(turn)).wrapping_mul(STEP);
    (mixed ^ mixed >> 32) | 1
}

/// The first byte that is not what was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// Its place in the message.
    pub at: usize,
    /// Bytes found.
    pub got: u8,
    /// Bytes sent.
    pub wanted: u8,
}

impl Buffer {
    /// Memory for messages of up to `length` bytes, all zero. From MPI only while MPI runs, and to
    /// be dropped before MPI ends.
    pub fn new(length: usize, origin: Origin) -> Buffer {
        let length = length.max(1);
        let (base, memory) = match origin {
            Origin::Heap => {
                let layout = Layout::from_size_align(length, PAGE).expect("a size below 1 GiB");
                // SAFETY: the layout has a size above zero.
                let base = unsafe { alloc(layout) };
                let Some(base) = NonNull::new(base) else { handle_alloc_error(layout) };
                (base, Memory::Heap(layout))
            }
            Origin::Mpi => {
                let mut got: *mut u8 = std::ptr::null_mut();
                let size = ffi::MPI_Aint::try_from(length + PAGE).expect("a size below 1 GiB");
                // SAFETY: MPI runs, and writes the address through the pointer to `got`.
                unsafe { ffi::MPI_Alloc_mem(size, ffi::RSMPI_INFO_NULL, (&raw mut got).cast()) };
                let aligned = got.wrapping_add(got.align_offset(PAGE));
                (NonNull::new(aligned).expect("MPI ends the job where it has no memory"), Memory::Mpi(got))
            }
        };
        // SAFETY: there are `length` bytes from `base` on.
        unsafe { base.write_bytes(0, length) };
        Buffer { base, length, memory }
    }

    /// Memory that is another's, such as a window's.
    ///
    /// # Safety
    /// It must have `length` bytes for as long as this value lives, and be aligned to 8 bytes.
    pub unsafe fn over(base: NonNull<u8>, length: usize) -> Buffer {
        Buffer { base, length, memory: Memory::Borrowed }
    }

    /// Where the memory begins.
    pub fn as_ptr(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// Bytes of memory.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Never: there is at least one byte.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Sets the first `length` bytes to zero.
    ///
    /// # Safety
    /// MPI must not be using the buffer.
    pub unsafe fn clear(&self, length: usize) {
        // SAFETY: no more than the buffer has, and nobody else uses it.
        unsafe { self.base.write_bytes(0, length.min(self.length)) };
    }

    /// Writes the data of `seed` to the first `length` bytes, all of them.
    ///
    /// # Safety
    /// MPI must not be using the buffer.
    pub unsafe fn write(&self, length: usize, seed: u64) {
        // SAFETY: as the caller promises.
        let (words, rest) = unsafe { self.split(length) };
        let mut value = seed;
        for word in words {
            *word = value;
            value = value.wrapping_add(STEP);
        }
        rest.copy_from_slice(&value.to_le_bytes()[..rest.len()]);
    }

    /// Reads the first `length` bytes, all of them, and compares them with the data of `seed`.
    ///
    /// # Errors
    /// The first byte that differs.
    ///
    /// # Safety
    /// MPI must not be using the buffer.
    pub unsafe fn check(&self, length: usize, seed: u64) -> Result<(), Wrong> {
        // SAFETY: as the caller promises.
        let (words, rest) = unsafe { self.split(length) };
        let (mut value, mut difference) = (seed, 0);
        for word in &*words {
            difference |= *word ^ value;
            value = value.wrapping_add(STEP);
        }
        if difference == 0 && *rest == value.to_le_bytes()[..rest.len()] {
            return Ok(());
        }
        let wanted = |at: usize| {
            let word = seed.wrapping_add(STEP.wrapping_mul((at / WORD) as u64));
            word.to_le_bytes()[at % WORD]
        };
        let got = words.iter().flat_map(|word| word.to_le_bytes()).chain(rest.iter().copied());
        let mut pairs = got.enumerate().map(|(at, got)| Wrong { at, got, wanted: wanted(at) });
        pairs.find(|pair| pair.got != pair.wanted).map_or(Ok(()), Err)
    }

    /// Reads the first `length` bytes, all of them, without a look at what they are.
    ///
    /// # Safety
    /// MPI must not be using the buffer.
    pub unsafe fn look(&self, length: usize) {
        // SAFETY: as the caller promises.
        let (words, rest) = unsafe { self.split(length) };
        let sum = words.iter().fold(0, |sum: u64, word| sum ^ word);
        black_box(rest.iter().fold(sum, |sum, byte| sum ^ u64::from(*byte)));
    }

    /// The first `length` bytes as numbers of 32 bits.
    ///
    /// # Safety
    /// MPI must not be using the buffer while the slice is in use, nor may another slice of it be.
    #[expect(clippy::mut_from_ref, reason = "the memory is not the value's own, and the caller promises")]
    pub unsafe fn floats(&self, length: usize) -> &mut [f32] {
        let count = length.min(self.length) / size_of::<f32>();
        // SAFETY: the memory has been set since it was made, and is aligned; the rest is the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr().cast(), count) }
    }

    /// The first `length` bytes as whole words and what remains.
    ///
    /// # Safety
    /// MPI must not be using the buffer while the slices are in use, nor may another slice of it be.
    #[expect(clippy::mut_from_ref, reason = "the memory is not the value's own, and the caller promises")]
    unsafe fn split(&self, length: usize) -> (&mut [u64], &mut [u8]) {
        let length = length.min(self.length);
        let (count, rest) = (length / WORD, length % WORD);
        let base = self.base.as_ptr();
        // SAFETY: both lie in the memory, which has been set since it was made, apart from each other, and
        // are aligned; the rest is the caller's promise.
        unsafe {
            let words = std::slice::from_raw_parts_mut(base.cast(), count);
            (words, std::slice::from_raw_parts_mut(base.add(count * WORD), rest))
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        match self.memory {
            // SAFETY: the memory came from `alloc` with this layout.
            Memory::Heap(layout) => unsafe { dealloc(self.base.as_ptr(), layout) },
            // SAFETY: MPI gave it, and still runs.
            Memory::Mpi(got) => unsafe {
                ffi::MPI_Free_mem(got.cast());
            },
            Memory::Borrowed => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_found_again_and_every_change_is_noticed() {
        for length in [0, 1, 3, 4, 7, 8, 9, 64, 100] {
            let buffer = Buffer::new(length, Origin::Heap);
            // SAFETY: no MPI here.
            unsafe {
                buffer.write(length, seed(1, 7));
                assert_eq!(buffer.check(length, seed(1, 7)), Ok(()));
                for at in 0..length {
                    let byte = buffer.as_ptr().add(at);
                    *byte ^= 1;
                    let wrong = buffer.check(length, seed(1, 7)).unwrap_err();
                    assert_eq!((wrong.at, wrong.got), (at, wrong.wanted ^ 1));
                    *byte ^= 1;
                }
            }
        }
    }

    #[test]
    fn turns_and_ranks_differ_in_the_first_byte_or_so() {
        let buffer = Buffer::new(8, Origin::Heap);
        // SAFETY: no MPI here.
        unsafe {
            buffer.write(8, seed(0, 1));
            assert!(buffer.check(1, seed(0, 2)).is_err());
            assert!(buffer.check(8, seed(1, 1)).is_err());
            buffer.clear(8);
            assert!(buffer.check(1, seed(0, 1)).is_err());
        }
    }
}
