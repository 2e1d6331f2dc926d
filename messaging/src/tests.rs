//! Engines over regions on this host, driven by hand.

mod engines;
mod prefix;
mod rendezvous;
mod sending;

use tempfile::TempDir;
use vmshm_host::{CreateOptions, RegionName, Registry};
use vmshm_transport::attach::{Attached, Options, open_endpoint};
use vmshm_transport::{Inbox, MAX_INLINE, Peer, PeerError};

use crate::{Engine, Get, Params, Pipeline, Prefix, Refused, Upcall};

const TAG: u8 = 0x41;

/// A region with two sections, of 16 MiB.
pub struct TestRegion {
    directory: TempDir,
}

impl TestRegion {
    pub fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let registry = Registry::at(directory.path());
        registry.create(&RegionName::new("test").unwrap(), &CreateOptions::new(16 << 20)).unwrap();
        Self { directory }
    }

    pub fn open(&self, section: u32) -> Attached {
        let device = Some(self.directory.path().join("test").display().to_string());
        open_endpoint(&Options { device, section: Some(section), ..Options::default() }).unwrap()
    }
}

/// Small fragments, with prefixes.
pub fn params(chunk_size: usize, window: usize) -> Params {
    Params {
        reserve: 0,
        pipeline: Pipeline { chunk_size, tail_size: chunk_size / 2, window, window_single: 2 },
        sends_prefix: true,
        evict_from: usize::MAX,
        ..Params::of_this_machine(16 << 20)
    }
}

/// An engine, and all that its upcalls have said. Sends complete with their numbers, gets with their addresses.
pub struct Side {
    pub engine: Engine<usize, usize>,
    /// The other side.
    pub peer: Peer,
    pub inbox: Box<Inbox>,
    /// Lengths and first bytes of messages.
    pub received: Vec<(usize, u8)>,
    pub sent: Vec<usize>,
    pub unsent: Vec<usize>,
    pub got: Vec<usize>,
    pub not_got: Vec<usize>,
    pub lost: Vec<(Peer, PeerError)>,
    pub violations: usize,
    next: usize,
}

impl Side {
    pub fn new(engine: Engine<usize, usize>, peer: Peer) -> Self {
        Self {
            engine,
            peer,
            inbox: Box::default(),
            received: Vec::new(),
            sent: Vec::new(),
            unsent: Vec::new(),
            got: Vec::new(),
            not_got: Vec::new(),
            lost: Vec::new(),
            violations: 0,
            next: 0,
        }
    }

    /// Sends a message of `len` bytes, all of them `byte`. `None`: no memory for it; else whether it is complete.
    pub fn send(&mut self, len: usize, byte: u8) -> Option<Result<bool, Refused>> {
        self.next += 1;
        let number = self.next;
        if len <= MAX_INLINE {
            let sent = self.engine.send(self.peer, TAG, &vec![byte; len], number);
            return Some(sent.map(|done| done.is_some()).map_err(|_| Refused::Lost));
        }
        if !self.engine.admits(self.peer) {
            return None;
        }
        let fragment = self.engine.fragment(len)?;
        // SAFETY: the fragment has room for len bytes.
        unsafe { fragment.ptr().write_bytes(byte, len) };
        let sent = self.engine.send_fragment(self.peer, TAG, fragment, len, Some(number));
        Some(sent.map(|()| false).map_err(|unsent| {
            self.engine.free(unsent.fragment);
            unsent.why
        }))
    }

    /// A plugin's work with one poll; whether there was something.
    pub fn progress(&mut self) -> bool {
        self.engine.advance();
        let Some(upcall) = self.engine.poll(&mut self.inbox) else { return false };
        match upcall {
            Upcall::Message { tag: TAG, len, .. } => self.received.push((len, self.inbox.bytes(len)[0])),
            Upcall::Fragment { peer, tag: TAG, payload, len } => {
                // SAFETY: the payload has len bytes until it is consumed.
                self.received.push((len, unsafe { payload.read_volatile() }));
                self.engine.consume(peer).unwrap();
            }
            Upcall::Piece(piece) => {
                piece.copy();
                self.got.extend(self.engine.landed(&piece));
            }
            Upcall::Sent { done, fragment, result } => {
                fragment.into_iter().for_each(|fragment| self.engine.free(fragment));
                if result.is_ok() { self.sent.push(done) } else { self.unsent.push(done) }
            }
            Upcall::Got { done, result } => {
                if result.is_ok() {
                    self.got.push(done)
                } else {
                    self.not_got.push(done)
                }
            }
            Upcall::Lost { peer, why } => self.lost.push((peer, why)),
            Upcall::Violation { .. } => self.violations += 1,
            Upcall::Handled | Upcall::MemoryWait { .. } => {}
            Upcall::Message { tag, .. } | Upcall::Fragment { tag, .. } => panic!("tag {tag:#x}"),
        }
        true
    }

    /// Polls until a peer is lost.
    pub fn await_loss(&mut self) {
        let since = std::time::Instant::now();
        while self.lost.is_empty() {
            assert!(since.elapsed().as_secs() < 60, "nobody noticed");
            self.progress();
        }
        while self.progress() {}
    }

    /// Exposes memory to the other side. The test keeps it.
    pub fn expose(&mut self, from: &[u8]) -> (u64, Prefix) {
        // SAFETY: as the tests that call this see to.
        unsafe { self.engine.expose(self.peer, from.as_ptr(), from.len()) }
    }

    /// Begins a get. The test keeps the destination.
    pub fn get(
        &mut self,
        (source, prefix): (u64, Prefix),
        key: Option<u64>,
        offset: u64,
        to: &mut [u8],
    ) -> Result<(), Refused> {
        let (local, done) = (to.as_mut_ptr(), to.as_ptr().addr());
        let get = Get { source, key, offset, prefix, local, len: to.len(), done };
        // SAFETY: as the tests that call this see to.
        let complete = unsafe { self.engine.get(self.peer, get) }.map_err(|(why, _)| why)?;
        self.got.extend(complete);
        Ok(())
    }
}

/// Two sides in sections of one region, each with the other as its peer.
pub fn pair_with(params: &Params) -> ([Side; 2], TestRegion) {
    let region = TestRegion::new();
    let open = |section| Engine::new(region.open(section), params.clone()).unwrap();
    let (mut a, mut b) = (open(0), open(1));
    let to_b = a.connect(&b.endpoint().name()).unwrap();
    let to_a = b.connect(&a.endpoint().name()).unwrap();
    ([Side::new(a, to_b), Side::new(b, to_a)], region)
}

pub fn pair() -> ([Side; 2], TestRegion) {
    pair_with(&params(4096, 4))
}

pub fn bytes(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| ((i * 31 + i / 251 + seed * 7) % 256) as u8).collect()
}
