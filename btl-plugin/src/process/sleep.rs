//! How this process waits: the idle policy of its engine, and what else it may wait for.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::yield_now;
use std::time::Duration;

use vmshm_messaging::IdleAction;

use super::instance::{Held, INSTANCE, Instance};
use super::other_traffic;

/// Some thread looks for messages while it waits for what nobody rings for.
static AWAKE: AtomicBool = AtomicBool::new(false);

/// Does `work` without a sleep. Only windows do, which are not where threads share MPI: one thread at a time is here.
#[inline]
pub fn awake(work: impl FnOnce()) {
    let before = AWAKE.swap(true, Ordering::Relaxed);
    work();
    AWAKE.store(before, Ordering::Relaxed);
}

/// Action after polls that found something or not.
#[inline]
pub fn idle(instance: &mut Instance, is_busy: bool) -> IdleAction {
    let Some(traffic) = &mut instance.traffic else { return IdleAction::Spin };
    let is_busy = traffic.has_come() || is_busy;
    if is_busy {
        traffic.is_busy();
    }
    let may_sleep = !AWAKE.load(Ordering::Relaxed);
    let action = instance.engine.idle(is_busy, may_sleep);
    if may_sleep && action != IdleAction::Spin {
        // Open MPI may have registered more callbacks since the last time.
        traffic.listen();
    }
    action
}

/// Sleeps until the doorbell rings, `time` at most, unless another thread does so already or something has come just now:
/// then lets others run. The lock is not held meanwhile.
pub fn sleep(mut held: Held, time: Duration) {
    let found = held.as_mut().and_then(|instance| {
        let sleeping = instance.engine.fall_asleep(instance.inbox.as_ref()?)?;
        Some((sleeping, instance.traffic.as_ref()?.seen()))
    });
    drop(held);
    let Some((sleeping, seen)) = found else { return yield_now() };
    sleeping.wait(time, || seen == other_traffic::count());
    if let Some(instance) = INSTANCE.lock().as_mut() {
        instance.engine.wake_up();
    }
}
