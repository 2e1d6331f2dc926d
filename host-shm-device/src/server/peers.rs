//! Connected VMs: what they are told, and that they leave.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use tracing::{debug, info, warn};

use super::Server;
use crate::protocol::{Message, Outbox, Sent};
use crate::table::State;

/// A connected VM.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) socket: UnixStream,
    pub(super) id: u32,
    pub(super) pid: u32,
    /// Ids that it was ever told, with its own.
    pub(super) told: BTreeSet<u32>,
    /// Ids of those that it believes to be there.
    pub(super) knows: BTreeSet<u32>,
    pub(super) vectors: Vec<Arc<OwnedFd>>,
    pub(super) outbox: Outbox,
}

impl Peer {
    /// Tells of another VM, unless that would be the second one with its id.
    pub(super) fn introduce(&mut self, id: u32, vectors: &[Arc<OwnedFd>]) {
        if !self.told.insert(id) {
            debug!(id, to = self.id, "not told of an id that it knew before");
            return;
        }
        self.knows.insert(id);
        for fd in vectors {
            self.outbox.push(Message::vector(id, fd));
        }
    }
}

impl Server {
    /// Reads from a VM's socket, which must have nothing to say but its end.
    pub(super) fn hear(&mut self, section: u32) {
        let Some(peer) = self.peers.get_mut(&section) else { return };
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

    /// Sends to everybody what is due. Whoever turns out to be gone leaves, of which the others must be told. Then rings
    /// all doorbells, if there is news in the table.
    pub(super) fn send_all(&mut self) {
        loop {
            let before = self.peers.len();
            for section in self.peers.keys().copied().collect::<Vec<_>>() {
                self.send(section);
            }
            if self.peers.len() == before {
                break;
            }
        }
        if std::mem::take(&mut self.changed) {
            let bells = self.peers.values().flat_map(|peer| &peer.vectors);
            bells.for_each(|bell| self.bells.ring(bell));
        }
    }

    fn send(&mut self, section: u32) {
        let vectors = self.vectors as usize;
        let bound = 4 * (self.region.header().sections as usize + 4) * (vectors + 1);
        let Some(peer) = self.peers.get_mut(&section) else { return };
        let had = peer.outbox.len();
        let sent = peer.outbox.send(&peer.socket);
        match sent {
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
            debug!(section, sent = had - self.peers.get(&section).map_or(0, |p| p.outbox.len()), "sent");
        }
    }

    /// A VM has left: its section goes back, and the others are told.
    pub(super) fn leave(&mut self, section: u32) {
        let Some(peer) = self.peers.remove(&section) else { return };
        info!(section, pid = peer.pid, "a VM left");
        self.give_back(section);
        for other in self.peers.values_mut() {
            if other.knows.remove(&peer.id) {
                other.outbox.push(Message::id(peer.id));
            }
        }
    }

    /// Makes a section again what it was before its VM joined.
    pub(super) fn give_back(&mut self, section: u32) {
        let result = self.region.ledger().and_then(|ledger| {
            let _lock = ledger.lock()?;
            let mut row = ledger.row(section)?;
            (row.entry.owner_pid, row.entry.owner_start, row.entry.vm_id) = (0, 0, 0);
            self.region.decide(section, &row, if row.kept == 0 { State::Free } else { State::Assigned })
        });
        self.changed = true;
        if let Err(error) = result {
            warn!(section, %error, "cannot give the section back");
        }
    }
}
