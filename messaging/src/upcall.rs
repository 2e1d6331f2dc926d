//! Upcalls: what has happened, one value at a time.

use std::time::Duration;

use vmshm_transport::{Fragment, Peer, PeerError, copy_from_shared};

/// Finding of [`crate::Engine::poll`].
#[derive(Debug)]
pub enum Upcall<S, G> {
    /// An inline message; its bytes are in the inbox.
    Message {
        /// Its sender.
        peer: Peer,
        /// The sender's tag.
        tag: u8,
        /// Bytes in the inbox.
        len: usize,
    },
    /// A message in the sender's section, until [`crate::Engine::consume`] gives it back. A hostile sender may change it at any time:
    /// what must be trusted is to be copied first.
    Fragment {
        /// Its sender.
        peer: Peer,
        /// The sender's tag.
        tag: u8,
        /// Where it lies: valid for reads of `len` bytes.
        payload: *mut u8,
        /// Bytes.
        len: usize,
    },
    /// A piece of a get, to be copied by [`Piece::copy`], for which the engine need not be borrowed; then [`crate::Engine::landed`] is
    /// due, before the next poll.
    Piece(Piece),
    /// A send is over.
    Sent {
        /// Its completion.
        done: S,
        /// The fragment that it was given, to be used again or freed.
        fragment: Option<Fragment>,
        /// Whether the peer has consumed it.
        result: Result<(), PeerError>,
    },
    /// A get is over.
    Got {
        /// Its completion.
        done: G,
        /// Whether all of it is here.
        result: Result<(), PeerError>,
    },
    /// A peer is gone; [`crate::Engine::take_loss`] says whether that matters. Its sends and gets follow.
    Lost {
        /// Which peer.
        peer: Peer,
        /// Why.
        why: PeerError,
    },
    /// A peer has sent what nobody here has asked for.
    Violation {
        /// Which peer.
        peer: Peer,
        /// The tag of what it has sent.
        tag: u8,
    },
    /// A message has waited for memory of the section for long. Told once.
    MemoryWait {
        /// Bytes of the message.
        len: usize,
        /// For how long.
        time: Duration,
    },
    /// The engine has done something of its own.
    Handled,
}

/// A piece of a get, and where it belongs.
#[derive(Debug)]
pub struct Piece {
    pub(crate) peer: Peer,
    pub(crate) tag: u8,
    pub(crate) from: *const u8,
    pub(crate) to: *mut u8,
    pub(crate) len: usize,
}

impl Piece {
    /// Copies it to where it belongs.
    pub fn copy(&self) {
        // SAFETY: the transport has checked that len bytes lie at `from`, and the caller of `get` vouches for the destination
        // until the get completes, which is not before `landed`.
        unsafe { copy_from_shared(self.from, self.to, self.len) };
    }
}
