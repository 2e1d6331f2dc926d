//! When to stop looking for messages: spin, then yield, then sleep.

use std::time::{Duration, Instant};

/// Most polls in vain between two looks at the clock, while spinning.
const POLLS: u32 = 1024;

/// The first sleep, and the last: whatever else the process waits for gets its turn in between.
const SHORTEST: Duration = Duration::from_millis(1);
const LONGEST: Duration = Duration::from_millis(64);

/// After a pause of so long between two polls, the process has done something else than waiting.
const AWAY: Duration = Duration::from_millis(4);

/// What a process with nothing to do should do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rest {
    /// Look again.
    Spin,
    /// Let another process run, then look again.
    Yield,
    /// Sleep for so long at most.
    Sleep(Duration),
}

/// How long a process has been waiting.
#[derive(Debug)]
pub struct Idle {
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
}

impl Idle {
    /// Sleeps after so long a wait.
    pub fn new(sleep_after: Duration) -> Self {
        Self { sleep_after, polls: 0, pace: POLLS, looked: None, waited: Duration::ZERO, next: SHORTEST }
    }

    /// Something came.
    #[inline]
    pub fn end(&mut self) {
        self.polls = 0;
        self.looked = None;
        self.waited = Duration::ZERO;
        self.next = SHORTEST;
    }

    /// Nothing came. Looks at the clock now and then while spinning, and always after that.
    #[inline]
    pub fn poll(&mut self, clock: impl FnOnce() -> Instant) -> Rest {
        self.polls += 1;
        if self.polls < self.pace && self.waited < self.sleep_after / 2 {
            return Rest::Spin;
        }
        self.look(clock())
    }

    fn look(&mut self, now: Instant) -> Rest {
        self.polls = 0;
        if let Some(last) = self.looked.replace(now) {
            let step = now.saturating_duration_since(last);
            if self.waited >= self.sleep_after && step > AWAY {
                // Back from a computation: the next message may be close again.
                self.end();
                return Rest::Spin;
            }
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
            Rest::Sleep(time)
        } else if self.waited >= self.sleep_after / 2 {
            Rest::Yield
        } else {
            Rest::Spin
        }
    }

    /// The process has slept, until now.
    pub fn slept(&mut self, now: Instant) {
        self.looked = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AFTER: Duration = Duration::from_micros(100);

    /// Polls every microsecond until something else than `rest` is due; how long that took.
    fn polls_while(idle: &mut Idle, now: &mut Instant, rest: Rest) -> (u32, Rest) {
        for polls in 1.. {
            *now += Duration::from_micros(1);
            let found = idle.poll(|| *now);
            if found != rest {
                return (polls, found);
            }
            assert!(polls < 100_000, "{rest:?} for ever");
        }
        unreachable!()
    }

    fn asleep() -> (Idle, Instant) {
        let (mut idle, mut now) = (Idle::new(AFTER), Instant::now());
        assert_eq!(polls_while(&mut idle, &mut now, Rest::Spin).1, Rest::Yield);
        assert_eq!(polls_while(&mut idle, &mut now, Rest::Yield).1, Rest::Sleep(SHORTEST));
        (idle, now)
    }

    #[test]
    fn it_spins_then_yields_then_sleeps() {
        let (mut idle, mut now) = (Idle::new(AFTER), Instant::now());
        let (spun, rest) = polls_while(&mut idle, &mut now, Rest::Spin);
        // Three looks at the clock: two steps of a quarter each, the second of half as many polls.
        assert_eq!((spun, rest), (POLLS + POLLS + POLLS / 2, Rest::Yield));
        let (yielded, rest) = polls_while(&mut idle, &mut now, Rest::Yield);
        assert_eq!((yielded, rest), (50, Rest::Sleep(SHORTEST)));
    }

    #[test]
    fn the_clock_is_not_looked_at_in_each_spin() {
        let mut idle = Idle::new(Duration::from_secs(1));
        let mut looks = 0;
        for _ in 0..10 * POLLS {
            let rest = idle.poll(|| {
                looks += 1;
                Instant::now()
            });
            assert_eq!(rest, Rest::Spin);
        }
        assert_eq!(looks, 10);
    }

    #[test]
    fn slow_polls_make_it_look_at_the_clock_more_often() {
        let (mut idle, mut now) = (Idle::new(AFTER), Instant::now());
        let mut spins = Vec::new();
        for _ in 0..8 {
            let mut spun = 0;
            while idle.poll(|| now) == Rest::Spin {
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
            idle.slept(now);
            now += Duration::from_micros(5);
            assert_eq!(idle.poll(|| now), Rest::Sleep(Duration::from_millis(millis)));
        }
        idle.end();
        assert_eq!(idle.poll(|| now), Rest::Spin);
        assert_eq!(polls_while(&mut idle, &mut now, Rest::Spin).1, Rest::Yield);
    }

    #[test]
    fn who_comes_back_from_a_computation_spins_first() {
        let (mut idle, mut now) = asleep();
        idle.slept(now);
        now += Duration::from_secs(1);
        assert_eq!(idle.poll(|| now), Rest::Spin);
        assert_eq!(polls_while(&mut idle, &mut now, Rest::Spin).1, Rest::Yield);
    }

    #[test]
    fn a_long_step_is_not_taken_for_a_long_wait() {
        let (mut idle, mut now) = (Idle::new(AFTER), Instant::now());
        for _ in 0..POLLS {
            assert_eq!(idle.poll(|| now), Rest::Spin);
        }
        now += Duration::from_secs(1);
        for _ in 0..POLLS {
            assert_eq!(idle.poll(|| now), Rest::Spin);
        }
        assert_eq!(idle.waited, AFTER / 4);
    }
}
