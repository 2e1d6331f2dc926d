//! A region in this process's address space.

use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering, fence};

use vmshm_abi::LINE;

use crate::cache;
use crate::copy;
use crate::memory::Memory;

/// Two views of one region: all of it to read, and the part that this member may write.
///
/// The two may be one mapping or two; the caller decides whether the hardware enforces the difference. Every access is
/// checked against both.
#[derive(Debug)]
pub struct Window {
    read: *mut u8,
    len: u64,
    write: *mut u8,
    writable: Range<u64>,
}

// SAFETY: the window's pointers are only used for atomic and volatile accesses to memory that is shared with other
// processes anyway.
unsafe impl Send for Window {}
// SAFETY: as above.
unsafe impl Sync for Window {}

impl Window {
    /// A window on `len` bytes at `read`, of which the range `writable` can also be written at `write`.
    ///
    /// # Safety
    ///
    /// As long as the window lives, `read` must be valid for reads of `len` bytes and `write` for reads and writes of the
    /// bytes of `writable`; both are aligned to 8 bytes, and nobody in this process holds a reference to them.
    pub unsafe fn new(read: *mut u8, len: u64, write: *mut u8, writable: Range<u64>) -> Self {
        assert!(writable.start <= writable.end && writable.end <= len);
        assert!(writable.start.is_multiple_of(8) && read.cast::<u64>().is_aligned());
        assert!(write.cast::<u64>().is_aligned());
        Self { read, len, write, writable }
    }

    #[inline]
    fn writes(&self, offset: u64, len: u64) -> bool {
        // Below the range this wraps around, and is more than any length.
        let at = offset.wrapping_sub(self.writable.start);
        let size = self.writable.end - self.writable.start;
        at <= size && len <= size - at
    }

    /// Own memory is read where it is written: one address, one entry in the translation buffer.
    #[inline]
    fn readable(&self, offset: u64, len: u64) -> *mut u8 {
        if self.writes(offset, len) {
            // SAFETY: the offset lies in the writable range, which is mapped from `write` on.
            return unsafe { self.write.add((offset - self.writable.start) as usize) };
        }
        assert!(
            offset <= self.len && len <= self.len - offset,
            "read of {len} bytes at {offset} leaves the region"
        );
        // SAFETY: just checked against the length of the mapping.
        unsafe { self.read.add(offset as usize) }
    }

    #[inline]
    fn writable(&self, offset: u64, len: u64) -> *mut u8 {
        assert!(self.writes(offset, len), "write of {len} bytes at {offset} leaves this member's section");
        // SAFETY: just checked against the writable range.
        unsafe { self.write.add((offset - self.writable.start) as usize) }
    }

    #[inline]
    fn word<'a>(at: *mut u8) -> &'a AtomicU64 {
        assert!(at.cast::<u64>().is_aligned());
        // SAFETY: `at` comes from `readable` or `writable`, so eight bytes are mapped there (an aligned address inside
        // a range of eight bytes), and all accesses to words of the region are atomic.
        unsafe { AtomicU64::from_ptr(at.cast()) }
    }
}

impl Memory for Window {
    fn len(&self) -> u64 {
        self.len
    }

    #[inline]
    fn load(&self, offset: u64, order: Ordering) -> u64 {
        Self::word(self.readable(offset, 8)).load(order)
    }

    #[inline]
    fn store(&self, offset: u64, value: u64, order: Ordering) {
        Self::word(self.writable(offset, 8)).store(value, order);
    }

    #[inline]
    fn fetch_add(&self, offset: u64, value: u64, order: Ordering) -> u64 {
        Self::word(self.writable(offset, 8)).fetch_add(value, order)
    }

    #[inline]
    fn compare_exchange(&self, offset: u64, current: u64, new: u64) -> Result<u64, u64> {
        Self::word(self.writable(offset, 8)).compare_exchange(
            current,
            new,
            Ordering::AcqRel,
            Ordering::Acquire,
        )
    }

    #[inline]
    fn fence(&self, order: Ordering) {
        fence(order);
    }

    #[inline]
    unsafe fn copy_out(&self, offset: u64, to: *mut u8, len: usize) {
        // SAFETY: `readable` checked the shared side, the caller vouches for the private one.
        unsafe { copy::from_shared(self.readable(offset, len as u64), to, len) }
    }

    #[inline]
    unsafe fn copy_in(&self, offset: u64, from: *const u8, len: usize) {
        // SAFETY: `writable` checked the shared side, the caller vouches for the private one.
        unsafe { copy::to_shared(from, self.writable(offset, len as u64), len) }
    }

    #[inline]
    fn own(&self, offset: u64, len: u64) {
        let start = self.writable(offset, len);
        for at in (0..len as usize).step_by(LINE as usize) {
            cache::own(start.wrapping_add(at));
        }
    }

    #[inline]
    fn give(&self, offset: u64) {
        cache::give(self.writable(offset, 1));
    }

    #[inline]
    fn expect(&self, offset: u64) {
        cache::expect(self.readable(offset, 1));
    }

    #[inline]
    fn address(&self, offset: u64, len: u64) -> *mut u8 {
        self.readable(offset, len)
    }

    fn offset_of(&self, address: *const u8, len: u64) -> Option<u64> {
        let distance = (address as u64).checked_sub(self.write as u64)?;
        let offset = self.writable.start.checked_add(distance)?;
        self.writes(offset, len).then_some(offset)
    }
}
