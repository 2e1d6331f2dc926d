//! Memory of the section for messages: fragments, bounce buffers, chunks; and waits for it.

use std::time::{Duration, Instant};

use vmshm_transport::{Fragment, Peer};

use crate::engine::Engine;
use crate::peer::{Memory, Outgoing};
use crate::poll::Upcall;

/// The smallest fragment that is asked for, bytes. All are powers of two, so that few sizes share the section.
pub(crate) const MIN_FRAGMENT: usize = 2048;

/// Messages that may wait for room in one peer's ring before fragments for it are refused.
const MAX_QUEUED: usize = 16;

/// A wait for memory after which the user is told.
const LONG_WAIT: Duration = Duration::from_secs(10);

/// A pause between two looks for memory after which a wait is over.
const PAUSE: Duration = Duration::from_secs(1);

/// A peer with this many fragments in flight is not starved.
const ENOUGH: usize = 2;

/// A chunk where the section has no room for a whole one, bytes.
const SMALLEST_CHUNK: usize = 8 << 10;

/// Messages that take more than this are faster in memory that is used in turn, bytes.
const LONG: usize = 8 << 10;

/// A wait for memory of the section.
#[derive(Debug, Default)]
pub(crate) struct MemoryWait {
    /// Bytes of the message that found none, since when, and when it looked last.
    open: Option<(usize, Instant, Instant)>,
    /// The user was told, once.
    is_told: bool,
}

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

    /// Notes whether a message of `len` bytes has found memory. Its sender looks again whenever it polls; a long wait becomes
    /// an upcall, once.
    #[inline]
    fn note_memory(&mut self, len: usize, has_found: bool) {
        match self.memory_wait.open {
            None if has_found => {}
            Some((wanted, ..)) if has_found && len >= wanted => self.memory_wait.open = None,
            Some(_) if has_found => {}
            open => self.lack(open, len),
        }
    }

    #[cold]
    fn lack(&mut self, open: Option<(usize, Instant, Instant)>, len: usize) {
        let now = Instant::now();
        let open = open.filter(|(.., last)| now - *last < PAUSE);
        let (len, since) = open.map_or((len, now), |(len, since, _)| (len, since));
        self.memory_wait.open = Some((len, since, now));
        if !self.memory_wait.is_told && now - since >= LONG_WAIT {
            self.memory_wait.is_told = true;
            self.upcalls.push_back(Upcall::MemoryWait { len, time: LONG_WAIT });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::pair;

    #[test]
    fn a_long_wait_for_memory_is_told_once() {
        let ([mut a, _], _directory) = pair();
        let a = &mut a.engine;
        let taken: Vec<_> = std::iter::from_fn(|| a.fragment(1 << 20)).collect();
        assert!(a.memory_wait.open.is_some() && !a.memory_wait.is_told, "it has just begun to wait");
        // What finds room is shorter.
        let short = a.fragment(3000).expect("room");
        a.free(short);
        let (_, _, last) = a.memory_wait.open.expect("still");
        let begin = last.checked_sub(LONG_WAIT).expect("the machine runs for longer");
        a.memory_wait.open = Some((1 << 20, begin, last.checked_sub(PAUSE).expect("likewise")));
        assert!(a.fragment(1 << 20).is_none() && !a.memory_wait.is_told, "nobody has looked meanwhile");
        a.memory_wait.open = Some((1 << 20, begin, last));
        assert!(a.fragment(1 << 20).is_none() && a.memory_wait.is_told);
        assert!(a.fragment(1 << 20).is_none());
        assert!(matches!(a.upcalls.pop_front(), Some(Upcall::MemoryWait { len: 0x10_0000, .. })));
        assert!(a.upcalls.is_empty());
        taken.into_iter().for_each(|fragment| a.free(fragment));
        let fragment = a.fragment(1 << 20).expect("room");
        a.free(fragment);
        assert!(a.memory_wait.open.is_none(), "the wait is over");
    }
}
