//! VMs that come: which section they get, and their greeting.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::epoll::EpollFlags;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use tracing::{info, warn};
use vmshm_abi::region::RegionHeader;

use super::peers::Peer;
use super::{IDS, RETRY, Server, Source, watch};
use crate::error::Error;
use crate::lock::release;
use crate::process::Process;
use crate::protocol::{Message, Outbox};
use crate::table::State;

/// A VM whose section is being emptied before it gets it. The lock of the section's row is held meanwhile.
#[derive(Debug)]
pub(super) struct Coming {
    socket: UnixStream,
    process: Process,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Coming {
    /// Ends the work, and turns the VM away.
    pub(super) fn give_up(self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.join();
        refuse(&self.socket);
    }
}

type Results = Vec<(u32, Result<(), Error>)>;

/// Says which sections have been emptied.
#[derive(Debug, Clone)]
pub(super) struct Done {
    bell: Arc<EventFd>,
    results: Arc<Mutex<Results>>,
}

impl Done {
    pub(super) fn new() -> Result<Self, Error> {
        let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        Ok(Self { bell: Arc::new(bell.map_err(Error::sys("wait for events"))?), results: Arc::default() })
    }

    /// Readable when there are results.
    pub(super) fn bell(&self) -> &EventFd {
        &self.bell
    }

    fn send(&self, section: u32, result: Result<(), Error>) {
        self.results.lock().unwrap_or_else(PoisonError::into_inner).push((section, result));
        let _ = self.bell.write(1);
    }

    fn take(&self) -> Results {
        let _ = self.bell.read();
        std::mem::take(&mut *self.results.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// How a VM comes to a section.
enum Place {
    /// It had it under an earlier server.
    Again(u32),
    /// The section was kept for it.
    Kept(u32),
    /// Whoever had it before was somebody else.
    Free(u32),
}

impl Server {
    pub(super) fn accept(&mut self, listener: u32) {
        let Some((listener, door)) = self.listeners.get(listener as usize) else { return };
        let door = *door;
        let socket = match listener.socket.accept() {
            Ok((socket, _)) => socket,
            Err(error) => {
                if !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::ConnectionAborted) {
                    warn!(%error, "cannot accept a connection");
                    // Out of descriptors, most likely. It stays readable, so do not spin on it.
                    std::thread::sleep(Duration::from_millis(u64::from(RETRY)));
                }
                return;
            }
        };
        self.turn_away_unless(socket.try_clone(), |server| server.join(socket, door));
    }

    fn turn_away_unless(
        &mut self,
        answer: std::io::Result<UnixStream>,
        joins: impl FnOnce(&mut Self) -> Result<(), Error>,
    ) {
        if let Err(error) = joins(self) {
            warn!(%error, "a VM was turned away");
            if let Ok(answer) = answer {
                refuse(&answer);
            }
        }
        self.send_all();
    }

    fn join(&mut self, socket: UnixStream, door: Option<u32>) -> Result<(), Error> {
        socket.set_nonblocking(true).map_err(Error::io("talk to a new VM"))?;
        let process = client(&socket)?;
        match self.place(door, process)? {
            Place::Again(section) => {
                self.admit(section, socket, process, false)?;
                self.earlier.remove(&section);
                Ok(())
            }
            Place::Kept(section) => self.admit(section, socket, process, true),
            Place::Free(section) => self.empty(section, socket, process),
        }
    }

    /// Finds a section for a new VM. Of a free one the row's lock is held then.
    fn place(&mut self, door: Option<u32>, process: Process) -> Result<Place, Error> {
        self.forget_released()?;
        let busy = |section, why: String| Error::SectionBusy { name: self.region.name(), section, why };
        if let Some(section) = door {
            let other = self.peers.get(&section).map(|peer| peer.pid);
            if let Some(pid) = other.or(self.coming.get(&section).map(|coming| coming.process.pid)) {
                return Err(busy(section, format!("has a VM already (pid {pid})")));
            }
        }
        // A VM that comes back to a restarted server gets what it had, and is no new member.
        let returns = |earlier: &Process| process.is_known() && *earlier == process;
        for (&section, earlier) in &self.earlier {
            if returns(&earlier.owner) && door.is_none_or(|door| door == section) {
                return Ok(Place::Again(section));
            }
            if door == Some(section) {
                let pid = earlier.owner.pid;
                let why = format!("is kept by a VM that an earlier server gave it to (pid {pid})");
                return Err(busy(section, why));
            }
        }
        let candidates = match door {
            Some(section) => section..section + 1,
            None => 0..self.region.header().sections,
        };
        for section in candidates {
            if self.peers.contains_key(&section)
                || self.earlier.contains_key(&section)
                || self.coming.contains_key(&section)
            {
                continue;
            }
            match State::of(&self.region.ledger()?.row(section)?.entry) {
                // What host processes lock says nothing of a section that is none of theirs.
                State::Assigned if door.is_some() => return Ok(Place::Kept(section)),
                State::Assigned | State::Joined => continue,
                State::Free => {}
            }
            match self.region.lock_section(section) {
                Ok(lock) => {
                    lock.keep();
                    return Ok(Place::Free(section));
                }
                Err(error) if door.is_some() => return Err(error),
                Err(_) => {}
            }
        }
        Err(busy(
            door.unwrap_or(0),
            "and all others are taken: release one with `vmshm region release`, or make a region with more \
             --sections"
                .into(),
        ))
    }

    /// Has a free section emptied, which may take long: by a thread of its own. [`Server::emptied`] goes on.
    fn empty(&mut self, section: u32, socket: UnixStream, process: Process) -> Result<(), Error> {
        let stop = Arc::new(AtomicBool::new(false));
        let work = || {
            let entry = self.region.ledger()?.row(section)?.entry;
            let (region, done, stopped) = (Arc::clone(&self.region), self.done.clone(), Arc::clone(&stop));
            let work = move || done.send(section, region.clear(section, &entry, &stopped));
            std::thread::Builder::new().name("empty".into()).spawn(work).map_err(Error::io("start a thread"))
        };
        match work() {
            Ok(thread) => {
                self.coming.insert(section, Coming { socket, process, stop, thread });
                Ok(())
            }
            Err(error) => {
                self.unlock(section);
                Err(error)
            }
        }
    }

    /// Goes on with those whose section is empty now.
    pub(super) fn emptied(&mut self) {
        for (section, result) in self.done.take() {
            let Some(Coming { socket, process, thread, .. }) = self.coming.remove(&section) else { continue };
            let _ = thread.join();
            let answer = socket.try_clone();
            self.turn_away_unless(answer, |server| {
                let joined = result.and_then(|()| server.admit(section, socket, process, true));
                server.unlock(section);
                joined
            });
        }
    }

    fn unlock(&self, section: u32) {
        release(self.region.file(), RegionHeader::entry_offset(section));
    }

    /// Makes a section the VM's in the table, and tells it and all others.
    fn admit(
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
        let id = new_id(&mut self.lives, self.region.header().sections, section);
        let ledger = self.region.ledger()?;
        let lock = ledger.lock()?;
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
            told: BTreeSet::from([id]),
            knows: BTreeSet::new(),
            vectors,
            outbox: Outbox::default(),
        };
        peer.outbox.push(Message::version());
        peer.outbox.push(Message::id(id));
        peer.outbox.push(Message::memory(&self.memory));
        for other in self.peers.values_mut() {
            peer.introduce(other.id, &other.vectors);
            other.introduce(id, &peer.vectors);
        }
        for fd in &peer.vectors {
            peer.outbox.push(Message::vector(id, fd));
        }
        let interest = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP;
        let watched = watch(&self.epoll, &peer.socket, interest, Source::Peer(section));
        self.peers.insert(section, peer);
        if watched.is_err() {
            self.leave(section);
            return watched;
        }
        info!(section, id, pid = process.pid, "a VM joined");
        Ok(())
    }
}

/// Which process a client is, as far as can be told.
fn client(socket: &UnixStream) -> Result<Process, Error> {
    let pid = getsockopt(socket, PeerCredentials).map_err(Error::sys("talk to a new VM"))?.pid();
    let pid = u32::try_from(pid).unwrap_or(0);
    Ok(Process::with_pid(pid).unwrap_or_else(|| {
        warn!(
            pid,
            "a VM's process can't be told from here (another pid namespace, or /proc mounted with hidepid): if this server \
             is restarted, the VM's section stays taken until `vmshm region release --force`"
        );
        Process { pid, start: 0 }
    }))
}

/// Turns a client away so that it notices: QEMU ends with an error on an impossible id, but reads for ever after an
/// end of file.
pub(super) fn refuse(socket: &UnixStream) {
    let mut outbox = Outbox::default();
    outbox.push(Message::version());
    outbox.push(Message::refusal());
    let _ = outbox.send(socket);
}

/// An id for the next VM of a section.
fn new_id(lives: &mut BTreeMap<u32, u32>, sections: u32, section: u32) -> u32 {
    let life = lives.entry(section).or_default();
    let id = section + *life % (IDS / sections) * sections;
    *life = life.wrapping_add(1);
    id
}
