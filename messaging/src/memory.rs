//! Memory of the section for messages: fragments, bounce buffers, chunks.

use vmshm_transport::{Fragment, Peer};

use crate::engine::Engine;
use crate::memory_wait::MIN_FRAGMENT;
use crate::peer::{Memory, Outgoing};
use crate::upcall::Upcall;

/// Messages that may wait for room in one peer's ring before fragments for it are refused.
const MAX_QUEUED: usize = 16;

/// A peer with this many fragments in flight is not starved.
const ENOUGH: usize = 2;

/// A chunk where the section has no room for a whole one, bytes.
const SMALLEST_CHUNK: usize = 8 << 10;

/// Messages that take more than this are faster in memory that is used in turn, bytes.
const LONG: usize = 8 << 10;

/// A bounce buffer: memory of the section for one message of many.
#[derive(Debug)]
pub struct Bounce(Memory);

impl Bounce {
    /// Where the message goes.
    pub fn ptr(&self) -> *mut u8 {
        self.0.fragment().ptr()
    }
}

impl<S, G> Engine<S, G> {
    /// Whether more fragments may be made for a peer: not where many messages wait for room in its ring.
    #[inline]
    pub fn admits(&self, peer: Peer) -> bool {
        self.peers.get(peer.index()).is_none_or(|state| state.queue.messages.len() < MAX_QUEUED)
    }

    /// A fragment for a message of `len` bytes; `None` when the section is full.
    pub fn fragment(&mut self, len: usize) -> Option<Fragment> {
        let len = MIN_FRAGMENT.max(len.checked_next_power_of_two()?);
        let fragment = self.endpoint.fragment(len).or_else(|| self.fragment_of_chunks(len));
        self.note_memory(len, fragment.is_some());
        fragment
    }

    /// A fragment where chunks have to be given back for it.
    #[cold]
    fn fragment_of_chunks(&mut self, len: usize) -> Option<Fragment> {
        for chunk in self.chunks.take_free() {
            self.endpoint.free(chunk);
        }
        let mut fragment = self.endpoint.fragment(len);
        while fragment.is_none()
            && let Some(chunk) = self.chunks.reserve.pop()
        {
            self.endpoint.free(chunk);
            fragment = self.endpoint.fragment(len);
        }
        fragment
    }

    /// Gives back a fragment that is not in flight.
    #[inline]
    pub fn free(&mut self, fragment: Fragment) {
        self.endpoint.free(fragment);
    }

    /// Memory for a message of `len` bytes, one of many: used in turn if it is long. `None` when the section is full, or the peer
    /// has enough in flight.
    pub fn bounce(&mut self, peer: Peer, len: usize) -> Option<Bounce> {
        if len > LONG {
            match self.chunk(peer, self.params.pipeline.window_single) {
                Some(chunk) if chunk.capacity() >= len => return Some(Bounce(Memory::Chunk(chunk))),
                // The section is nearly full.
                Some(chunk) => self.chunks.put(chunk),
                None if self.endpoint.in_flight(peer) > 0 => return None,
                None => {}
            }
        }
        Some(Bounce(Memory::Fragment(self.fragment(len)?)))
    }

    /// The message in a bounce buffer.
    pub(crate) fn bounced(&self, bounce: Bounce, tag: u8, len: usize) -> Outgoing<S> {
        Outgoing { memory: bounce.0, tag, len, done: None }
    }

    /// The chunk that was used least lately, or a new one as long as there are fewer than `wanted`. A starved peer gets one in
    /// any case: others may keep theirs for as long as they like.
    pub(crate) fn chunk(&mut self, peer: Peer, wanted: usize) -> Option<Fragment> {
        let is_starved = self.chunks.free.is_empty() && self.endpoint.in_flight(peer) < ENOUGH;
        let count = self.chunks.free.len() + self.chunks.in_flight;
        if count > wanted && self.chunks.free.len() > 1 {
            // One at a time: many messages may soon be in flight again.
            let surplus = self.chunks.free.pop_front()?;
            self.endpoint.free(surplus);
        }
        let size = self.params.pipeline.chunk_size;
        let new = if count < wanted || is_starved { self.endpoint.fragment(size) } else { None };
        let mut chunk = new.or_else(|| self.chunks.free.pop_front());
        if chunk.is_none() && is_starved {
            // The section is nearly full: if need be, a smaller piece will do.
            let smallest = size.min(SMALLEST_CHUNK);
            chunk = self.chunks.reserve.pop().or_else(|| self.endpoint.fragment(smallest));
            self.note_memory(smallest, chunk.is_some());
        }
        self.chunks.in_flight += usize::from(chunk.is_some());
        chunk
    }

    /// Takes back the memory of a message: from it comes what its completion needs, if it has one.
    #[inline]
    pub(crate) fn take_back(&mut self, message: Outgoing<S>) -> Option<(S, Option<Fragment>)> {
        match (message.memory, message.done) {
            (Memory::Fragment(fragment), Some(done)) => Some((done, Some(fragment))),
            (Memory::Fragment(fragment), None) => {
                self.endpoint.free(fragment);
                None
            }
            (Memory::Chunk(chunk), done) => {
                self.chunks.put(chunk);
                done.map(|done| (done, None))
            }
        }
    }

    /// Notes whether a message of `len` bytes has found memory; a long wait becomes an upcall, once.
    #[inline]
    fn note_memory(&mut self, len: usize, has_found: bool) {
        if let Some((len, time)) = self.memory_wait.note(len, has_found) {
            self.upcalls.push_back(Upcall::MemoryWait { len, time });
        }
    }
}
