//! Sending: inline, eager, rendezvous.

use vmshm_abi::ring::{Descriptor, KIND_DONE, KIND_FRAGMENT, KIND_INLINE, KIND_OFFER, MAX_INLINE};
use zerocopy::IntoBytes;

use super::Endpoint;
use super::event::{Fragment, Peer};
use crate::channel::activity::bump;
use crate::channel::ring::join_short;
use crate::error::{PeerError, SendError};
use crate::memory::Memory;
use crate::region::chunks::Purpose;

/// Bytes of a freed fragment, the next to be used, that are owned ahead, while there may be nothing else to do. A lone
/// message of no more is demoted to the shared cache, from where its reader gets it faster than out of ours.
pub(super) const SMALL: usize = 4096 + 128;

/// Longest message that goes through the ring in a stream, with its header: in longer ones the lines count, of which the ring has few.
pub(super) const SHORT: usize = 128;

/// Longest answer that goes through the ring if there is room, with its header; longer ones leave room for others.
pub const MEDIUM: usize = 640;

impl<M: Memory> Endpoint<M> {
    /// Sends an inline message, whose bytes are the `parts` in their order.
    ///
    /// # Errors
    ///
    /// A full ring, a peer that is gone, more than [`MAX_INLINE`] bytes.
    #[inline(always)]
    pub fn send(&mut self, peer: Peer, tag: u8, parts: &[&[u8]]) -> Result<(), SendError> {
        let len = parts.iter().map(|part| part.len()).sum();
        if len > MAX_INLINE {
            return Err(SendError::TooLong(len));
        }
        self.push(peer, KIND_INLINE, tag, parts, len)
    }

    /// As [`Endpoint::send`] to the peer with this [index](Peer::index), of a header of 9 to 16 and a payload of up to 8 bytes:
    /// the quick way, for callers that count each instruction. None if nothing was sent: that function knows why, or finds room.
    /// Some(false) if the peer is to be [told](Endpoint::tell).
    #[inline(always)]
    pub fn send_slot(&mut self, index: usize, tag: u8, header: &[u8], payload: &[u8]) -> Option<bool> {
        self.send_words(index, tag, header.len() + payload.len(), join_short(header, payload)?)
    }

    /// As [`Endpoint::send_slot`], of `len` bytes in words.
    #[inline(always)]
    pub fn send_words(&mut self, index: usize, tag: u8, len: usize, words: [u64; 3]) -> Option<bool> {
        let connection = self.connections.get_mut(index)?;
        if !connection.producer.is_ready() {
            return None;
        }
        connection.producer.push_slot(&self.memory, KIND_INLINE, tag, len, words);
        // SAFETY: the connections of an endpoint are made with its memory.
        Some(unsafe { connection.is_polled(&self.memory) } && !connection.may_sleep)
    }

    /// As [`Endpoint::send_slot`], of a message that takes two or three slots.
    #[inline(always)]
    pub fn send_few(&mut self, index: usize, tag: u8, header: &[u8], payload: &[u8]) -> Option<bool> {
        let connection = self.connections.get_mut(index)?;
        if !connection.producer.push_few(&self.memory, KIND_INLINE, tag, header, payload) {
            return None;
        }
        // SAFETY: the connections of an endpoint are made with its memory.
        Some(unsafe { connection.is_polled(&self.memory) } && !connection.may_sleep)
    }

    /// As [`Endpoint::send_slot`], of a longer payload: through the ring if it is short, or an answer of no more than `max_inline` bytes,
    /// else by [`Endpoint::send_eager`].
    #[inline(always)]
    pub fn send_long(
        &mut self,
        index: usize,
        tag: u8,
        header: &[u8],
        payload: &[u8],
        max_inline: usize,
    ) -> Option<bool> {
        let len = header.len() + payload.len();
        let connection = self.connections.get_mut(index)?;
        let is_answer = connection.is_answer();
        let is_inline = len <= max_inline.min(if is_answer { MAX_INLINE } else { SHORT })
            && (len <= MEDIUM || connection.is_spacious(len));
        if is_inline && let Some(is_told) = self.send_slots(index, tag, header, payload) {
            return Some(is_told);
        }
        if is_answer && len <= max_inline.min(MAX_INLINE) {
            return None;
        }
        self.send_eager(index, tag, header, payload)
    }

    /// As [`Endpoint::send_slot`], of a message that the ring has room for in one piece.
    #[inline(always)]
    pub(super) fn send_slots(
        &mut self,
        index: usize,
        tag: u8,
        header: &[u8],
        payload: &[u8],
    ) -> Option<bool> {
        let connection = self.connections.get_mut(index)?;
        if connection.failed.is_some()
            || !connection.producer.push_long(&self.memory, KIND_INLINE, tag, header, payload)
        {
            return None;
        }
        // SAFETY: the connections of an endpoint are made with its memory.
        Some(unsafe { connection.is_polled(&self.memory) } && !connection.may_sleep)
    }

    /// Whether an inline message of `len` bytes would leave room in the ring for more, and no fragment is in flight. Where
    /// not, a long message is better sent as a fragment: the sender can run further ahead.
    #[inline]
    pub fn is_spacious(&mut self, peer: Peer, len: usize) -> bool {
        let connection = &mut self.connections[peer.index()];
        if connection.is_spacious(len) || connection.has_in_flight() {
            return !connection.has_in_flight();
        }
        // Mostly the peer has acknowledged what we have sent before its last answer, without our knowing.
        connection.producer.may_ask() && self.ask(peer).is_ok() && {
            self.connections[peer.index()].producer.is_spacious(len)
        }
    }

    /// Fragments in flight to a peer.
    pub fn in_flight(&self, peer: Peer) -> usize {
        self.connections[peer.index()].in_flight.len()
    }

    /// A piece of our section of at least `len` bytes for a message, or `None` when the section is full.
    #[inline]
    pub fn fragment(&mut self, len: usize) -> Option<Fragment> {
        self.fragment_for(len, Purpose::Message)
    }

    /// A piece of our section of at least `len` bytes, or `None` when there is none left for this purpose.
    #[inline]
    pub fn fragment_for(&mut self, len: usize, purpose: Purpose) -> Option<Fragment> {
        let is_message = purpose == Purpose::Message;
        if let Some(offset) = self.arena.allocate(&self.memory, &self.section, len as u64, purpose) {
            return Some(self.new_fragment(offset, len, is_message));
        }
        if !is_message {
            return None;
        }
        let offset = self.arena.borrow(len as u64)?;
        Some(self.new_fragment(offset, len, false))
    }

    /// As [`Endpoint::fragment_for`] something that outlives messages, but `None` also where others may soon need the memory
    /// more.
    pub fn try_fragment(&mut self, len: usize) -> Option<Fragment> {
        let large = Purpose::Large;
        let offset = self.arena.try_allocate(&self.memory, &self.section, len as u64, large)?;
        Some(self.new_fragment(offset, len, false))
    }

    #[inline]
    fn new_fragment(&self, offset: u64, len: usize, is_message: bool) -> Fragment {
        Fragment { offset, len, address: self.memory.address(offset, len as u64), is_message }
    }

    /// Holds for messages of each length, for good, the memory that we have for them now: allocations that outlive messages get
    /// none of it, nor do other processes, nor messages of other lengths.
    pub fn reserve_fragments(&mut self) {
        self.arena.hold();
    }

    /// Gives a fragment back; it must not be in flight.
    pub fn free(&mut self, fragment: Fragment) {
        self.memory.own(fragment.offset, fragment.len.min(SMALL) as u64);
        let Fragment { offset, len, is_message, .. } = fragment;
        self.arena.free(&self.memory, &self.section, offset, len as u64, is_message);
    }

    /// Sends the first `len` bytes of a fragment. It is in flight until [`Event::Sent`](crate::Event::Sent) or
    /// [`Event::Unsent`](crate::Event::Unsent) returns the `token`; until then it may be read but neither changed nor freed.
    ///
    /// # Errors
    ///
    /// A full ring, a peer that is gone.
    pub fn send_fragment(
        &mut self,
        peer: Peer,
        tag: u8,
        fragment: &Fragment,
        len: usize,
        token: u64,
    ) -> Result<(), SendError> {
        if len > fragment.len {
            return Err(SendError::TooLong(len));
        }
        let descriptor = Descriptor { offset: fragment.offset, len: len as u64, cookie: 0 };
        self.push_descriptor(peer, KIND_FRAGMENT, tag, &descriptor)?;
        // In a stream this would keep us from writing the next one.
        if self.total_in_flight == 0 && len <= SMALL {
            self.memory.demote(fragment.offset, len as u64);
        }
        let connection = &mut self.connections[peer.index()];
        connection.in_flight.push_back((connection.producer.position(), token));
        connection.counted.fragments_sent.add(len);
        self.total_in_flight += 1;
        if connection.in_flight.len() == 1 {
            self.in_flight_to.push(peer.0);
        }
        Ok(())
    }

    /// Offers memory of our section to a peer, which pulls from it and then says [`Event::Done`](crate::Event::Done) with the
    /// `cookie`.
    ///
    /// # Errors
    ///
    /// A full ring, a peer that is gone.
    pub fn offer(
        &mut self,
        peer: Peer,
        tag: u8,
        offset: u64,
        len: u64,
        cookie: u64,
    ) -> Result<(), SendError> {
        self.push_descriptor(peer, KIND_OFFER, tag, &Descriptor { offset, len, cookie })
    }

    /// Tells a peer that we have finished with its offer.
    ///
    /// # Errors
    ///
    /// A full ring, a peer that is gone.
    pub fn finish(&mut self, peer: Peer, tag: u8, offer: &Descriptor) -> Result<(), SendError> {
        self.push_descriptor(peer, KIND_DONE, tag, offer)
    }

    #[inline(never)]
    fn push_descriptor(&mut self, peer: Peer, kind: u8, tag: u8, body: &Descriptor) -> Result<(), SendError> {
        self.push(peer, kind, tag, &[body.as_bytes()], size_of::<Descriptor>())
    }

    #[inline(always)]
    fn push(&mut self, peer: Peer, kind: u8, tag: u8, parts: &[&[u8]], len: usize) -> Result<(), SendError> {
        self.find_room(peer, len)?;
        let connection = &mut self.connections[peer.index()];
        connection.producer.push(&self.memory, kind, tag, parts);
        // SAFETY: the connections of an endpoint are made with its memory.
        if !unsafe { connection.is_polled(&self.memory) } || connection.may_sleep {
            self.tell(peer.index());
        }
        Ok(())
    }

    /// Whether there is room for a message of `len` bytes.
    #[inline(always)]
    pub(super) fn find_room(&mut self, peer: Peer, len: usize) -> Result<(), SendError> {
        let connection = &mut self.connections[peer.index()];
        if connection.failed.is_some() || !connection.producer.has_room(len) {
            self.make_room(peer, len)
        } else if connection.producer.asks() {
            self.ask(peer)
        } else {
            Ok(())
        }
    }

    /// Tells a peer of what was just published for it, where it does not poll our ring or may sleep.
    #[inline(never)]
    pub fn tell(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        // SAFETY: the connections of an endpoint are made with its memory.
        let is_polled = unsafe { connection.is_polled(&self.memory) };
        if !is_polled {
            bump(&self.memory, &self.section, self.slot, connection.id);
        }
        connection.wake(&self.memory, false);
        if !is_polled && connection.peer_side.is_none() {
            // The peer's side of the connection, once it is there, says whether the peer polls our ring.
            self.enqueue(index as u32);
        }
    }

    /// Looks for credit.
    #[inline(never)]
    fn ask(&mut self, peer: Peer) -> Result<(), SendError> {
        let connection = &mut self.connections[peer.index()];
        connection
            .catch_up(&self.memory, &self.region, self.id, self.incarnation)
            .map_err(|fault| self.fail_send(peer, fault.into()))
    }

    /// Looks whether there is room for a message of `len` bytes by now.
    #[inline(never)]
    fn make_room(&mut self, peer: Peer, len: usize) -> Result<(), SendError> {
        let connection = &mut self.connections[peer.index()];
        if connection.failed.is_some() {
            return Err(SendError::Gone);
        }
        self.ask(peer)?;
        let connection = &mut self.connections[peer.index()];
        if connection.producer.has_room(len) {
            return Ok(());
        }
        // A dead peer's ring stays full for ever; the slot's state says so before any watcher does.
        if connection.lives(&self.memory) {
            connection.blocked_on_credit = Some(len);
            return Err(SendError::Full);
        }
        Err(self.fail_send(peer, self.ending(peer.0)))
    }

    fn fail_send(&mut self, peer: Peer, why: PeerError) -> SendError {
        self.fail(peer.0, why);
        SendError::Gone
    }

    /// Whether living peers have acknowledged all that was sent to them; short messages may still wait in their inboxes. An
    /// endpoint should only be closed then.
    pub fn is_drained(&mut self) -> bool {
        self.flush();
        for index in 0..self.connections.len() as u32 {
            let connection = &mut self.connections[index as usize];
            if connection.failed.is_some()
                || connection.producer.acknowledged() == connection.producer.position()
            {
                continue;
            }
            let learned = connection.catch_up(&self.memory, &self.region, self.id, self.incarnation);
            match learned {
                Err(fault) => self.fail(index, fault.into()),
                Ok(()) if !connection.lives(&self.memory) => self.fail(index, self.ending(index)),
                Ok(()) if connection.producer.acknowledged() < connection.producer.position() => {
                    return false;
                }
                Ok(()) => {}
            }
        }
        true
    }
}
