//! A page-aligned message buffer.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::hint::black_box;
use std::ptr::NonNull;

const PAGE: usize = 4096;
const LINE: usize = 64;

/// Page-aligned memory, as OSU uses for its messages. MPI may be working on it while this value is
/// borrowed by nobody, so it is only reached through raw pointers.
#[derive(Debug)]
pub struct Buffer {
    base: NonNull<u8>,
    layout: Layout,
}

impl Buffer {
    /// Memory for messages of up to `length` bytes, all filled with `byte`.
    pub fn filled(length: usize, byte: u8) -> Buffer {
        let layout = Layout::from_size_align(length.max(1), PAGE).expect("a size below 1 GiB");
        // SAFETY: the layout has a size above zero.
        let base = unsafe { alloc(layout) };
        let Some(base) = NonNull::new(base) else { handle_alloc_error(layout) };
        // SAFETY: `base` has the size of the layout.
        unsafe { base.write_bytes(byte, layout.size()) };
        Buffer { base, layout }
    }

    /// Where the memory begins.
    pub fn as_ptr(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// Bytes of memory.
    pub fn len(&self) -> usize {
        self.layout.size()
    }

    /// Never: there is at least one byte.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Changes the first `length` bytes, one word in each cache line, so that the next message is
    /// new in every line.
    ///
    /// # Safety
    /// MPI must not be using the buffer.
    pub unsafe fn change(&self, length: usize, turn: u32) {
        for at in (0..length.min(self.len())).step_by(LINE) {
            // SAFETY: `at` lies in the buffer, and nobody else uses it.
            unsafe { self.base.as_ptr().add(at).write_volatile(turn.to_le_bytes()[0] ^ 0x5a) };
        }
    }

    /// Reads the first `length` bytes, one of each cache line, as a receiver would.
    ///
    /// # Safety
    /// MPI must not be using the buffer.
    pub unsafe fn look(&self, length: usize) {
        let mut sum = 0_u8;
        for at in (0..length.min(self.len())).step_by(LINE) {
            // SAFETY: `at` lies in the buffer, and nobody else uses it.
            sum ^= unsafe { self.base.as_ptr().add(at).read_volatile() };
        }
        black_box(sum);
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: the memory came from `alloc` with this layout.
        unsafe { dealloc(self.base.as_ptr(), self.layout) };
    }
}
