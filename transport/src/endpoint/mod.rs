//! An endpoint: one process in a section of a region, and its connections with peers.

mod chunk_allocator;
mod eager;
mod event;
mod glance;
mod poll;
mod remote;
mod send;
mod sleep;
mod verdict;

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::mem::offset_of;
use core::sync::atomic::Ordering;

use vmshm_abi::region::VERSION;
use vmshm_abi::ring::{CONNECTION_LEN, ConnectionHeader, SLOT, Told};
use vmshm_abi::section::{EndpointSlot, MAY_SLEEP, RINGS, STATE_LIVE, SlotState, chunk_owner};
use vmshm_abi::{EndpointId, EndpointName};
use zerocopy::{FromZeros, IntoBytes};

use crate::channel::activity::Activity;
use crate::channel::connection::{Connection, close};
use crate::channel::ring::Producer;
use crate::channel::traffic::Traffic;
use crate::error::{AttachError, ConnectError, Fault, PeerError};
use crate::memory::Memory;
use crate::region::arena::Arena;
use crate::region::chunks::Purpose;
use crate::region::rotation::Rotation;
use crate::region::slot;
use crate::region::{Region, Section};

pub use chunk_allocator::{ChunkAllocator, Holder};
pub use eager::Packed;
pub use event::{Event, Fragment, Inbox, MAX_EAGER, Peer};
pub use glance::Glance;
pub use send::MEDIUM;
pub use verdict::Verdicts;

/// Bytes of a connection, with its ring.
const CONNECTION: u64 = 4096;

/// Slots of the rings that we make.
const RING_SLOTS: u32 = ((CONNECTION - CONNECTION_LEN) / SLOT) as u32;

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
    rotation: Rotation,
    /// Offset of our directory.
    directory: u64,
    connections: Vec<Connection>,
    /// Index of the connection to each endpoint of the region, or `NO_CONNECTION`.
    by_id: Vec<u32>,
    polled: Vec<u32>,
    next_polled: usize,
    /// The connection that is polled, if it is the only one, else `NO_CONNECTION`.
    lone: u32,
    /// The last poll found a message.
    found: bool,
    /// So did the one before it.
    streams: bool,
    /// Something was consumed since [`Endpoint::flush`].
    consumed: bool,
    turn: u32,
    /// Turns that were glances, since all else was looked at.
    glances: u32,
    /// Connections that are not polled and may have something for us.
    queue: VecDeque<u32>,
    /// Connections that are not polled any more and are to be looked at once more, each with the turn in which polling stopped.
    stopped: VecDeque<(u32, u32)>,
    sweep: usize,
    activity: Vec<Activity>,
    next_activity: usize,
    /// Strangers whose connection waits for memory of ours.
    unanswered: VecDeque<EndpointId>,
    /// Connections with fragments in flight.
    in_flight_to: Vec<u32>,
    next_in_flight_to: usize,
    /// Fragments in flight, to all peers.
    total_in_flight: usize,
    /// Connections with eager messages in flight.
    eager_to: Vec<u32>,
    next_eager_to: usize,
    /// Events that could not be returned at once.
    backlog: VecDeque<Event>,
    may_sleep: bool,
    /// Sleeps announced so far.
    sleeps: u64,
    verdicts: Arc<Verdicts>,
}

/// Most lives of peers that an endpoint meets, shared out among the sections: a hostile section whose processes pretend to be
/// reborn for ever ends here, and takes nothing from others.
const MAX_LIVES: usize = 1 << 16;

const NO_CONNECTION: u32 = u32::MAX;

const DIRECTORY: u64 = offset_of!(EndpointSlot, directory) as u64;
const PID: u64 = offset_of!(EndpointSlot, pid) as u64;
const BOOT_ID: u64 = offset_of!(EndpointSlot, boot_id) as u64;
const DOORBELL: u64 = offset_of!(EndpointSlot, doorbell) as u64;
const HEARTBEAT: u64 = offset_of!(EndpointSlot, heartbeat) as u64;

/// The process behind an endpoint, as its peers see it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Process {
    /// Its id in its kernel.
    pub pid: u64,
    /// Its kernel's boot id.
    pub boot_id: [u64; 2],
    /// The process may sleep until its doorbell is rung, see [`Endpoint::fall_asleep`].
    pub may_sleep: bool,
    /// [`Device::ring`](crate::Device::ring) works, so that peers may sleep.
    pub rings: bool,
}

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
        Self::take(memory, region, section, slot, incarnation, &Process::default())
    }

    /// Attaches to a slot that [`crate::parts::claim`] has taken for `process`. On an error the slot is given back.
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
        process: &Process,
    ) -> Result<Self, AttachError> {
        let section = find_section(&region, section)?;
        let owner = chunk_owner(slot, incarnation);
        // The processes of a section begin at different places of its heap, so that they seldom meet in its words.
        let hint = section.layout.chunks * u64::from(slot) / u64::from(section.layout.endpoints);
        let mut arena = Arena::new(owner, hint);
        let bytes = u64::from(region.endpoints()) * 8;
        let Some(directory) = arena.allocate(&memory, &section, bytes, Purpose::Connection) else {
            let attaching = slot::state(&memory, &section, slot);
            slot::reap(&memory, &section, slot, attaching, false);
            return Err(AttachError::NoMemory { section: section.number, bytes });
        };
        memory.zero(directory, bytes);
        let at = section.slot(slot);
        memory.store(at + DIRECTORY, directory - section.entry.offset, Ordering::Relaxed);
        memory.store(at + PID, process.pid, Ordering::Relaxed);
        memory.store(at + BOOT_ID, process.boot_id[0], Ordering::Relaxed);
        memory.store(at + BOOT_ID + 8, process.boot_id[1], Ordering::Relaxed);
        let flag = |is_set, flag| if is_set { flag } else { 0 };
        let doorbell = flag(process.may_sleep, MAY_SLEEP) | flag(process.rings, RINGS);
        memory.store(at + DOORBELL, doorbell, Ordering::Relaxed);
        crate::channel::doorbell::retract(&memory, at);
        let id = region.endpoint(section.number, slot);
        let activity = region.sections().iter().map(|other| Activity::from_now(&memory, other, id)).collect();
        slot::publish(&memory, &section, slot, incarnation);
        let total = region.endpoints();
        Ok(Self {
            memory,
            section,
            slot,
            id,
            incarnation,
            arena,
            rotation: Rotation::default(),
            directory,
            connections: Vec::new(),
            by_id: vec![NO_CONNECTION; total as usize],
            polled: Vec::new(),
            next_polled: 0,
            lone: NO_CONNECTION,
            found: false,
            streams: false,
            consumed: false,
            turn: 0,
            glances: 0,
            queue: VecDeque::new(),
            stopped: VecDeque::new(),
            sweep: 0,
            activity,
            next_activity: 0,
            unanswered: VecDeque::new(),
            in_flight_to: Vec::new(),
            next_in_flight_to: 0,
            total_in_flight: 0,
            eager_to: Vec::new(),
            next_eager_to: 0,
            backlog: VecDeque::new(),
            may_sleep: process.may_sleep,
            sleeps: 0,
            verdicts: Arc::new(Verdicts::new(total)),
            region,
        })
    }

    /// The name by which peers find this endpoint.
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

    /// Verdicts on the peers' lives, for a monitor to report to.
    pub fn verdicts(&self) -> &Arc<Verdicts> {
        &self.verdicts
    }

    /// Connects to a peer; connecting again is free.
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
        if let Some(connection) = self.connections.get(self.by_id[name.id as usize] as usize)
            && connection.incarnation == name.incarnation
        {
            return match connection.failed {
                None => Ok(Peer(self.by_id[name.id as usize])),
                Some(_) => Err(ConnectError::Gone),
            };
        }
        let live = SlotState { incarnation: name.incarnation, state: STATE_LIVE };
        if slot::state(&self.memory, section, slot) != live {
            return Err(ConnectError::Gone);
        }
        self.add_connection(id, name.incarnation)
    }

    fn add_connection(&mut self, id: EndpointId, incarnation: u64) -> Result<Peer, ConnectError> {
        let Some((&section, slot)) = self.region.place(id) else { return Err(ConnectError::OtherRegion) };
        let at = section.slot(slot);
        let owner = section.owner(&self.memory);
        let doorbell = self.memory.load(at + DOORBELL, Ordering::Relaxed);
        let endpoints = self.region.header().endpoints;
        let of_section = self
            .connections
            .iter()
            .filter(|connection| connection.id.0 / endpoints == section.number)
            .count();
        if of_section >= (MAX_LIVES / self.region.sections().len()).max(4 * endpoints as usize) {
            return Err(ConnectError::Full);
        }
        let earlier = self.by_id[id.0 as usize];
        let block = if earlier == NO_CONNECTION {
            let purpose = Purpose::Connection;
            let block = self.arena.allocate(&self.memory, &self.section, CONNECTION, purpose);
            block.ok_or(ConnectError::Full)?
        } else {
            self.fail(earlier, self.ending(earlier));
            self.connections[earlier as usize].block
        };
        self.memory.zero(block, CONNECTION);
        let mut header = ConnectionHeader::new_zeroed();
        header.peer = id.0;
        header.peer_incarnation = incarnation;
        header.incarnation = self.incarnation;
        header.slots = RING_SLOTS;
        // The block may have been a connection with an earlier life of the peer: a peer that sees the new words sees them alone.
        self.memory.fence(Ordering::Release);
        self.memory.write(block, header.as_bytes());
        // Release: a peer that finds the connection in the directory finds it made.
        let word = self.directory + u64::from(id.0) * 8;
        self.memory.store(word, block - self.section.entry.offset, Ordering::Release);
        let connection = Connection {
            id,
            incarnation,
            live: slot::live(incarnation),
            section,
            slot_number: slot,
            slot: at,
            state: self.memory.place(at, 8),
            owner,
            may_sleep: doorbell & MAY_SLEEP != 0,
            rings: doorbell & RINGS != 0,
            rung: 0,
            blocked_on_credit: None,
            block,
            producer: Producer::new(block + CONNECTION_LEN, RING_SLOTS),
            peer_side: None,
            in_flight: VecDeque::new(),
            answered: 0,
            eager: VecDeque::new(),
            held: false,
            polled: false,
            last_activity: 0,
            queued: false,
            failed: None,
            counted: Traffic::default(),
            told: Told::default(),
            forgotten: false,
        };
        let index = match self.connections.get_mut(earlier as usize) {
            Some(earlier_connection) if earlier_connection.forgotten => {
                *earlier_connection = connection;
                earlier
            }
            _ => {
                self.connections.push(connection);
                self.connections.len() as u32 - 1
            }
        };
        self.by_id[id.0 as usize] = index;
        self.verdicts.begin(id, incarnation, owner);
        Ok(Peer(index))
    }

    /// Forgets a peer of which [`Event::Gone`] has told: the next process in its place may get its number. Without this, each
    /// life that an endpoint has met keeps a number of its own.
    pub fn forget(&mut self, peer: Peer) {
        let connection = &mut self.connections[peer.index()];
        connection.forgotten = connection.failed.is_some();
    }

    /// Ends the connection with a peer that breaks a rule of the caller's; [`Event::Gone`] follows, and the peer sees
    /// [`PeerError::Closed`].
    pub fn reject(&mut self, peer: Peer, fault: Fault) {
        self.fail(peer.0, fault.into());
    }

    /// Traffic with a peer since the endpoints have connected.
    pub fn traffic(&self, peer: Peer) -> Traffic {
        self.connections[peer.index()].traffic()
    }

    fn ending(&self, index: u32) -> PeerError {
        self.connections[index as usize].ending(&self.memory)
    }

    /// Ends a connection: fragments in flight come back as [`Event::Unsent`], then [`Event::Gone`] is reported.
    fn fail(&mut self, index: u32, why: PeerError) {
        let connection = &mut self.connections[index as usize];
        if connection.failed.is_some() {
            return;
        }
        // A departed peer's memory may be another's by now, so that its content breaks no protocol.
        let why = match why {
            PeerError::Protocol(_) if !connection.lives(&self.memory) => connection.ending(&self.memory),
            _ if self.memory.is_lost() => PeerError::DeviceLost,
            why => why,
        };
        close(&self.memory, connection.block);
        // The peer may sleep until we answer.
        connection.wake(&self.memory, false);
        if matches!(why, PeerError::Left | PeerError::Died) {
            // The peer may have acknowledged something before it went.
            let _ = connection.catch_up(&self.memory, &self.region, self.id, self.incarnation);
        }
        connection.failed = Some(why);
        connection.producer.stop();
        let peer = Peer(index);
        let acknowledged = connection.producer.acknowledged();
        self.total_in_flight -= connection.in_flight.len();
        let landed = connection.in_flight.drain(..).map(|(end, token)| match end <= acknowledged {
            true => Event::Sent { peer, token },
            false => Event::Unsent { peer, token },
        });
        self.backlog.extend(landed);
        self.backlog.push_back(Event::Gone { peer, why });
        self.verdicts.end(connection.id);
        if connection.polled {
            connection.polled = false;
            self.polled.retain(|polled| *polled != index);
            self.next_polled = 0;
            self.find_lone();
        }
        self.in_flight_to.retain(|sending| *sending != index);
        self.free_all_eager(index);
    }

    /// Leaves, but keeps the memory that it holds: see [`crate::attach::Attached::withdraw`].
    #[cfg(feature = "std")]
    pub(crate) fn withdraw(&mut self) {
        self.flush();
        slot::withdraw(&self.memory, &self.section, self.slot, self.incarnation);
    }

    /// Counts up the heartbeat of an endpoint, and returns it.
    pub fn beat(memory: &M, section: &Section, slot: u32) -> u64 {
        memory.fetch_add(section.slot(slot) + HEARTBEAT, 1, Ordering::Relaxed).wrapping_add(1)
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
