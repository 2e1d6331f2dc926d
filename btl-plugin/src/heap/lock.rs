//! A lock that neither allocates nor waits for itself: it stands inside `malloc`.

use std::cell::UnsafeCell;
use std::ops::{Deref, DerefMut};

const UNLOCKED: libc::pthread_mutex_t = libc::PTHREAD_ERRORCHECK_MUTEX_INITIALIZER_NP;

/// A value behind a lock. A thread that holds it and comes again, because what it does allocates, is turned away.
pub struct Lock<T> {
    mutex: UnsafeCell<libc::pthread_mutex_t>,
    value: UnsafeCell<T>,
}

// SAFETY: the mutex gives the value to one thread at a time.
unsafe impl<T: Send> Sync for Lock<T> {}

/// The value, held.
pub struct Held<'a, T>(&'a Lock<T>);

impl<T> Lock<T> {
    pub const fn new(value: T) -> Self {
        Self { mutex: UnsafeCell::new(UNLOCKED), value: UnsafeCell::new(value) }
    }

    /// Waits for the value; None where this thread holds it already.
    pub fn enter(&self) -> Option<Held<'_, T>> {
        // SAFETY: the mutex is initialised and never moves, being in a static.
        let is_ours = unsafe { libc::pthread_mutex_lock(self.mutex.get()) } == 0;
        // Not `then_some`: a guard made in vain would be dropped, and unlock what this thread holds.
        is_ours.then(|| Held(self))
    }

    /// In a forked child, for its one thread: makes the lock anew that this thread held in the parent. There the mutex has
    /// the parent's thread for its owner.
    ///
    /// # Safety
    /// The caller held the lock when it forked, with a guard that it has forgotten.
    pub unsafe fn renew(&self) -> Held<'_, T> {
        // SAFETY: no other thread is there.
        unsafe {
            *self.mutex.get() = UNLOCKED;
            libc::pthread_mutex_lock(self.mutex.get());
        }
        Held(self)
    }

    /// The value again, for who has forgotten its guard.
    ///
    /// # Safety
    /// The caller's thread holds the lock, with a guard that it has forgotten.
    pub unsafe fn resume(&self) -> Held<'_, T> {
        Held(self)
    }
}

impl<T> Deref for Held<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: this thread holds the mutex, and no second guard exists.
        unsafe { &*self.0.value.get() }
    }
}

impl<T> DerefMut for Held<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above.
        unsafe { &mut *self.0.value.get() }
    }
}

impl<T> Drop for Held<'_, T> {
    fn drop(&mut self) {
        // SAFETY: this thread holds it.
        unsafe { libc::pthread_mutex_unlock(self.0.mutex.get()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thread_at_a_time_and_none_twice() {
        static COUNT: Lock<u64> = Lock::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..10_000 {
                        let mut count = COUNT.enter().unwrap();
                        assert!(COUNT.enter().is_none());
                        let next = *count + 1;
                        *count = next;
                    }
                });
            }
        });
        assert_eq!(*COUNT.enter().unwrap(), 40_000);
    }
}
