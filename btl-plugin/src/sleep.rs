//! Sleeping on the doorbell while there is nothing to do.

use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::thread::yield_now;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use vmshm_transport::Sleeper;
use vmshm_transport::attach::Attached;

use crate::fabric::{FABRIC, Held};
use crate::heard;
use crate::idle::{Idle, Rest, work};

/// Some thread of this process sleeps, or is about to.
static ASLEEP: AtomicBool = AtomicBool::new(false);

/// The doorbell of the thread that sleeps.
static DOORBELL: Mutex<Option<Sleeper>> = Mutex::new(None);

/// Some thread looks for messages while it waits for what nobody rings for.
static AWAKE: AtomicBool = AtomicBool::new(false);

/// Does `work` without a sleep. Only windows do, which are not where threads share MPI: one thread at a time is here.
#[inline]
pub fn awake(work: impl FnOnce()) {
    let before = AWAKE.swap(true, Ordering::Relaxed);
    work();
    AWAKE.store(before, Ordering::Relaxed);
}

/// What a process that may sleep remembers of its waiting.
#[derive(Debug)]
pub struct Sleep {
    idle: Idle,
    /// The doorbell; none where the device has none, and then the process only yields.
    sleeper: Option<Sleeper>,
    /// Messages of all transports, when last looked at.
    heard: u32,
    is_listening: bool,
}

impl Sleep {
    /// Lets an endpoint's process sleep after so long a wait.
    pub fn new(endpoint: &Attached, sleep_after: Duration) -> Self {
        Self { idle: Idle::new(sleep_after), sleeper: endpoint.sleeper(), heard: 0, is_listening: false }
    }

    /// Whether there is a doorbell to sleep on.
    pub fn has_doorbell(&self) -> bool {
        self.sleeper.is_some()
    }

    /// What to do after a poll that found something or not.
    #[inline]
    pub fn rest(&mut self, is_busy: bool) -> Rest {
        let heard = heard::count();
        if is_busy || heard != self.heard {
            self.heard = heard;
            self.is_listening = false;
            self.idle.end();
            return Rest::Spin;
        }
        if AWAKE.load(Ordering::Relaxed) {
            // Nor has it been idle when it waits for a message next.
            self.idle.end();
            return Rest::Yield;
        }
        let rest = self.idle.poll(Instant::now, work);
        if rest != Rest::Spin && !self.is_listening {
            // Open MPI may have registered more callbacks since the last time.
            heard::listen();
            self.is_listening = true;
        }
        match rest {
            Rest::Sleep(_) if self.sleeper.is_none() => Rest::Yield,
            rest => rest,
        }
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        heard::stop();
    }
}

/// Sleeps until the doorbell rings, `time` at most, unless another thread does so already or something has come just now:
/// then lets others run. The lock is not held meanwhile.
pub fn sleep(mut fabric: Held, time: Duration) {
    let is_only = !ASLEEP.swap(true, Ordering::SeqCst);
    let sleeper = fabric.as_mut().filter(|_| is_only).and_then(|fabric| {
        let sleeper = fabric.sleep.as_ref()?.sleeper.clone()?;
        fabric.endpoint.fall_asleep(fabric.inbox.as_ref()?).then_some(sleeper)
    });
    let heard = fabric.as_ref().and_then(|fabric| Some(fabric.sleep.as_ref()?.heard));
    if let Some(sleeper) = &sleeper {
        // Before the lock is given up: who holds it next, and finds something, rings.
        *DOORBELL.lock() = Some(sleeper.clone());
    }
    drop(fabric);
    match sleeper {
        None => yield_now(),
        Some(sleeper) => {
            // What another thread hears from now on rings; what it has heard since we decided to sleep is seen here.
            fence(Ordering::SeqCst);
            if heard == Some(heard::count()) {
                sleeper.wait(time);
            }
            *DOORBELL.lock() = None;
            if let Some(fabric) = FABRIC.lock().as_mut() {
                fabric.endpoint.wake_up();
                if let Some(sleep) = &mut fabric.sleep {
                    sleep.idle.slept(Instant::now(), work());
                }
            }
        }
    }
    if is_only {
        ASLEEP.store(false, Ordering::SeqCst);
    }
}

/// Wakes the thread that sleeps, because something has come for this process that it may wait for.
#[inline]
pub fn rouse() {
    // Only ever set where sleeping was asked for: then what was written before is seen by who is about to sleep.
    fence(Ordering::SeqCst);
    if ASLEEP.load(Ordering::SeqCst)
        && let Some(sleeper) = &*DOORBELL.lock()
    {
        sleeper.ring_self();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_awake_yields_and_has_not_been_idle_after_it() {
        // It has heard of all callbacks already: they are another test's.
        let mut sleep = std::mem::ManuallyDrop::new(Sleep {
            idle: Idle::new(Duration::from_millis(1)),
            sleeper: None,
            heard: heard::count(),
            is_listening: true,
        });
        while sleep.rest(false) == Rest::Spin {}
        sleep.heard = heard::count();
        awake(|| assert_eq!(sleep.rest(false), Rest::Yield));
        assert_eq!(sleep.rest(false), Rest::Spin);
    }
}
