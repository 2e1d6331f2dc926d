//! A lock that costs next to nothing in programs that have no need of one.

use std::sync::atomic::{AtomicU8, Ordering};

use parking_lot::RawMutex;
use parking_lot::lock_api::{self, GuardNoSend, RawMutex as _};

/// A mutex around `T`, free of atomic read-modify-write operations until [`Lock::share`] is called.
///
/// They would double the cost of looking for a small message, and most MPI programs promise (by any thread level below
/// `MPI_THREAD_MULTIPLE`) that no two of their threads are inside MPI at a time.
pub type Lock<T> = lock_api::Mutex<RawLock, T>;

/// What is held in a [`Lock`].
pub type Guard<'a, T> = lock_api::MutexGuard<'a, RawLock, T>;

/// The raw lock: a mutex where there are threads, else a mark against calling ourselves.
pub struct RawLock {
    /// Of [`HELD`], [`SHARED`], [`TOUCHED`] and [`LENT`] those that are so: one byte, so that one comparison tells whether all is
    /// as usual.
    state: AtomicU8,
    mutex: RawMutex,
}

/// There are no threads, and the lock is held.
const HELD: u8 = 1;
/// There are threads: the mutex says whether it is held, and the others are not used. Never changes again.
const SHARED: u8 = 2;
/// The lock was taken since [`RawLock::rest`].
const TOUCHED: u8 = 4;
/// Its holder has lent a part without the lock: see [`RawLock::lend`].
const LENT: u8 = 8;

impl RawLock {
    /// From now on, several threads may use the lock at a time.
    ///
    /// # Safety
    /// The lock is not held, and no other thread uses it yet.
    pub unsafe fn share(&self) {
        self.state.store(SHARED, Ordering::Relaxed);
    }

    /// Whether there are no threads to exclude, and the lock is free.
    #[inline(always)]
    pub fn is_needless(&self) -> bool {
        self.state.load(Ordering::Relaxed) & (HELD | SHARED) == 0
    }

    /// From now on [`RawLock::is_at_rest`], until somebody takes the lock: where there are no threads to exclude.
    pub fn rest(&self) {
        let state = self.state.load(Ordering::Relaxed);
        if state & SHARED == 0 {
            self.state.store(state & !TOUCHED, Ordering::Relaxed);
        }
    }

    /// Whether there are no threads to exclude, nothing is lent, and nobody has taken the lock since [`RawLock::rest`].
    #[inline(always)]
    pub fn is_at_rest(&self) -> bool {
        self.state.load(Ordering::Relaxed) == 0
    }

    /// Lends a part of what the lock protects, from where it is at rest until [`RawLock::give_back`]. Others may take the lock
    /// meanwhile; those who would use the same part must ask [`RawLock::is_lent`].
    #[inline(always)]
    pub fn lend(&self) {
        self.state.store(LENT, Ordering::Relaxed);
    }

    /// Ends [`RawLock::lend`].
    #[inline(always)]
    pub fn give_back(&self) {
        self.state.store(self.state.load(Ordering::Relaxed) & !LENT, Ordering::Relaxed);
    }

    /// Whether a part is lent.
    #[inline]
    pub fn is_lent(&self) -> bool {
        self.state.load(Ordering::Relaxed) & LENT != 0
    }

    fn is_shared(&self) -> bool {
        self.state.load(Ordering::Relaxed) & SHARED != 0
    }

    /// Takes a lock that is not simply free.
    #[inline(never)]
    fn lock_shared(&self) {
        // It would wait for itself, for ever.
        assert!(
            self.is_shared(),
            "btl vmshm was called from inside itself, or by two threads without MPI_THREAD_MULTIPLE"
        );
        self.mutex.lock();
    }

    #[inline(never)]
    fn try_lock_shared(&self) -> bool {
        self.is_shared() && self.mutex.try_lock()
    }

    /// # Safety
    /// The caller holds the mutex.
    #[inline(never)]
    unsafe fn unlock_shared(&self) {
        // SAFETY: the caller holds it.
        unsafe { self.mutex.unlock() };
    }
}

// SAFETY: where the lock is shared, parking_lot's mutex excludes. Where it is not, Open MPI calls us from one thread at a
// time (its contract for thread levels below MPI_THREAD_MULTIPLE), and `HELD` excludes that thread from itself.
unsafe impl lock_api::RawMutex for RawLock {
    #[allow(clippy::declare_interior_mutable_const, reason = "that is how lock_api makes them")]
    const INIT: Self = Self { state: AtomicU8::new(TOUCHED), mutex: RawMutex::INIT };

    type GuardMarker = GuardNoSend;

    #[inline]
    fn lock(&self) {
        let state = self.state.load(Ordering::Relaxed);
        if state & (HELD | SHARED) == 0 {
            self.state.store(state | HELD | TOUCHED, Ordering::Relaxed);
        } else {
            self.lock_shared();
        }
    }

    #[inline]
    fn try_lock(&self) -> bool {
        let state = self.state.load(Ordering::Relaxed);
        if state & (HELD | SHARED) != 0 {
            return self.try_lock_shared();
        }
        self.state.store(state | HELD | TOUCHED, Ordering::Relaxed);
        true
    }

    #[inline]
    unsafe fn unlock(&self) {
        let state = self.state.load(Ordering::Relaxed);
        if state & HELD != 0 {
            self.state.store(state & !HELD, Ordering::Relaxed);
        } else {
            // SAFETY: the caller holds the lock, which is the mutex where it is not `HELD`.
            unsafe { self.unlock_shared() };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_threads_the_lock_excludes_its_own_thread() {
        let lock = Lock::new(1);
        let guard = lock.lock();
        assert!(lock.try_lock().is_none());
        drop(guard);
        assert!(lock.try_lock().is_some());
    }

    #[test]
    fn the_lock_is_at_rest_until_somebody_takes_it() {
        let lock = Lock::new(1);
        // SAFETY: the raw lock is only looked at.
        let raw = unsafe { lock.raw() };
        assert!(!raw.is_at_rest());
        raw.rest();
        assert!(raw.is_at_rest());
        raw.lend();
        assert!(raw.is_lent() && !raw.is_at_rest() && raw.is_needless());
        drop(lock.lock());
        assert!(raw.is_lent());
        raw.give_back();
        assert!(!raw.is_lent() && !raw.is_at_rest());
        raw.rest();
        let guard = lock.lock();
        raw.rest();
        assert!(!raw.is_at_rest() && !raw.is_needless());
        drop(guard);
        assert!(raw.is_at_rest());
    }

    #[test]
    fn with_threads_the_lock_is_never_at_rest() {
        let lock = Lock::new(1);
        // SAFETY: nobody uses it yet.
        unsafe { lock.raw().share() };
        // SAFETY: the raw lock is only looked at.
        let raw = unsafe { lock.raw() };
        raw.rest();
        assert!(!raw.is_at_rest() && !raw.is_needless());
        drop(lock.lock());
    }

    #[test]
    fn with_threads_the_lock_excludes_other_threads() {
        let lock: Lock<u64> = Lock::new(0);
        // SAFETY: nobody uses it yet.
        unsafe { lock.raw().share() };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..10_000 {
                        let mut count = lock.lock();
                        let next = *count + 1;
                        *count = next;
                    }
                });
            }
        });
        assert_eq!(*lock.lock(), 40_000);
    }
}
