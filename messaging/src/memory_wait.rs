//! Waits for memory of the section.

use std::time::{Duration, Instant};

/// The smallest fragment that is asked for, bytes. All are powers of two, so that few sizes share the section.
pub(crate) const MIN_FRAGMENT: usize = 2048;

/// A wait after which the user is told.
const LONG_WAIT: Duration = Duration::from_secs(10);

/// A pause between two looks for memory after which a wait is over.
const PAUSE: Duration = Duration::from_secs(1);

/// A wait for memory of the section.
#[derive(Debug, Default)]
pub(crate) struct MemoryWait {
    /// Bytes of the message that found none, since when, and when it looked last.
    open: Option<(usize, Instant, Instant)>,
    /// The user was told, once.
    is_told: bool,
}

impl MemoryWait {
    /// Notes whether a message of `len` bytes has found memory. Its sender looks again whenever it polls. Returns the length of
    /// the message and its time if it has waited for long and nobody was told yet.
    #[inline]
    pub fn note(&mut self, len: usize, has_found: bool) -> Option<(usize, Duration)> {
        match self.open {
            None if has_found => None,
            Some((wanted, ..)) if has_found && len >= wanted => {
                self.open = None;
                None
            }
            Some(_) if has_found => None,
            _ => self.lack(len, Instant::now()),
        }
    }

    #[cold]
    fn lack(&mut self, len: usize, now: Instant) -> Option<(usize, Duration)> {
        let open = self.open.filter(|(.., last)| now - *last < PAUSE);
        let (len, since) = open.map_or((len, now), |(len, since, _)| (len, since));
        self.open = Some((len, since, now));
        if self.is_told || now - since < LONG_WAIT {
            return None;
        }
        self.is_told = true;
        Some((len, LONG_WAIT))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_wait_for_memory_is_told_once() {
        let (mut wait, begin) = (MemoryWait::default(), Instant::now());
        assert_eq!(wait.note(5000, true), None);
        assert_eq!(wait.lack(5000, begin), None, "it has just begun to wait");
        let late = begin + LONG_WAIT + PAUSE;
        assert_eq!(wait.lack(5000, late), None, "nobody has looked meanwhile");
        // A message that finds room is shorter.
        assert_eq!(wait.note(3000, true), None);
        for step in 0..20 {
            assert_eq!(wait.lack(8000, late + step * PAUSE / 2), None);
        }
        assert_eq!(wait.lack(8000, late + LONG_WAIT), Some((5000, LONG_WAIT)));
        assert_eq!(wait.lack(8000, late + LONG_WAIT), None);
        assert_eq!(wait.note(5000, true), None);
        assert!(wait.open.is_none(), "the wait is over");
    }
}
