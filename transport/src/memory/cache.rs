//! Hints to the processor's caches.

use core::sync::atomic::{AtomicBool, Ordering};

/// Hints to the processor's caches. They change no result, only when a line moves from one cache to another.
pub trait CacheHints {
    /// Prefetches the lines of these bytes for writing, which the member may.
    fn prefetch_write(&self, _offset: u64, _len: u64) {}

    /// Whether a line is owned sooner by a store than by [`CacheHints::prefetch_write`], of which a processor may drop those that
    /// it has no room for; see [`Memory::own`](super::Memory::own).
    fn stores_ahead(&self) -> bool {
        false
    }

    /// Demotes the lines of these bytes, which the member has written, to the shared cache: a reader gets them from there
    /// faster than out of the writer's own.
    fn demote(&self, _offset: u64, _len: u64) {}

    /// Prefetches the line at this offset for reading.
    fn prefetch(&self, _offset: u64) {}
}

/// Whether lines are owned ahead, more than one at a time, and demoted.
static OWNS_AHEAD: AtomicBool = AtomicBool::new(true);
static DEMOTES: AtomicBool = AtomicBool::new(true);
/// What [`CacheHints::stores_ahead`] says.
static STORES_AHEAD: AtomicBool = AtomicBool::new(false);

/// Says whether [`CacheHints::prefetch_write`] of more than a line and [`CacheHints::demote`] do anything, and what
/// [`CacheHints::stores_ahead`] says.
#[cfg(feature = "std")]
pub fn set_hints(owns_ahead: bool, demotes: bool, stores_ahead: bool) {
    OWNS_AHEAD.store(owns_ahead, Ordering::Relaxed);
    STORES_AHEAD.store(stores_ahead, Ordering::Relaxed);
    DEMOTES.store(demotes, Ordering::Relaxed);
}

#[inline]
pub fn owns_ahead() -> bool {
    OWNS_AHEAD.load(Ordering::Relaxed)
}

#[inline]
pub fn stores_ahead() -> bool {
    STORES_AHEAD.load(Ordering::Relaxed)
}

#[inline]
pub fn demotes() -> bool {
    DEMOTES.load(Ordering::Relaxed)
}

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
    /// Prefetches the line at `at` for writing, on processors that can (`prefetchw`; the others do nothing).
    prefetch_write,
    "prefetchw"
);
hint!(
    /// Demotes the line at `at`, which was just written, to the cache that all processors share: another one gets it from
    /// there faster than out of ours (`cldemote`; processors that don't know it do nothing).
    demote,
    "cldemote"
);
hint!(
    /// Prefetches the line at `at` for reading.
    prefetch,
    "prefetcht0"
);
