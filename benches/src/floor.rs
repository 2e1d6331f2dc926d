//! The floor under long messages from ordinary memory: the two copies alone, one into shared memory and one out of it, which
//! overlap piece by piece. There is no MPI, no header and no answer but the word that says how much of the memory is free
//! again; the copies are the transport's own.

use std::iter;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use vmshm_transport::abi::LINE_PAIR;
use vmshm_transport::{Mapping, Memory};

use crate::fixture::{Fixture, Node};

/// Messages, bytes.
const SIZES: [usize; 4] = [64 << 10, 256 << 10, 1 << 20, 4 << 20];

/// Ways to cut a message: bytes of a piece, and of the memory that pieces take in turn. The fastest one counts.
const CUTS: [(usize, usize); 6] = [
    (16 << 10, 512 << 10),
    (32 << 10, 512 << 10),
    (64 << 10, 512 << 10),
    (16 << 10, 2 << 20),
    (32 << 10, 2 << 20),
    (64 << 10, 8 << 20),
];

/// Bytes that are moved in each measurement.
const MOVED: usize = 64 << 20;

/// Messages of a stream between two answers, as in `osu_bw`.
const WINDOW: usize = 64;

/// One direction between two processes. All offsets are in the region.
#[derive(Debug, Clone, Copy)]
struct Lane {
    /// Where the pieces lie in turn, in the sender's section.
    pieces: u64,
    /// A word for each of them, on lines of their own: the number of the last piece that lies there whole.
    marks: u64,
    /// The pieces that were taken out, in the receiver's section.
    taken: u64,
    /// Bytes of a piece.
    piece: usize,
    /// Pieces that fit.
    places: u64,
    /// Pieces that this process has moved.
    moved: u64,
}

impl Lane {
    fn new(sender: &mut Node, receiver: &mut Node, (piece, turn): (usize, usize)) -> Lane {
        let places = (turn / piece) as u64;
        let clean = |node: &mut Node, len: u64| {
            let at = node.endpoint.fragment(len as usize).expect("room in the section").offset();
            node.endpoint.memory().zero(at, len);
            at
        };
        let pieces = clean(sender, turn as u64);
        let marks = clean(sender, places * LINE_PAIR);
        Lane { pieces, marks, taken: clean(receiver, LINE_PAIR), piece, places, moved: 0 }
    }

    /// The next piece and its mark.
    fn next(&mut self) -> (u64, u64) {
        let place = self.moved % self.places;
        self.moved += 1;
        (self.pieces + place * self.piece as u64, self.marks + place * LINE_PAIR)
    }

    fn send(&mut self, memory: &Mapping, message: &[u8]) {
        for piece in message.chunks(self.piece) {
            while self.moved - memory.load(self.taken, Ordering::Acquire) >= self.places {}
            let (at, mark) = self.next();
            memory.write(at, piece);
            memory.store(mark, self.moved, Ordering::Release);
        }
    }

    fn receive(&mut self, memory: &Mapping, message: &mut [u8]) {
        for piece in message.chunks_mut(self.piece) {
            let (at, mark) = self.next();
            while memory.load(mark, Ordering::Acquire) != self.moved {}
            memory.read(at, piece);
            memory.store(self.taken, self.moved, Ordering::Release);
        }
    }
}

/// One of the two processes.
struct Side {
    memory: Arc<Mapping>,
    /// Whether it begins.
    is_first: bool,
    /// The lanes of each cut: from us, and to us.
    lanes: Vec<[Lane; 2]>,
    from: Vec<u8>,
    to: Vec<u8>,
    /// Messages so far, each of which begins with its number.
    count: u8,
}

impl Side {
    fn send(&mut self, cut: usize, len: usize) {
        self.from[0] = self.count;
        self.lanes[cut][0].send(&self.memory, &self.from[..len]);
    }

    fn receive(&mut self, cut: usize, len: usize) {
        self.lanes[cut][1].receive(&self.memory, &mut self.to[..len]);
        assert_eq!(self.to[0], self.count, "another message");
    }

    /// A message to the second process and one back.
    fn turn(&mut self, cut: usize, len: usize) {
        self.count = self.count.wrapping_add(1);
        match self.is_first {
            true => (self.send(cut, len), self.receive(cut, len)),
            false => (self.receive(cut, len), self.send(cut, len)),
        };
    }

    /// Many messages to the second process, and a short one back.
    fn stream(&mut self, cut: usize, len: usize) {
        self.count = self.count.wrapping_add(1);
        for _ in 0..WINDOW {
            match self.is_first {
                true => self.send(cut, len),
                false => self.receive(cut, len),
            }
        }
        match self.is_first {
            true => self.receive(cut, 1),
            false => self.send(cut, 1),
        }
    }

    /// Nanoseconds of each of `count` calls of `work`, the fastest cut's.
    fn fastest(&mut self, len: usize, count: usize, work: fn(&mut Side, usize, usize)) -> f64 {
        let time = |cut| {
            work(self, cut, len);
            let began = Instant::now();
            (0..count).for_each(|_| work(self, cut, len));
            began.elapsed().as_secs_f64() * 1e9 / count as f64
        };
        (0..CUTS.len()).map(time).fold(f64::INFINITY, f64::min)
    }

    /// Nanoseconds that a message of each size takes, alone one way and in a stream.
    fn round(&mut self) -> Vec<(String, f64)> {
        let mut figures = Vec::new();
        for len in SIZES {
            let alone = self.fastest(len, (MOVED / len / 2).max(8), Side::turn) / 2.0;
            let many = self.fastest(len, (MOVED / len / WINDOW).max(1), Side::stream) / WINDOW as f64;
            figures.push((format!("copies-{len}"), alone));
            figures.push((format!("copies-stream-{len}"), many));
        }
        figures
    }
}

/// Measures in so many rounds, after one that warms up: names with nanoseconds for each. `begin` is called in both processes,
/// of which the second is a new one.
///
/// # Panics
/// Without memory or another process, or where there are other threads: a child has none of them.
pub fn measure(rounds: u32, begin: impl Fn(usize)) -> Vec<Vec<(String, f64)>> {
    let mut fixture = Fixture::new(2, 4);
    let (mut one, mut other) = (fixture.node(0), fixture.node(1));
    let lanes: Vec<[Lane; 2]> = CUTS
        .iter()
        .map(|cut| [Lane::new(&mut one, &mut other, *cut), Lane::new(&mut other, &mut one, *cut)])
        .collect();
    let longest = SIZES.into_iter().max().unwrap_or(0);
    let side = |node: &Node, is_first: bool| Side {
        memory: Arc::clone(node.endpoint.memory()),
        is_first,
        lanes: lanes.iter().map(|[to, back]| if is_first { [*to, *back] } else { [*back, *to] }).collect(),
        from: vec![1; longest],
        to: vec![2; longest],
        count: 0,
    };
    // SAFETY: the caller vouches for there being no other thread.
    match unsafe { fork() }.expect("a process") {
        ForkResult::Parent { child } => {
            begin(0);
            let mut side = side(&one, true);
            side.round();
            let figures = iter::repeat_with(|| side.round()).take(rounds as usize).collect();
            assert_eq!(waitpid(child, None), Ok(WaitStatus::Exited(child, 0)), "the other process failed");
            figures
        }
        ForkResult::Child => {
            begin(1);
            let mut side = side(&other, false);
            (0..=rounds).for_each(|_| drop(side.round()));
            // SAFETY: ends the process without its destructors: the endpoints are the parent's.
            unsafe { libc::_exit(0) }
        }
    }
}
