//! Polling: from the transport's events to upcalls.

use vmshm_transport::{Event, Glance, Inbox, Peer, PeerError};

use crate::engine::Engine;
use crate::rendezvous::{REQUEST, is_chunk};
use crate::upcall::{Piece, Upcall};

impl<S, G> Engine<S, G> {
    /// Goes on with what waits: sends what the queues hold, serves requests, reads prefixes. To be called before the first of
    /// several polls. True if upcalls are due.
    #[inline]
    pub fn advance(&mut self) -> bool {
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
        !self.upcalls.is_empty()
    }

    /// Whether [`Engine::advance`] would do nothing, and the endpoint [is quiet](vmshm_transport::Endpoint::is_quiet). Other methods, but
    /// for those that send the quick way, may end this.
    pub fn is_quiet(&self, inbox: &Inbox) -> bool {
        let due = self.queued + self.read_in_place.len() + self.partial.len() + self.upcalls.len();
        due == 0 && !self.is_blocked && self.endpoint.is_quiet(inbox)
    }

    /// The quick part of [`Engine::advance`] and [`Engine::next_event`], while the engine [is quiet](Engine::is_quiet): see
    /// [`vmshm_transport::Endpoint::glance`]. A message with a [reserved](crate::is_reserved) tag is not the caller's, but to be
    /// [left](Inbox::leave) to [`Engine::next_event`].
    #[inline(always)]
    pub fn glance(&mut self, inbox: &mut Inbox) -> Glance {
        self.endpoint.glance(inbox)
    }

    /// Acknowledges what was consumed, after [`Glance::Consumed`].
    pub fn flush(&mut self) {
        self.endpoint.flush();
    }

    /// See [`vmshm_transport::Endpoint::look_around`], after [`Glance::Around`].
    pub fn look_around(&mut self) -> bool {
        self.endpoint.look_around()
    }

    /// See [`vmshm_transport::Endpoint::take_long`], after [`Glance::Long`].
    #[inline(always)]
    pub fn take_long(
        &mut self,
        inbox: &mut Inbox,
        wanted: impl FnOnce(u8, usize) -> bool,
    ) -> Option<(Peer, u32, bool)> {
        self.endpoint.take_long(inbox, wanted)
    }

    /// The next thing that has happened, or `None`. Each call does a bounded amount of work.
    pub fn poll(&mut self, inbox: &mut Inbox) -> Option<Upcall<S, G>> {
        if let Some(upcall) = self.next_upcall() {
            return Some(upcall);
        }
        let event = self.next_event(inbox)?;
        Some(self.handle(inbox, event).unwrap_or(Upcall::Handled))
    }

    /// The next of the upcalls that are due already.
    pub fn next_upcall(&mut self) -> Option<Upcall<S, G>> {
        self.upcalls.pop_front()
    }

    /// The next event, for callers that count each instruction of a message: one with a tag that is not
    /// [reserved](crate::is_reserved) is the caller's, all others are for [`Engine::handle`]. Upcalls that are due come before it.
    #[inline(always)]
    pub fn next_event(&mut self, inbox: &mut Inbox) -> Option<Event> {
        self.endpoint.poll(inbox)
    }

    /// As [`Engine::next_event`], for more of what it has just found: see [`vmshm_transport::Endpoint::poll_more`].
    #[inline(always)]
    pub fn more_events(&mut self, inbox: &mut Inbox) -> Option<Event> {
        self.endpoint.poll_more(inbox)
    }

    /// Acts on an event that is the engine's own; the upcall that comes of it, if any. Others may be due then, see
    /// [`Engine::next_upcall`].
    pub fn handle(&mut self, inbox: &mut Inbox, event: Event) -> Option<Upcall<S, G>> {
        let violation = |peer, tag| Some(Upcall::Violation { peer, tag });
        match event {
            Event::Message { peer, tag, len } if tag != REQUEST => Some(Upcall::Message { peer, tag, len }),
            Event::Message { peer, tag, len } => match self.accept(peer, inbox.bytes(len)) {
                true => None,
                false => violation(peer, tag),
            },
            Event::Fragment { peer, tag, offset, len } if !is_chunk(tag) => {
                let payload = self.endpoint.address(offset, len as u64);
                Some(Upcall::Fragment { peer, tag, payload, len })
            }
            Event::Fragment { peer, tag, offset, len } => {
                let from = self.endpoint.address(offset, len as u64);
                match self.place(peer, tag, len) {
                    Some(to) => Some(Upcall::Piece(Piece { peer, tag, from, to, len })),
                    // A peer that is gone has not broken a rule.
                    None if self.endpoint.consume(peer).is_err() => None,
                    None => violation(peer, tag),
                }
            }
            Event::Sent { token, .. } => {
                let sent = self.in_flight.end(token).and_then(|message| self.take_back(message));
                if self.is_blocked {
                    self.serve_blocked();
                }
                sent.map(|(done, fragment)| Upcall::Sent { done, fragment, result: Ok(()) })
            }
            Event::Unsent { peer, token } => {
                self.state(peer.index()).is_missed = true;
                if let Some(message) = self.in_flight.end(token) {
                    self.give_up(peer, message);
                }
                None
            }
            Event::Gone { peer, why } => {
                self.lose(peer, why);
                self.next_upcall()
            }
            // This engine makes no offers, so nobody has reason to send either.
            Event::Offer { peer, tag, .. } | Event::Done { peer, tag, .. } => violation(peer, tag),
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
