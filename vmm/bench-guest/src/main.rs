//! Measures the transport against its twin: latency, message rate and bandwidth, beside a bare cache line.
//!
//! There is no operating system below. The same image runs in a virtual machine and in a process of the host, so that the
//! two differ in nothing but what runs them.

#![no_std]
#![no_main]

extern crate alloc;

mod bare;
mod board;

use alloc::collections::VecDeque;
use alloc::vec;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use board::{BOARD, Board, CHECKED_TURNS, MAX_TURNS, SAMPLES, SIZES, stream_of, turns_of};
use vmshm_transport::abi::EndpointName;
use vmshm_transport::abi::region::VERSION;
use vmshm_transport::abi::section::STATE_LIVE;
use vmshm_transport::{Endpoint, Event, Fragment, Inbox, Memory, Peer, Region, SendError, Window, parts};

/// Longer messages lie in fragments.
const INLINE: usize = 1024;
/// Bytes of fragments under way, of which there are two at least and [`MOST`] at most.
const UNDER_WAY: usize = 512 << 10;
const MOST: usize = 64;

/// Where the program begins.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".text.start")]
extern "C" fn _start() {
    let board = core::ptr::with_exposed_provenance_mut::<Board>(BOARD as usize);
    // SAFETY: who starts the program puts a board there, and leaves it alone until the program ends.
    let board = unsafe { &mut *board };
    assert!(board.turns <= MAX_TURNS, "no room for the samples of so many turns");
    let mut side = Side::new(board);
    side.measure(board);
    board.done = 1;
    // Its slot is still looked at by the other side.
    core::mem::forget(side);
    bare::end(board.in_vm != 0);
}

/// One of the twins.
struct Side {
    endpoint: Endpoint<Window>,
    inbox: Inbox,
    peer: Peer,
    begins: bool,
    from: Vec<u8>,
    to: Vec<u8>,
    under_way: VecDeque<Fragment>,
    /// A line in our section and one in the peer's.
    lines: [u64; 2],
    /// The line's last content.
    line_turn: u64,
    /// Where the next sample goes.
    sample: *mut u32,
}

impl Side {
    fn new(board: &Board) -> Side {
        let read = core::ptr::with_exposed_provenance_mut::<u8>(board.region as usize);
        // SAFETY: the region is mapped there, for reading, as long as the program runs. It is not written through this window.
        let all = unsafe { Window::new(read, board.region_len, read, 0..0) };
        let region = Region::read(&all).expect("a region");
        let number = board.section as u32;
        let (own, theirs) = (region.sections()[number as usize], region.sections()[1 - number as usize]);
        let writable = own.entry.offset..own.entry.offset + own.entry.len;
        // SAFETY: the region is mapped there as long as the program runs, and our section may be written.
        let window = unsafe {
            Window::new(read, board.region_len, read.add(own.entry.offset as usize), writable.clone())
        };
        // The first touch of a page takes much longer than any other.
        for at in (0..board.region_len).step_by(4096) {
            match writable.contains(&at) {
                true => window.fetch_add(at, 0, Ordering::Relaxed),
                false => window.load(at, Ordering::Relaxed),
            };
        }
        let mut endpoint = Endpoint::attach(window, number).expect("a free slot");
        let state = loop {
            let state = parts::state(endpoint.memory(), &theirs, 0);
            if state.state == STATE_LIVE {
                break state;
            }
        };
        let id = region.endpoint(1 - number, 0).0;
        let incarnation = state.incarnation;
        let name = EndpointName { region_id: region.id(), id, version: VERSION, incarnation };
        let peer = endpoint.connect(&name).expect("the other is there");
        let line = endpoint.fragment(128).expect("room in the section").offset();
        endpoint.memory().zero(line, 128);
        let longest = SIZES[SIZES.len() - 1];
        let mut side = Side {
            endpoint,
            inbox: Inbox::new(),
            peer,
            begins: number == 0,
            from: vec![0; longest],
            to: vec![0; longest],
            under_way: VecDeque::with_capacity(MOST),
            lines: [line, 0],
            line_turn: 0,
            sample: core::ptr::with_exposed_provenance_mut(SAMPLES as usize),
        };
        side.from[..8].copy_from_slice(&line.to_le_bytes());
        side.send(8);
        side.receive(8);
        side.lines[1] = side.number();
        side
    }

    /// Everything, in the same order on both sides.
    fn measure(&mut self, board: &mut Board) {
        self.line(board.turns);
        for (n, size) in SIZES.into_iter().enumerate() {
            for seed in 0..CHECKED_TURNS {
                self.check(size, seed, board);
            }
            let turns = turns_of(size, board.turns);
            self.ping_pong(size, turns / 10 + 2, false);
            self.ping_pong(size, turns, true);
            let count = stream_of(size, board.turns);
            self.stream(size, count);
            for ticks in &mut board.streams[n] {
                let began = bare::ticks();
                self.stream(size, count);
                *ticks = bare::ticks() - began;
            }
        }
        self.line(board.turns);
    }

    fn take_sample(&mut self, ticks: u64) {
        // SAFETY: MAX_TURNS leaves room for the samples of all measurements between the board and the heap.
        unsafe {
            self.sample.write(u32::try_from(ticks).unwrap_or(u32::MAX));
            self.sample = self.sample.add(1);
        }
    }

    /// A bare cache line to and fro: a store here, a load that sees it there.
    fn line(&mut self, turns: u64) {
        self.bare_turns(turns / 10 + 2, false);
        self.bare_turns(turns, true);
    }

    fn bare_turns(&mut self, turns: u64, sampled: bool) {
        let [ours, theirs] = self.lines;
        let mut last = bare::ticks();
        for _ in 0..turns {
            self.line_turn += 1;
            let turn = self.line_turn;
            let memory = self.endpoint.memory();
            if self.begins {
                memory.store(ours, turn, Ordering::Release);
                while memory.load_peer(theirs, Ordering::Acquire) != turn {}
            } else {
                while memory.load_peer(theirs, Ordering::Acquire) != turn {}
                memory.store(ours, turn, Ordering::Release);
            }
            if sampled && self.begins {
                let now = bare::ticks();
                self.take_sample(now - last);
                last = now;
            }
        }
    }

    /// A message to the other side and one back, of which every byte is looked at.
    fn check(&mut self, size: usize, seed: u64, board: &mut Board) {
        for begins in [true, false] {
            if begins == self.begins {
                for (i, byte) in self.from[..size].iter_mut().enumerate() {
                    *byte = pattern(i, seed, begins);
                }
                self.send(size);
            } else {
                self.receive(size);
                let wrong = self.to[..size]
                    .iter()
                    .enumerate()
                    .filter(|(i, byte)| **byte != pattern(*i, seed, begins));
                board.wrong += wrong.count() as u64;
                board.checked += size as u64;
            }
        }
    }

    fn ping_pong(&mut self, size: usize, turns: u64, sampled: bool) {
        let mut last = bare::ticks();
        for turn in 0..turns {
            self.from[..8].copy_from_slice(&turn.to_le_bytes());
            if self.begins {
                self.send(size);
                self.receive(size);
            } else {
                self.receive(size);
                self.send(size);
            }
            assert_eq!(self.number(), turn, "another message than the one that was due");
            if sampled && self.begins {
                let now = bare::ticks();
                self.take_sample(now - last);
                last = now;
            }
        }
    }

    /// Messages to the other side, and a short one back at the end.
    fn stream(&mut self, size: usize, count: u64) {
        for turn in 0..count {
            if self.begins {
                self.from[..8].copy_from_slice(&turn.to_le_bytes());
                self.send(size);
            } else {
                self.receive(size);
                assert_eq!(self.number(), turn, "another message than the one that was due");
            }
        }
        if self.begins { self.receive(8) } else { self.send(8) }
    }

    /// The number that the last message begins with.
    fn number(&self) -> u64 {
        self.to.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
    }

    fn send(&mut self, len: usize) {
        if len <= INLINE {
            while let Err(error) = self.endpoint.send(self.peer, 0, &[&self.from[..len]]) {
                assert_eq!(error, SendError::Full);
            }
            return;
        }
        while self.under_way.len() >= (UNDER_WAY / len).clamp(2, MOST) {
            self.step();
        }
        let fragment = loop {
            match self.endpoint.fragment(len) {
                Some(fragment) => break fragment,
                None => _ = self.step(),
            }
        };
        self.endpoint.memory().write(fragment.offset(), &self.from[..len]);
        while let Err(error) = self.endpoint.send_fragment(self.peer, 0, &fragment, len, 0) {
            assert_eq!(error, SendError::Full);
        }
        self.under_way.push_back(fragment);
    }

    fn receive(&mut self, len: usize) {
        loop {
            if let Some(found) = self.step() {
                assert_eq!(found, len, "a message of another length");
                return;
            }
        }
    }

    /// Looks once; the length of a message that has come.
    #[inline]
    fn step(&mut self) -> Option<usize> {
        match self.endpoint.poll(&mut self.inbox)? {
            Event::Message { len, .. } => {
                self.to[..len].copy_from_slice(self.inbox.bytes(len));
                Some(len)
            }
            Event::Fragment { peer, offset, len, .. } => {
                self.endpoint.memory().read(offset, &mut self.to[..len]);
                self.endpoint.consume(peer).expect("the other is there");
                Some(len)
            }
            Event::Sent { .. } => {
                // They are consumed in the order in which they were sent.
                let fragment = self.under_way.pop_front().expect("a fragment was under way");
                self.endpoint.free(fragment);
                None
            }
            event => panic!("{event:?}"),
        }
    }
}

fn pattern(index: usize, seed: u64, begins: bool) -> u8 {
    (index * 31 + (index >> 8) * 7 + seed as usize * 101 + usize::from(begins)) as u8
}
