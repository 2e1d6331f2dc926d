//! The state of an interface, and when it may be used.

use std::collections::{HashMap, VecDeque};

use vmshm_messaging::Engine;
use vmshm_transport::{Fragment, Glance, Inbox, Peer};

use crate::asked::{Answer, Asked, Operation};
use crate::lock::{Guard, Lock};
use crate::memory::Forget;
use crate::ucx::*;

/// An endpoint, as its interface knows it.
#[derive(Debug)]
pub struct Connection {
    /// UCX's.
    pub endpoint: uct_ep_h,
    pub peer: Peer,
    /// Requests that wait for room.
    pub pending: VecDeque<*mut uct_pending_req_t>,
    /// Something found no room since the last poll.
    pub is_blocked: bool,
    /// Operations under way for which the peer is needed.
    pub outstanding: usize,
    /// Completions of flushes, which wait for these.
    pub flushes: Vec<*mut uct_completion_t>,
    /// The peer is gone.
    pub is_lost: bool,
    /// UCX was told so.
    pub is_told: bool,
}

/// State of an interface.
pub struct State {
    pub engine: Engine<(), Operation>,
    /// Where messages arrive. Absent while some thread makes progress.
    pub inbox: Option<Box<Inbox>>,
    /// Where messages are copied to from others' sections.
    pub landing: Vec<u64>,
    /// By their numbers, which are never used again.
    pub connections: HashMap<u64, Connection>,
    next: u64,
    /// Endpoints with requests that wait, in turn.
    pub waiting: VecDeque<u64>,
    /// Endpoint whose waiting requests are being sent.
    pub dispatching: Option<u64>,
    /// Memory for the next message that is packed.
    pub spare: Option<Fragment>,
    /// Sources, by the keys of the memory domain.
    pub sources: HashMap<u64, u64>,
    /// Endpoints whose loss UCX is to be told.
    pub lost: Vec<u64>,
    /// Operations that others answer, by the numbers that their answers show.
    pub asked: HashMap<Peer, HashMap<u64, Asked>>,
    /// The last of these numbers.
    pub last_number: u64,
    /// Answers that found no room.
    pub answers: VecDeque<(Peer, Answer)>,
    /// One-sided operations wait for those that were begun before.
    pub is_fenced: bool,
    /// Peers ring for the next that they send.
    pub is_armed: bool,
    /// A glance at the ring shows all that there may be to do.
    pub is_at_rest: bool,
    /// For bytes on their way between UCX and a section.
    pub scratch: Vec<u8>,
}

// SAFETY: the raw pointers are UCX's endpoints, requests and completions, which any thread may use; the lock orders their use.
unsafe impl Send for State {}

impl State {
    fn new(engine: Engine<(), Operation>) -> Self {
        Self {
            engine,
            inbox: Some(Box::default()),
            landing: Vec::new(),
            connections: HashMap::new(),
            next: 0,
            waiting: VecDeque::new(),
            dispatching: None,
            spare: None,
            sources: HashMap::new(),
            lost: Vec::new(),
            asked: HashMap::new(),
            last_number: 0,
            answers: VecDeque::new(),
            is_fenced: false,
            is_armed: false,
            is_at_rest: false,
            scratch: Vec::new(),
        }
    }

    /// Notes a new endpoint; its number.
    pub fn add(&mut self, endpoint: uct_ep_h, peer: Peer) -> u64 {
        self.next += 1;
        let connection = Connection {
            endpoint,
            peer,
            pending: VecDeque::new(),
            is_blocked: false,
            outstanding: 0,
            flushes: Vec::new(),
            is_lost: false,
            is_told: false,
        };
        self.connections.insert(self.next, connection);
        self.next
    }

    /// Whether something is due in the next progress.
    pub fn is_due(&self) -> bool {
        !(self.waiting.is_empty() && self.answers.is_empty() && self.lost.is_empty())
    }

    /// What a glance at the ring shows.
    #[inline(always)]
    pub fn glance(&mut self) -> Glance {
        match &mut self.inbox {
            Some(inbox) if self.is_at_rest => self.engine.glance(inbox),
            _ => Glance::More,
        }
    }

    /// Notes whether there is nothing to do until somebody locks the state, or a message comes.
    pub fn rest(&mut self, inbox: &Inbox) {
        self.is_at_rest = !self.is_due() && !self.is_armed && self.engine.is_quiet(inbox);
    }

    /// Room for so many bytes, to be given back.
    pub fn scratch(&mut self, len: usize) -> Vec<u8> {
        let mut scratch = std::mem::take(&mut self.scratch);
        if scratch.len() < len {
            scratch.resize(len, 0);
        }
        scratch
    }
}

/// The state of an interface. Callbacks into UCX never run while it is held, but for those that pack or unpack: they come back with more.
pub struct Port(Lock<State>);

impl Port {
    pub fn new(engine: Engine<(), Operation>) -> Self {
        Self(Lock::new(State::new(engine)))
    }

    /// For all that may make something due: the next progress looks everywhere.
    pub fn lock(&self) -> Guard<'_, State> {
        let mut state = self.0.lock();
        state.is_at_rest = false;
        state
    }

    /// For the quick ways of sending, and for all else that makes nothing due: where progress is at rest, it stays so.
    #[inline(always)]
    pub fn lock_quick(&self) -> Guard<'_, State> {
        self.0.lock()
    }

    /// For progress; none while it is in use.
    #[inline(always)]
    pub fn try_lock(&self) -> Option<Guard<'_, State>> {
        self.0.try_lock()
    }
}

impl Forget for Port {
    fn forget(&self, key: u64) {
        let mut state = self.lock_quick();
        if let Some(source) = state.sources.remove(&key) {
            state.engine.unexpose(source);
        }
    }
}
