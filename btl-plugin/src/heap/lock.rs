//! A lock that neither allocates nor waits for itself: it stands inside `malloc`.

use std::cell::UnsafeCell;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicI32, Ordering};

const UNLOCKED: libc::pthread_mutex_t = libc::PTHREAD_ERRORCHECK_MUTEX_INITIALIZER_NP;

/// A value behind a lock. A thread that holds it and comes again, because what it does allocates, is turned away.
pub struct Lock<T> {
    mutex: UnsafeCell<libc::pthread_mutex_t>,
    value: UnsafeCell<T>,
    /// The process that forks, or 0: in its child the mutex's owner does not exist, and must not be waited for.
    forking: AtomicI32,
}

// SAFETY: the mutex gives the value to one thread at a time.
unsafe impl<T: Send> Sync for Lock<T> {}

/// The value, held.
pub struct Held<'a, T>(&'a Lock<T>);

impl<T> Lock<T> {
    pub const fn new(value: T) -> Self {
        Self { mutex: UnsafeCell::new(UNLOCKED), value: UnsafeCell::new(value), forking: AtomicI32::new(0) }
    }

    /// Waits for the value; None where this thread holds it already, and in a forked child before [`Lock::renew`].
    pub fn enter(&self) -> Option<Held<'_, T>> {
        let forking = self.forking.load(Ordering::Relaxed);
        if forking != 0 && forking != process() {
            return None;
        }
        // SAFETY: the mutex is initialised and never moves, being in a static.
        let is_ours = unsafe { libc::pthread_mutex_lock(self.mutex.get()) } == 0;
        // Not `then_some`: a guard made in vain would be dropped, and unlock what this thread holds.
        is_ours.then(|| Held(self))
    }

    /// Has children that this process forks turned away until [`Lock::renew`], or until [`Lock::resume`] here. Called by
    /// the thread that holds the lock.
    pub fn close_to_children(&self) {
        self.forking.store(process(), Ordering::Relaxed);
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
        self.forking.store(0, Ordering::Relaxed);
        Held(self)
    }

    /// The value again, for who has forgotten its guard.
    ///
    /// # Safety
    /// The caller's thread holds the lock, with a guard that it has forgotten.
    pub unsafe fn resume(&self) -> Held<'_, T> {
        self.forking.store(0, Ordering::Relaxed);
        Held(self)
    }
}

fn process() -> i32 {
    // SAFETY: a plain question.
    unsafe { libc::getpid() }
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

    #[test]
    fn a_child_is_turned_away_until_the_lock_is_made_anew() {
        static VALUE: Lock<u64> = Lock::new(7);
        std::mem::forget(VALUE.enter().unwrap());
        VALUE.close_to_children();
        // SAFETY: the child calls what a child may, and ends by _exit.
        let child = unsafe { libc::fork() };
        assert!(child >= 0);
        if child == 0 {
            // SAFETY: plain calls; the lock was held, and its guard forgotten.
            unsafe {
                // Who waits for ever is ended.
                libc::alarm(20);
                let is_away = VALUE.enter().is_none();
                let is_seven = *VALUE.renew() == 7;
                let is_open = VALUE.enter().is_some();
                libc::_exit(if is_away && is_seven && is_open { 0 } else { 1 });
            }
        }
        // SAFETY: this thread holds the lock, and has forgotten the guard.
        drop(unsafe { VALUE.resume() });
        assert!(VALUE.enter().is_some());
        let mut status = 0;
        // SAFETY: the child is ours.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert_eq!(status, 0);
    }
}
