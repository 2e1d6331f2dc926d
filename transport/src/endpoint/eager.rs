//! Eager messages, which go through memory that the endpoint uses in turn, and frees by itself.

use vmshm_abi::ring::{Descriptor, KIND_FRAGMENT};
use vmshm_abi::section::CHUNK;
use zerocopy::IntoBytes;

use super::Endpoint;
use super::event::{MAX_EAGER, Peer};
use super::send::{MEDIUM, SHORT, SMALL};
use crate::channel::ring::join_long;
use crate::memory::Memory;
use crate::region::chunks::Purpose;
use crate::region::rotation::Rotation;

/// Bytes of a descriptor.
const DESCRIPTOR: usize = size_of::<Descriptor>();

/// Bytes of a message that one slot of the ring holds, and of the longest header that the quick ways of sending take.
const SLOT: usize = size_of::<[u64; 3]>();
const HEADER: usize = 16;

/// Outcome of [`Endpoint::send_packed`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packed {
    /// Nothing was to be sent.
    Nothing,
    /// So many bytes were sent. Unless the peer is told by itself, it is to be [told](Endpoint::tell).
    Sent {
        /// Bytes.
        len: usize,
        /// The peer sees it without being told.
        is_told: bool,
    },
}

impl<M: Memory> Endpoint<M> {
    /// Sets memory aside for eager messages, up to so many bytes, and none that would be more than a quarter of the section with that of
    /// others; without any there are no such messages. To be called once.
    pub fn reserve_eager(&mut self, bytes: usize) {
        let (memory, section) = (&self.memory, &self.section);
        let take = |_| self.arena.try_allocate(memory, section, CHUNK, Purpose::Eager);
        self.rotation = Rotation::new(memory, (0..bytes / CHUNK as usize).map_while(take));
    }

    /// As [`Endpoint::send_long`], of up to [`MAX_EAGER`] bytes, which go through memory of the section that is the endpoint's from
    /// beginning to end.
    #[inline(never)]
    pub fn send_eager(&mut self, index: usize, tag: u8, header: &[u8], payload: &[u8]) -> Option<bool> {
        let len = header.len() + payload.len();
        let offset = self.find_eager(index, len)?;
        if let Some((words, rest)) = join_long(header, payload) {
            self.memory.store_words(offset, words);
            self.memory.write(offset + size_of_val(&words) as u64, rest);
        } else {
            self.memory.write(offset, header);
            self.memory.write(offset + header.len() as u64, payload);
        }
        Some(self.push_eager(index, tag, offset, len))
    }

    /// As [`Endpoint::send_eager`], of a message that `pack` writes to the address that it is given, where there is room for `most` bytes;
    /// it returns the length, or none to send nothing. None if it was not called. A short message then goes through the ring.
    #[inline(always)]
    pub fn send_packed(
        &mut self,
        index: usize,
        tag: u8,
        most: usize,
        pack: impl FnOnce(*mut u8) -> Option<usize>,
    ) -> Option<Packed> {
        let offset = self.find_eager(index, most)?;
        let Some(len) = pack(self.memory.address(offset, most as u64)) else { return Some(Packed::Nothing) };
        assert!(len <= most, "{len} bytes where {most} have room");
        let is_told = match self.send_copy(index, tag, offset, len) {
            Some(is_told) => is_told,
            None => self.push_eager(index, tag, offset, len),
        };
        Some(Packed::Sent { len, is_told })
    }

    /// Sends a copy of what lies at `offset`, by the ring, where such messages go through it; none if it was not sent.
    #[inline(never)]
    fn send_copy(&mut self, index: usize, tag: u8, offset: u64, len: usize) -> Option<bool> {
        let is_answer = self.connections.get_mut(index)?.is_answer();
        if len <= SLOT {
            return self.send_words(index, tag, len, self.memory.load_words(offset));
        }
        if len > if is_answer { MEDIUM } else { SHORT } {
            return None;
        }
        let mut copy = [0; MEDIUM];
        let copy = &mut copy[..len];
        self.memory.read(offset, copy);
        let (header, payload) = copy.split_at(HEADER);
        self.send_few(index, tag, header, payload).or_else(|| self.send_slots(index, tag, header, payload))
    }

    /// A place for an eager message of `len` bytes, for [`Endpoint::push_eager`]; none where no message can be sent to the peer now.
    #[inline(always)]
    fn find_eager(&mut self, index: usize, len: usize) -> Option<u64> {
        let producer = &self.connections.get(index)?.producer;
        if len > MAX_EAGER || !(producer.is_ready() || self.find_room(Peer(index as u32), DESCRIPTOR).is_ok())
        {
            return None;
        }
        self.free_landed(index);
        self.rotation.find(len as u64)
    }

    /// Sends the message at `offset`, as `find_eager` gave it.
    #[inline(always)]
    fn push_eager(&mut self, index: usize, tag: u8, offset: u64, len: usize) -> bool {
        let chunk = self.rotation.take(len as u64);
        let connection = &mut self.connections[index];
        if connection.producer.is_ready() {
            let words = [offset, len as u64, 0];
            connection.producer.push_slot(&self.memory, KIND_FRAGMENT, tag, DESCRIPTOR, words);
        } else {
            let descriptor = Descriptor { offset, len: len as u64, cookie: 0 };
            connection.producer.push(&self.memory, KIND_FRAGMENT, tag, &[descriptor.as_bytes()]);
        }
        if connection.eager.is_empty() {
            // In a stream this would keep us from writing the next one.
            if len <= SMALL {
                self.memory.demote(offset, len as u64);
            }
            self.eager_to.push(index as u32);
        }
        connection.eager.push_back((connection.producer.position(), chunk));
        connection.counted.fragments_sent.add(len);
        if connection.eager.len() > 1 {
            // The next one is likely to be as long, and stores to its lines wait for nothing then. A dialogue has time for that later.
            self.rotation.prepare(&self.memory);
        }
        // SAFETY: the connections of an endpoint are made with its memory.
        unsafe { connection.is_polled(&self.memory) && !connection.may_sleep }
    }

    /// Frees the oldest eager messages to a peer that are known to have landed, but for one: that keeps its place in the list.
    #[inline(always)]
    fn free_landed(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        while connection.eager.len() > 1
            && let Some(&(end, chunk)) = connection.eager.front()
            && end <= connection.producer.acknowledged()
        {
            connection.eager.pop_front();
            self.rotation.free(chunk);
        }
    }

    /// Looks for eager messages to one peer that have landed, and frees them.
    pub(super) fn poll_eager(&mut self) {
        if self.eager_to.is_empty() {
            return;
        }
        self.next_eager_to = (self.next_eager_to + 1) % self.eager_to.len();
        let index = self.eager_to[self.next_eager_to];
        let connection = &mut self.connections[index as usize];
        if let Err(fault) = connection.catch_up(&self.memory, &self.region, self.id, self.incarnation) {
            return self.fail(index, fault.into());
        }
        let is_lone = connection.eager.len() == 1 && self.eager_to.len() == 1;
        self.free_landed(index as usize);
        let connection = &self.connections[index as usize];
        if connection.eager.back().is_some_and(|(end, _)| *end <= connection.producer.acknowledged()) {
            self.free_all_eager(index);
            if is_lone {
                self.rotation.prepare(&self.memory);
            }
        }
    }

    /// Frees all eager messages to a peer.
    pub(super) fn free_all_eager(&mut self, index: u32) {
        for (_, chunk) in self.connections[index as usize].eager.drain(..) {
            self.rotation.free(chunk);
        }
        self.eager_to.retain(|other| *other != index);
    }
}
