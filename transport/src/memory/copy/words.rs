//! Copies by words of 8 bytes.

/// Copies `len` bytes from shared to private memory.
///
/// # Safety
///
/// `from` must be valid for volatile reads and `to` for writes of `len` bytes, and they must not overlap.
#[inline]
pub unsafe fn from_shared(from: *const u8, to: *mut u8, len: usize) {
    let mut at = 0;
    // SAFETY: at + 8 <= len (or at + 1 <= len) in each access; the shared side of word accesses is aligned.
    unsafe {
        while at < len && !from.add(at).cast::<u64>().is_aligned() {
            to.add(at).write(from.add(at).read_volatile());
            at += 1;
        }
        while at + 8 <= len {
            to.add(at).cast::<u64>().write_unaligned(from.add(at).cast::<u64>().read_volatile());
            at += 8;
        }
        while at < len {
            to.add(at).write(from.add(at).read_volatile());
            at += 1;
        }
    }
}

/// Copies `len` bytes from private to shared memory.
///
/// # Safety
///
/// `from` must be valid for reads and `to` for volatile writes of `len` bytes, and they must not overlap.
#[inline]
pub unsafe fn to_shared(from: *const u8, to: *mut u8, len: usize) {
    let mut at = 0;
    // SAFETY: at + 8 <= len (or at + 1 <= len) in each access; the shared side of word accesses is aligned.
    unsafe {
        while at < len && !to.add(at).cast::<u64>().is_aligned() {
            to.add(at).write_volatile(from.add(at).read());
            at += 1;
        }
        while at + 8 <= len {
            to.add(at).cast::<u64>().write_volatile(from.add(at).cast::<u64>().read_unaligned());
            at += 8;
        }
        while at < len {
            to.add(at).write_volatile(from.add(at).read());
            at += 1;
        }
    }
}
