//! A lock that costs next to nothing in programs that have no need of one.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RawMutex;
use parking_lot::lock_api::{self, GuardNoSend};

/// A mutex around `T`, free of atomic read-modify-write operations until [`Lock::share`] is called.
///
/// They would double the cost of looking for a small message, and most MPI programs promise (by any thread level below
/// `MPI_THREAD_MULTIPLE`) that no two of their threads are inside MPI at a time.
pub type Lock<T> = lock_api::Mutex<RawLock, T>;

/// Content of a [`Lock`].
pub type Guard<'a, T> = lock_api::MutexGuard<'a, RawLock, T>;

/// The raw lock: a mutex where there are threads, else a mark against calling ourselves.
pub struct RawLock {
    /// There are threads. Never changes while the lock is held.
    shared: AtomicBool,
    /// Held, where there are no threads.
    held: AtomicBool,
    mutex: RawMutex,
}

impl RawLock {
    /// From now on, several threads may use the lock at a time.
    ///
    /// # Safety
    /// The lock is not held, and no other thread uses it yet.
    pub unsafe fn share(&self) {
        self.shared.store(true, Ordering::Relaxed);
    }

    fn is_shared(&self) -> bool {
        self.shared.load(Ordering::Relaxed)
    }
}

// SAFETY: where the lock is shared, parking_lot's mutex excludes. Where it is not, Open MPI calls us from one thread at a
// time (its contract for thread levels below MPI_THREAD_MULTIPLE), and `held` excludes that thread from itself.
unsafe impl lock_api::RawMutex for RawLock {
    #[allow(clippy::declare_interior_mutable_const, reason = "that is how lock_api makes them")]
    const INIT: Self =
        Self { shared: AtomicBool::new(false), held: AtomicBool::new(false), mutex: RawMutex::INIT };

    type GuardMarker = GuardNoSend;

    #[inline]
    fn lock(&self) {
        if self.is_shared() {
            self.mutex.lock();
        } else {
            // It would wait for itself, for ever.
            assert!(
                self.try_lock(),
                "btl vmshm was called from inside itself, or by two threads without MPI_THREAD_MULTIPLE"
            );
        }
    }

    #[inline]
    fn try_lock(&self) -> bool {
        if self.is_shared() {
            return self.mutex.try_lock();
        }
        let free = !self.held.load(Ordering::Relaxed);
        self.held.store(true, Ordering::Relaxed);
        free
    }

    #[inline]
    unsafe fn unlock(&self) {
        if self.is_shared() {
            // SAFETY: the caller holds the lock.
            unsafe { self.mutex.unlock() };
        } else {
            self.held.store(false, Ordering::Relaxed);
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
