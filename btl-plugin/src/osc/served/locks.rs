//! The lock of this process's memory: its holders and its queue.

use std::collections::VecDeque;

/// So many that share the lock may pass one that wants it alone; no more, or it might never get it.
const MOST_PASSED: u32 = 1 << 10;

/// The lock of one process's memory. Requests are granted in their order, but for shared ones while the lock is shared: a holder
/// may wait for their processes.
#[derive(Debug, Default)]
pub struct Locks {
    alone: Option<usize>,
    sharing: Vec<usize>,
    waiting: VecDeque<(usize, bool)>,
    /// How many have passed one that waits.
    passed: u32,
}

impl Locks {
    /// Process `rank` wants the lock, alone or with others that share it. Returns whether it asks for the first time.
    pub fn request(&mut self, rank: usize, alone: bool) -> bool {
        let is_new = !self.has(rank) && self.waiting.iter().all(|(waiting, _)| *waiting != rank);
        if is_new {
            self.waiting.push_back((rank, alone));
        }
        is_new
    }

    /// Process `rank` gives the lock back. Returns whether it had it.
    pub fn release(&mut self, rank: usize) -> bool {
        let had = self.has(rank);
        if self.alone == Some(rank) {
            self.alone = None;
        }
        self.sharing.retain(|sharing| *sharing != rank);
        had
    }

    /// The next process that gets the lock now.
    pub fn grant(&mut self) -> Option<usize> {
        if self.alone.is_some() {
            return None;
        }
        let is_shared = !self.sharing.is_empty();
        let next = self.waiting.iter().position(|(_, alone)| !(*alone && is_shared))?;
        if next > 0 {
            if self.passed == MOST_PASSED {
                return None;
            }
            self.passed += 1;
        }
        let (rank, alone) = self.waiting.remove(next)?;
        if alone {
            self.alone = Some(rank);
            self.passed = 0;
        } else {
            self.sharing.push(rank);
        }
        Some(rank)
    }

    fn has(&self, rank: usize) -> bool {
        self.alone == Some(rank) || self.sharing.contains(&rank)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn granted(locks: &mut Locks) -> Vec<usize> {
        std::iter::from_fn(|| locks.grant()).collect()
    }

    #[test]
    fn a_lock_is_had_in_turn() {
        let mut locks = Locks::default();
        for (rank, alone) in [(0, false), (1, false), (2, true), (3, false)] {
            assert!(locks.request(rank, alone));
        }
        assert_eq!(granted(&mut locks), [0, 1, 3], "all but the one that wants it alone");
        assert!(locks.release(0) && locks.release(3));
        assert_eq!(granted(&mut locks), []);
        assert!(locks.release(1));
        assert_eq!(granted(&mut locks), [2]);
        assert!(locks.request(4, true) && locks.request(0, false));
        assert_eq!(granted(&mut locks), []);
        assert!(locks.release(2));
        assert_eq!(granted(&mut locks), [4]);
        assert!(locks.release(4));
        assert_eq!(granted(&mut locks), [0]);
    }

    #[test]
    fn those_that_share_it_do_not_keep_it_for_ever() {
        let mut locks = Locks::default();
        assert!(locks.request(0, false) && locks.request(9, true));
        assert_eq!(granted(&mut locks), [0]);
        // Two take turns, so that the lock is never free.
        let mut grants = 0;
        for turn in 0.. {
            let (next, last) = ((turn + 1) % 2, turn % 2);
            assert!(locks.request(next, false));
            let got = granted(&mut locks);
            assert!(locks.release(last));
            if got.is_empty() {
                break;
            }
            grants += 1;
        }
        assert_eq!(grants, MOST_PASSED);
        assert_eq!(granted(&mut locks), [9]);
    }

    #[test]
    fn nobody_asks_twice_or_gives_back_what_it_has_not() {
        let mut locks = Locks::default();
        assert!(!locks.release(0));
        assert!(locks.request(0, true) && !locks.request(0, true));
        assert_eq!(granted(&mut locks), [0]);
        assert!(!locks.request(0, false));
        assert!(!locks.release(1));
    }
}
