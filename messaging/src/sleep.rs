//! Sleeping on the doorbell.
//!
//! One thread of a process at a time sleeps. Another thread that finds something the sleeper may wait for wakes it: with the
//! [`Waker`], which is shared beside the engine, since the engine is not borrowed during a sleep.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::time::Duration;

use vmshm_transport::Sleeper;

/// Wakes the thread of this process that sleeps.
#[derive(Debug)]
pub struct Waker {
    sleeper: Sleeper,
    /// Some thread sleeps, or is about to.
    is_asleep: AtomicBool,
}

impl Waker {
    pub(crate) fn new(sleeper: Sleeper) -> Self {
        Self { sleeper, is_asleep: AtomicBool::new(false) }
    }

    /// Wakes the sleeping thread, if there is one, because something came that it may wait for.
    #[inline]
    pub fn wake(&self) {
        // A thread about to sleep either sees what was written before this, or is seen to sleep.
        fence(Ordering::SeqCst);
        if self.is_asleep.load(Ordering::SeqCst) {
            self.sleeper.ring_self();
        }
    }

    /// The right to sleep, which one thread has at a time.
    pub(crate) fn lie_down(self: &Arc<Self>) -> Option<Sleeping> {
        let is_first = !self.is_asleep.swap(true, Ordering::SeqCst);
        is_first.then(|| Sleeping(Arc::clone(self)))
    }
}

/// The right of this thread to sleep. The engine need not be borrowed meanwhile; afterwards
/// [`Engine::wake_up`](crate::Engine::wake_up) is due, and only then this value is dropped.
#[derive(Debug)]
pub struct Sleeping(Arc<Waker>);

impl Sleeping {
    /// Sleeps until the doorbell rings or `time` is over, unless `is_idle` says that something came meanwhile by another way.
    pub fn wait(&self, time: Duration, is_idle: impl FnOnce() -> bool) {
        // Events that another thread finds from now on ring; what it found since the decision to sleep is seen by `is_idle`.
        fence(Ordering::SeqCst);
        if is_idle() {
            self.0.sleeper.wait(time);
        }
    }
}

impl Drop for Sleeping {
    fn drop(&mut self) {
        self.0.is_asleep.store(false, Ordering::SeqCst);
    }
}
