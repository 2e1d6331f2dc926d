//! A region in a directory of its own, a server in a thread, and an ivshmem client that sees every message.
#![allow(dead_code, reason = "each test program uses its own part of this")]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, IoSliceMut, Read};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use tempfile::TempDir;
use vmshm_host::{CreateOptions, Error, Region, RegionName, Registry, Server, ServerOptions, State};

/// A registry in a temporary directory on tmpfs.
pub struct Host {
    pub dir: TempDir,
    pub registry: Registry,
}

impl Host {
    pub fn new() -> Self {
        let dir = TempDir::new_in("/dev/shm").unwrap();
        let registry = Registry::at(dir.path().join("regions"));
        Self { dir, registry }
    }

    /// Makes a region of 4 MiB.
    pub fn create(&self, name: &str, sections: u32) -> Region {
        let options = CreateOptions { sections, ..CreateOptions::new(4 << 20) };
        self.registry.create(&RegionName::new(name).unwrap(), &options).unwrap()
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("run/s.sock")
    }

    pub fn options(&self, vectors: u32) -> ServerOptions {
        ServerOptions { socket: Some(self.socket()), vectors, ..ServerOptions::default() }
    }

    /// Serves the region from a thread until the value is dropped.
    pub fn serve(&self, name: &str, vectors: u32) -> Running {
        self.serve_region(self.registry.open(name).unwrap(), vectors)
    }

    pub fn serve_region(&self, region: Region, vectors: u32) -> Running {
        let mut server = Server::new(region, &self.options(vectors)).unwrap();
        let stop = EventFd::from_flags(EfdFlags::EFD_CLOEXEC).unwrap();
        let stopped = File::from(stop.as_fd().try_clone_to_owned().unwrap());
        let thread = std::thread::spawn(move || server.run(stopped.as_fd()));
        Running { stop, thread: Some(thread) }
    }
}

/// A server in a thread.
pub struct Running {
    stop: EventFd,
    thread: Option<JoinHandle<Result<(), Error>>>,
}

impl Running {
    /// Waits until the server ends of itself.
    pub fn wait(&mut self) -> Result<(), Error> {
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.write(1).unwrap();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap().unwrap();
        }
    }
}

/// A client that has read its greeting.
pub struct Client {
    pub socket: UnixStream,
    pub id: i64,
    pub memory: File,
    /// Doorbells of everybody, by id.
    pub bells: BTreeMap<i64, Vec<File>>,
}

impl Client {
    /// Joins; fails where the server turns us away.
    pub fn join(path: &Path, vectors: usize) -> std::io::Result<Self> {
        Self::greet(UnixStream::connect(path)?, vectors)
    }

    /// The same on a connection that is there.
    pub fn greet(socket: UnixStream, vectors: usize) -> std::io::Result<Self> {
        socket.set_read_timeout(Some(Duration::from_secs(20)))?;
        let (version, none) = receive(&socket)?;
        assert_eq!((version, none.is_none()), (0, true));
        let (id, none) = receive(&socket)?;
        assert!(none.is_none());
        if id < 0 {
            return Err(ErrorKind::ConnectionRefused.into());
        }
        let (minus_one, memory) = receive(&socket)?;
        assert_eq!(minus_one, -1);
        let memory = memory.expect("the memory comes with a descriptor");
        let mut client = Self { socket, id, memory, bells: BTreeMap::new() };
        // Our own doorbells come last, so then we know all who were there.
        while client.bells.get(&client.id).is_none_or(|own| own.len() < vectors) {
            client.next()?;
        }
        Ok(client)
    }

    /// Reads one notice: a doorbell more, or (without a descriptor) a peer less, whose id is returned.
    pub fn next(&mut self) -> std::io::Result<Option<i64>> {
        let (id, fd) = receive(&self.socket)?;
        match fd {
            Some(fd) => {
                self.bells.entry(id).or_default().push(fd);
                Ok(None)
            }
            None => {
                self.bells.remove(&id).expect("only those who were there leave");
                Ok(Some(id))
            }
        }
    }

    /// Takes the rings of all our own doorbells.
    pub fn rings(&self) -> Vec<u64> {
        let take = |mut bell: &File| {
            let mut count = [0; 8];
            match bell.read_exact(&mut count) {
                Ok(()) => u64::from_ne_bytes(count),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::WouldBlock);
                    0
                }
            }
        };
        self.bells[&self.id].iter().map(take).collect()
    }

    /// Waits until each of our own doorbells has rung so often since it was last looked at.
    pub fn wait_for_rings(&self, what: &str, count: u64) {
        let mut seen = vec![0; self.bells[&self.id].len()];
        until(what, || {
            for (seen, new) in seen.iter_mut().zip(self.rings()) {
                *seen += new;
                assert!(*seen <= count, "rung {seen} times, not {count}, by: {what}");
            }
            seen.iter().all(|&seen| seen == count)
        });
    }

    /// Inode of the memory that we were given.
    pub fn inode(&self) -> (u64, u64) {
        let meta = self.memory.metadata().unwrap();
        (meta.dev(), meta.ino())
    }
}

/// One message and the descriptor beside it.
pub fn receive(socket: &UnixStream) -> std::io::Result<(i64, Option<File>)> {
    let mut bytes = [0; 8];
    let mut space = nix::cmsg_space!([i32; 4]);
    let mut buffers = [IoSliceMut::new(&mut bytes)];
    let message =
        recvmsg::<()>(socket.as_raw_fd(), &mut buffers, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let mut fds = Vec::new();
    for control in message.cmsgs().unwrap() {
        if let ControlMessageOwned::ScmRights(received) = control {
            // SAFETY: the kernel has just made these descriptors for us.
            fds.extend(received.into_iter().map(|fd| File::from(unsafe { OwnedFd::from_raw_fd(fd) })));
        }
    }
    match message.bytes {
        8 => {}
        0 => return Err(ErrorKind::UnexpectedEof.into()),
        n => return Err(std::io::Error::other(format!("a message of {n} bytes"))),
    }
    assert!(fds.len() <= 1);
    Ok((i64::from_le_bytes(bytes), fds.pop()))
}

/// Waits until something holds that another process or thread brings about.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < end, "waited in vain for: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub fn state(region: &Region, section: u32) -> State {
    State::of(&region.entry(section).unwrap())
}
