//! Sending: at once or not at all, and queued.

use vmshm_transport::{Fragment, MAX_INLINE, Packed, Peer, SendError, likely_word};
use zerocopy::IntoBytes;

use crate::engine::Engine;
use crate::memory::Bounce;
use crate::peer::{Memory, Outgoing, Waiting};
use crate::upcall::Upcall;

/// Why nothing was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// There is no room now.
    Full,
    /// The peer is gone.
    Lost,
}

/// A fragment that was not sent, as it was given.
#[derive(Debug)]
pub struct Unsent<S> {
    /// Why it was not sent.
    pub why: Refused,
    /// The fragment.
    pub fragment: Fragment,
    /// The send's completion.
    pub done: Option<S>,
}

impl<S, G> Engine<S, G> {
    /// Whether nothing waits for a peer.
    #[inline]
    pub fn is_free(&self, peer: Peer) -> bool {
        self.peers.get(peer.index()).is_none_or(|state| state.queue.is_empty())
    }

    /// Sends an inline message, whose bytes are the `parts` in their order, to the connected peer with this index: at once or not
    /// at all. It is complete when this returns.
    ///
    /// # Errors
    ///
    /// A full ring, messages that wait already, or too many bytes: nothing was kept. A peer that is gone, or unknown.
    #[inline(always)]
    pub fn try_send(&mut self, index: usize, tag: u8, parts: &[&[u8]]) -> Result<(), Refused> {
        let state = self.peers.get(index).ok_or(Refused::Lost)?;
        let peer = state.peer.ok_or(Refused::Lost)?;
        if !state.queue.is_empty() {
            return Err(Refused::Full);
        }
        match self.endpoint.send(peer, tag, parts) {
            Ok(()) => Ok(()),
            Err(SendError::Full | SendError::TooLong(_)) => Err(Refused::Full),
            Err(SendError::Gone) => {
                self.state(index).is_missed = true;
                Err(Refused::Lost)
            }
        }
    }

    /// As [`Engine::try_send`], of a header of 9 to 16 and a payload of up to 8 bytes: see
    /// [`vmshm_transport::Endpoint::send_slot`]. None if nothing was sent: `try_send` says why, or finds room. Some(false) if the
    /// peer is to be told by [`Engine::tell`].
    #[inline(always)]
    pub fn try_send_slot(&mut self, index: usize, tag: u8, header: &[u8], payload: &[u8]) -> Option<bool> {
        // What waits for any peer is seldom, and goes first.
        if self.queued == 0 { self.endpoint.send_slot(index, tag, header, payload) } else { None }
    }

    /// As [`Engine::try_send_slot`], of a somewhat longer payload: see [`vmshm_transport::Endpoint::send_few`].
    #[inline(always)]
    pub fn try_send_few(&mut self, index: usize, tag: u8, header: &[u8], payload: &[u8]) -> Option<bool> {
        if self.queued == 0 { self.endpoint.send_few(index, tag, header, payload) } else { None }
    }

    /// As [`Engine::try_send_slot`], of a longer payload: see [`vmshm_transport::Endpoint::send_long`].
    #[inline(always)]
    pub fn try_send_long(
        &mut self,
        index: usize,
        tag: u8,
        header: &[u8],
        payload: &[u8],
        max_inline: usize,
    ) -> Option<bool> {
        if self.queued == 0 { self.endpoint.send_long(index, tag, header, payload, max_inline) } else { None }
    }

    /// As [`Engine::try_send_slot`], of 8 bytes of header and a payload, in whatever way is the quickest.
    #[inline(always)]
    pub fn try_send_short(&mut self, index: usize, tag: u8, header: u64, payload: &[u8]) -> Option<bool> {
        if self.queued > 0 {
            return None;
        }
        let (first, rest) = payload.split_at(payload.len().min(8));
        let first = likely_word(first).to_le();
        if rest.len() <= 8 {
            return self.endpoint.send_words(
                index,
                tag,
                8 + payload.len(),
                [header, first, likely_word(rest).to_le()],
            );
        }
        let header = [header, first];
        let header = header.as_bytes();
        self.endpoint
            .send_few(index, tag, header, rest)
            .or_else(|| self.endpoint.send_long(index, tag, header, rest, MAX_INLINE))
    }

    /// As [`Engine::try_send_slot`], of what is packed: see [`vmshm_transport::Endpoint::send_packed`].
    #[inline(always)]
    pub fn try_send_packed(
        &mut self,
        index: usize,
        tag: u8,
        most: usize,
        pack: impl FnOnce(*mut u8) -> Option<usize>,
    ) -> Option<Packed> {
        if self.queued == 0 { self.endpoint.send_packed(index, tag, most, pack) } else { None }
    }

    /// Tells a peer of what was just sent to it.
    pub fn tell(&mut self, index: usize) {
        self.endpoint.tell(index);
    }

    /// Sends the first `len` bytes of a fragment at once or not at all. It completes by [`Upcall::Sent`],
    /// which returns the fragment; without a completion the engine frees it.
    ///
    /// # Errors
    ///
    /// A full ring or messages that wait already, a peer that is gone: fragment and completion come back.
    pub fn try_send_fragment(
        &mut self,
        peer: Peer,
        tag: u8,
        fragment: Fragment,
        len: usize,
        done: Option<S>,
    ) -> Result<(), Unsent<S>> {
        let message = Outgoing { memory: Memory::Fragment(fragment), tag, len, done };
        let refused =
            if self.is_free(peer) { self.push(peer, message) } else { Err((Refused::Full, message)) };
        refused.map_err(unsent)
    }

    /// Sends an inline message after all that was sent to the peer before. Returns the completion if it is complete; else it
    /// waits, and completes by [`Upcall::Sent`].
    ///
    /// # Errors
    ///
    /// A peer that is gone: the completion comes back.
    pub fn send(&mut self, peer: Peer, tag: u8, bytes: &[u8], done: S) -> Result<Option<S>, S> {
        self.send_inline(peer, tag, bytes, Some(done)).map_err(|done| done.expect("as it was given"))
    }

    /// As [`Engine::send`], with or without a completion.
    pub(crate) fn send_inline(
        &mut self,
        peer: Peer,
        tag: u8,
        bytes: &[u8],
        done: Option<S>,
    ) -> Result<Option<S>, Option<S>> {
        if self.is_free(peer) {
            match self.endpoint.send(peer, tag, &[bytes]) {
                Ok(()) => return Ok(done),
                Err(SendError::Full) => {}
                Err(SendError::Gone | SendError::TooLong(_)) => {
                    self.state(peer.index()).is_missed = true;
                    return Err(done);
                }
            }
        }
        let state = self.state(peer.index());
        state.awaiting = Some(peer);
        state.queue.bytes.extend(bytes);
        state.queue.messages.push_back(Waiting::Inline { tag, len: bytes.len(), done });
        self.queued += 1;
        self.wake();
        Ok(None)
    }

    /// As [`Engine::try_send_fragment`], after all that was sent to the peer before: what finds no room waits.
    ///
    /// # Errors
    ///
    /// A peer that is gone: fragment and completion come back.
    pub fn send_fragment(
        &mut self,
        peer: Peer,
        tag: u8,
        fragment: Fragment,
        len: usize,
        done: Option<S>,
    ) -> Result<(), Unsent<S>> {
        let message = Outgoing { memory: Memory::Fragment(fragment), tag, len, done };
        self.post(peer, message).map_err(|message| unsent((Refused::Lost, message)))
    }

    /// Sends the first `len` bytes of a bounce buffer after all that was sent to the peer before.
    ///
    /// # Errors
    ///
    /// A peer that is gone.
    pub fn send_bounce(&mut self, peer: Peer, tag: u8, bounce: Bounce, len: usize) -> Result<(), Refused> {
        let message = self.bounced(bounce, tag, len);
        self.post(peer, message).map_err(|message| {
            self.take_back(message);
            Refused::Lost
        })
    }

    /// Sends a message, or queues it; gives it back where the peer is gone.
    pub(crate) fn post(&mut self, peer: Peer, message: Outgoing<S>) -> Result<(), Outgoing<S>> {
        let refused =
            if self.is_free(peer) { self.push(peer, message) } else { Err((Refused::Full, message)) };
        match refused {
            Ok(()) => {}
            Err((Refused::Full, message)) => {
                self.queued += 1;
                let state = self.state(peer.index());
                state.awaiting = Some(peer);
                state.queue.messages.push_back(Waiting::Memory(message));
            }
            Err((Refused::Lost, message)) => return Err(message),
        }
        self.wake();
        Ok(())
    }

    /// A thread that sleeps does not wait for the acknowledgement of what was sent since: it has to look anew.
    #[inline]
    fn wake(&self) {
        if let Some(waker) = &self.waker {
            waker.wake();
        }
    }

    /// Gives a message to the transport, or back.
    fn push(&mut self, peer: Peer, message: Outgoing<S>) -> Result<(), (Refused, Outgoing<S>)> {
        let Outgoing { memory, tag, len, .. } = &message;
        match self.endpoint.send_fragment(peer, *tag, memory.fragment(), *len, self.in_flight.next()) {
            Ok(()) => {
                self.in_flight.begin(message);
                Ok(())
            }
            Err(SendError::Full) => Err((Refused::Full, message)),
            Err(SendError::Gone | SendError::TooLong(_)) => {
                self.state(peer.index()).is_missed = true;
                Err((Refused::Lost, message))
            }
        }
    }

    /// Sends what waits, as far as there is room.
    pub(crate) fn send_queued(&mut self) {
        for index in 0..self.peers.len() {
            let Some(peer) = self.peers[index].awaiting else { continue };
            while let Some(message) = self.peers[index].queue.messages.pop_front() {
                if let Some(message) = self.send_waiting(peer, message) {
                    self.peers[index].queue.messages.push_front(message);
                    break;
                }
                self.queued -= 1;
            }
        }
    }

    /// Sends a message that has waited; gives it back where there is still no room.
    fn send_waiting(&mut self, peer: Peer, message: Waiting<S>) -> Option<Waiting<S>> {
        let state = &mut self.peers[peer.index()];
        match message {
            Waiting::Inline { tag, len, done } => {
                let (first, second) = state.queue.bytes.as_slices();
                let first = &first[..len.min(first.len())];
                let second = &second[..len - first.len()];
                match self.endpoint.send(peer, tag, &[first, second]) {
                    Err(SendError::Full) => return Some(Waiting::Inline { tag, len, done }),
                    sent => {
                        state.queue.bytes.drain(..len);
                        match (sent, done) {
                            (Ok(()), Some(done)) => {
                                self.upcalls.push_back(Upcall::Sent { done, fragment: None, result: Ok(()) });
                            }
                            (Err(_), done) => {
                                state.is_missed = true;
                                state.undelivered.extend(done.map(|done| (done, None)));
                            }
                            (Ok(()), None) => {}
                        }
                    }
                }
            }
            Waiting::Memory(message) => match self.push(peer, message) {
                Ok(()) => {}
                Err((Refused::Full, message)) => return Some(Waiting::Memory(message)),
                Err((Refused::Lost, message)) => self.give_up(peer, message),
            },
        }
        None
    }
}

fn unsent<S>((why, message): (Refused, Outgoing<S>)) -> Unsent<S> {
    Unsent { why, fragment: message.memory.into_fragment(), done: message.done }
}
