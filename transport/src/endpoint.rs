//! An endpoint: one process's place in a region, and its dealings with its peers.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::mem::offset_of;
use core::sync::atomic::Ordering;

use vmshm_abi::region::{HeaderError, VERSION};
use vmshm_abi::ring::{
    CONNECTION_LEN, Connection, Descriptor, KIND_DONE, KIND_FRAGMENT, KIND_INLINE, KIND_OFFER, SLOT, Stamp,
};
use vmshm_abi::section::{ACTIVITY_WORDS, EndpointSlot, STATE_LIVE, SlotState, chunk_owner};
use vmshm_abi::{EndpointId, EndpointName};
use zerocopy::{FromZeros, IntoBytes};

use crate::activity::{Activity, bump};
use crate::arena::Arena;
use crate::link::{HOT, Link, PeerError, check_descriptor, find_connection, read_claim};
use crate::memory::Memory;
use crate::region::{Region, Section};
use crate::ring::{MAX_INLINE, Producer};
use crate::slot;
use crate::watch::Watch;

/// Slots of the rings that we make: 4 KiB.
const RING_SLOTS: u32 = 64;

/// Rings that are looked at in each poll; the others are found by their activity lines.
const MAX_HOT: usize = 8;

/// A peer that an endpoint has met; only meaningful to the endpoint that gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Peer(u32);

impl Peer {
    /// A small number, counted from 0 in the order in which the endpoint met its peers.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Why an endpoint could not attach to a section.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AttachError {
    /// The region's header is damaged, foreign or of another version.
    #[error("{0}")]
    Header(HeaderError),
    /// The region has no such section.
    #[error("section {section} does not exist: the region has sections 0 to {last}")]
    Section {
        /// The section asked for.
        section: u32,
        /// The last one there is.
        last: u32,
    },
    /// All endpoint slots of the section are taken.
    #[error(
        "all {slots} endpoint slots of section {section} are taken: run fewer processes in this machine, or create \
         the region with more `--endpoints`"
    )]
    NoSlot {
        /// The section.
        section: u32,
        /// Its slots.
        slots: u32,
    },
    /// The section's heap is full.
    #[error(
        "section {section} has no memory left for another endpoint ({bytes} bytes wanted): run fewer processes in \
         this machine, or create the region with more `--size` or fewer `--sections`"
    )]
    NoMemory {
        /// The section.
        section: u32,
        /// Bytes that were wanted.
        bytes: u64,
    },
}

/// Why a peer could not be met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// The name belongs to another region.
    #[error("the peer lives in another region")]
    OtherRegion,
    /// The peer speaks another version of the layout.
    #[error("the peer speaks layout version {0}, we speak {VERSION}")]
    Version(u32),
    /// The name is our own.
    #[error("the peer is this endpoint itself")]
    Ourselves,
    /// The peer's life has ended.
    #[error("the peer is gone")]
    Gone,
    /// Our section has no memory for the connection.
    #[error("our section has no memory left for a connection")]
    Full,
}

/// Why a message was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The ring is full: poll, then try again.
    #[error("the peer's ring is full")]
    Full,
    /// The peer is gone; [`Event::Gone`] told why, or will.
    #[error("the peer is gone")]
    Gone,
    /// The message has more than [`MAX_INLINE`] bytes.
    #[error("{0} bytes are more than an inline message can have ({MAX_INLINE})")]
    TooLong(usize),
}

/// A piece of our section to put a payload in.
#[derive(Debug, PartialEq, Eq)]
pub struct Fragment {
    offset: u64,
    len: usize,
    address: *mut u8,
}

// SAFETY: the address is that of shared memory, which no thread owns more than another.
unsafe impl Send for Fragment {}

impl Fragment {
    /// Where the payload goes: valid for [`Fragment::capacity`] bytes until the fragment is freed or its endpoint
    /// dropped.
    pub fn ptr(&self) -> *mut u8 {
        self.address
    }

    /// Bytes that it holds.
    pub fn capacity(&self) -> usize {
        self.len
    }

    /// Offset in the region.
    pub fn offset(&self) -> u64 {
        self.offset
    }
}

/// Where [`Endpoint::poll`] puts the bytes of an inline message.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Inbox([u8; MAX_INLINE]);

impl Inbox {
    /// An empty inbox.
    pub fn new() -> Self {
        Self([0; MAX_INLINE])
    }

    /// The first `len` bytes.
    pub fn bytes(&self, len: usize) -> &[u8] {
        &self.0[..len]
    }

    /// The first `len` bytes, to change them in place.
    pub fn bytes_mut(&mut self, len: usize) -> &mut [u8] {
        &mut self.0[..len]
    }
}

impl Default for Inbox {
    fn default() -> Self {
        Self::new()
    }
}

/// What [`Endpoint::poll`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// An inline message; its bytes are in the inbox.
    Message {
        /// Who sent it.
        peer: Peer,
        /// The sender's tag.
        tag: u8,
        /// Bytes in the inbox.
        len: usize,
    },
    /// An eager message, whose payload lies in the sender's section until [`Endpoint::consume`] gives it back. A hostile
    /// sender may change it at any time: what must be trusted is to be copied first.
    Fragment {
        /// Who sent it.
        peer: Peer,
        /// The sender's tag.
        tag: u8,
        /// Offset of the payload in the region; [`Endpoint::address`] says where that is in this process.
        offset: u64,
        /// Bytes of the payload.
        len: usize,
    },
    /// The receiver has consumed a fragment; its memory is ours again.
    Sent {
        /// Who received it.
        peer: Peer,
        /// The token given to [`Endpoint::send_fragment`].
        token: u64,
    },
    /// The receiver has gone before it consumed a fragment; its memory is ours again.
    Unsent {
        /// Who should have received it.
        peer: Peer,
        /// The token given to [`Endpoint::send_fragment`].
        token: u64,
    },
    /// A peer offers memory to pull from with [`Endpoint::get`], until [`Endpoint::finish`] is called.
    Offer {
        /// Who offers.
        peer: Peer,
        /// The sender's tag.
        tag: u8,
        /// What is offered; the cookie is the sender's.
        offer: Descriptor,
    },
    /// The receiver of an offer has finished with it.
    Done {
        /// Who has finished.
        peer: Peer,
        /// The tag that it gave.
        tag: u8,
        /// The cookie of the offer.
        cookie: u64,
    },
    /// The peer is gone. Reported once, after what was under way to it.
    Gone {
        /// Which peer.
        peer: Peer,
        /// Why.
        why: PeerError,
    },
}

/// A process in a section of a region.
///
/// All methods return at once. An endpoint is used by one thread at a time.
#[derive(Debug)]
pub struct Endpoint<M: Memory> {
    memory: M,
    region: Region,
    section: Section,
    slot: u32,
    id: EndpointId,
    incarnation: u64,
    arena: Arena,
    /// Offset of our directory.
    directory: u64,
    links: Vec<Link>,
    /// Index of the link to each endpoint of the region, or `NO_LINK`.
    by_id: Vec<u32>,
    hot: Vec<u32>,
    next_hot: usize,
    turn: u32,
    /// Links that are not hot and may have something for us.
    queue: VecDeque<u32>,
    sweep: usize,
    activity: Vec<Activity>,
    next_activity: usize,
    /// Links with fragments under way.
    sending: Vec<u32>,
    next_sending: usize,
    /// Links with something consumed and not acknowledged.
    dirty: Vec<u32>,
    /// Events that could not be returned at once.
    backlog: VecDeque<Event>,
    watch: Arc<Watch>,
}

/// One poll in so many looks at the silent peers first.
const FAIR: u32 = 16;

/// Lives of peers that an endpoint meets at most, over all: a peer that pretends to be reborn for ever ends here.
const MAX_LIVES: usize = 1 << 16;

const NO_LINK: u32 = u32::MAX;

const DIRECTORY: u64 = offset_of!(EndpointSlot, directory) as u64;
const PID: u64 = offset_of!(EndpointSlot, pid) as u64;
const BOOT_ID: u64 = offset_of!(EndpointSlot, boot_id) as u64;
const HEARTBEAT: u64 = offset_of!(EndpointSlot, heartbeat) as u64;

impl<M: Memory> Endpoint<M> {
    /// Attaches to the first free slot of a section.
    ///
    /// # Errors
    ///
    /// A damaged header, a section that does not exist, no free slot, no memory.
    pub fn attach(memory: M, section: u32) -> Result<Self, AttachError> {
        let region = Region::read(&memory).map_err(AttachError::Header)?;
        let slots = region.header().endpoints;
        let found = find_section(&region, section)?;
        let claimed = (0..slots).find_map(|slot| Some((slot, slot::claim(&memory, &found, slot)?)));
        let (slot, incarnation) = claimed.ok_or(AttachError::NoSlot { section, slots })?;
        Self::take(memory, region, section, slot, incarnation, 0, [0; 2])
    }

    /// Attaches to a slot that [`crate::parts::claim`] has taken; `pid` and `boot_id` say which process that is. On an
    /// error the slot is given back.
    ///
    /// # Errors
    ///
    /// A section that does not exist, no memory.
    pub fn take(
        memory: M,
        region: Region,
        section: u32,
        slot: u32,
        incarnation: u64,
        pid: u64,
        boot_id: [u64; 2],
    ) -> Result<Self, AttachError> {
        let section = find_section(&region, section)?;
        let owner = chunk_owner(slot, incarnation);
        // Spread the processes of a section over its heap: they need not stumble over each other's chunks.
        let hint = section.layout.chunks * u64::from(slot) / u64::from(section.layout.endpoints);
        let mut arena = Arena::new(owner, hint);
        let bytes = u64::from(region.endpoints()) * 8;
        let Some(directory) = arena.allocate(&memory, &section, bytes) else {
            let attaching = slot::state(&memory, &section, slot);
            slot::reap(&memory, &section, slot, attaching, false);
            return Err(AttachError::NoMemory { section: section.number, bytes });
        };
        memory.zero(directory, bytes);
        let at = section.slot(slot);
        memory.store(at + DIRECTORY, directory - section.entry.offset, Ordering::Relaxed);
        memory.store(at + PID, pid, Ordering::Relaxed);
        memory.store(at + BOOT_ID, boot_id[0], Ordering::Relaxed);
        memory.store(at + BOOT_ID + 8, boot_id[1], Ordering::Relaxed);
        slot::publish(&memory, &section, slot, incarnation);
        let id = region.endpoint(section.number, slot);
        let activity = region.sections().iter().map(|other| Activity::new(other, id)).collect();
        let total = region.endpoints();
        Ok(Self {
            memory,
            section,
            slot,
            id,
            incarnation,
            arena,
            directory,
            links: Vec::new(),
            by_id: vec![NO_LINK; total as usize],
            hot: Vec::new(),
            next_hot: 0,
            turn: 0,
            queue: VecDeque::new(),
            sweep: 0,
            activity,
            next_activity: 0,
            sending: Vec::new(),
            next_sending: 0,
            dirty: Vec::new(),
            backlog: VecDeque::new(),
            watch: Arc::new(Watch::new(total)),
            region,
        })
    }

    /// What others need to know to find this endpoint.
    pub fn name(&self) -> EndpointName {
        EndpointName {
            region_id: self.region.id(),
            id: self.id.0,
            version: VERSION,
            incarnation: self.incarnation,
        }
    }

    /// The region that the endpoint lives in.
    pub fn region(&self) -> &Region {
        &self.region
    }

    /// The section that the endpoint lives in.
    pub fn section(&self) -> &Section {
        &self.section
    }

    /// The region's memory.
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// The watch that is kept over the peers' lives.
    pub fn watch(&self) -> &Arc<Watch> {
        &self.watch
    }

    /// The section of a peer.
    pub fn section_of(&self, peer: Peer) -> u32 {
        self.links[peer.index()].id.0 / self.region.header().endpoints
    }

    /// Meets a peer; meeting it again is free.
    ///
    /// # Errors
    ///
    /// A name from another region, of another version or of a life that has ended; no memory.
    pub fn connect(&mut self, name: &EndpointName) -> Result<Peer, ConnectError> {
        if name.region_id != self.region.id() {
            return Err(ConnectError::OtherRegion);
        }
        if name.version != VERSION {
            return Err(ConnectError::Version(name.version));
        }
        let id = EndpointId(name.id);
        if id == self.id {
            return Err(ConnectError::Ourselves);
        }
        let Some((section, slot)) = self.region.place(id) else { return Err(ConnectError::OtherRegion) };
        if let Some(link) = self.links.get(self.by_id[name.id as usize] as usize)
            && link.incarnation == name.incarnation
        {
            return match link.failed {
                None => Ok(Peer(self.by_id[name.id as usize])),
                Some(_) => Err(ConnectError::Gone),
            };
        }
        let live = SlotState { incarnation: name.incarnation, state: STATE_LIVE };
        if slot::state(&self.memory, section, slot) != live {
            return Err(ConnectError::Gone);
        }
        self.add_link(id, name.incarnation)
    }

    fn add_link(&mut self, id: EndpointId, incarnation: u64) -> Result<Peer, ConnectError> {
        let Some((section, slot)) = self.region.place(id) else { return Err(ConnectError::OtherRegion) };
        let at = section.slot(slot);
        if self.links.len() >= MAX_LIVES {
            return Err(ConnectError::Full);
        }
        let bytes = CONNECTION_LEN + u64::from(RING_SLOTS) * SLOT;
        let earlier = core::mem::replace(&mut self.by_id[id.0 as usize], NO_LINK);
        if earlier != NO_LINK {
            self.fail(earlier, self.ending(earlier));
            let block = self.links[earlier as usize].connection;
            self.arena.free(&self.memory, &self.section, block, bytes);
        }
        let connection = self.arena.allocate(&self.memory, &self.section, bytes).ok_or(ConnectError::Full)?;
        self.memory.zero(connection, bytes);
        let mut header = Connection::new_zeroed();
        header.peer = id.0;
        header.peer_incarnation = incarnation;
        header.incarnation = self.incarnation;
        header.slots = RING_SLOTS;
        self.memory.write(connection, header.as_bytes());
        // Release: who finds the connection in the directory finds it made.
        let word = self.directory + u64::from(id.0) * 8;
        self.memory.store(word, connection - self.section.entry.offset, Ordering::Release);
        let index = self.links.len() as u32;
        self.links.push(Link {
            id,
            incarnation,
            slot: at,
            connection,
            producer: Producer::new(connection + CONNECTION_LEN, RING_SLOTS),
            theirs: None,
            in_flight: VecDeque::new(),
            held: false,
            hot: false,
            queued: false,
            dirty: false,
            failed: None,
        });
        self.by_id[id.0 as usize] = index;
        self.watch.begin(id, incarnation);
        // It may have sent to us before we met it.
        self.enqueue(index);
        Ok(Peer(index))
    }

    /// Sends an inline message, whose bytes are the `parts` in their order.
    ///
    /// # Errors
    ///
    /// A full ring, a peer that is gone, more than [`MAX_INLINE`] bytes.
    pub fn send(&mut self, peer: Peer, tag: u8, parts: &[&[u8]]) -> Result<(), SendError> {
        let len = parts.iter().map(|part| part.len()).sum();
        if len > MAX_INLINE {
            return Err(SendError::TooLong(len));
        }
        self.push(peer, KIND_INLINE, tag, parts, len)
    }

    /// A piece of our section of at least `len` bytes, or `None` when the section is full.
    pub fn fragment(&mut self, len: usize) -> Option<Fragment> {
        let offset = self.arena.allocate(&self.memory, &self.section, len as u64)?;
        Some(Fragment { offset, len, address: self.memory.address(offset, len as u64) })
    }

    /// Gives a fragment back; it must not be under way.
    pub fn free(&mut self, fragment: Fragment) {
        self.arena.free(&self.memory, &self.section, fragment.offset, fragment.len as u64);
    }

    /// Sends the first `len` bytes of a fragment. It is under way until [`Event::Sent`] or [`Event::Unsent`] returns the
    /// `token`; until then it may be read but neither changed nor freed.
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
        let link = &mut self.links[peer.index()];
        link.in_flight.push_back((link.producer.position(), token));
        if link.in_flight.len() == 1 {
            self.sending.push(peer.0);
        }
        Ok(())
    }

    /// Offers memory of our section to a peer, which pulls from it and then says [`Event::Done`] with the `cookie`.
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

    fn push_descriptor(&mut self, peer: Peer, kind: u8, tag: u8, body: &Descriptor) -> Result<(), SendError> {
        self.push(peer, kind, tag, &[body.as_bytes()], size_of::<Descriptor>())
    }

    fn push(&mut self, peer: Peer, kind: u8, tag: u8, parts: &[&[u8]], len: usize) -> Result<(), SendError> {
        let link = &mut self.links[peer.index()];
        if link.failed.is_some() {
            return Err(SendError::Gone);
        }
        if !link.producer.has_room(len) {
            let learned = match link.resolve(&self.memory, &self.region, self.id, self.incarnation) {
                Ok(_) => link.learn(&self.memory),
                Err(fault) => Err(fault),
            };
            if let Err(fault) = learned {
                return Err(self.fail_send(peer, fault.into()));
            }
            let link = &self.links[peer.index()];
            if !link.producer.has_room(len) {
                // A dead peer's ring stays full for ever; the slot's state says so before any watcher does.
                if link.lives(&self.memory) {
                    return Err(SendError::Full);
                }
                return Err(self.fail_send(peer, self.ending(peer.0)));
            }
        }
        let link = &mut self.links[peer.index()];
        link.producer.push(&self.memory, kind, tag, parts);
        if !link.is_polled(&self.memory) {
            bump(&self.memory, &self.section, self.slot, link.id);
        }
        Ok(())
    }

    fn ending(&self, index: u32) -> PeerError {
        let link = &self.links[index as usize];
        slot::ending(&self.memory, link.slot, link.incarnation)
    }

    fn fail_send(&mut self, peer: Peer, why: PeerError) -> SendError {
        self.fail(peer.0, why);
        SendError::Gone
    }

    /// Where bytes of the region lie in this process.
    ///
    /// # Panics
    ///
    /// Where they leave the region.
    pub fn address(&self, offset: u64, len: u64) -> *mut u8 {
        self.memory.address(offset, len)
    }

    /// The offset of memory of this process, if all of it lies in the part of the region that we may write: then peers
    /// can [`Endpoint::get`] it.
    pub fn expose(&self, address: *const u8, len: u64) -> Option<u64> {
        self.memory.offset_of(address, len).filter(|offset| self.section.contains(*offset, len))
    }

    /// Copies bytes out of a peer's section.
    ///
    /// # Errors
    ///
    /// A range outside the peer's section, a peer that is gone.
    ///
    /// # Safety
    ///
    /// `to` must be valid for writes of `len` bytes.
    pub unsafe fn get(&mut self, peer: Peer, offset: u64, to: *mut u8, len: usize) -> Result<(), PeerError> {
        self.check_remote(peer, offset, len as u64)?;
        // SAFETY: the caller vouches for `to`; the offset was checked.
        unsafe { self.memory.copy_out(offset, to, len) };
        if !self.links[peer.index()].lives(&self.memory) {
            let why = self.ending(peer.0);
            self.fail(peer.0, why);
            return Err(why);
        }
        Ok(())
    }

    /// Copies bytes into a peer's section; only in an open region.
    ///
    /// # Errors
    ///
    /// A range outside the peer's section, a region that is not open, a peer that is gone.
    ///
    /// # Safety
    ///
    /// `from` must be valid for reads of `len` bytes.
    pub unsafe fn put(
        &mut self,
        peer: Peer,
        offset: u64,
        from: *const u8,
        len: usize,
    ) -> Result<(), PeerError> {
        self.check_open(peer, offset, len as u64)?;
        // SAFETY: the caller vouches for `from`; the offset was checked, and an open region is writable.
        unsafe { self.memory.copy_in(offset, from, len) };
        Ok(())
    }

    /// Adds to a word in a peer's section, and returns what it was; only in an open region.
    ///
    /// # Errors
    ///
    /// A word outside the peer's section or not aligned, a region that is not open, a peer that is gone.
    pub fn fetch_add(&mut self, peer: Peer, offset: u64, value: u64) -> Result<u64, PeerError> {
        self.check_word(peer, offset)?;
        Ok(self.memory.fetch_add(offset, value, Ordering::AcqRel))
    }

    /// Replaces a word in a peer's section if it is `current`, and returns what it was; only in an open region.
    ///
    /// # Errors
    ///
    /// As [`Endpoint::fetch_add`].
    pub fn compare_exchange(
        &mut self,
        peer: Peer,
        offset: u64,
        current: u64,
        new: u64,
    ) -> Result<u64, PeerError> {
        self.check_word(peer, offset)?;
        Ok(self.memory.compare_exchange(offset, current, new).unwrap_or_else(|found| found))
    }

    fn check_word(&self, peer: Peer, offset: u64) -> Result<(), PeerError> {
        if !offset.is_multiple_of(8) {
            return Err(crate::ring::Fault { what: "unaligned word", value: offset }.into());
        }
        self.check_open(peer, offset, 8)
    }

    fn check_open(&self, peer: Peer, offset: u64, len: u64) -> Result<(), PeerError> {
        if !self.region.is_open() {
            return Err(
                crate::ring::Fault { what: "write to a region that is not open", value: offset }.into()
            );
        }
        self.check_remote(peer, offset, len)
    }

    fn check_remote(&self, peer: Peer, offset: u64, len: u64) -> Result<(), PeerError> {
        let link = &self.links[peer.index()];
        if let Some(why) = link.failed {
            return Err(why);
        }
        match self.region.place(link.id) {
            Some((section, _)) if section.contains(offset, len) => Ok(()),
            _ => Err(crate::ring::Fault { what: "remote range", value: offset }.into()),
        }
    }

    /// The next thing that has happened, or `None`.
    ///
    /// Each call does a bounded amount of work: it looks at a few rings that were busy lately, at one section's activity
    /// line, and at one silent ring.
    pub fn poll(&mut self, inbox: &mut Inbox) -> Option<Event> {
        self.turn = self.turn.wrapping_add(1);
        // Busy peers first, but they never keep the others from their turn.
        let fair = self.turn.is_multiple_of(FAIR);
        if !fair && let Some(event) = self.poll_hot(inbox) {
            return Some(event);
        }
        if let Some(event) = self.backlog.pop_front() {
            return Some(event);
        }
        if let Some(event) = self.poll_sending() {
            return Some(event);
        }
        self.poll_activity();
        if let Some(event) = self.poll_queue(inbox) {
            return Some(event);
        }
        if self.watch.has_news() {
            self.hear_news();
        }
        self.sweep_one();
        if fair && let Some(event) = self.poll_hot(inbox) {
            return Some(event);
        }
        self.flush();
        self.backlog.pop_front()
    }

    /// The rings that were busy lately, each in its turn.
    fn poll_hot(&mut self, inbox: &mut Inbox) -> Option<Event> {
        for _ in 0..self.hot.len() {
            self.next_hot = (self.next_hot + 1) % self.hot.len();
            let event = self.pop(self.hot[self.next_hot], inbox);
            if event.is_some() {
                return event;
            }
            if self.hot.is_empty() {
                return None;
            }
        }
        None
    }

    /// Fragments that were consumed.
    fn poll_sending(&mut self) -> Option<Event> {
        if self.sending.is_empty() {
            return None;
        }
        self.next_sending = (self.next_sending + 1) % self.sending.len();
        let index = self.sending[self.next_sending];
        let link = &mut self.links[index as usize];
        let (end, token) = *link.in_flight.front()?;
        if link.producer.acknowledged() < end {
            let learned = match link.resolve(&self.memory, &self.region, self.id, self.incarnation) {
                Ok(_) => link.learn(&self.memory),
                Err(fault) => Err(fault),
            };
            if let Err(fault) = learned {
                self.fail(index, fault.into());
                return None;
            }
        }
        let link = &mut self.links[index as usize];
        if link.producer.acknowledged() < end {
            return None;
        }
        link.in_flight.pop_front();
        if link.in_flight.is_empty() {
            self.sending.swap_remove(self.next_sending);
        }
        Some(Event::Sent { peer: Peer(index), token })
    }

    /// One section's activity line: links with news are queued, strangers who sent to us are met.
    fn poll_activity(&mut self) {
        self.next_activity = (self.next_activity + 1) % self.activity.len();
        let number = self.next_activity;
        let changed = self.activity[number].look(&self.memory);
        if changed == 0 {
            return;
        }
        for slot in 0..self.region.header().endpoints {
            if changed >> (u64::from(slot) % ACTIVITY_WORDS) & 1 == 1 {
                self.notice(self.region.endpoint(number as u32, slot));
            }
        }
    }

    /// Something may have come from this endpoint.
    fn notice(&mut self, id: EndpointId) {
        if id == self.id {
            return;
        }
        let index = self.by_id[id.0 as usize];
        let Some((section, slot)) = self.region.place(id) else { return };
        let found = slot::state(&self.memory, section, slot);
        if let Some(link) = self.links.get(index as usize)
            && (link.incarnation == found.incarnation || found.state != STATE_LIVE)
        {
            return self.enqueue(index);
        }
        if found.state != STATE_LIVE || !self.is_connected_to_us(id, found.incarnation) {
            return;
        }
        if self.add_link(id, found.incarnation).is_err() {
            // No memory for the answer now: look again, something may be freed.
            self.activity[(id.0 / self.region.header().endpoints) as usize] =
                Activity::new(section_of(&self.region, id), self.id);
        }
    }

    /// Whether a stranger has made a connection for our present life.
    fn is_connected_to_us(&self, id: EndpointId, incarnation: u64) -> bool {
        let Ok(Some(connection)) = find_connection(&self.memory, &self.region, id, self.id) else {
            return false;
        };
        read_claim(&self.memory, connection).is_for(self.id, self.incarnation, incarnation)
    }

    fn enqueue(&mut self, index: u32) {
        let link = &mut self.links[index as usize];
        if !link.hot && !link.queued && link.failed.is_none() {
            link.queued = true;
            self.queue.push_back(index);
        }
    }

    fn poll_queue(&mut self, inbox: &mut Inbox) -> Option<Event> {
        for _ in 0..self.queue.len().min(MAX_HOT) {
            let index = self.queue.pop_front()?;
            self.links[index as usize].queued = false;
            if let Some(event) = self.pop(index, inbox) {
                self.heat(index);
                return Some(event);
            }
        }
        None
    }

    /// Makes a link hot, at the cost of the one that has been hot the longest.
    fn heat(&mut self, index: u32) {
        if self.links[index as usize].hot || self.links[index as usize].failed.is_some() {
            return;
        }
        if self.hot.len() == MAX_HOT {
            let cooled = self.hot.remove(0);
            self.set_hot(cooled, false);
            // The peer may just have sent in the belief that we poll.
            self.enqueue(cooled);
        }
        self.set_hot(index, true);
        self.hot.push(index);
    }

    fn set_hot(&mut self, index: u32, hot: bool) {
        let link = &mut self.links[index as usize];
        link.hot = hot;
        self.memory.store(link.connection + HOT, u64::from(hot), Ordering::Relaxed);
    }

    /// Queues one silent link, so that a missed activity count costs time, never a message.
    fn sweep_one(&mut self) {
        if self.links.len() > self.hot.len() {
            self.sweep = (self.sweep + 1) % self.links.len();
            self.enqueue(self.sweep as u32);
        }
    }

    /// The next message of one link.
    fn pop(&mut self, index: u32, inbox: &mut Inbox) -> Option<Event> {
        let link = &mut self.links[index as usize];
        if link.held || link.failed.is_some() {
            return None;
        }
        let popped = Self::pop_link(link, &self.memory, &self.region, self.id, self.incarnation, inbox);
        let (stamp, descriptor) = match popped {
            Ok(popped) => popped?,
            Err(why) => {
                self.fail(index, why);
                return None;
            }
        };
        let peer = Peer(index);
        let tag = stamp.tag;
        let event = match (stamp.kind, descriptor) {
            (KIND_FRAGMENT, Some(found)) => {
                link.held = true;
                return Some(Event::Fragment { peer, tag, offset: found.offset, len: found.len as usize });
            }
            (KIND_OFFER, Some(offer)) => Event::Offer { peer, tag, offer },
            (_, Some(done)) => Event::Done { peer, tag, cookie: done.cookie },
            (_, None) => Event::Message { peer, tag, len: usize::from(stamp.len) },
        };
        self.step(index);
        Some(event)
    }

    /// Copies and checks a link's next message, and steps behind it.
    fn pop_link(
        link: &mut Link,
        memory: &M,
        region: &Region,
        me: EndpointId,
        life: u64,
        inbox: &mut Inbox,
    ) -> Result<Option<(Stamp, Option<Descriptor>)>, PeerError> {
        if link.theirs.is_none() && !link.resolve(memory, region, me, life)? {
            return Ok(None);
        }
        let Some(theirs) = &mut link.theirs else { return Ok(None) };
        let Some(stamp) = theirs.consumer.peek(memory)? else { return Ok(None) };
        let descriptor = if stamp.kind == KIND_INLINE {
            theirs.consumer.read(memory, stamp, &mut inbox.0);
            None
        } else {
            Some(theirs.consumer.descriptor(memory))
        };
        if !link.lives(memory) {
            return Err(slot::ending(memory, link.slot, link.incarnation));
        }
        if let Some(descriptor) = &descriptor {
            check_descriptor(region, link.id, stamp.kind, descriptor)?;
        }
        if let Some(theirs) = &mut link.theirs {
            theirs.consumer.advance(stamp);
        }
        Ok(Some((stamp, descriptor)))
    }

    /// Acknowledges what was stepped over, if it is due, or remembers to.
    fn step(&mut self, index: u32) {
        let link = &mut self.links[index as usize];
        if link.theirs.as_ref().is_some_and(|theirs| theirs.consumer.is_acknowledgement_due()) {
            link.acknowledge(&self.memory);
        } else if !link.dirty {
            link.dirty = true;
            self.dirty.push(index);
        }
    }

    /// Gives the fragment that [`Event::Fragment`] showed back to its sender.
    ///
    /// # Errors
    ///
    /// The sender's life ended meanwhile, so that the bytes may not be its own.
    pub fn consume(&mut self, peer: Peer) -> Result<(), PeerError> {
        let link = &mut self.links[peer.index()];
        if !core::mem::take(&mut link.held) {
            return Ok(());
        }
        if let Some(why) = link.failed {
            return Err(why);
        }
        if !link.lives(&self.memory) {
            let why = self.ending(peer.0);
            self.fail(peer.0, why);
            return Err(why);
        }
        let link = &mut self.links[peer.index()];
        link.acknowledge(&self.memory);
        Ok(())
    }

    /// Acknowledges all that was consumed.
    fn flush(&mut self) {
        while let Some(index) = self.dirty.pop() {
            let link = &mut self.links[index as usize];
            link.dirty = false;
            // What is held is not consumed yet.
            if !link.held {
                link.acknowledge(&self.memory);
            }
        }
    }

    fn hear_news(&mut self) {
        for index in 0..self.links.len() as u32 {
            let link = &self.links[index as usize];
            if link.failed.is_none()
                && let Some(why) = self.watch.verdict(link.id, link.incarnation)
            {
                self.fail(index, why);
            }
        }
    }

    /// Ends the dealings with a peer: what is under way to it comes back as [`Event::Unsent`], then [`Event::Gone`].
    fn fail(&mut self, index: u32, why: PeerError) {
        let link = &mut self.links[index as usize];
        if link.failed.is_some() {
            return;
        }
        link.failed = Some(why);
        let peer = Peer(index);
        let unsent = link.in_flight.drain(..).map(|(_, token)| Event::Unsent { peer, token });
        self.backlog.extend(unsent);
        self.backlog.push_back(Event::Gone { peer, why });
        self.watch.end(link.id);
        if link.hot {
            link.hot = false;
            self.hot.retain(|hot| *hot != index);
            self.next_hot = 0;
        }
        self.sending.retain(|sending| *sending != index);
    }

    /// Whether all that was sent to living peers has been consumed. An endpoint should only be closed then.
    pub fn is_drained(&mut self) -> bool {
        self.flush();
        for index in 0..self.links.len() as u32 {
            let link = &mut self.links[index as usize];
            if link.failed.is_some() || link.producer.acknowledged() == link.producer.position() {
                continue;
            }
            let learned = match link.resolve(&self.memory, &self.region, self.id, self.incarnation) {
                Ok(_) => link.learn(&self.memory),
                Err(fault) => Err(fault),
            };
            match learned {
                Err(fault) => self.fail(index, fault.into()),
                Ok(()) if !link.lives(&self.memory) => self.fail(index, self.ending(index)),
                Ok(()) if link.producer.acknowledged() < link.producer.position() => return false,
                Ok(()) => {}
            }
        }
        true
    }

    /// Counts up the heartbeat of an endpoint.
    pub fn beat(memory: &M, section: &Section, slot: u32) {
        memory.fetch_add(section.slot(slot) + HEARTBEAT, 1, Ordering::Relaxed);
    }

    /// The slot that the endpoint has in its section.
    pub fn slot(&self) -> u32 {
        self.slot
    }
}

impl<M: Memory> Drop for Endpoint<M> {
    fn drop(&mut self) {
        self.flush();
        let live = SlotState { incarnation: self.incarnation, state: STATE_LIVE };
        slot::reap(&self.memory, &self.section, self.slot, live, false);
    }
}

fn find_section(region: &Region, section: u32) -> Result<Section, AttachError> {
    let last = region.header().sections - 1;
    region.sections().get(section as usize).copied().ok_or(AttachError::Section { section, last })
}

fn section_of(region: &Region, id: EndpointId) -> &Section {
    &region.sections()[(id.0 / region.header().endpoints) as usize]
}
