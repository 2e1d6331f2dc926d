//! Idle policy: spin, then yield, then sleep.

use std::time::{Duration, Instant};

/// Most polls in vain between two looks at the clock, while spinning.
const POLLS: u32 = 1024;

/// The first sleep, and the last: whatever else the process waits for gets its turn in between.
const SHORTEST: Duration = Duration::from_millis(1);
const LONGEST: Duration = Duration::from_millis(64);

/// Processor time since the last sleep from which on the thread has computed rather than waited. Real time would not tell:
/// another process may have had its turn.
const WORK: Duration = Duration::from_micros(500);

/// Next action of an idle process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdleAction {
    /// Look again.
    Spin,
    /// Let another process run, then look again.
    Yield,
    /// Sleep for that time at most.
    Sleep(Duration),
}

/// Idle time of a process, and when it ends in sleep.
#[derive(Debug)]
pub(crate) struct Idle {
    sleep_after: Duration,
    /// Polls in vain since the last look at the clock.
    polls: u32,
    /// How many it takes to the next look. Fewer where Open MPI calls us seldom, or other transports take their time.
    pace: u32,
    /// The last look at the clock; none since something came.
    looked: Option<Instant>,
    /// Time spent waiting, as far as the looks tell.
    waited: Duration,
    next: Duration,
    /// Processor time of the thread at the end of its last sleep.
    slept: Option<Duration>,
}

impl Idle {
    /// Sleeps after a wait of `sleep_after`.
    pub fn new(sleep_after: Duration) -> Self {
        Self {
            sleep_after,
            polls: 0,
            pace: POLLS,
            looked: None,
            waited: Duration::ZERO,
            next: SHORTEST,
            slept: None,
        }
    }

    /// Something came.
    #[inline]
    pub fn end(&mut self) {
        self.polls = 0;
        self.looked = None;
        self.waited = Duration::ZERO;
        self.next = SHORTEST;
        self.slept = None;
    }

    /// Nothing came. Looks at the clock now and then while spinning, and always after that; before each sleep but the first
    /// also at the `work` that the thread has done, its processor time.
    #[inline]
    pub fn poll(&mut self, clock: impl FnOnce() -> Instant, work: impl FnOnce() -> Duration) -> IdleAction {
        self.polls += 1;
        if self.polls < self.pace && self.waited < self.sleep_after / 2 {
            return IdleAction::Spin;
        }
        if self.slept.is_some_and(|slept| work().saturating_sub(slept) > WORK) {
            // Back from a computation: the next message may be close again.
            self.end();
            return IdleAction::Spin;
        }
        self.look(clock())
    }

    fn look(&mut self, now: Instant) -> IdleAction {
        self.polls = 0;
        if let Some(last) = self.looked.replace(now) {
            let step = now.saturating_duration_since(last);
            if step > self.sleep_after / 4 {
                self.pace = (self.pace / 2).max(1);
            } else if step < self.sleep_after / 16 {
                self.pace = (self.pace * 2).min(POLLS);
            }
            // Some of a long step may have been computation, or another process's turn.
            self.waited += step.min(self.sleep_after / 4);
        }
        if self.waited >= self.sleep_after {
            let time = self.next;
            self.next = (2 * time).min(LONGEST);
            IdleAction::Sleep(time)
        } else if self.waited >= self.sleep_after / 2 {
            IdleAction::Yield
        } else {
            IdleAction::Spin
        }
    }

    /// Notes the end of a sleep, and the thread's processor time at that moment.
    pub fn slept(&mut self, now: Instant, work: Duration) {
        self.looked = Some(now);
        self.slept = Some(work);
    }
}

/// Processor time of this thread.
pub(crate) fn work() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: there is room for a time. This clock is always there; else the answer stays 0.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const AFTER: Duration = Duration::from_micros(100);
    /// Processor time of a thread that does nothing.
    const IDLE: Duration = Duration::from_secs(7);

    /// Polls every microsecond until something else than `rest` is due; how long that took.
    fn polls_while(idle: &mut Idle, now: &mut Instant, rest: IdleAction) -> (u32, IdleAction) {
        for polls in 1.. {
            *now += Duration::from_micros(1);
            let found = idle.poll(|| *now, || IDLE);
            if found != rest {
                return (polls, found);
            }
            assert!(polls < 100_000, "{rest:?} for ever");
        }
        unreachable!()
    }

    fn asleep() -> (Idle, Instant) {
        let (mut idle, mut now) = (Idle::new(AFTER), Instant::now());
        assert_eq!(polls_while(&mut idle, &mut now, IdleAction::Spin).1, IdleAction::Yield);
        assert_eq!(polls_while(&mut idle, &mut now, IdleAction::Yield).1, IdleAction::Sleep(SHORTEST));
        (idle, now)
    }

    #[test]
    fn it_spins_then_yields_then_sleeps() {
        let (mut idle, mut now) = (Idle::new(AFTER), Instant::now());
        let (spun, rest) = polls_while(&mut idle, &mut now, IdleAction::Spin);
        // Three looks at the clock: two steps of a quarter each, the second of half as many polls.
        assert_eq!((spun, rest), (POLLS + POLLS + POLLS / 2, IdleAction::Yield));
        let (yielded, rest) = polls_while(&mut idle, &mut now, IdleAction::Yield);
        assert_eq!((yielded, rest), (50, IdleAction::Sleep(SHORTEST)));
    }

    #[test]
    fn the_clock_is_not_looked_at_in_each_spin() {
        let mut idle = Idle::new(Duration::from_secs(1));
        let mut looks = 0;
        for _ in 0..10 * POLLS {
            let rest = idle.poll(
                || {
                    looks += 1;
                    Instant::now()
                },
                || IDLE,
            );
            assert_eq!(rest, IdleAction::Spin);
        }
        assert_eq!(looks, 10);
    }

    #[test]
    fn slow_polls_make_it_look_at_the_clock_more_often() {
        let (mut idle, mut now) = (Idle::new(AFTER), Instant::now());
        let mut spins = Vec::new();
        for _ in 0..8 {
            let mut spun = 0;
            while idle.poll(|| now, || IDLE) == IdleAction::Spin {
                now += Duration::from_micros(20);
                spun += 1;
            }
            spins.push(spun);
            idle.end();
        }
        assert!(spins.is_sorted_by(|a, b| a >= b), "{spins:?}");
        // Half of the time to the first sleep, as it should be.
        assert!(spins[7] <= 5, "{spins:?}");
    }

    #[test]
    fn sleeps_grow_until_something_comes() {
        let (mut idle, mut now) = asleep();
        for millis in [2, 4, 8, 16, 32, 64, 64, 64] {
            now += Duration::from_millis(70);
            idle.slept(now, IDLE);
            now += Duration::from_micros(5);
            assert_eq!(idle.poll(|| now, || IDLE), IdleAction::Sleep(Duration::from_millis(millis)));
        }
        idle.end();
        assert_eq!(idle.poll(|| now, || IDLE), IdleAction::Spin);
        assert_eq!(polls_while(&mut idle, &mut now, IdleAction::Spin).1, IdleAction::Yield);
    }

    #[test]
    fn after_a_computation_it_spins_first() {
        let (mut idle, mut now) = asleep();
        idle.slept(now, IDLE);
        now += Duration::from_millis(1);
        assert_eq!(idle.poll(|| now, || IDLE + 2 * WORK), IdleAction::Spin);
        assert_eq!(polls_while(&mut idle, &mut now, IdleAction::Spin).1, IdleAction::Yield);
    }

    #[test]
    fn the_turn_of_another_process_is_no_computation() {
        let (mut idle, mut now) = asleep();
        idle.slept(now, IDLE);
        now += Duration::from_secs(1);
        assert_eq!(idle.poll(|| now, || IDLE + WORK / 2), IdleAction::Sleep(2 * SHORTEST));
    }

    #[test]
    fn a_long_step_is_not_taken_for_a_long_wait() {
        let (mut idle, mut now) = (Idle::new(AFTER), Instant::now());
        for _ in 0..POLLS {
            assert_eq!(idle.poll(|| now, || IDLE), IdleAction::Spin);
        }
        now += Duration::from_secs(1);
        for _ in 0..POLLS {
            assert_eq!(idle.poll(|| now, || IDLE), IdleAction::Spin);
        }
        assert_eq!(idle.waited, AFTER / 4);
    }
}
