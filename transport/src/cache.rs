//! Hints to the processor's caches. They change no result, only when a line is fetched.

macro_rules! hint {
    ($(#[$comment:meta])* $name:ident, $instruction:literal) => {
        $(#[$comment])*
        #[inline]
        pub fn $name(at: *const u8) {
            #[cfg(all(target_arch = "x86_64", not(miri), not(vmshm_sanitize)))]
            // SAFETY: a hint does no harm with any address at all, nor where the processor does not know it.
            unsafe {
                core::arch::asm!(concat!($instruction, " [{}]"), in(reg) at, options(nostack, preserves_flags, readonly));
            }
            #[cfg(not(all(target_arch = "x86_64", not(miri), not(vmshm_sanitize))))]
            let _ = at;
        }
    };
}

hint!(
    /// Fetches the line at `at` to be written, on processors that can (`prefetchw`; the others do nothing).
    own,
    "prefetchw"
);
hint!(
    /// Moves the line at `at`, which was just written, to the cache that all processors share: another one gets it from
    /// there faster than out of ours (`cldemote`; processors that don't know it do nothing).
    give,
    "cldemote"
);
hint!(
    /// Fetches the line at `at` to be read.
    expect,
    "prefetcht0"
);
