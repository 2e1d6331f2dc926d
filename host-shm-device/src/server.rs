//! The ivshmem server: gives VMs (QEMU's `ivshmem-doorbell`) the region, their section, and their peers' doorbells.
//!
//! A VM's id, modulo the number of sections, is the number of its section. The first VM that this server gives a
//! section to has that very number as its id, the next one `sections` more, and so on: QEMU frees a peer's doorbells
//! when it leaves, and writes into the freed memory if the same id comes back (seen with 7.2). For the same reason no
//! client is told of an id twice, even when the ids, which have 16 bits, begin again.
//!
//! Who joined under which id stands in the section table, for those who ring. Whenever a VM joins or ends, all doorbells
//! of all connected VMs are rung once its row is written, so that guests that sleep look at the table.
//!
//! One thread serves everybody and waits for nobody: sockets do not block, and what a client does not read is kept for
//! it, up to a bound.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use tracing::{debug, info, warn};
use vmshm_abi::region::SectionEntry;

use crate::error::Error;
use crate::lock::{Lock, SERVER_BYTE, release};
use crate::process::Process;
use crate::protocol::{Message, Outbox, Sent};
use crate::region::Region;
use crate::registry::prepare_dir;
use crate::socket::{Listener, section_socket, socket};
use crate::table::{State, owner};
use crate::users::{describe, users};

/// Interrupt vectors of each VM unless asked for otherwise: so many processes of a VM can be woken one by one.
pub const DEFAULT_VECTORS: u32 = 8;

/// Most interrupt vectors that a device can have: MSI-X's bound.
const MAX_VECTORS: u32 = 2048;

/// Number of ids that the protocol has.
const IDS: u32 = 1 << 16;

/// How long to wait before a socket that took nothing, though it is not full, is tried again.
const RETRY: u16 = 100;

/// How a region is served.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// The socket for any free section, or `None` for the usual place. The sockets of the single sections lie
    /// beside it, see [`section_socket`].
    pub socket: Option<PathBuf>,
    /// Interrupt vectors of each VM.
    pub vectors: u32,
    /// Permissions of the sockets.
    pub mode: u32,
    /// Group of the sockets, or `None` for `vmshm` where that exists.
    pub group: Option<String>,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self { socket: None, vectors: DEFAULT_VECTORS, mode: 0o660, group: None }
    }
}

/// A server, listening. Dropping it removes its sockets; the VMs keep their memory and doorbells.
#[derive(Debug)]
pub struct Server {
    epoll: Epoll,
    /// Sockets, and the section that each gives; `None` for any.
    listeners: Vec<(Listener, Option<u32>)>,
    region: Region,
    /// The region's memory as clients get it: another open file description, so that our locks are not theirs.
    memory: Arc<OwnedFd>,
    vectors: u32,
    /// Connected VMs by section.
    peers: BTreeMap<u32, Peer>,
    /// How many VMs this server has given each section to.
    lives: BTreeMap<u32, u32>,
    /// VMs that an earlier server gave a section to, and that still live; by section, with their pidfds. They have
    /// no connection, so they hear of nobody who joins or leaves.
    earlier: BTreeMap<u32, (Process, OwnedFd)>,
    /// Sections that go back to being assigned, not free, when their VM leaves.
    assigned: Assigned,
    /// Whether somebody's socket refused without being full.
    retry: bool,
    /// Whether a row of the table has changed since the doorbells were rung.
    changed: bool,
}

#[derive(Debug)]
struct Peer {
    socket: UnixStream,
    id: u32,
    pid: u32,
    /// Ids that it was ever told, with its own.
    told: BTreeSet<u32>,
    /// Ids of those that it believes to be there.
    knows: BTreeSet<u32>,
    vectors: Vec<Arc<OwnedFd>>,
    outbox: Outbox,
}

impl Peer {
    /// Rings all its doorbells.
    fn ring(&self) {
        for fd in &self.vectors {
            // A counter that is full has been rung. It is asked first, because a client can have made writing wait.
            let mut room = [PollFd::new(fd.as_fd(), PollFlags::POLLOUT)];
            if poll(&mut room, PollTimeout::ZERO) == Ok(1) {
                let _ = nix::unistd::write(fd, &1u64.to_ne_bytes());
            }
        }
    }

    /// Tells of another VM, unless that would be the second one with its id.
    fn introduce(&mut self, id: u32, vectors: &[Arc<OwnedFd>]) {
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

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Stop,
    Listener(u32),
    Peer(u32),
    Earlier(u32),
}

impl Source {
    fn pack(self) -> u64 {
        match self {
            Self::Stop => 0,
            Self::Listener(i) => 1 << 32 | u64::from(i),
            Self::Peer(i) => 2 << 32 | u64::from(i),
            Self::Earlier(i) => 3 << 32 | u64::from(i),
        }
    }

    fn unpack(word: u64) -> Self {
        let i = word as u32;
        match word >> 32 {
            1 => Self::Listener(i),
            2 => Self::Peer(i),
            3 => Self::Earlier(i),
            _ => Self::Stop,
        }
    }
}

impl Server {
    /// Starts to serve a region: takes its server lock, takes over from an earlier server, and listens.
    pub fn new(region: Region, options: &ServerOptions) -> Result<Self, Error> {
        if options.vectors == 0 || options.vectors > MAX_VECTORS {
            return Err(Error::Invalid {
                what: "the number of vectors",
                value: options.vectors.to_string(),
                why: format!("makes no sense: give 1 to {MAX_VECTORS}"),
            });
        }
        if options.mode > 0o777 {
            return Err(Error::Invalid {
                what: "the mode",
                value: format!("{:o}", options.mode),
                why: "is no permission: give for example 660".into(),
            });
        }
        match Lock::try_exclusive(region.file(), SERVER_BYTE).map_err(Error::io(format!(
            "lock {} (serving needs write permission)",
            region.path().display()
        )))? {
            Some(lock) => lock.keep(),
            None => {
                let pids = users(&region.file_id()?).holding(SERVER_BYTE);
                return Err(Error::Served { name: region.name(), by: describe(&pids) });
            }
        }
        raise_file_limit(&region, options.vectors)?;

        let main = options.socket.clone().unwrap_or_else(|| socket(&region));
        if let Some(dir) = main.parent().filter(|dir| !dir.as_os_str().is_empty()) {
            prepare_dir(dir, 0o755)?;
        }
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(Error::sys("wait for events"))?;
        let mut listeners = Vec::new();
        for door in std::iter::once(None).chain((0..region.header().sections).map(Some)) {
            let path = door.map_or_else(|| main.clone(), |section| section_socket(&main, section));
            let listener = Listener::bind(&path, options.mode, options.group.as_deref())?;
            watch(&epoll, &listener.socket, EpollFlags::EPOLLIN, Source::Listener(listeners.len() as u32))?;
            listeners.push((listener, door));
        }
        let memory = Arc::new(OwnedFd::from(region.reopen()?));
        let assigned = Assigned::load(&main, &region);
        let mut server = Self {
            epoll,
            listeners,
            memory,
            region,
            vectors: options.vectors,
            peers: BTreeMap::new(),
            lives: BTreeMap::new(),
            earlier: BTreeMap::new(),
            assigned,
            retry: false,
            changed: false,
        };
        server.take_over()?;
        Ok(server)
    }

    /// The socket that gives a VM any free section.
    pub fn socket(&self) -> &Path {
        self.listeners[0].0.path()
    }

    /// Serves until `stop` is readable, or until the region is destroyed.
    pub fn run(&mut self, stop: BorrowedFd<'_>) -> Result<(), Error> {
        watch(&self.epoll, stop, EpollFlags::EPOLLIN, Source::Stop)?;
        loop {
            let mut events = [EpollEvent::empty(); 64];
            // Destruction of the region makes no event: look now and then.
            let timeout = if self.retry { EpollTimeout::from(RETRY) } else { EpollTimeout::from(1000u16) };
            let count = match self.epoll.wait(&mut events, timeout) {
                Ok(count) => count,
                Err(nix::Error::EINTR) => continue,
                Err(errno) => return Err(Error::sys("wait for events")(errno)),
            };
            if self.region.is_unlinked() {
                info!("the region was destroyed: nothing is left to serve");
                return Ok(());
            }
            for event in &events[..count] {
                match Source::unpack(event.data()) {
                    Source::Stop => return Ok(()),
                    Source::Listener(i) => self.accept(i),
                    Source::Peer(section) => self.hear(section),
                    Source::Earlier(section) => self.earlier_ended(section),
                }
            }
            if self.retry {
                self.retry = false;
                self.send_all();
            }
        }
    }

    /// Sees which VMs of an earlier server still live.
    fn take_over(&mut self) -> Result<(), Error> {
        for (entry, section) in self.region.entries()?.iter().zip(0..) {
            if State::of(entry) != State::Joined {
                continue;
            }
            let owner = owner(entry);
            // Open first, then compare: so the pidfd is of that process and of no later one with its pid.
            match pidfd(owner.pid).filter(|_| owner.is_alive()) {
                Some(fd) => {
                    warn!(
                        section,
                        pid = owner.pid,
                        "its VM was started under an earlier server, still runs and keeps the section; it and VMs that \
                         join now can't ring each other, so that processes that sleep are late by up to 64 ms: restart \
                         that VM to mend it"
                    );
                    watch(&self.epoll, &fd, EpollFlags::EPOLLIN, Source::Earlier(section))?;
                    self.earlier.insert(section, (owner, fd));
                }
                None => {
                    info!(section, pid = owner.pid, "its VM ended while nobody served");
                    self.give_back(section);
                }
            }
        }
        Ok(())
    }

    fn accept(&mut self, listener: u32) {
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
        let answer = socket.try_clone();
        if let Err(error) = self.join(socket, door) {
            warn!(%error, "a VM was turned away");
            if let Ok(answer) = answer {
                refuse(&answer);
            }
        }
        self.send_all();
    }

    fn join(&mut self, socket: UnixStream, door: Option<u32>) -> Result<(), Error> {
        let failed = || "talk to a new VM".to_owned();
        socket.set_nonblocking(true).map_err(Error::io(failed()))?;
        let pid = getsockopt(&socket, PeerCredentials).map_err(Error::sys(failed()))?.pid();
        let process =
            u32::try_from(pid).ok().and_then(Process::with_pid).unwrap_or(Process { pid: 0, start: 0 });
        let vectors = (0..self.vectors)
            .map(|_| {
                EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
                    .map(|fd| Arc::new(OwnedFd::from(fd)))
            })
            .collect::<Result<Vec<_>, _>>()
            .map_err(Error::sys("make doorbells for a new VM"))?;
        let (section, id) = self.take(door, process)?;
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

    /// Finds a section and an id for a new VM, and makes both the process's in the table.
    fn take(&mut self, door: Option<u32>, process: Process) -> Result<(u32, u32), Error> {
        let busy = |section, why: String| Error::SectionBusy { name: self.region.name(), section, why };
        if let Some(section) = door {
            if let Some(peer) = self.peers.get(&section) {
                return Err(busy(section, format!("has a VM already (pid {})", peer.pid)));
            }
            if let Some((owner, _)) = self.earlier.get(&section)
                && *owner != process
            {
                return Err(busy(
                    section,
                    format!("is kept by a VM that an earlier server gave it to (pid {})", owner.pid),
                ));
            }
        }
        // A VM that comes back to a restarted server gets what it had, and is no new member.
        let known = self
            .earlier
            .iter()
            .find(|&(&section, &(owner, _))| owner == process && door.is_none_or(|door| door == section));
        if let Some((&section, _)) = known {
            let id = new_id(&mut self.lives, self.region.header().sections, section);
            let _table = self.region.lock_table()?;
            let entry = SectionEntry { vm_id: id + 1, ..self.region.entry(section)? };
            self.region.write_entry(section, &entry, State::Joined)?;
            self.earlier.remove(&section);
            self.changed = true;
            return Ok((section, id));
        }
        let _table = self.region.lock_table()?;
        let candidates = match door {
            Some(section) => section..section + 1,
            None => 0..self.region.header().sections,
        };
        for section in candidates {
            if self.peers.contains_key(&section) || self.earlier.contains_key(&section) {
                continue;
            }
            let entry = match self.region.entry(section) {
                Ok(entry) => entry,
                Err(error) if door.is_some() => return Err(error),
                Err(error) => {
                    warn!(section, %error, "the section cannot be given away");
                    continue;
                }
            };
            // Joined, though not by anybody here: nobody but a VM that scribbled over the table writes that.
            let state = State::of(&entry);
            if door.is_none() && state == State::Assigned {
                continue;
            }
            let host = self.region.lock_section(section);
            if let Err(error) = host {
                if door.is_some() {
                    return Err(error);
                }
                continue;
            }
            self.assigned.set(section, state == State::Assigned);
            let id = new_id(&mut self.lives, self.region.header().sections, section);
            let entry = SectionEntry {
                generation: entry.generation.wrapping_add(1),
                owner_pid: process.pid,
                owner_start: process.start,
                vm_id: id + 1,
                ..entry
            };
            self.region.write_entry(section, &entry, State::Joined)?;
            self.changed = true;
            return Ok((section, id));
        }
        Err(busy(
            door.unwrap_or(0),
            "and all others are taken: release one with `vmshm region release`, or make a region with more \
             --sections"
                .into(),
        ))
    }

    /// Reads from a VM's socket, which must have nothing to say but its end.
    fn hear(&mut self, section: u32) {
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
    fn send_all(&mut self) {
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
            self.peers.values().for_each(Peer::ring);
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
    fn leave(&mut self, section: u32) {
        let Some(peer) = self.peers.remove(&section) else { return };
        info!(section, pid = peer.pid, "a VM left");
        self.give_back(section);
        for other in self.peers.values_mut() {
            if other.knows.remove(&peer.id) {
                other.outbox.push(Message::id(peer.id));
            }
        }
    }

    fn earlier_ended(&mut self, section: u32) {
        if self.earlier.remove(&section).is_some() {
            info!(section, "the VM of an earlier server ended");
            self.give_back(section);
            self.send_all();
        }
    }

    /// Makes a section again what it was before its VM joined.
    fn give_back(&mut self, section: u32) {
        let state = if self.assigned.has(section) { State::Assigned } else { State::Free };
        self.assigned.set(section, false);
        let result = self.region.lock_table().and_then(|_table| {
            let entry =
                SectionEntry { owner_pid: 0, owner_start: 0, vm_id: 0, ..self.region.entry(section)? };
            self.region.write_entry(section, &entry, state)
        });
        self.changed = true;
        if let Err(error) = result {
            warn!(section, %error, "cannot give the section back");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Whoever is still in a queue would wait for ever: QEMU takes an end of file for "not yet".
        for (listener, _) in &self.listeners {
            while let Ok((socket, _)) = listener.socket.accept() {
                refuse(&socket);
            }
        }
        // The sockets first, so that the next server's are not taken for ours; then the lock, by name: a process that
        // this one is just starting has the file open too until it executes its program, and would keep the lock.
        self.listeners.clear();
        release(self.region.file(), SERVER_BYTE);
    }
}

/// Turns a client away so that it notices: QEMU ends with an error on an impossible id, but reads for ever after an
/// end of file.
fn refuse(socket: &UnixStream) {
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

fn watch(epoll: &Epoll, fd: impl AsFd, interest: EpollFlags, source: Source) -> Result<(), Error> {
    epoll.add(fd, EpollEvent::new(interest, source.pack())).map_err(Error::sys("wait for events"))
}

/// A descriptor that becomes readable when the process ends.
fn pidfd(pid: u32) -> Option<OwnedFd> {
    let pid = libc::pid_t::try_from(pid).ok().filter(|&pid| pid > 0)?;
    // SAFETY: plain integers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = i32::try_from(fd).ok().filter(|&fd| fd >= 0)?;
    // SAFETY: the descriptor is new and nobody else's.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes room for all descriptors that serving every section takes.
fn raise_file_limit(region: &Region, vectors: u32) -> Result<(), Error> {
    let sections = u64::from(region.header().sections);
    let needed = sections * (u64::from(vectors) + 3) + 64;
    let (soft, hard) =
        getrlimit(Resource::RLIMIT_NOFILE).map_err(Error::sys("ask for the limit of open files"))?;
    if needed <= soft {
        return Ok(());
    }
    if needed > hard {
        return Err(Error::NoRoom {
            needed: format!("{needed} open files"),
            free: hard.to_string(),
            place: "this user's limit".into(),
            cure: "raise it with `ulimit -Hn` (systemd: LimitNOFILE=), or take fewer --vectors".into(),
        });
    }
    setrlimit(Resource::RLIMIT_NOFILE, needed, hard).map_err(Error::sys("raise the limit of open files"))
}

/// Which joined sections were assigned before. Kept in a file, so that a restarted server knows it too: the
/// table has one word for both.
#[derive(Debug)]
struct Assigned {
    path: PathBuf,
    region: String,
    sections: BTreeSet<u32>,
}

impl Assigned {
    fn load(socket: &Path, region: &Region) -> Self {
        let mut name = socket.file_name().unwrap_or_default().to_owned();
        name.push(".assigned");
        let (path, region) = (socket.with_file_name(name), region.id().to_string());
        let text = fs::read_to_string(&path).unwrap_or_default();
        let mut lines = text.lines();
        // What another region of the same name left says nothing.
        let sections = match lines.next() {
            Some(id) if id == region => lines.filter_map(|line| line.parse().ok()).collect(),
            _ => BTreeSet::new(),
        };
        Self { path, region, sections }
    }

    fn has(&self, section: u32) -> bool {
        self.sections.contains(&section)
    }

    fn set(&mut self, section: u32, assigned: bool) {
        let changed = if assigned { self.sections.insert(section) } else { self.sections.remove(&section) };
        if !changed {
            return;
        }
        if let Err(error) = self.store() {
            warn!(path = %self.path.display(), %error, "cannot note which sections are assigned");
        }
    }

    fn store(&self) -> std::io::Result<()> {
        if self.sections.is_empty() {
            return fs::remove_file(&self.path);
        }
        let mut name = self.path.file_name().unwrap_or_default().to_owned();
        name.push(".new");
        let new = self.path.with_file_name(name);
        let mut file = fs::File::create(&new)?;
        writeln!(file, "{}", self.region)?;
        for section in &self.sections {
            writeln!(file, "{section}")?;
        }
        fs::rename(&new, &self.path)
    }
}
