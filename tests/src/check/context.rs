//! The tools of a case: its communicator, its payloads and its record of failures.

use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::buffer::Buffer;
use crate::comm::{Comm, Rank, Tag};
use crate::payload::{Key, Random};
use crate::request::Status;

/// Failures that one rank prints for one case; the rest is only counted.
const SHOWN: usize = 5;

/// A case's surroundings on one communicator.
#[derive(Debug)]
pub struct Context {
    /// The communicator to use: the case's own, so that nothing of other cases is seen.
    pub comm: Comm,
    /// Distinguishes payloads of several communicators or threads of one case.
    lane: u64,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    name: &'static str,
    world_rank: Rank,
    seed: u64,
    quick: bool,
    threads: usize,
    failures: Mutex<usize>,
    checked: AtomicU64,
}

impl Context {
    pub(super) fn new(name: &'static str, comm: Comm, seed: u64, quick: bool, threads: usize) -> Context {
        let shared = Shared {
            name,
            world_rank: Comm::world().rank(),
            seed,
            quick,
            threads,
            failures: Mutex::new(0),
            checked: AtomicU64::new(0),
        };
        Context { comm, lane: 0, shared: Arc::new(shared) }
    }

    /// The same case on another communicator; `lane` keeps its payloads apart.
    pub fn on(&self, comm: Comm, lane: usize) -> Context {
        let lane = self.lane * 1000 + lane as u64 + 1;
        Context { comm, lane, shared: Arc::clone(&self.shared) }
    }

    /// Threads a rank.
    pub fn threads(&self) -> usize {
        self.shared.threads
    }

    /// Whether the run should be short.
    pub fn quick(&self) -> bool {
        self.shared.quick
    }

    /// How often to repeat: `quick` or `full` times, less on many ranks.
    pub fn rounds(&self, quick: usize, full: usize) -> usize {
        let rounds = if self.shared.quick { quick } else { full };
        (rounds * 4 / self.comm.size().max(4)).max(1)
    }

    /// Distances to the ranks that a rank exchanges messages with: itself if it is alone, else both
    /// neighbours, the one half-way around and a random one.
    pub fn distances(&self) -> Vec<usize> {
        let size = self.comm.size();
        if size == 1 {
            return vec![0];
        }
        let random = 1 + self.common_random(u64::MAX).below(size - 1);
        let mut distances = vec![1, size - 1, size / 2, random];
        distances.sort_unstable();
        distances.dedup();
        distances
    }

    fn name_bits(&self) -> u64 {
        self.shared.name.bytes().fold(0, |bits, byte| bits.rotate_left(7) ^ u64::from(byte))
    }

    /// The key of message `number` from one rank to another.
    pub fn key(&self, from: Rank, to: Rank, number: usize) -> Key {
        let bits = |rank: Rank| u64::from(rank.unsigned_abs());
        let coordinates = [self.name_bits(), self.lane, bits(from), bits(to), number as u64];
        Key::new(self.shared.seed, &coordinates)
    }

    /// A random generator that gives the same on all ranks; `label` makes several of them.
    pub fn common_random(&self, label: u64) -> Random {
        let coordinates = [self.name_bits(), self.lane, label, u64::MAX];
        Random::new(Key::new(self.shared.seed, &coordinates))
    }

    /// A random generator for what `rank` alone decides, but all can compute.
    pub fn random_of(&self, rank: Rank, label: u64) -> Random {
        let rank = u64::from(rank.unsigned_abs());
        let coordinates = [self.name_bits(), self.lane, label, rank, 0, 0];
        Random::new(Key::new(self.shared.seed, &coordinates))
    }

    /// Message `number` of `size` bytes for rank `to`, in a buffer at a random alignment.
    pub fn outgoing(&self, to: Rank, number: usize, size: usize) -> Buffer {
        let key = self.key(self.comm.rank(), to, number);
        let offset = Random::new(key).below(128).saturating_sub(64);
        let mut buffer = Buffer::at_offset(size, offset);
        key.fill(buffer.payload_mut());
        buffer
    }

    /// Checks that a fresh `buffer` holds message `number` from `from`, which has `size` bytes, and
    /// that status and surroundings are right.
    pub fn check(&self, buffer: &Buffer, status: Status, from: Rank, tag: Tag, number: usize, size: usize) {
        let got = (status.source, status.tag, status.bytes, status.cancelled);
        let describe = || format!("message {number} from rank {from}, tag {tag}, {size} bytes");
        if got != (from, tag, size, false) {
            self.fail(&format!("{}: MPI gave the {status:?}", describe()));
        }
        self.check_bytes(buffer, self.key(from, self.comm.rank(), number), size, describe);
    }

    /// Checks that a fresh `buffer` begins with `size` bytes of `key` and is untouched behind them.
    pub fn check_bytes(&self, buffer: &Buffer, key: Key, size: usize, describe: impl Fn() -> String) {
        let (message, rest) = buffer.payload().split_at(size.min(buffer.len()));
        if let Err(wrong) = key.compare(message) {
            self.fail(&format!("{}: {wrong}", describe()));
        }
        if let Some(at) = rest.iter().position(|&byte| byte != 0) {
            self.fail(&format!("{}: wrote {at} bytes behind its end", describe()));
        }
        if let Err(wrong) = buffer.guards_intact() {
            self.fail(&format!("{}: wrote outside of the buffer, guard's {wrong}", describe()));
        }
        self.shared.checked.fetch_add(size as u64, Ordering::Relaxed);
    }

    /// Checks that two byte strings are equal.
    pub fn check_equal(&self, expected: &[u8], got: &[u8], describe: impl Fn() -> String) {
        if let Err(wrong) = crate::payload::compare(expected, got) {
            self.fail(&format!("{}: {wrong}", describe()));
        }
        self.shared.checked.fetch_add(got.len() as u64, Ordering::Relaxed);
    }

    /// Checks that two lists of numbers are equal.
    pub fn check_numbers<T: PartialEq + std::fmt::Debug>(
        &self,
        expected: &[T],
        got: &[T],
        describe: impl Fn() -> String,
    ) {
        let wrong = expected.iter().zip(got).position(|(e, g)| e != g);
        if let Some(at) = wrong {
            let (expected, got) = (&expected[at], &got[at]);
            self.fail(&format!("{}: number {at}: expected {expected:?}, got {got:?}", describe()));
        } else if expected.len() != got.len() {
            let (expected, got) = (expected.len(), got.len());
            self.fail(&format!("{}: expected {expected} numbers, got {got}", describe()));
        }
        self.shared.checked.fetch_add(size_of_val(got) as u64, Ordering::Relaxed);
    }

    /// Checks a condition.
    pub fn ensure(&self, holds: bool, describe: impl FnOnce() -> String) {
        if !holds {
            self.fail(&describe());
        }
    }

    /// Records that something was wrong; the case goes on.
    pub fn fail(&self, message: &str) {
        let mut failures = self.shared.failures.lock().unwrap_or_else(PoisonError::into_inner);
        *failures += 1;
        if *failures <= SHOWN {
            let (rank, name) = (self.shared.world_rank, self.shared.name);
            report(&format!("rank {rank}, {name}: {message}"));
        }
    }

    /// Number of failures recorded by this rank.
    pub(super) fn failures(&self) -> usize {
        *self.shared.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes compared by this rank.
    pub(super) fn checked(&self) -> u64 {
        self.shared.checked.load(Ordering::Relaxed)
    }
}

/// Writes one line to standard error, in one piece: other ranks write there too.
pub(super) fn report(line: &str) {
    let line = format!("{line}\n");
    // There is nowhere to report an error of this.
    let _ = std::io::stderr().write_all(line.as_bytes());
}
