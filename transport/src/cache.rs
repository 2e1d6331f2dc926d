//! Hints to the processor's caches. They change no result, only when a line is fetched.

/// Fetches the line at `at` to be written, on processors that can (`prefetchw`; the others do nothing).
#[inline]
pub fn own(at: *const u8) {
    #[cfg(all(target_arch = "x86_64", not(miri), not(vmshm_sanitize)))]
    // SAFETY: a prefetch of any address at all does no harm.
    unsafe {
        core::arch::asm!("prefetchw [{}]", in(reg) at, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri), not(vmshm_sanitize))))]
    let _ = at;
}

/// Moves the line at `at`, which was just written, to the cache that all processors share: another one gets it from there
/// faster than out of ours (`cldemote`; processors that don't know it do nothing).
#[inline]
pub fn give(at: *const u8) {
    #[cfg(all(target_arch = "x86_64", not(miri), not(vmshm_sanitize)))]
    // SAFETY: as for `own`; its encoding is a hint without effect where it is not known.
    unsafe {
        core::arch::asm!("cldemote [{}]", in(reg) at, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri), not(vmshm_sanitize))))]
    let _ = at;
}

/// Fetches the line at `at` to be read.
#[inline]
pub fn expect(at: *const u8) {
    #[cfg(all(target_arch = "x86_64", not(miri), not(vmshm_sanitize)))]
    // SAFETY: a prefetch of any address at all does no harm.
    unsafe {
        core::arch::asm!("prefetcht0 [{}]", in(reg) at, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri), not(vmshm_sanitize))))]
    let _ = at;
}
