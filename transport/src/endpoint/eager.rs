//! Eager messages, which go through memory that the endpoint uses in turn, and frees by itself.

use vmshm_abi::ring::{Descriptor, KIND_FRAGMENT};
use vmshm_abi::section::CHUNK;
use zerocopy::IntoBytes;

use super::Endpoint;
use super::event::{MAX_EAGER, Peer};
use super::send::SMALL;
use crate::channel::ring::join_long;
use crate::memory::Memory;
use crate::region::chunks::Purpose;
use crate::region::rotation::Rotation;

/// Bytes of a descriptor.
const DESCRIPTOR: usize = size_of::<Descriptor>();

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
        let producer = &self.connections.get(index)?.producer;
        if len > MAX_EAGER || !(producer.is_ready() || self.find_room(Peer(index as u32), DESCRIPTOR).is_ok())
        {
            return None;
        }
        self.free_landed(index);
        let (offset, chunk) = self.rotation.take(len as u64)?;
        if let Some((words, rest)) = join_long(header, payload) {
            self.memory.store_words(offset, words);
            self.memory.write(offset + size_of_val(&words) as u64, rest);
        } else {
            self.memory.write(offset, header);
            self.memory.write(offset + header.len() as u64, payload);
        }
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
        Some(unsafe { connection.is_polled(&self.memory) } && !connection.may_sleep)
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
