//! The ivshmem server: gives VMs (QEMU's `ivshmem-doorbell`) the region, their section, and their peers' doorbells.
//!
//! A VM's id, modulo the number of sections, is the number of its section. The first VM that this server gives a
//! section to has that very number as its id, the next one `sections` more, and so on: QEMU frees a peer's doorbells
//! when it leaves, and writes into the freed memory if the same id comes back (seen with 7.2). For the same reason no
//! client is told of an id twice, even when the ids, which have 16 bits, begin again.
//!
//! The section table tells under which id a VM joined, for those that ring it. Whenever a VM joins or ends, all doorbells
//! of all connected VMs are rung once its row is written, so that guests that sleep look at the table.
//!
//! One thread serves everybody and waits for nobody: sockets and doorbells do not block, what a client does not read is kept
//! for it, up to a bound, and no lock is taken that a member of the region could hold.

mod accept;
mod events;
mod peers;
mod protocol;
mod socket;
mod take_over;

use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tracing::info;

use accept::{Accept, refuse};
use events::{RETRY, Source, watch};
use peers::Peers;
use socket::Listener;
use take_over::Earlier;

pub use socket::{DEFAULT_RUN_DIR, run_dir, section_socket, socket};
pub use take_over::{CALL_TAKEN, call_address};

use crate::dir::prepare_dir;
use crate::error::Error;
use crate::ledger::SERVER_BYTE;
use crate::lock::{Lock, release};
use crate::region::Region;
use crate::users::{FileId, describe, users};

/// Interrupt vectors of each VM unless asked for otherwise: so many processes of a VM can be woken one by one.
pub const DEFAULT_VECTORS: u32 = 8;

/// Most interrupt vectors that a device can have: MSI-X's bound.
const MAX_VECTORS: u32 = 2048;

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
    epoll: Arc<Epoll>,
    /// Sockets, and the section that each gives; `None` for any.
    listeners: Vec<(Listener, Option<u32>)>,
    region: Arc<Region>,
    peers: Peers,
    earlier: Earlier,
    accept: Accept,
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
        let ledger = region.ledger()?.file();
        match Lock::try_exclusive(ledger, SERVER_BYTE)
            .map_err(Error::io(format!("become the server of {}", region.path().display())))?
        {
            Some(lock) => lock.keep(),
            None => {
                let pids = users(&FileId::of(ledger)?).holding(SERVER_BYTE);
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
        let (region, epoll) = (Arc::new(region), Arc::new(epoll));
        let mut peers = Peers::new(&region, &epoll, options.vectors)?;
        let accept = Accept::new(&epoll)?;
        let earlier = Earlier::take_over(&mut peers, &epoll)?;
        Ok(Self { epoll, listeners, region, peers, earlier, accept })
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
            let timeout =
                if self.peers.retry { EpollTimeout::from(RETRY) } else { EpollTimeout::from(1000u16) };
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
                    Source::Listener(i) => {
                        let Some((listener, door)) = self.listeners.get(i as usize) else { continue };
                        self.accept.connection(&mut self.peers, &mut self.earlier, listener, *door);
                    }
                    Source::Peer(section) => self.peers.on_readable(section),
                    Source::Earlier(section) => self.earlier.ended(&mut self.peers, section),
                    Source::Cleared => self.accept.cleared(&mut self.peers),
                }
            }
            if std::mem::take(&mut self.peers.retry) {
                self.peers.send_all();
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A client that is still in a queue would wait for ever: QEMU takes an end of file for "not yet".
        for (listener, _) in &self.listeners {
            while let Ok((socket, _)) = listener.socket.accept() {
                refuse(&socket);
            }
        }
        self.accept.give_up();
        // The sockets first, so that the next server's are not taken for ours; then the lock, by name: a process that
        // this one is just starting has the file open too until it executes its program, and would keep the lock.
        self.listeners.clear();
        if let Ok(ledger) = self.region.ledger() {
            release(ledger.file(), SERVER_BYTE);
        }
    }
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
