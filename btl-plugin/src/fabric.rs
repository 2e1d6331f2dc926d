//! The endpoint, its peers and what waits for them, behind one lock.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use vmshm_transport::abi::EndpointName;
use vmshm_transport::attach::Attached;
use vmshm_transport::{ConnectError, Event, Fragment, Inbox, MAX_INLINE, Peer, PeerError, SendError};

use crate::coll::LeftGroups;
use crate::component;
use crate::descriptor::Descriptor;
use crate::help::{self, Topic};
use crate::idle::Rest;
use crate::lead::Reading;
use crate::lock::{Guard, Lock};
use crate::mpool::Given;
use crate::ompi::opal_proc_t;
use crate::sleep;
use crate::sleep::Sleep;
use crate::stage::{Chunks, Cut, Pull, Staged, Stages};

/// The fabric of this process, from `init` to `finalize`.
///
/// Callbacks into Open MPI never run under the lock: they come back with more messages.
pub static FABRIC: Lock<Option<Fabric>> = Lock::new(None);

/// The fabric, held.
pub type Held = Guard<'static, Option<Fabric>>;

/// Messages that may wait for room in one peer's ring; then Open MPI keeps the others itself.
const MAX_QUEUED: usize = 16;

/// Descriptors kept for reuse.
const MAX_SPARE: usize = 64;

/// The smallest fragment that is asked for. All are powers of two, so that few sizes share the section.
const MIN_FRAGMENT: usize = 2048;

/// After so long a wait for memory the user is told.
const LONG_WAIT: Duration = Duration::from_secs(10);

/// Who has not looked for memory for so long does not wait for it any more.
const PAUSE: Duration = Duration::from_secs(1);

/// A wait for memory of the section.
#[derive(Default)]
struct Want {
    /// Bytes of the message that found none, since when, and when it looked last.
    open: Option<(usize, Instant, Instant)>,
    /// The user was told, once.
    is_told: bool,
}

/// An attached endpoint and all that hangs on it.
pub struct Fabric {
    /// The transport.
    pub endpoint: Attached,
    /// What we know of each peer, by its index.
    peers: Vec<Known>,
    /// Fragments under way, by their token.
    flights: Flights,
    /// Queued messages of all peers.
    queued: usize,
    want: Want,
    #[allow(clippy::vec_box, reason = "C knows where they are")]
    spare: Vec<Box<Descriptor>>,
    /// Open MPI has named its processes: all its transports are initialised.
    pub has_started: bool,
    /// Memory that the program has from `MPI_Alloc_mem`.
    pub given: Given,
    /// Where messages arrive. Absent while some thread makes progress.
    pub inbox: Option<Box<Inbox>>,
    /// Where whole messages are copied to from fragments; empty while one is handled.
    pub landing: Vec<u64>,
    /// How the process waits; absent where it only spins.
    pub sleep: Option<Sleep>,
    /// Memory of this process that peers may pull.
    pub stages: Stages,
    /// Some peer waits for what could not be sent to it.
    pub hungry: bool,
    /// The number of the peer that was fed first, and more.
    pub first_fed: usize,
    /// Stages whose leads are to be copied.
    pub promised: Vec<u64>,
    /// The lengths of messages that peers were allowed to read in place since progress was last made, bytes.
    pub exposed: Vec<usize>,
    /// Pulls of nothing but leads that are not all there.
    pub readings: Vec<Reading>,
    /// Some of a lead was read since the process was last asked whether it rests.
    pub has_read: bool,
    /// The memory of long messages under way.
    pub chunks: Chunks,
    /// How long messages are cut.
    pub cut: Cut,
    /// Memory of groups that we have left.
    pub left: LeftGroups,
}

// SAFETY: the raw pointers in it are Open MPI's processes and descriptors, which any thread may use; the lock around the
// fabric orders their use.
unsafe impl Send for Fabric {}

/// What we know of a peer.
#[derive(Default)]
struct Known {
    /// The transport's handle; None where the transport met a peer that Open MPI has not named yet.
    peer: Option<Peer>,
    /// Open MPI's process; None before `add_procs` and after `del_procs`.
    proc: Option<*mut opal_proc_t>,
    /// What waits for room in the peer's ring, in order.
    queue: VecDeque<Outgoing>,
    /// Descriptors of messages that will not reach it.
    unsent: Vec<*mut Descriptor>,
    /// Why it cannot be reached any more.
    lost: Option<PeerError>,
    /// Something for it was lost.
    missed: bool,
    /// The loss was reported.
    reported: bool,
    /// Long messages to and from it.
    staged: Staged,
}

/// A message of ours.
pub enum Outgoing {
    /// With a descriptor, which someone may wait for.
    Descriptor(*mut Descriptor),
    /// A fragment that nobody waits for: its tag and its length.
    Fragment(Fragment, u8, usize),
    /// A piece of what a peer has pulled: its tag and its length.
    Chunk(Fragment, u8, usize),
}

impl Outgoing {
    fn descriptor(&self) -> Option<*mut Descriptor> {
        match self {
            Self::Descriptor(descriptor) => Some(*descriptor),
            Self::Fragment(..) | Self::Chunk(..) => None,
        }
    }
}

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Posted {
    /// It is in the ring, whole.
    Done,
    /// The transport or the queue has it; the completion comes later.
    Later,
    /// The peer is gone.
    Lost,
}

/// Why nothing was handed out or sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// There is no room now.
    Busy,
    /// The peer is gone.
    Lost,
}

/// A peer whose loss must be reported.
#[derive(Debug, Clone, Copy)]
pub struct Loss {
    /// Open MPI's process.
    pub proc: *mut opal_proc_t,
    /// Why it is lost.
    pub why: PeerError,
}

impl Fabric {
    /// Wraps an endpoint.
    pub fn new(endpoint: Attached) -> Self {
        Self {
            endpoint,
            peers: Vec::new(),
            flights: Flights::default(),
            queued: 0,
            want: Want::default(),
            spare: Vec::new(),
            has_started: false,
            given: Given::default(),
            inbox: Some(Box::default()),
            landing: Vec::new(),
            sleep: None,
            stages: Stages::default(),
            hungry: false,
            first_fed: 0,
            promised: Vec::new(),
            exposed: Vec::new(),
            readings: Vec::new(),
            has_read: false,
            chunks: Chunks::default(),
            cut: Cut { size: MIN_FRAGMENT, piece: MIN_FRAGMENT, count: 2, few: 2 },
            left: LeftGroups::default(),
        }
    }

    /// What to do after a poll that found something or not.
    #[inline]
    pub fn rest(&mut self, is_busy: bool) -> Rest {
        let is_busy = std::mem::take(&mut self.has_read) || is_busy;
        match self.sleep.as_mut().map_or(Rest::Spin, |sleep| sleep.rest(is_busy)) {
            // Nobody rings for the next piece of a lead.
            Rest::Sleep(_) if !self.readings.is_empty() => Rest::Yield,
            rest => rest,
        }
    }

    /// Sets aside memory for messages of up to `len` bytes, so that neither other processes of the section nor what outlives
    /// messages can starve us; false when the section is full.
    pub fn reserve(&mut self, len: usize) -> bool {
        let mut len = MIN_FRAGMENT.max(len.next_power_of_two());
        let mut reserved = true;
        while len >= MIN_FRAGMENT {
            match self.endpoint.fragment(len) {
                // A freed fragment stays with this endpoint.
                Some(fragment) => self.endpoint.free(fragment),
                None => reserved = false,
            }
            len /= 2;
        }
        self.endpoint.reserve_fragments();
        reserved
    }

    /// Meets the process of Open MPI that has published `name`.
    pub fn add(&mut self, name: &EndpointName, proc: *mut opal_proc_t) -> Result<Peer, ConnectError> {
        let peer = self.endpoint.connect(name)?;
        let known = self.known(peer.index());
        known.peer = Some(peer);
        known.proc = Some(proc);
        Ok(peer)
    }

    /// Forgets Open MPI's process behind a peer.
    pub fn remove(&mut self, peer: usize) {
        if let Some(known) = self.peers.get_mut(peer) {
            known.proc = None;
        }
    }

    /// The peer behind the number that Open MPI keeps.
    #[inline]
    pub fn peer(&self, number: usize) -> Option<Peer> {
        self.peers.get(number)?.peer
    }

    /// Number of peers that have a place here, whether they live or not.
    pub fn peers(&self) -> usize {
        self.peers.len()
    }

    /// Long messages to and from a peer.
    pub fn staged(&mut self, peer: usize) -> &mut Staged {
        &mut self.known(peer).staged
    }

    fn known(&mut self, peer: usize) -> &mut Known {
        if peer >= self.peers.len() {
            self.peers.resize_with(peer + 1, Known::default);
        }
        &mut self.peers[peer]
    }

    /// Whether messages wait for room in some peer's ring.
    pub fn has_queued(&self) -> bool {
        self.queued > 0
    }

    /// Whether more messages may be made for a peer.
    fn admits(&self, peer: Peer) -> bool {
        self.peers.get(peer.index()).is_none_or(|known| known.queue.len() < MAX_QUEUED)
    }

    /// A fragment for `len` bytes, or None when the section is full.
    pub fn fragment(&mut self, len: usize) -> Option<Fragment> {
        let len = MIN_FRAGMENT.max(len.checked_next_power_of_two()?);
        let fragment = self.endpoint.fragment(len).or_else(|| {
            for chunk in self.chunks.take_free() {
                self.endpoint.free(chunk);
            }
            let mut fragment = self.endpoint.fragment(len);
            while fragment.is_none()
                && let Some(chunk) = self.chunks.take_kept()
            {
                self.endpoint.free(chunk);
                fragment = self.endpoint.fragment(len);
            }
            fragment
        });
        self.note_memory(len, fragment.is_some());
        fragment
    }

    /// Notes whether a message of `len` bytes has found memory. It looks again whenever progress is made; if it looks for
    /// long, the user is told, once.
    #[inline]
    pub fn note_memory(&mut self, len: usize, has_found: bool) {
        match self.want.open {
            None if has_found => {}
            Some((wanted, ..)) if has_found && len >= wanted => self.want.open = None,
            Some(_) if has_found => {}
            open => self.lack(open, len),
        }
    }

    #[cold]
    fn lack(&mut self, open: Option<(usize, Instant, Instant)>, len: usize) {
        let now = Instant::now();
        let open = open.filter(|(.., last)| now - *last < PAUSE);
        let (len, since) = open.map_or((len, now), |(len, since, _)| (len, since));
        self.want.open = Some((len, since, now));
        if self.want.is_told || now - since < LONG_WAIT {
            return;
        }
        self.want.is_told = true;
        let section = self.endpoint.section();
        let text = format!(
            "a message has waited {} seconds for memory: section {} with {} KiB is full.",
            LONG_WAIT.as_secs(),
            section.number,
            section.entry.len >> 10,
        );
        help::show(Topic::Memory, &text);
    }

    /// Hands out a descriptor for a message with `len` bytes. Those that fit inline never fail.
    pub fn descriptor(&mut self, peer: Peer, len: usize, order: u8, flags: u32) -> Option<*mut Descriptor> {
        let fragment = if len <= MAX_INLINE {
            None
        } else if len <= component::max_send_size() && self.admits(peer) {
            Some(self.fragment(len)?)
        } else {
            return None;
        };
        let descriptor = self.spare.pop().unwrap_or_else(Descriptor::new);
        Some(descriptor.hand_out(peer, len, fragment, order, flags))
    }

    /// Frees a descriptor.
    ///
    /// # Safety
    /// `descriptor` was handed out by [`Fabric::descriptor`] and is not used any more.
    pub unsafe fn free(&mut self, descriptor: *mut Descriptor) {
        // SAFETY: the caller vouches for it.
        let (descriptor, fragment) = unsafe { Descriptor::take_back(descriptor) };
        if let Some(fragment) = fragment {
            self.endpoint.free(fragment);
        }
        if self.spare.len() < MAX_SPARE {
            self.spare.push(descriptor);
        }
    }

    /// Sends an inline message to the peer behind the `number` that Open MPI keeps, at once or not at all.
    #[inline(always)]
    pub fn send_now(&mut self, number: usize, tag: u8, parts: &[&[u8]]) -> Result<(), Refused> {
        let known = self.peers.get(number).ok_or(Refused::Lost)?;
        let peer = known.peer.ok_or(Refused::Lost)?;
        if !known.queue.is_empty() {
            return Err(Refused::Busy);
        }
        match self.endpoint.send(peer, tag, parts) {
            Ok(()) => Ok(()),
            Err(SendError::Full | SendError::TooLong(_)) => Err(Refused::Busy),
            Err(SendError::Gone) => {
                self.known(peer.index()).missed = true;
                Err(Refused::Lost)
            }
        }
    }

    /// Whether nothing waits for the peer.
    #[inline]
    pub fn is_free(&self, peer: Peer) -> bool {
        self.peers.get(peer.index()).is_none_or(|known| known.queue.is_empty())
    }

    /// Sends a message after all that was sent to the peer before.
    ///
    /// # Safety
    /// A descriptor was handed out by [`Fabric::descriptor`], and C does not touch it until it is called back or freed.
    pub unsafe fn post(&mut self, peer: Peer, message: Outgoing) -> Posted {
        let posted = if self.is_free(peer) {
            // SAFETY: the caller vouches for a descriptor.
            match unsafe { self.try_post(peer, message) } {
                Ok(posted) => posted,
                Err(message) => self.queue(peer, message),
            }
        } else {
            self.queue(peer, message)
        };
        if posted == Posted::Later && self.sleep.is_some() {
            // A thread that sleeps does not wait for this message's acknowledgement: it has to look anew.
            sleep::rouse();
        }
        posted
    }

    fn queue(&mut self, peer: Peer, message: Outgoing) -> Posted {
        self.queued += 1;
        self.known(peer.index()).queue.push_back(message);
        Posted::Later
    }

    /// Gives a message to the transport, or back when the ring is full.
    ///
    /// # Safety
    /// As [`Fabric::post`].
    unsafe fn try_post(&mut self, peer: Peer, message: Outgoing) -> Result<Posted, Outgoing> {
        let sent = match &message {
            Outgoing::Descriptor(descriptor) => {
                // SAFETY: the caller vouches for the descriptor.
                let (tag, fragment, (data, len)) = unsafe {
                    (
                        Descriptor::tag(*descriptor),
                        Descriptor::fragment(*descriptor),
                        Descriptor::payload(*descriptor),
                    )
                };
                match fragment {
                    Some(fragment) => {
                        let sent = self.endpoint.send_fragment(peer, tag, fragment, len, self.flights.next());
                        sent.map(|()| Posted::Later)
                    }
                    None => {
                        // SAFETY: C has written these bytes, which lie in the descriptor.
                        let bytes = unsafe { std::slice::from_raw_parts(data, len) };
                        self.endpoint.send(peer, tag, &[bytes]).map(|()| Posted::Done)
                    }
                }
            }
            Outgoing::Fragment(fragment, tag, len) | Outgoing::Chunk(fragment, tag, len) => {
                let sent = self.endpoint.send_fragment(peer, *tag, fragment, *len, self.flights.next());
                sent.map(|()| Posted::Later)
            }
        };
        match sent {
            Ok(Posted::Later) => {
                self.flights.begin(message);
                Ok(Posted::Later)
            }
            Ok(posted) => Ok(posted),
            Err(SendError::Full) => Err(message),
            Err(SendError::Gone | SendError::TooLong(_)) => {
                self.known(peer.index()).missed = true;
                match message {
                    Outgoing::Descriptor(_) => {}
                    Outgoing::Fragment(fragment, ..) => self.endpoint.free(fragment),
                    Outgoing::Chunk(chunk, ..) => self.chunks.put(chunk),
                }
                Ok(Posted::Lost)
            }
        }
    }

    /// Sends what waits, as far as there is room. Descriptors whose messages are now sent are added to `done`.
    ///
    /// # Safety
    /// Queued descriptors are still as [`Fabric::post`] got them.
    pub unsafe fn send_queued(&mut self, done: &mut Vec<*mut Descriptor>) {
        for index in 0..self.peers.len() {
            let Some(peer) = self.peers[index].peer else { continue };
            while let Some(message) = self.peers[index].queue.pop_front() {
                let descriptor = message.descriptor();
                // SAFETY: the caller vouches for descriptors.
                match unsafe { self.try_post(peer, message) } {
                    Err(message) => {
                        self.peers[index].queue.push_front(message);
                        break;
                    }
                    Ok(posted) => {
                        self.queued -= 1;
                        match posted {
                            Posted::Later => {}
                            Posted::Done => done.extend(descriptor),
                            Posted::Lost => self.peers[index].unsent.extend(descriptor),
                        }
                    }
                }
            }
        }
    }

    /// Ends the flight of a fragment, and returns its descriptor if it has one.
    pub fn landed(&mut self, token: u64) -> Option<*mut Descriptor> {
        match self.flights.end(token)? {
            Outgoing::Descriptor(descriptor) => Some(descriptor),
            Outgoing::Fragment(fragment, ..) => {
                self.endpoint.free(fragment);
                None
            }
            Outgoing::Chunk(chunk, ..) => {
                self.chunks.put(chunk);
                None
            }
        }
    }

    /// Ends the flight of a fragment that its receiver did not live to consume.
    pub fn crashed(&mut self, peer: Peer, token: u64) {
        let descriptor = self.landed(token);
        let known = self.known(peer.index());
        known.missed = true;
        known.unsent.extend(descriptor);
    }

    /// Notes that a peer is gone; the transport says so once.
    pub fn lose(&mut self, peer: Peer, why: PeerError) {
        let is_awaited =
            self.is_awaited(peer.index()) || self.readings.iter().any(|reading| reading.peer == peer);
        let known = self.known(peer.index());
        known.lost = Some(why);
        // A peer that has finished and left is no loss, unless there was more to say to it.
        known.missed |=
            why != PeerError::Left || !known.queue.is_empty() || !known.staged.is_idle() || is_awaited;
        let queue = std::mem::take(&mut known.queue);
        self.queued -= queue.len();
        for message in queue {
            match message {
                Outgoing::Descriptor(descriptor) => self.known(peer.index()).unsent.push(descriptor),
                Outgoing::Fragment(fragment, ..) => self.endpoint.free(fragment),
                Outgoing::Chunk(chunk, ..) => self.chunks.put(chunk),
            }
        }
    }

    /// Forgets a lost peer that nobody here has named: it has only made itself known, and the next process in its place may
    /// do so as often as it likes.
    pub fn forget(&mut self, peer: Peer) {
        if self.peer(peer.index()).is_none() {
            if let Some(known) = self.peers.get_mut(peer.index()) {
                *known = Known::default();
            }
            self.endpoint.forget(peer);
        }
    }

    /// What will not come from a lost peer.
    pub fn take_pulls(&mut self, peer: Peer) -> Vec<Pull> {
        let mut pulls = self.known(peer.index()).staged.give_up();
        pulls
            .extend(self.readings.extract_if(.., |reading| reading.peer == peer).map(|reading| reading.pull));
        pulls
    }

    /// The descriptors of messages that did not reach a lost peer.
    pub fn take_unsent(&mut self, peer: Peer) -> Vec<*mut Descriptor> {
        std::mem::take(&mut self.known(peer.index()).unsent)
    }

    /// The peer's loss, if it must be reported now; once.
    pub fn loss(&mut self, peer: Peer) -> Option<Loss> {
        let known = self.known(peer.index());
        let (Some(why), Some(proc), true, false) = (known.lost, known.proc, known.missed, known.reported)
        else {
            return None;
        };
        known.reported = true;
        Some(Loss { proc, why })
    }

    /// Open MPI's process behind a peer.
    pub fn process(&self, peer: usize) -> Option<*mut opal_proc_t> {
        self.peers.get(peer)?.proc
    }

    /// Throws away what has arrived, until all that we sent has been consumed or `patience` is over.
    pub fn drain(&mut self, patience: std::time::Duration) {
        let start = std::time::Instant::now();
        let mut inbox = self.inbox.take().unwrap_or_default();
        while !self.endpoint.is_drained() && start.elapsed() < patience {
            // So many at a time that no peer can keep us here by sending for ever.
            for _ in 0..1024 {
                let Some(event) = self.endpoint.poll(&mut inbox) else { break };
                if let Event::Fragment { peer, .. } = event {
                    // An error means that the sender is gone, which is of no interest any more.
                    let _ = self.endpoint.consume(peer);
                }
            }
            std::thread::yield_now();
        }
    }
}

impl Drop for Fabric {
    fn drop(&mut self) {
        let unsent = self.peers.iter_mut().flat_map(|known| known.unsent.drain(..)).collect::<Vec<_>>();
        let queued = self.peers.iter_mut().flat_map(|known| known.queue.drain(..));
        let under_way = queued.chain(self.flights.drain()).filter_map(|message| message.descriptor());
        for descriptor in under_way.chain(unsent) {
            // SAFETY: the module is being finalized: Open MPI has no use for its descriptors any more.
            drop(unsafe { Descriptor::take_back(descriptor) });
        }
    }
}

/// Messages under way, each with a number to know it by.
#[derive(Default)]
struct Flights {
    slots: Vec<Option<Outgoing>>,
    free: Vec<usize>,
}

impl Flights {
    /// The number that [`Flights::begin`] will use next.
    fn next(&self) -> u64 {
        *self.free.last().unwrap_or(&self.slots.len()) as u64
    }

    fn begin(&mut self, message: Outgoing) {
        match self.free.pop() {
            Some(slot) => self.slots[slot] = Some(message),
            None => self.slots.push(Some(message)),
        }
    }

    fn end(&mut self, number: u64) -> Option<Outgoing> {
        let slot = usize::try_from(number).ok()?;
        let message = self.slots.get_mut(slot)?.take()?;
        self.free.push(slot);
        Some(message)
    }

    fn drain(&mut self) -> impl Iterator<Item = Outgoing> + '_ {
        self.slots.drain(..).flatten()
    }
}

#[cfg(test)]
pub mod tests {
    use std::ptr;

    use tempfile::TempDir;
    use vmshm_host::{CreateOptions, RegionName, Registry};
    use vmshm_transport::attach::{Options, open_endpoint};

    use super::*;

    const TAG: u8 = 0x41;

    /// Two fabrics in sections of one region, each with the other as its peer.
    pub fn pair() -> ([(Fabric, Peer); 2], TempDir) {
        let directory = TempDir::new().unwrap();
        let registry = Registry::at(directory.path());
        let region =
            registry.create(&RegionName::new("test").unwrap(), &CreateOptions::new(16 << 20)).unwrap();
        let open = |section| {
            let device = Some(region.path().display().to_string());
            Fabric::new(
                open_endpoint(&Options { device, section: Some(section), ..Options::default() }).unwrap(),
            )
        };
        let (mut a, mut b) = (open(0), open(1));
        let to_b = a.add(&b.endpoint.name(), ptr::null_mut()).unwrap();
        let to_a = b.add(&a.endpoint.name(), ptr::null_mut()).unwrap();
        ([(a, to_b), (b, to_a)], directory)
    }

    /// Two fabrics, the first of which sends.
    struct Pair {
        a: Fabric,
        b: Fabric,
        to_b: Peer,
        _directory: TempDir,
    }

    impl Pair {
        fn new() -> Self {
            let ([(a, to_b), (b, _)], directory) = pair();
            Self { a, b, to_b, _directory: directory }
        }

        /// Makes a message of `len` bytes, all of them `byte`, as Open MPI would, and sends it.
        fn send(&mut self, len: usize, byte: u8) -> Option<Posted> {
            let descriptor = self.a.descriptor(self.to_b, len, 0, 0)?;
            // SAFETY: the descriptor was just handed out with room for len bytes.
            unsafe {
                let (data, room) = Descriptor::payload(descriptor);
                assert_eq!(room, len);
                data.write_bytes(byte, len);
                Descriptor::set_tag(descriptor, TAG);
                let posted = self.a.post(self.to_b, Outgoing::Descriptor(descriptor));
                if posted != Posted::Later {
                    self.a.free(descriptor);
                }
                Some(posted)
            }
        }

        /// Receives what there is: the length of each message and its first byte.
        fn receive(&mut self) -> Vec<(usize, u8)> {
            let mut inbox = Inbox::new();
            let mut received = Vec::new();
            // Which section's activity is looked at next depends on the polls before.
            while let Some(event) = (0..4).find_map(|_| self.b.endpoint.poll(&mut inbox)) {
                match event {
                    Event::Message { tag: TAG, len, .. } => received.push((len, inbox.bytes(len)[0])),
                    Event::Fragment { peer, tag: TAG, offset, len } => {
                        // SAFETY: the transport checked that the payload is mapped.
                        let byte = unsafe { self.b.endpoint.address(offset, len as u64).read_volatile() };
                        received.push((len, byte));
                        self.b.endpoint.consume(peer).unwrap();
                    }
                    other => panic!("{other:?}"),
                }
            }
            received
        }

        /// Sends what waits and frees what is complete, as progress does.
        fn progress(&mut self) -> usize {
            let mut done = Vec::new();
            // SAFETY: the descriptors in the queue come from `send`.
            unsafe { self.a.send_queued(&mut done) };
            let mut inbox = Inbox::new();
            while let Some(event) = self.a.endpoint.poll(&mut inbox) {
                match event {
                    Event::Sent { token, .. } => done.extend(self.a.landed(token)),
                    Event::Unsent { peer, token } => self.a.crashed(peer, token),
                    Event::Gone { peer, why } => self.a.lose(peer, why),
                    other => panic!("{other:?}"),
                }
            }
            let count = done.len();
            for descriptor in done {
                // SAFETY: it is complete.
                unsafe { self.a.free(descriptor) };
            }
            count
        }
    }

    #[test]
    fn a_full_ring_keeps_the_order_of_messages_and_loses_none() {
        let mut pair = Pair::new();
        let mut sent = Vec::new();
        let mut later = 0;
        // Short ones, long ones and fragments, many more than the ring holds.
        for i in 0..400usize {
            let (len, byte) = ([1, 500, 3000][i % 3], i as u8);
            match pair.send(len, byte) {
                Some(posted) => {
                    assert_ne!(posted, Posted::Lost);
                    later += usize::from(posted == Posted::Later);
                    sent.push((len, byte));
                }
                // Only fragments are refused, and only when many messages wait.
                None => assert_eq!(len, 3000),
            }
        }
        assert!(pair.a.has_queued());
        let (mut received, mut completed) = (Vec::new(), 0);
        while received.len() < sent.len() || completed < later {
            received.append(&mut pair.receive());
            completed += pair.progress();
        }
        assert_eq!(received, sent);
        assert_eq!(completed, later);
        assert!(!pair.a.has_queued());
    }

    #[test]
    fn what_was_under_way_to_a_lost_peer_comes_back() {
        let mut pair = Pair::new();
        let mut later = 0;
        while let Some(posted) = pair.send(3000, 1) {
            assert_eq!(posted, Posted::Later);
            later += 1;
        }
        assert!(pair.a.loss(pair.to_b).is_none());
        let Pair { a, b, to_b, _directory } = pair;
        // Leaving with messages unread is no crime of the one that leaves, but they are lost.
        drop(b);
        let mut a = a;
        let mut inbox = Inbox::new();
        let since = std::time::Instant::now();
        let mut is_gone = false;
        while !is_gone {
            assert!(since.elapsed().as_secs() < 60, "nobody noticed");
            let mut done = Vec::new();
            // SAFETY: the descriptors in the queue come from `send`.
            unsafe { a.send_queued(&mut done) };
            assert!(done.is_empty());
            match a.endpoint.poll(&mut inbox) {
                Some(Event::Unsent { peer, token }) => a.crashed(peer, token),
                Some(Event::Gone { peer, why }) => {
                    a.lose(peer, why);
                    is_gone = true;
                }
                Some(other) => panic!("{other:?}"),
                None => std::thread::yield_now(),
            }
        }
        let unsent = a.take_unsent(to_b);
        assert_eq!(unsent.len(), later);
        assert!(!a.has_queued());
        assert_eq!(a.loss(to_b).map(|loss| loss.why), Some(PeerError::Left));
        assert!(a.loss(to_b).is_none(), "a loss is reported once");
        for descriptor in unsent {
            // SAFETY: it came back, and is freed once.
            unsafe { a.free(descriptor) };
        }
        assert_eq!(a.send_now(to_b.index(), TAG, &[&[1]]), Err(Refused::Lost));
    }

    #[test]
    fn a_peer_that_leaves_with_nothing_unsaid_is_no_loss() {
        let mut pair = Pair::new();
        assert_eq!(pair.send(8, 1), Some(Posted::Done));
        assert_eq!(pair.receive(), [(8, 1)]);
        let Pair { mut a, b, to_b, _directory } = pair;
        drop(b);
        a.lose(to_b, PeerError::Left);
        assert!(a.loss(to_b).is_none());
    }

    #[test]
    fn a_long_wait_for_memory_is_told_once() {
        let ([(mut a, _), _], _directory) = pair();
        let taken: Vec<_> = std::iter::from_fn(|| a.fragment(1 << 20)).collect();
        assert!(a.want.open.is_some() && !a.want.is_told, "it has just begun to wait");
        // What finds room is shorter.
        let short = a.fragment(3000).expect("room");
        a.endpoint.free(short);
        let (_, _, last) = a.want.open.expect("still");
        let begin = last.checked_sub(LONG_WAIT).expect("the machine runs for longer");
        a.want.open = Some((1 << 20, begin, last.checked_sub(PAUSE).expect("likewise")));
        assert!(a.fragment(1 << 20).is_none() && !a.want.is_told, "nobody has looked meanwhile");
        a.want.open = Some((1 << 20, begin, last));
        assert!(a.fragment(1 << 20).is_none() && a.want.is_told);
        taken.into_iter().for_each(|fragment| a.endpoint.free(fragment));
        let fragment = a.fragment(1 << 20).expect("room");
        a.endpoint.free(fragment);
        assert!(a.want.open.is_none(), "the wait is over");
    }

    #[test]
    fn lost_strangers_leave_nothing_behind() {
        let mut pair = Pair::new();
        let mut inbox = Inbox::new();
        let device = Some(pair.a.endpoint.source().path().display().to_string());
        let peers = pair.a.peers();
        for _ in 0..10 {
            let mut stranger =
                open_endpoint(&Options { device: device.clone(), section: Some(1), ..Options::default() })
                    .unwrap();
            let to_a = stranger.connect(&pair.a.endpoint.name()).unwrap();
            stranger.send(to_a, TAG, &[b"hello"]).unwrap();
            let (mut stranger, since) = (Some(stranger), std::time::Instant::now());
            loop {
                assert!(since.elapsed().as_secs() < 60, "nobody noticed");
                match pair.a.endpoint.poll(&mut inbox) {
                    Some(Event::Message { .. }) => drop(stranger.take()),
                    Some(Event::Gone { peer, why }) => {
                        pair.a.lose(peer, why);
                        assert!(pair.a.loss(peer).is_none() && pair.a.take_unsent(peer).is_empty());
                        pair.a.forget(peer);
                        break;
                    }
                    Some(other) => panic!("{other:?}"),
                    None => {}
                }
            }
        }
        assert_eq!(pair.a.peers(), peers + 1);
        pair.a.forget(pair.to_b);
        assert_eq!(pair.send(8, 1), Some(Posted::Done), "who is named is not forgotten");
    }

    #[test]
    fn tokens_of_no_flight_do_no_harm() {
        let mut pair = Pair::new();
        assert!(pair.a.landed(0).is_none());
        assert!(pair.a.landed(u64::MAX).is_none());
    }
}
