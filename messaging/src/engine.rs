//! The engine: an endpoint, its peers, and what is under way between them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmshm_transport::abi::EndpointName;
use vmshm_transport::attach::Attached;
use vmshm_transport::{ConnectError, Event, Fragment, Inbox, Peer, PeerError};

use crate::cache_evict::Evictor;
use crate::idle::{Idle, IdleAction, work};
use crate::in_flight::InFlight;
use crate::memory_wait::{MIN_FRAGMENT, MemoryWait};
use crate::params::Params;
use crate::peer::{Outgoing, PeerState, Waiting};
use crate::rendezvous::{Chunks, PartialGet, RESERVED, Sources};
use crate::sleep::{Sleeping, Waker};
use crate::upcall::Upcall;

/// An endpoint with all that plugins need above it. `S` completes a send, `G` completes a get.
///
/// All methods return at once. An engine is used by one thread at a time, and not while an upcall of it is acted on with
/// something that comes back here.
#[derive(Debug)]
pub struct Engine<S, G> {
    pub(crate) endpoint: Attached,
    pub(crate) params: Params,
    /// By the peer's index.
    pub(crate) peers: Vec<PeerState<S, G>>,
    /// Messages in memory of the section that are in flight, by their tokens.
    pub(crate) in_flight: InFlight<Outgoing<S>>,
    /// Messages in the queues of all peers.
    pub(crate) queued: usize,
    /// Upcalls that are due.
    pub(crate) upcalls: VecDeque<Upcall<S, G>>,
    pub(crate) memory_wait: MemoryWait,
    /// Memory of this process that peers may get.
    pub(crate) sources: Sources,
    /// Some peer's request waits for a chunk, or for room in its ring.
    pub(crate) is_blocked: bool,
    /// Number of the peer that was served first, and more.
    pub(crate) first_served: usize,
    /// Sources whose prefixes are to be copied.
    pub(crate) promised: Vec<u64>,
    /// Lengths of what peers were allowed to read in place since the last poll, bytes.
    pub(crate) read_in_place: Vec<usize>,
    /// Gets of nothing but prefixes that are not all here.
    pub(crate) partial: Vec<PartialGet<G>>,
    /// Some of a prefix was read since [`Engine::idle`] was called.
    pub(crate) has_read: bool,
    pub(crate) chunks: Chunks,
    pub(crate) evictor: Arc<Evictor>,
    idle: Option<Idle>,
    pub(crate) waker: Option<Arc<Waker>>,
}

// SAFETY: the raw pointers in it are memory that the callers of `expose` and `get` vouch for, on whichever thread.
unsafe impl<S: Send, G: Send> Send for Engine<S, G> {}

/// A section without memory for one more engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the section has no memory left for messages of {0} bytes")]
pub struct NoMemory(pub usize);

impl<S, G> Engine<S, G> {
    /// Wraps an endpoint, and sets memory aside, so that neither other processes of the section nor what outlives messages can
    /// starve this one.
    ///
    /// # Errors
    ///
    /// A section that is too full.
    pub fn new(endpoint: Attached, params: Params) -> Result<Self, NoMemory> {
        let waker = endpoint.sleeper().map(|sleeper| Arc::new(Waker::new(sleeper)));
        let mut engine = Self {
            endpoint,
            peers: Vec::new(),
            in_flight: InFlight::new(),
            queued: 0,
            upcalls: VecDeque::new(),
            memory_wait: MemoryWait::default(),
            sources: Sources::default(),
            is_blocked: false,
            first_served: 0,
            promised: Vec::new(),
            read_in_place: Vec::new(),
            partial: Vec::new(),
            has_read: false,
            chunks: Chunks::default(),
            evictor: Arc::new(Evictor::new(params.evict_from)),
            idle: params.sleep_after.map(Idle::new),
            waker: waker.filter(|_| params.sleep_after.is_some()),
            params,
        };
        engine.reserve()?;
        engine.endpoint.reserve_eager(engine.params.eager);
        Ok(engine)
    }

    fn reserve(&mut self) -> Result<(), NoMemory> {
        let longest = self.params.reserve;
        let mut len = MIN_FRAGMENT.max(longest.next_power_of_two());
        while len >= MIN_FRAGMENT {
            let fragment = self.endpoint.fragment(len).ok_or(NoMemory(longest))?;
            self.endpoint.free(fragment);
            len /= 2;
        }
        // Freed memory stays with this endpoint from now on.
        self.endpoint.reserve_fragments();
        while self.chunks.reserve.len() < RESERVED
            && let Some(chunk) = self.endpoint.try_fragment(self.params.pipeline.chunk_size)
        {
            self.chunks.reserve.push(chunk);
        }
        Ok(())
    }

    /// The endpoint.
    #[inline]
    pub fn endpoint(&self) -> &Attached {
        &self.endpoint
    }

    /// The endpoint, for one-sided operations and for memory that outlives messages. Sending, polling and consuming are the
    /// engine's.
    #[inline]
    pub fn endpoint_mut(&mut self) -> &mut Attached {
        &mut self.endpoint
    }

    /// The tuning.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// Eviction of written lines, for those that write to the section beside the engine.
    pub fn evictor(&self) -> &Arc<Evictor> {
        &self.evictor
    }

    /// Meets a peer; meeting it again is free.
    ///
    /// # Errors
    ///
    /// As [`vmshm_transport::Endpoint::connect`].
    pub fn connect(&mut self, name: &EndpointName) -> Result<Peer, ConnectError> {
        let peer = self.endpoint.connect(name)?;
        self.state(peer.index()).peer = Some(peer);
        Ok(peer)
    }

    /// The peer with this index, if the caller has connected to it.
    #[inline]
    pub fn peer(&self, index: usize) -> Option<Peer> {
        self.peers.get(index)?.peer
    }

    pub(crate) fn state(&mut self, index: usize) -> &mut PeerState<S, G> {
        if index >= self.peers.len() {
            self.peers.resize_with(index + 1, PeerState::new);
        }
        &mut self.peers[index]
    }

    /// Why a lost peer is lost, if something was lost with it and the caller was not told yet.
    pub fn take_loss(&mut self, peer: Peer) -> Option<PeerError> {
        let state = self.state(peer.index());
        let why = state.lost.filter(|_| state.is_missed && !state.is_reported)?;
        state.is_reported = true;
        Some(why)
    }

    /// Notes the loss of a peer, and makes upcalls of it and of all that it has left unfinished.
    #[cold]
    pub(crate) fn lose(&mut self, peer: Peer, why: PeerError) {
        let is_awaited =
            self.sources.has_for(peer) || self.partial.iter().any(|partial| partial.peer == peer);
        let state = self.state(peer.index());
        state.lost = Some(why);
        // A peer that has finished and left is no loss, unless there was more to say to it.
        state.is_missed |= why != PeerError::Left
            || !state.queue.is_empty()
            || !state.requests.is_empty()
            || !state.gets.is_empty()
            || is_awaited;
        state.requests.clear();
        state.queue.bytes.clear();
        let waiting = std::mem::take(&mut state.queue.messages);
        self.queued -= waiting.len();
        for message in waiting {
            match message {
                Waiting::Inline { done: Some(done), .. } => {
                    self.state(peer.index()).undelivered.push((done, None));
                }
                Waiting::Inline { done: None, .. } => {}
                Waiting::Memory(message) => self.give_up(peer, message),
            }
        }
        // First of all: to some callers the failure of a single message has no reason without it.
        self.upcalls.push_back(Upcall::Lost { peer, why });
        let state = &mut self.peers[peer.index()];
        let failed = state.undelivered.drain(..);
        let failed = failed.map(|(done, fragment)| Upcall::Sent { done, fragment, result: Err(why) });
        self.upcalls.extend(failed);
        let partial = self.partial.extract_if(.., |partial| partial.peer == peer).map(|partial| partial.get);
        let gets = state.gets.drain().chain(partial);
        self.upcalls.extend(gets.map(|get| Upcall::Got { done: get.done, result: Err(why) }));
        // A peer that only made itself known: the next process in its place may do so as often as it likes.
        if state.peer.is_none() {
            *state = PeerState::new();
            self.endpoint.forget(peer);
        }
    }

    /// Takes back the memory of a message that will not reach a peer, and notes its completion as failed.
    pub(crate) fn give_up(&mut self, peer: Peer, message: Outgoing<S>) {
        if let Some(failed) = self.take_back(message) {
            self.state(peer.index()).undelivered.push(failed);
        }
    }

    /// Action after polls that found something (`is_busy`) or not. A process that waits for what nobody rings for, beside
    /// its messages, may not sleep.
    #[inline]
    pub fn idle(&mut self, is_busy: bool, may_sleep: bool) -> IdleAction {
        let is_busy = std::mem::take(&mut self.has_read) || is_busy;
        let Some(idle) = &mut self.idle else { return IdleAction::Spin };
        if is_busy {
            idle.end();
            return IdleAction::Spin;
        }
        if !may_sleep {
            // Nor has it been idle when it waits for a message next.
            idle.end();
            return IdleAction::Yield;
        }
        match idle.poll(Instant::now, work) {
            // Nobody rings for the next piece of a prefix.
            IdleAction::Sleep(_) if self.waker.is_none() || !self.partial.is_empty() => IdleAction::Yield,
            action => action,
        }
    }

    /// Bell of the thread that sleeps; none where none ever does.
    pub fn waker(&self) -> Option<&Arc<Waker>> {
        self.waker.as_ref()
    }

    /// The right to sleep until the doorbell rings; none if another thread sleeps already or something has come just now.
    pub fn fall_asleep(&mut self, inbox: &Inbox) -> Option<Sleeping> {
        let sleeping = self.waker.as_ref()?.lie_down()?;
        self.endpoint.fall_asleep(inbox).then_some(sleeping)
    }

    /// Announces that the process may sleep without end from now on, and looks once more at everything: for callers that wait for
    /// the doorbell among others ([`Sleeper::descriptor`](vmshm_transport::Sleeper::descriptor)).
    ///
    /// True: whatever happens next rings. False: there is something to do, or something for which nobody rings.
    pub fn arm(&mut self, inbox: &Inbox) -> bool {
        // Memory may come from a process that knows nothing of the wait, and the next piece of a prefix comes without a word.
        let is_due =
            self.queued > 0 || self.is_blocked || !self.partial.is_empty() || !self.upcalls.is_empty();
        !is_due && self.endpoint.fall_asleep(inbox)
    }

    /// To be called after a sleep.
    pub fn wake_up(&mut self) {
        self.endpoint.wake_up();
        if let Some(idle) = &mut self.idle {
            idle.slept(Instant::now(), work());
        }
    }

    /// Throws away what arrives, until peers have consumed all that was sent to them or `patience` is over.
    pub fn drain(&mut self, inbox: &mut Inbox, patience: Duration) {
        let start = Instant::now();
        while !self.endpoint.is_drained() && start.elapsed() < patience {
            // So many at a time that no peer can keep us here by sending for ever.
            for _ in 0..1024 {
                let Some(event) = self.endpoint.poll(inbox) else { break };
                if let Event::Fragment { peer, .. } = event {
                    // An error means that the sender is gone, which is of no interest any more.
                    let _ = self.endpoint.consume(peer);
                }
            }
            std::thread::yield_now();
        }
    }

    /// Takes the completions of all sends that are under way, before the engine is dropped.
    pub fn abandon(&mut self) -> Vec<(S, Option<Fragment>)> {
        let mut left = Vec::new();
        for state in &mut self.peers {
            left.append(&mut state.undelivered);
            left.extend(state.queue.messages.drain(..).filter_map(|message| match message {
                Waiting::Inline { done, .. } => Some((done?, None)),
                Waiting::Memory(message) => Some((message.done?, Some(message.memory.into_fragment()))),
            }));
            state.queue.bytes.clear();
        }
        self.queued = 0;
        let flying = self.in_flight.drain();
        left.extend(flying.filter_map(|message| Some((message.done?, Some(message.memory.into_fragment())))));
        for upcall in self.upcalls.drain(..) {
            if let Upcall::Sent { done, fragment, .. } = upcall {
                left.push((done, fragment));
            }
        }
        left
    }
}
