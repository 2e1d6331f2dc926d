//! A lock that neither allocates nor waits for itself: it stands inside `malloc`.

use std::cell::UnsafeCell;
use std::ops::{Deref, DerefMut};

/// A value behind a lock. A thread that holds it and comes again, because what it does allocates, is turned away.
///
/// It is never held across a fork: threads that are not in the child may have had it there.
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
        let mutex = UnsafeCell::new(libc::PTHREAD_ERRORCHECK_MUTEX_INITIALIZER_NP);
        Self { mutex, value: UnsafeCell::new(value) }
    }

    /// Waits for the value; None where this thread holds it already.
    pub fn enter(&self) -> Option<Held<'_, T>> {
        // SAFETY: the mutex is initialised and never moves, being in a static.
        let is_ours = unsafe { libc::pthread_mutex_lock(self.mutex.get()) } == 0;
        // Not `then_some`: a guard made in vain would be dropped, and unlock what this thread holds.
        is_ours.then(|| Held(self))
    }

    /// The value; None where any thread holds it.
    pub fn try_enter(&self) -> Option<Held<'_, T>> {
        // SAFETY: the mutex is initialised and never moves, being in a static.
        let is_ours = unsafe { libc::pthread_mutex_trylock(self.mutex.get()) } == 0;
        is_ours.then(|| Held(self))
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
        // SAFETY: this thread holds the mutex, and no second guard exists.
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
                        assert!(COUNT.enter().is_none() && COUNT.try_enter().is_none());
                        let next = *count + 1;
                        *count = next;
                    }
                });
            }
        });
        assert_eq!(*COUNT.try_enter().unwrap(), 40_000);
    }
}
