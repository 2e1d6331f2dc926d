//! An engine's knowledge of one peer, and the queue for it.

use std::collections::VecDeque;

use vmshm_transport::{Fragment, Peer, PeerError};

use crate::distance::Distance;
use crate::rendezvous::{Gets, Requests};

/// A peer's state. `S` completes a send, `G` a get.
#[derive(Debug)]
pub(crate) struct PeerState<S, G> {
    /// The transport's handle; none where the transport met a peer that the caller has not connected to yet.
    pub peer: Option<Peer>,
    /// The handle of a peer for which something waits, or has waited, whether the caller has connected to it or not.
    pub awaiting: Option<Peer>,
    pub queue: Queue<S>,
    /// Sends that will not reach it.
    pub undelivered: Vec<(S, Option<Fragment>)>,
    /// Why it cannot be reached any more.
    pub lost: Option<PeerError>,
    /// Something from it or for it was lost with it.
    pub is_missed: bool,
    /// The caller was told of its loss.
    pub is_reported: bool,
    pub requests: Requests,
    pub gets: Gets<G>,
    /// Prefixes for it.
    pub prefixes: usize,
    pub distance: Distance,
}

impl<S, G> PeerState<S, G> {
    pub const fn new() -> Self {
        Self {
            peer: None,
            awaiting: None,
            queue: Queue { messages: VecDeque::new(), bytes: VecDeque::new() },
            undelivered: Vec::new(),
            lost: None,
            is_missed: false,
            is_reported: false,
            requests: Requests::new(),
            gets: Gets::new(),
            prefixes: 0,
            distance: Distance::new(),
        }
    }
}

/// Memory of the section that holds a message.
#[derive(Debug)]
pub(crate) enum Memory {
    Fragment(Fragment),
    /// From the engine's chunks.
    Chunk(Fragment),
}

impl Memory {
    pub fn fragment(&self) -> &Fragment {
        let (Self::Fragment(fragment) | Self::Chunk(fragment)) = self;
        fragment
    }

    pub fn into_fragment(self) -> Fragment {
        let (Self::Fragment(fragment) | Self::Chunk(fragment)) = self;
        fragment
    }
}

/// A message in memory of the section, that waits or is in flight.
#[derive(Debug)]
pub(crate) struct Outgoing<S> {
    pub memory: Memory,
    pub tag: u8,
    pub len: usize,
    /// Its completion; without one the engine takes the memory back by itself.
    pub done: Option<S>,
}

/// A message that waits for room in the peer's ring.
#[derive(Debug)]
pub(crate) enum Waiting<S> {
    /// Inline, of so many bytes of [`Queue::bytes`].
    Inline {
        tag: u8,
        len: usize,
        done: Option<S>,
    },
    Memory(Outgoing<S>),
}

/// Messages that wait for room in one peer's ring, in order.
#[derive(Debug)]
pub(crate) struct Queue<S> {
    pub messages: VecDeque<Waiting<S>>,
    /// The bytes of the inline ones.
    pub bytes: VecDeque<u8>,
}

impl<S> Queue<S> {
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }
}
