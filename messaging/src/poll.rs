//! Upcalls: what has happened, one value at a time.

use std::time::Duration;

use vmshm_transport::{Event, Fragment, Inbox, Peer, PeerError, copy_from_shared};

use crate::engine::Engine;
use crate::rendezvous::{REQUEST, is_chunk};

/// What [`Engine::poll`] found.
#[derive(Debug)]
pub enum Upcall<S, G> {
    /// An inline message; its bytes are in the inbox.
    Message {
        /// Who sent it.
        peer: Peer,
        /// The sender's tag.
        tag: u8,
        /// Bytes in the inbox.
        len: usize,
    },
    /// A message in the sender's section, until [`Engine::consume`] gives it back. A hostile sender may change it at any time:
    /// what must be trusted is to be copied first.
    Fragment {
        /// Who sent it.
        peer: Peer,
        /// The sender's tag.
        tag: u8,
        /// Where it lies: valid for reads of `len` bytes.
        payload: *mut u8,
        /// Bytes.
        len: usize,
    },
    /// A piece of a get, to be copied by [`Piece::copy`], for which the engine need not be borrowed; then [`Engine::landed`] is
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
    /// A peer is gone; [`Engine::take_loss`] says whether that matters. Its sends and gets follow.
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
    from: *const u8,
    to: *mut u8,
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

impl<S, G> Engine<S, G> {
    /// Goes on with what waits: sends what the queues hold, serves requests, reads prefixes. To be called before the first of
    /// several polls.
    #[inline]
    pub fn advance(&mut self) {
        if self.queued > 0 {
            self.send_queued();
        }
        if self.is_blocked {
            self.serve_blocked();
        }
        if !self.read_in_place.is_empty() {
            self.evict_read_in_place();
        }
        if !self.partial.is_empty() {
            self.read_prefixes();
        }
    }

    /// The next thing that has happened, or `None`. Each call does a bounded amount of work.
    #[inline(always)]
    pub fn poll(&mut self, inbox: &mut Inbox) -> Option<Upcall<S, G>> {
        if !self.upcalls.is_empty() {
            return self.upcalls.pop_front();
        }
        let event = self.endpoint.poll(inbox)?;
        Some(self.upcall(inbox, event))
    }

    /// As [`Engine::poll`], for more of what a poll has just found: see [`vmshm_transport::Endpoint::poll_more`].
    #[inline(always)]
    pub fn poll_more(&mut self, inbox: &mut Inbox) -> Option<Upcall<S, G>> {
        if !self.upcalls.is_empty() {
            return self.upcalls.pop_front();
        }
        let event = self.endpoint.poll_more(inbox)?;
        Some(self.upcall(inbox, event))
    }

    #[inline(always)]
    fn upcall(&mut self, inbox: &mut Inbox, event: Event) -> Upcall<S, G> {
        match event {
            Event::Message { peer, tag, len } if tag != REQUEST => Upcall::Message { peer, tag, len },
            Event::Fragment { peer, tag, offset, len } if !is_chunk(tag) => {
                Upcall::Fragment { peer, tag, payload: self.endpoint.address(offset, len as u64), len }
            }
            event => self.handle(inbox, event),
        }
    }

    fn handle(&mut self, inbox: &mut Inbox, event: Event) -> Upcall<S, G> {
        match event {
            Event::Message { peer, tag, len } => match self.accept(peer, inbox.bytes(len)) {
                true => Upcall::Handled,
                false => Upcall::Violation { peer, tag },
            },
            Event::Fragment { peer, tag, offset, len } => {
                let from = self.endpoint.address(offset, len as u64);
                match self.place(peer, tag, len) {
                    Some(to) => Upcall::Piece(Piece { peer, tag, from, to, len }),
                    // A peer that is gone has not broken a rule.
                    None if self.endpoint.consume(peer).is_err() => Upcall::Handled,
                    None => Upcall::Violation { peer, tag },
                }
            }
            Event::Sent { token, .. } => {
                let sent = self.in_flight.end(token).and_then(|message| self.take_back(message));
                if self.is_blocked {
                    self.serve_blocked();
                }
                match sent {
                    Some((done, fragment)) => Upcall::Sent { done, fragment, result: Ok(()) },
                    None => Upcall::Handled,
                }
            }
            Event::Unsent { peer, token } => {
                self.state(peer.index()).is_missed = true;
                if let Some(message) = self.in_flight.end(token) {
                    self.give_up(peer, message);
                }
                Upcall::Handled
            }
            Event::Gone { peer, why } => {
                self.lose(peer, why);
                Upcall::Handled
            }
            // This engine makes no offers, so nobody has reason to send either.
            Event::Offer { peer, tag, .. } | Event::Done { peer, tag, .. } => Upcall::Violation { peer, tag },
        }
    }

    /// Gives a fragment back to its sender: the one of the last [`Upcall::Fragment`] of this peer.
    ///
    /// # Errors
    ///
    /// A peer that is gone; an upcall of that follows.
    #[inline]
    pub fn consume(&mut self, peer: Peer) -> Result<(), PeerError> {
        self.endpoint.consume(peer)
    }
}
