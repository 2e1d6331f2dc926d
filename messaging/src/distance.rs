//! How far the peer's core is that reads our copies, as the copies themselves tell.
//!
//! A store waits for a line that another core has read, and from one beyond the last-level cache lines come at some 2 GB/s. What
//! is stored past the caches waits for none of them, and the reader has it from memory (Zen 4, cores 260 ns apart: 6 to 8 times
//! the rate); between near cores that takes twice the time.

use std::time::{Duration, Instant};

use vmshm_transport::{copy_past_caches, copy_to_shared};

/// Copies are timed from so many bytes on: one of [`EVERY`], so that it costs nothing to speak of.
const TIMED: usize = 8 << 10;
const EVERY: u32 = 8;

/// Slow copies one after the other that make a peer far: more than a first round through memory whose pages are yet to be made.
const SLOW: u32 = 24;

/// As many make it stay far.
const STILL_SLOW: u32 = 4;

/// A slow copy takes more than so many nanoseconds for a KiB: 4 GB/s, between the 2 to 3 of far cores and the 8 and more of near ones.
const NANOS: u64 = 250;

/// Copies past the caches before the next look whether the peer still is far: first, and at most, if it always was.
const FIRST: u32 = 256;
const LAST: u32 = 8192;

/// What copies to a peer have told.
#[derive(Debug)]
pub(crate) struct Distance {
    /// Copies that might have been timed, and slow ones in turn.
    copies: u32,
    slow: u32,
    /// Nanoseconds of the last slow one for a KiB.
    nanos: u64,
    /// Copies that are yet to go past the caches, and how many the next time.
    past: u32,
    next: u32,
}

impl Distance {
    /// A peer is near until copies tell otherwise.
    pub const fn new() -> Self {
        Self { copies: 0, slow: 0, nanos: 0, past: 0, next: FIRST }
    }

    /// Copies `len` bytes to the section, for the peer.
    ///
    /// # Safety
    ///
    /// As [`copy_to_shared`].
    pub unsafe fn copy(&mut self, from: *const u8, to: *mut u8, len: usize) {
        let is_past = self.past > 0 && len >= TIMED;
        // SAFETY: the caller vouches for both pointers.
        let copy = || unsafe {
            if is_past { copy_past_caches(from, to, len) } else { copy_to_shared(from, to, len) }
        };
        if len < TIMED {
            return copy();
        }
        self.past -= u32::from(is_past);
        self.copies = self.copies.wrapping_add(1);
        if !self.copies.is_multiple_of(EVERY) {
            return copy();
        }
        let start = Instant::now();
        copy();
        self.look(is_past, len, start.elapsed());
    }

    /// A copy of `len` bytes, past the caches or not, took that long.
    fn look(&mut self, is_past: bool, len: usize, time: Duration) {
        let nanos = (time.as_nanos() as u64).saturating_mul(1024) / len as u64;
        if is_past {
            if 2 * nanos > self.nanos {
                // The machine is slow, not the way.
                (self.past, self.next) = (0, FIRST);
            }
            return;
        }
        if nanos < NANOS {
            (self.slow, self.next) = (0, FIRST);
            return;
        }
        self.nanos = nanos;
        self.slow += 1;
        if self.slow >= if self.next == FIRST { SLOW } else { STILL_SLOW } {
            (self.slow, self.past) = (0, self.next);
            self.next = LAST.min(2 * self.next);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many copies go past the caches after so many ordinary ones that took so long.
    fn past_after(distance: &mut Distance, looks: u32, nanos: u64) -> u32 {
        for _ in 0..looks {
            distance.look(false, 64 << 10, Duration::from_nanos(64 * nanos));
        }
        std::mem::take(&mut distance.past)
    }

    #[test]
    fn a_peer_is_far_while_copies_are_slow() {
        let mut distance = Distance::new();
        assert_eq!(past_after(&mut distance, 1000, NANOS - 1), 0);
        assert_eq!(past_after(&mut distance, SLOW - 1, NANOS), 0);
        assert_eq!(past_after(&mut distance, 1, NANOS - 1), 0, "one quick copy, and all begins anew");
        assert_eq!(past_after(&mut distance, SLOW, NANOS), FIRST);
        assert_eq!(past_after(&mut distance, STILL_SLOW, NANOS), 2 * FIRST);
        assert_eq!(past_after(&mut distance, 20 * STILL_SLOW, NANOS), LAST);
        past_after(&mut distance, 1, NANOS - 1);
        assert_eq!(past_after(&mut distance, SLOW - 1, NANOS), 0);
        assert_eq!(past_after(&mut distance, 1, NANOS), FIRST);
    }

    #[test]
    fn what_gains_nothing_ends_at_once() {
        let mut distance = Distance { past: FIRST, nanos: 400, ..Distance::new() };
        let quick = Duration::from_nanos(64 * 200);
        distance.look(true, 64 << 10, quick);
        assert_eq!(distance.past, FIRST);
        distance.look(true, 64 << 10, quick + Duration::from_nanos(64));
        assert_eq!(distance.past, 0);
    }

    #[test]
    fn near_and_far_the_same_bytes_arrive() {
        let from: Vec<u8> = (0..20_000u32).map(|i| (i % 251) as u8).collect();
        for past in [0, 3] {
            for len in [0, 1, 5000, TIMED, 10_001, 19_999] {
                let mut to = vec![0; from.len()];
                let mut distance = Distance { past, ..Distance::new() };
                // SAFETY: both have one byte more.
                unsafe { distance.copy(from[1..].as_ptr(), to.as_mut_ptr(), len) };
                assert_eq!(to[..len], from[1..][..len]);
                assert!(to[len..].iter().all(|byte| *byte == 0));
            }
        }
    }
}
