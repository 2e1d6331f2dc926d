//! VMs that connect: which section they get, and that it is empty by then.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::epoll::{Epoll, EpollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use tracing::warn;
use vmshm_abi::region::RegionHeader;

use super::events::{RETRY, Source, watch};
use super::peers::Peers;
use super::protocol::{Message, Outbox};
use super::socket::Listener;
use super::take_over::Earlier;
use crate::error::Error;
use crate::lock::release;
use crate::process::Process;
use crate::region::Region;
use crate::state::State;

/// A VM whose section is being cleared before it gets it. The lock of the section's row is held meanwhile.
#[derive(Debug)]
struct Waiting {
    socket: UnixStream,
    process: Process,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Waiting {
    /// Ends the work, and turns the VM away.
    fn give_up(self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.join();
        refuse(&self.socket);
    }
}

type Results = Vec<(u32, Result<(), Error>)>;

/// Results of the threads that clear sections.
#[derive(Debug, Clone)]
struct Done {
    /// Readable when there are results.
    bell: Arc<EventFd>,
    results: Arc<Mutex<Results>>,
}

impl Done {
    fn new() -> Result<Self, Error> {
        let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        Ok(Self { bell: Arc::new(bell.map_err(Error::sys("wait for events"))?), results: Arc::default() })
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

/// A section for a VM, and why it may have it.
enum Place {
    /// The VM had it under an earlier server.
    Again(u32),
    /// The section was kept for this VM.
    Kept(u32),
    /// Another member had it before, or none.
    Free(u32),
}

/// Accepts VMs.
#[derive(Debug)]
pub(super) struct Accept {
    /// By section.
    waiting: BTreeMap<u32, Waiting>,
    done: Done,
}

impl Accept {
    pub(super) fn new(epoll: &Epoll) -> Result<Self, Error> {
        let done = Done::new()?;
        watch(epoll, &*done.bell, EpollFlags::EPOLLIN, Source::Cleared)?;
        Ok(Self { waiting: BTreeMap::new(), done })
    }

    /// Takes a connection at a listener, whose section is `door`, or any free one.
    pub(super) fn connection(
        &mut self,
        peers: &mut Peers,
        earlier: &mut Earlier,
        listener: &Listener,
        door: Option<u32>,
    ) {
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
        let answer = socket.try_clone();
        turn_away_unless(answer, self.join(peers, earlier, socket, door));
        peers.send_all();
    }

    /// Turns away all whose sections are still being cleared.
    pub(super) fn give_up(&mut self) {
        std::mem::take(&mut self.waiting).into_values().for_each(Waiting::give_up);
    }

    fn join(
        &mut self,
        peers: &mut Peers,
        earlier: &mut Earlier,
        socket: UnixStream,
        door: Option<u32>,
    ) -> Result<(), Error> {
        socket.set_nonblocking(true).map_err(Error::io("talk to a new VM"))?;
        let process = client(&socket)?;
        match self.place(peers, earlier, door, process)? {
            Place::Again(section) => {
                peers.admit(section, socket, process, false)?;
                earlier.by_section.remove(&section);
                Ok(())
            }
            Place::Kept(section) => peers.admit(section, socket, process, true),
            Place::Free(section) => self.clear(&peers.region, section, socket, process),
        }
    }

    /// Finds a section for a new VM. Of a free one the row's lock is held then.
    fn place(
        &self,
        peers: &Peers,
        earlier: &mut Earlier,
        door: Option<u32>,
        process: Process,
    ) -> Result<Place, Error> {
        let region = &peers.region;
        earlier.forget_released(region)?;
        if let Some(section) = door {
            let other = peers.pid(section);
            if let Some(pid) = other.or(self.waiting.get(&section).map(|waiting| waiting.process.pid)) {
                return Err(region.busy(section, format!("has a VM already (pid {pid})")));
            }
        }
        // A VM that comes back to a restarted server gets what it had, and is no new member.
        for (&section, vm) in &earlier.by_section {
            let returns = process.is_known() && vm.process == process;
            if returns && door.is_none_or(|door| door == section) {
                return Ok(Place::Again(section));
            }
            if door == Some(section) {
                let pid = vm.process.pid;
                let why = format!("is kept by a VM that an earlier server gave it to (pid {pid})");
                return Err(region.busy(section, why));
            }
        }
        let candidates = match door {
            Some(section) => section..section + 1,
            None => 0..region.header().sections,
        };
        for section in candidates {
            if peers.pid(section).is_some()
                || earlier.by_section.contains_key(&section)
                || self.waiting.contains_key(&section)
            {
                continue;
            }
            match State::of(&region.ledger()?.row(section)?.entry) {
                // Locks of host processes say nothing of a section that is none of theirs.
                State::Assigned if door.is_some() => return Ok(Place::Kept(section)),
                State::Assigned | State::Joined => continue,
                State::Free => {}
            }
            match region.lock_section(section) {
                Ok(lock) => {
                    lock.keep();
                    return Ok(Place::Free(section));
                }
                Err(error) if door.is_some() => return Err(error),
                Err(_) => {}
            }
        }
        Err(region.busy(
            door.unwrap_or(0),
            "and all others are taken: release one with `vmshm region release`, or make a region with more \
             --sections"
                .into(),
        ))
    }

    /// Has a free section cleared by a thread of its own, since that may take long; [`Accept::cleared`] goes on.
    fn clear(
        &mut self,
        region: &Arc<Region>,
        section: u32,
        socket: UnixStream,
        process: Process,
    ) -> Result<(), Error> {
        let stop = Arc::new(AtomicBool::new(false));
        let start = || {
            let entry = region.ledger()?.row(section)?.entry;
            let (region, done, stopped) = (Arc::clone(region), self.done.clone(), Arc::clone(&stop));
            let work = move || done.send(section, region.clear(section, &entry, &stopped));
            std::thread::Builder::new().name("clear".into()).spawn(work).map_err(Error::io("start a thread"))
        };
        match start() {
            Ok(thread) => {
                self.waiting.insert(section, Waiting { socket, process, stop, thread });
                Ok(())
            }
            Err(error) => {
                unlock(region, section);
                Err(error)
            }
        }
    }

    /// Admits those whose section is clear now.
    pub(super) fn cleared(&mut self, peers: &mut Peers) {
        for (section, result) in self.done.take() {
            let Some(Waiting { socket, process, thread, .. }) = self.waiting.remove(&section) else {
                continue;
            };
            let _ = thread.join();
            let answer = socket.try_clone();
            let joined = result.and_then(|()| peers.admit(section, socket, process, true));
            unlock(&peers.region, section);
            turn_away_unless(answer, joined);
            peers.send_all();
        }
    }
}

fn turn_away_unless(answer: std::io::Result<UnixStream>, joined: Result<(), Error>) {
    if let Err(error) = joined {
        warn!(%error, "a VM was turned away");
        if let Ok(answer) = answer {
            refuse(&answer);
        }
    }
}

fn unlock(region: &Region, section: u32) {
    release(region.file(), RegionHeader::entry_offset(section));
}

/// Process of a client, as far as it can be told.
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
