//! A lock that costs next to nothing for the thread that makes progress.
//!
//! UCP calls a transport from one thread at a time, and another one now and then: wire-up messages that come by UD are handled by a thread
//! of UCX's own (`UCT_CB_FLAG_ASYNC`), which makes endpoints of all transports while the program sends; and memory is taken back by
//! whoever frees it. So the thread that makes progress only marks that it is inside, and others make it notice them by `membarrier`.

use std::cell::UnsafeCell;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, compiler_fence};
use std::thread;

use parking_lot::RawMutex;
use parking_lot::lock_api::RawMutex as _;

/// Values of [`Lock::owner`] that are no thread's: nobody has made progress yet, and several threads have.
const NOBODY: usize = 0;
const ALL: usize = 1;

/// A mutex around `T`, free of atomic read-modify-write operations for one thread.
pub struct Lock<T> {
    /// The only thread that has made progress; all others lock the mutex. Changed by whoever holds it.
    owner: AtomicUsize,
    /// The owner is inside, without the mutex.
    is_held: AtomicBool,
    /// Another thread has the mutex, and the owner must lock it.
    is_wanted: AtomicBool,
    mutex: RawMutex,
    data: UnsafeCell<T>,
}

// SAFETY: one thread at a time has a guard: see `Lock::enter` and `Lock::lock_mutex`.
unsafe impl<T: Send> Sync for Lock<T> {}

/// What a [`Lock`] protects.
pub struct Guard<'a, T> {
    lock: &'a Lock<T>,
    /// It has the mutex, else it is the owner's.
    has_mutex: bool,
}

impl<T> Lock<T> {
    pub fn new(data: T) -> Self {
        // SAFETY: the call touches no memory.
        let registered = unsafe {
            libc::syscall(libc::SYS_membarrier, libc::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0)
        };
        Self {
            // Where the kernel has no such barrier, everybody locks the mutex.
            owner: AtomicUsize::new(if registered == 0 { NOBODY } else { ALL }),
            is_held: AtomicBool::new(false),
            is_wanted: AtomicBool::new(false),
            mutex: RawMutex::INIT,
            data: UnsafeCell::new(data),
        }
    }

    /// Waits for the lock. Not to be called by a thread that has it.
    #[inline(always)]
    pub fn lock(&self) -> Guard<'_, T> {
        if self.enter() { Guard { lock: self, has_mutex: false } } else { self.lock_mutex() }
    }

    /// The lock if it is free, for a thread that makes progress.
    #[inline(always)]
    pub fn try_lock(&self) -> Option<Guard<'_, T>> {
        if self.enter() { Some(Guard { lock: self, has_mutex: false }) } else { self.try_lock_mutex() }
    }

    /// Whether the owner, which calls, is inside from now on. Others see the mark behind their barrier and wait, or the mark is stored
    /// behind that, and then the load of what they want is, too.
    #[inline(always)]
    fn enter(&self) -> bool {
        if self.owner.load(Ordering::Relaxed) != this_thread() || self.is_held.load(Ordering::Relaxed) {
            return false;
        }
        self.is_held.store(true, Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst);
        if !self.is_wanted.load(Ordering::Acquire) {
            return true;
        }
        self.is_held.store(false, Ordering::Release);
        false
    }

    #[cold]
    #[inline(never)]
    fn lock_mutex(&self) -> Guard<'_, T> {
        // It would wait for itself, for ever.
        let is_inside =
            self.owner.load(Ordering::Relaxed) == this_thread() && self.is_held.load(Ordering::Relaxed);
        assert!(!is_inside, "vmshm was called from inside itself");
        self.mutex.lock();
        self.keep_owner_out();
        Guard { lock: self, has_mutex: true }
    }

    #[cold]
    #[inline(never)]
    fn try_lock_mutex(&self) -> Option<Guard<'_, T>> {
        if self.owner.load(Ordering::Relaxed) == this_thread() && self.is_held.load(Ordering::Relaxed)
            || !self.mutex.try_lock()
        {
            return None;
        }
        self.keep_owner_out();
        // The first thread that makes progress owns the lock, as long as it is the only one.
        match self.owner.load(Ordering::Relaxed) {
            NOBODY => self.owner.store(this_thread(), Ordering::Relaxed),
            owner if owner != this_thread() => self.owner.store(ALL, Ordering::Relaxed),
            _ => {}
        }
        Some(Guard { lock: self, has_mutex: true })
    }

    /// Waits until the owner is outside, where it stays until the mutex is unlocked, which this thread has.
    fn keep_owner_out(&self) {
        let owner = self.owner.load(Ordering::Relaxed);
        if matches!(owner, NOBODY | ALL) || owner == this_thread() {
            return;
        }
        self.is_wanted.store(true, Ordering::Relaxed);
        // SAFETY: the call touches no memory. The process has registered for it.
        let done = unsafe { libc::syscall(libc::SYS_membarrier, libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0) };
        assert_eq!(done, 0, "membarrier, for which this process has registered");
        while self.is_held.load(Ordering::Acquire) {
            thread::yield_now();
        }
    }
}

impl<T> Guard<'_, T> {
    /// Does something for which nothing may be held.
    #[inline(always)]
    pub fn unlocked<R>(&mut self, f: impl FnOnce() -> R) -> R {
        self.leave();
        let result = f();
        let Guard { has_mutex, .. } = *std::mem::ManuallyDrop::new(self.lock.lock());
        self.has_mutex = has_mutex;
        result
    }

    #[inline(always)]
    fn leave(&self) {
        if !self.has_mutex {
            return self.lock.is_held.store(false, Ordering::Release);
        }
        self.lock.is_wanted.store(false, Ordering::Release);
        // SAFETY: the guard has the mutex.
        unsafe { self.lock.mutex.unlock() };
    }
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    #[inline(always)]
    fn deref(&self) -> &T {
        // SAFETY: whoever has the guard is alone inside.
        unsafe { &*self.lock.data.get() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above.
        unsafe { &mut *self.lock.data.get() }
    }
}

impl<T> Drop for Guard<'_, T> {
    #[inline(always)]
    fn drop(&mut self) {
        self.leave();
    }
}

/// A number of this thread, which no other one that lives has.
#[inline(always)]
fn this_thread() -> usize {
    // SAFETY: the call is always valid. Its result is an address, more than `ALL`.
    unsafe { libc::pthread_self() as usize }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUNDS: u64 = 20_000;

    /// A count of which some are lost where two threads are inside.
    fn add(count: &mut u64) {
        let before = std::hint::black_box(&mut *count);
        let next = (0..20).fold(*before, |sum, one| std::hint::black_box(sum + one)) - 190 + 1;
        *count = next;
    }

    #[test]
    fn others_and_the_owner_exclude_each_other() {
        let lock = Lock::new(0);
        add(&mut lock.try_lock().unwrap());
        assert_eq!(lock.owner.load(Ordering::Relaxed), this_thread());
        thread::scope(|scope| {
            let other = scope.spawn(|| (0..ROUNDS).for_each(|_| add(&mut lock.lock())));
            let mut own = 0;
            while !other.is_finished() {
                let mut guard = lock.lock();
                add(&mut guard);
                guard.unlocked(|| {});
                add(&mut guard);
                own += 2;
            }
            assert_eq!(*lock.lock(), 1 + ROUNDS + own);
        });
        assert_eq!(lock.owner.load(Ordering::Relaxed), this_thread(), "only progress makes an owner");
    }

    #[test]
    fn threads_that_all_make_progress_share_the_mutex() {
        let lock = Lock::new(0);
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..ROUNDS {
                        lock.try_lock().as_deref_mut().map_or_else(|| add(&mut lock.lock()), add);
                    }
                });
            }
        });
        assert_eq!(*lock.lock(), 3 * ROUNDS);
    }

    #[test]
    fn the_owner_is_not_let_in_twice() {
        let lock = Lock::new(());
        drop(lock.try_lock());
        let guard = lock.lock();
        assert!(!guard.has_mutex && lock.try_lock().is_none());
        drop(guard);
        assert!(lock.try_lock().is_some());
    }
}
