//! Hints to the processor.

/// Bytes of the lines that caches exchange.
const LINE: usize = 64;

/// Makes `len` bytes at `address`, which are about to be written, ours alone in the caches: a write to a line that others
/// have read waits until they have given it up.
#[inline]
pub fn will_write(address: *mut u8, len: usize) {
    for at in (0..len.max(1)).step_by(LINE) {
        own(address.wrapping_add(at));
    }
}

#[cfg(all(target_arch = "x86_64", not(miri), not(loom)))]
#[inline]
fn own(address: *mut u8) {
    // SAFETY: a hint about any address; it neither reads nor writes, as far as programs can see, and does not fault.
    unsafe {
        core::arch::asm!("prefetchw [{}]", in(reg) address, options(nostack, preserves_flags));
    }
}

#[cfg(not(all(target_arch = "x86_64", not(miri), not(loom))))]
#[inline]
fn own(_: *mut u8) {}
