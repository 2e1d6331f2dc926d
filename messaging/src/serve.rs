//! The sender's side of the rendezvous: sources, their prefixes, and the chunks that peers request.

use std::sync::atomic::Ordering;

use vmshm_transport::{Event, Fragment, Inbox, Memory as _, Peer, copy_to_far};

use crate::distance::Distance;
use crate::engine::Engine;
use crate::peer::{Memory, Outgoing};
use crate::rendezvous::{
    Audience, BY_KEY, MAX_REQUESTS, Prefix, PrefixBuffer, REQUEST, Request, Source, tag_of,
};

/// The part of the chunks that one peer's prefixes leave to those of others: it may be long before it asks for the messages. A
/// stream to one peer needs the rest: with an eighth of the chunks for it, 32 KiB took 1.5 times as long. Of messages beyond
/// [`LONG`] chunks a prefix is so little that their other chunks need the memory more: these have no more than this part.
const OTHERS: usize = 8;

/// See [`OTHERS`].
const LONG: usize = 8;

/// Steps of the shortest prefix.
const STEPS: usize = 4;

/// The shortest step, bytes: a store to the progress word for less costs more than it gains.
pub(crate) const SHORTEST_STEP: usize = 4 << 10;

impl<S, G> Engine<S, G> {
    /// Exposes memory of this process to one peer, which may get each byte once. Returns the source's number, which is less than
    /// 2^63, and its prefix, which [`Engine::fill`] copies once the message with both was sent.
    ///
    /// # Safety
    ///
    /// `base` must be valid for reads of `len` bytes until [`Engine::unexpose`].
    pub unsafe fn expose(&mut self, peer: Peer, base: *const u8, len: usize) -> (u64, Prefix) {
        let buffer = if self.params.sends_prefix { self.prefix(peer, len) } else { None };
        let prefix = buffer.as_ref().map_or(Prefix::default(), |buffer| buffer.prefix);
        let audience = Audience::one(peer, len);
        let number = self.sources.add(Source { audience, base, len, prefix: buffer });
        if prefix != Prefix::default() {
            self.promised.push(number);
        }
        (number, prefix)
    }

    /// Exposes memory of this process to any peer that shows `key`, which should be random. Returns the source's number.
    ///
    /// # Safety
    ///
    /// As [`Engine::expose`].
    pub unsafe fn expose_to_all(&mut self, key: u64, base: *const u8, len: usize) -> u64 {
        self.sources.add(Source { audience: Audience::Key(key), base, len, prefix: None })
    }

    /// The number of the source with a key.
    pub fn source(&self, key: u64) -> Option<u64> {
        self.sources.number(key)
    }

    /// The key that an event's request shows, if no source has it: a caller that knows the memory may expose it before
    /// [`Engine::handle`](crate::Engine::handle) refuses the request.
    pub fn missing_key(&self, inbox: &Inbox, event: &Event) -> Option<u64> {
        let Event::Message { tag: REQUEST, len, .. } = *event else { return None };
        let (request, key) = Request::read(inbox.bytes(len))?;
        key.filter(|key| request.source == BY_KEY && self.sources.number(*key).is_none())
    }

    /// Ends a source: its memory is not touched any more.
    pub fn unexpose(&mut self, number: u64) {
        if let Some(Source { audience: Audience::Peer(peer, _), prefix: Some(buffer), .. }) =
            self.sources.remove(number)
        {
            self.state(peer.index()).prefixes -= 1;
            self.chunks.put_prefix(buffer.chunk, buffer.progress);
        }
    }

    /// Notes that a peer is about to read so many bytes of this section in place. If they are all that is under way at the next
    /// poll, this process evicts them from its nearest cache.
    pub fn read_in_place(&mut self, len: usize) {
        self.read_in_place.push(len);
    }

    pub(crate) fn evict_read_in_place(&mut self) {
        if let [len] = self.read_in_place[..] {
            // A process that sends more than one at a time has more to do than to wait.
            self.evictor.evict(len);
        }
        self.read_in_place.clear();
    }

    /// A chunk and a progress word for the prefix of a message of `len` bytes, if others can spare them.
    fn prefix(&mut self, peer: Peer, len: usize) -> Option<PrefixBuffer> {
        let (chunk, progress) = self.prefix_memory(peer, len)?;
        self.endpoint.memory().store(progress.offset(), 0, Ordering::Relaxed);
        match Prefix::new(&chunk, &progress, len.min(chunk.capacity())) {
            Some(prefix) => {
                self.state(peer.index()).prefixes += 1;
                Some(PrefixBuffer { chunk, progress, prefix })
            }
            None => {
                self.chunks.put_prefix(chunk, progress);
                None
            }
        }
    }

    /// Half of the chunks stay for what is requested, and no memory is taken that others may need meanwhile.
    fn prefix_memory(&mut self, peer: Peer, len: usize) -> Option<(Fragment, Fragment)> {
        let pipeline = self.params.pipeline;
        // A short message leaves the rest of its chunk untouched: as many more make up the memory to rotate through.
        let touched = len.clamp(pipeline.tail_size, pipeline.chunk_size);
        let of_single = pipeline.window_single * pipeline.chunk_size / touched;
        let of_many = of_single.max(pipeline.window);
        let most = if self.sources.messages() == 0 { of_single } else { of_many };
        let of_peer = self.state(peer.index()).prefixes;
        let chunks = &mut self.chunks;
        let (all, part) = (of_many / 2, pipeline.window / OTHERS);
        let mine = if len > LONG * pipeline.chunk_size { part } else { all - part };
        if chunks.prefixes >= all.max(1) || of_peer >= mine.max(2) {
            return None;
        }
        let word = chunks.words.pop().or_else(|| self.endpoint.try_fragment(size_of::<u64>()))?;
        let taken = chunks.free.len() + chunks.in_flight + chunks.prefixes;
        let new = if taken < most.max(2) { self.endpoint.try_fragment(pipeline.chunk_size) } else { None };
        let Some(chunk) = new.or_else(|| chunks.free.pop_front()) else {
            chunks.words.push(word);
            return None;
        };
        chunks.prefixes += 1;
        Some((chunk, word))
    }

    /// Copies the prefixes that were promised; to be called once their messages were sent.
    #[inline]
    pub fn fill(&mut self) {
        while let Some(number) = self.promised.pop() {
            self.fill_one(number);
        }
    }

    fn fill_one(&mut self, number: u64) {
        // It may have ended meanwhile.
        let Some(source) = self.sources.get(number) else { return };
        let Some(buffer) = &source.prefix else { return };
        let all = buffer.prefix.len as usize;
        let step = (all / STEPS).clamp(SHORTEST_STEP, self.params.pipeline.tail_size.max(SHORTEST_STEP));
        let mut unknown = Distance::new();
        let (is_far, distance) = match source.audience {
            Audience::Peer(peer, _) => {
                let state = self.peers.get_mut(peer.index());
                (self.endpoint.is_far(peer), state.map_or(&mut unknown, |state| &mut state.distance))
            }
            Audience::Key(_) => (false, &mut unknown),
        };
        let memory = self.endpoint.memory();
        for at in (0..all).step_by(step) {
            let len = step.min(all - at);
            // SAFETY: the caller of `expose` vouches for the source's memory, of which the prefix is the beginning, until
            // `unexpose`. The chunk has room for it.
            unsafe { copy_for(is_far, distance, source.base.add(at), buffer.chunk.ptr().add(at), len) };
            // Release: a receiver that sees the word sees what it counts.
            memory.store(buffer.progress.offset(), (at + len) as u64, Ordering::Release);
        }
        if all == source.len && self.sources.messages() == 1 {
            // That is all of the only message.
            self.evictor.evict(all);
        }
    }

    /// Takes a peer's request; false if there is no such source for it, or it has requested all of that before.
    pub(crate) fn accept(&mut self, peer: Peer, bytes: &[u8]) -> bool {
        let Some((mut request, key)) = Request::read(bytes) else { return false };
        if let (BY_KEY, Some(key)) = (request.source, key) {
            request.source = self.sources.number(key).unwrap_or(BY_KEY);
        }
        let is_allowed = self.sources.allow(peer, &request, key)
            && (key.is_none() || self.state(peer.index()).requests.len() < MAX_REQUESTS);
        if is_allowed {
            let state = self.state(peer.index());
            state.awaiting = Some(peer);
            state.requests.add(request);
            self.serve(peer);
        }
        is_allowed
    }

    /// Copies and sends what a peer has requested, as long as there are chunks.
    pub(crate) fn serve(&mut self, peer: Peer) {
        let pipeline = self.params.pipeline;
        while let Some((index, number, request)) = self.state(peer.index()).requests.next() {
            // Others of a stream are yet to be requested.
            let is_alone = self.state(peer.index()).requests.len() == 1 && self.sources.messages() <= 1;
            let (size, wanted) = match is_alone {
                true => (pipeline.next_chunk(request.len as usize), pipeline.window_single),
                false => (pipeline.chunk_size, pipeline.window),
            };
            let Some(from) = self.sources.get(request.source).map(|source| source.base) else {
                // The source has ended: what the peer requested is not ours to read any more.
                self.state(peer.index()).requests.served(index, request.len);
                continue;
            };
            let chunk = if self.is_free(peer) { self.chunk(peer, wanted) } else { None };
            let Some(chunk) = chunk else {
                self.is_blocked = true;
                return;
            };
            let len = size.min(chunk.capacity()).min(request.len as usize);
            // SAFETY: the request was checked against the source, whose memory the caller of `expose` keeps until `unexpose`.
            // The chunk has room for len bytes.
            unsafe {
                let (is_far, from) = (self.endpoint.is_far(peer), from.add(request.offset as usize));
                copy_for(is_far, &mut self.state(peer.index()).distance, from, chunk.ptr(), len);
            }
            self.state(peer.index()).requests.served(index, len as u64);
            let message = Outgoing { memory: Memory::Chunk(chunk), tag: tag_of(number), len, done: None };
            if let Err(message) = self.post(peer, message) {
                // The event that follows says so.
                self.take_back(message);
                return;
            }
            if self.sources.messages() == 1 && self.state(peer.index()).requests.is_empty() {
                // That was the last of the only message.
                self.evictor.evict(pipeline.chunk_size);
            }
        }
    }

    /// Goes on where chunks or room was lacking. Each time another peer is the first to be served.
    #[cold]
    pub(crate) fn serve_blocked(&mut self) {
        self.is_blocked = false;
        self.first_served += 1;
        let peers = self.peers.len();
        for number in 0..peers {
            let number = (number + self.first_served) % peers;
            if let Some(peer) = self.peers[number].awaiting
                && !self.peers[number].requests.is_empty()
            {
                self.serve(peer);
            }
        }
    }
}

/// Copies to the section for a reader that is known to be on another NUMA node of the host, or at this distance.
///
/// # Safety
///
/// As [`copy_to_shared`].
unsafe fn copy_for(is_far: bool, distance: &mut Distance, from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: the caller vouches for both pointers.
    unsafe { if is_far { copy_to_far(from, to, len) } else { distance.copy(from, to, len) } }
}
