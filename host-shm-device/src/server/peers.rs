//! Connected VMs: their greeting, news of each other, and their end.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use nix::sys::epoll::{Epoll, EpollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};
use tracing::{debug, info, warn};

use super::events::{Source, watch};
use super::protocol::{Message, Outbox, Sent};
use crate::bells::Bells;
use crate::error::Error;
use crate::process::Process;
use crate::region::Region;
use crate::state::State;

/// Number of ids that the protocol has.
const IDS: u32 = 1 << 16;

/// A connected VM.
#[derive(Debug)]
struct Peer {
    socket: UnixStream,
    id: u32,
    pid: u32,
    /// Ids that were ever announced to it, and its own: none is announced twice.
    announced: BTreeSet<u32>,
    /// Ids that were announced to it and not yet withdrawn.
    present: BTreeSet<u32>,
    vectors: Vec<Arc<OwnedFd>>,
    outbox: Outbox,
}

impl Peer {
    /// Announces another VM, unless that would be the second one with its id.
    fn introduce(&mut self, id: u32, vectors: &[Arc<OwnedFd>]) {
        if !self.announced.insert(id) {
            debug!(id, to = self.id, "not told of an id that it knew before");
            return;
        }
        self.present.insert(id);
        for fd in vectors {
            self.outbox.push(Message::vector(id, fd));
        }
    }
}

/// All connected VMs, and what serving them takes.
#[derive(Debug)]
pub(super) struct Peers {
    pub(super) region: Arc<Region>,
    epoll: Arc<Epoll>,
    /// The region's memory as clients get it: another open file description, so that our locks are not theirs.
    memory: Arc<OwnedFd>,
    /// Interrupt vectors of each VM.
    vectors: u32,
    /// By section.
    connected: BTreeMap<u32, Peer>,
    /// Number of VMs that this server has given each section to.
    lives: BTreeMap<u32, u32>,
    bells: Bells,
    /// Whether somebody's socket refused without being full.
    pub(super) retry: bool,
    /// Whether a row of the table has changed since the doorbells were rung.
    changed: bool,
}

impl Peers {
    pub(super) fn new(region: &Arc<Region>, epoll: &Arc<Epoll>, vectors: u32) -> Result<Self, Error> {
        Ok(Self {
            memory: Arc::new(OwnedFd::from(region.reopen()?)),
            region: Arc::clone(region),
            epoll: Arc::clone(epoll),
            vectors,
            connected: BTreeMap::new(),
            lives: BTreeMap::new(),
            bells: Bells::new()?,
            retry: false,
            changed: false,
        })
    }

    /// Process of the VM that is connected to a section.
    pub(super) fn pid(&self, section: u32) -> Option<u32> {
        self.connected.get(&section).map(|peer| peer.pid)
    }

    /// Makes a section the VM's in the table, and tells it and all others.
    pub(super) fn admit(
        &mut self,
        section: u32,
        socket: UnixStream,
        process: Process,
        is_new: bool,
    ) -> Result<(), Error> {
        let vectors = (0..self.vectors)
            .map(|_| {
                EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
                    .map(|fd| Arc::new(OwnedFd::from(fd)))
            })
            .collect::<Result<Vec<_>, _>>()
            .map_err(Error::sys("make doorbells for a new VM"))?;
        let ledger = self.region.ledger()?;
        let lock = ledger.lock()?;
        // The last moment to look: a VM that comes without our help from now on finds the section joined.
        self.region.check_unoccupied(section)?;
        let id = new_id(&mut self.lives, self.region.header().sections, section);
        let mut row = ledger.row(section)?;
        row.entry.generation = row.entry.generation.wrapping_add(u64::from(is_new));
        (row.entry.owner_pid, row.entry.owner_start) = (process.pid, process.start);
        row.entry.vm_id = id + 1;
        self.region.decide(section, &row, State::Joined)?;
        drop(lock);
        self.changed = true;
        let mut peer = Peer {
            socket,
            id,
            pid: process.pid,
            announced: BTreeSet::from([id]),
            present: BTreeSet::new(),
            vectors,
            outbox: Outbox::default(),
        };
        peer.outbox.push(Message::version());
        peer.outbox.push(Message::id(id));
        peer.outbox.push(Message::memory(&self.memory));
        for other in self.connected.values_mut() {
            peer.introduce(other.id, &other.vectors);
            other.introduce(id, &peer.vectors);
        }
        for fd in &peer.vectors {
            peer.outbox.push(Message::vector(id, fd));
        }
        let interest = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP;
        let watched = watch(&self.epoll, &peer.socket, interest, Source::Peer(section));
        self.connected.insert(section, peer);
        if watched.is_err() {
            self.leave(section);
            return watched;
        }
        info!(section, id, pid = process.pid, "a VM joined");
        Ok(())
    }

    /// Reads from a VM's socket, on which nothing comes but its end.
    pub(super) fn on_readable(&mut self, section: u32) {
        let Some(peer) = self.connected.get_mut(&section) else { return };
        match peer.socket.read(&mut [0; 64]) {
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                self.send(section);
            }
            Ok(0) | Err(_) => self.leave(section),
            Ok(_) => {
                warn!(section, pid = peer.pid, "the client sent bytes, which the protocol does not know");
                self.leave(section);
            }
        }
        self.send_all();
    }

    /// Sends to everybody what is due. A peer that turns out to be gone leaves, of which the others must be told. Then rings
    /// all doorbells, if there is news in the table.
    pub(super) fn send_all(&mut self) {
        loop {
            let before = self.connected.len();
            for section in self.connected.keys().copied().collect::<Vec<_>>() {
                self.send(section);
            }
            if self.connected.len() == before {
                break;
            }
        }
        if std::mem::take(&mut self.changed) {
            let bells = self.connected.values().flat_map(|peer| &peer.vectors);
            bells.for_each(|bell| self.bells.ring(bell));
        }
    }

    fn send(&mut self, section: u32) {
        let bound = 4 * (self.region.header().sections as usize + 4) * (self.vectors as usize + 1);
        let Some(peer) = self.connected.get_mut(&section) else { return };
        let had = peer.outbox.len();
        match peer.outbox.send(&peer.socket) {
            Sent::Gone => return self.leave(section),
            Sent::Blocked if peer.outbox.len() > bound => {
                warn!(section, pid = peer.pid, "the client does not read what it is told");
                return self.leave(section);
            }
            Sent::Blocked => {
                debug!(section, left = peer.outbox.len(), "the client must read first");
                self.retry = true;
            }
            Sent::All => {}
        }
        if had > 0 {
            debug!(section, sent = had - peer.outbox.len(), "sent");
        }
    }

    /// A VM has left: its section goes back, and the others are told.
    fn leave(&mut self, section: u32) {
        let Some(peer) = self.connected.remove(&section) else { return };
        info!(section, pid = peer.pid, "a VM left");
        self.give_back(section);
        for other in self.connected.values_mut() {
            if other.present.remove(&peer.id) {
                other.outbox.push(Message::id(peer.id));
            }
        }
    }

    /// Makes a section again what it was before its VM joined.
    pub(super) fn give_back(&mut self, section: u32) {
        let result = self.region.ledger().and_then(|ledger| {
            let _lock = ledger.lock()?;
            let row = ledger.row(section)?;
            self.region.decide(section, &row, if row.kept == 0 { State::Free } else { State::Assigned })
        });
        self.changed = true;
        if let Err(error) = result {
            warn!(section, %error, "cannot give the section back");
        }
    }
}

/// An id for the next VM of a section.
fn new_id(lives: &mut BTreeMap<u32, u32>, sections: u32, section: u32) -> u32 {
    let life = lives.entry(section).or_default();
    let id = section + *life % (IDS / sections) * sections;
    *life = life.wrapping_add(1);
    id
}
