//! The VM's side of the ivshmem server's protocol: asks for a section and hears of peers.
//!
//! A server that is started again calls the VMs that it finds, at an address for each section; so a VM needs neither a timer
//! nor the right to connect to anything.

use std::fs::File;
use std::io::{self, ErrorKind, IoSliceMut, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, getsockopt, recvmsg, sockopt::PeerCredentials};
use nix::unistd::geteuid;
use parking_lot::Mutex;
use vmshm_abi::ivshmem::{MSG_SHARED_MEMORY, PROTOCOL_VERSION};
use vmshm_host::{CALL_TAKEN, Region, call_address};

use crate::error::Error;
use crate::ivshmem::Ivshmem;
use crate::thread;

/// Most descriptors that the kernel lets anybody send at once. With less room, those that fit would be ours, and none known.
const MOST_DESCRIPTORS: usize = 253;

/// Gifts of the server: region, id and connection.
pub(crate) struct Given {
    pub(crate) region: Region,
    /// Our id; modulo the number of sections, our section.
    pub(crate) id: u16,
    pub(crate) connection: Connection,
}

/// A connection to the server, past its greeting.
pub(crate) struct Connection {
    socket: UnixStream,
    /// The region's file, as device and inode, which no other file has while we map it.
    memory: (u64, u64),
    sections: u32,
    section: u32,
}

/// Connects to a server and takes the section that it gives.
pub(crate) fn join(path: &Path) -> Result<Given, Error> {
    let doing = || format!("join the ivshmem server at {}", path.display());
    let socket = UnixStream::connect(path).map_err(|cause| match cause.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => Error::NoServer { path: path.to_owned() },
        _ => Error::io(doing())(cause),
    })?;
    greet(socket, path)
}

/// Hears a server's greeting.
pub(crate) fn greet(socket: UnixStream, path: &Path) -> Result<Given, Error> {
    let doing = || format!("join the ivshmem server at {}", path.display());
    let greeting = greeting(&socket).map_err(Error::io(doing()))?;
    let Some((id, memory)) = greeting else { return Err(Error::TurnedAway { path: path.to_owned() }) };
    let region = Region::open(Path::new(&format!("/proc/self/fd/{}", memory.as_raw_fd())))?;
    let memory = identity(&memory).map_err(Error::io(doing()))?;
    let sections = region.header().sections;
    let connection = Connection { socket, memory, sections, section: u32::from(id) % sections };
    Ok(Given { region, id, connection })
}

/// Our id and the region's memory; `None` where the server turns us away.
fn greeting(socket: &UnixStream) -> io::Result<Option<(u16, File)>> {
    let strange = |what: String| io::Error::new(ErrorKind::InvalidData, what);
    let next = || receive(socket)?.ok_or_else(|| strange("it closed the connection".into()));
    match next()? {
        (PROTOCOL_VERSION, None) => {}
        (version, _) => return Err(strange(format!("it speaks version {version} of the protocol"))),
    }
    let (id, _) = next()?;
    let Ok(id) = u16::try_from(id) else { return Ok(None) };
    let (MSG_SHARED_MEMORY, Some(memory)) = next()? else {
        return Err(strange("it sent no shared memory".into()));
    };
    Ok(Some((id, File::from(memory))))
}

/// Device and inode of a file.
fn identity(file: &File) -> io::Result<(u64, u64)> {
    let meta = file.metadata()?;
    Ok((meta.dev(), meta.ino()))
}

/// The next message, and the descriptor beside it; `None` where the server is gone.
fn receive(socket: &UnixStream) -> io::Result<Option<(i64, Option<OwnedFd>)>> {
    let mut word = [0; 8];
    let mut fd = None;
    let mut len = 0;
    while len < word.len() {
        let mut space = cmsg_space!([i32; MOST_DESCRIPTORS]);
        let mut rest = [IoSliceMut::new(&mut word[len..])];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let received = match recvmsg::<()>(socket.as_raw_fd(), &mut rest, Some(&mut space), flags) {
            Ok(received) => received,
            Err(Errno::EINTR) => continue,
            Err(Errno::ECONNRESET) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        for message in received.cmsgs().map_err(io::Error::from)? {
            if let ControlMessageOwned::ScmRights(fds) = message {
                // SAFETY: the kernel has just made these descriptors for us.
                let own = |fd| unsafe { OwnedFd::from_raw_fd(fd) };
                // All of them, so that those that nobody expects are closed.
                let mut owned: Vec<_> = fds.into_iter().map(own).collect();
                fd = owned.pop().or(fd);
            }
        }
        if received.bytes == 0 {
            return Ok(None);
        }
        len += received.bytes;
    }
    Ok(Some((i64::from_le_bytes(word), fd)))
}

impl Connection {
    /// Tells a device what the server says, until it is gone.
    pub(crate) fn hear(&self, device: &Ivshmem) {
        loop {
            match receive(&self.socket) {
                Ok(Some((id, fd))) => match (u16::try_from(id), fd) {
                    (Ok(id), Some(fd)) => device.add_vector(id, fd),
                    (Ok(id), None) => device.remove_peer(id),
                    (Err(_), _) => {
                        return tracing::warn!(
                            id,
                            "the ivshmem server told of an impossible peer: nobody listens to it now"
                        );
                    }
                },
                end => {
                    let error = end.err().map(|error| error.to_string());
                    return tracing::info!(
                        error,
                        "the ivshmem server is gone: the VM keeps its memory and doorbells, and waits for the next server"
                    );
                }
            }
        }
    }

    /// The same in a thread of its own, for this server and for those that come after it. Dropping the client ends it.
    pub(crate) fn serve(self, device: Arc<Ivshmem>) -> Result<Client, Error> {
        let doing = || "start a thread for the ivshmem server";
        let server = getsockopt(&self.socket, PeerCredentials).map_err(Error::sys(doing()))?.uid();
        let copy = self.socket.try_clone().map_err(Error::io(doing()))?;
        let ends = Arc::new(Mutex::new(Some(copy)));
        let address = call_address(self.memory, self.section).map_err(Error::io(doing()))?;
        // Anybody can have taken the name.
        let listener = UnixListener::bind_addr(&address).inspect_err(
            |error| tracing::warn!(%error, "if the ivshmem server is restarted, this VM hears of no peers any more"),
        );
        let listener = listener.ok();
        let calls = listener.as_ref().map(UnixListener::try_clone).transpose().map_err(Error::io(doing()))?;
        let calls = calls.map(|listener| Calls { listener, server, ends: Arc::clone(&ends) });
        let thread = thread::spawn(thread::Kind::Client, "ivshmem", move || {
            let mut server = self;
            loop {
                server.hear(&device);
                // Dropped by whoever joins the thread, which may do more.
                let Some(calls) = &calls else { return device };
                let Some((socket, id)) = calls.next(&server) else { return device };
                server.socket = socket;
                device.rejoin(id, server.sections);
                tracing::info!(id, "the VM has joined a restarted ivshmem server");
            }
        });
        Ok(Client { listener, ends, thread: Some(thread.map_err(Error::io(doing()))?) })
    }
}

/// Calls of servers that were started again.
struct Calls {
    listener: UnixListener,
    /// The user of the first server. Only that user, our own, and root may be the next.
    server: u32,
    /// The connection that the owner of the client ends, unless that has been ended already.
    ends: Arc<Mutex<Option<UnixStream>>>,
}

impl Calls {
    /// Waits for the next server that has the same region, and our id there; `None` where there is none.
    fn next(&self, before: &Connection) -> Option<(UnixStream, u16)> {
        loop {
            let mut socket = match self.listener.accept() {
                Ok((socket, _)) => socket,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                // Shut down, as a rule.
                Err(_) => return None,
            };
            let user = getsockopt(&socket, PeerCredentials).map(|credentials| credentials.uid());
            if !user.is_ok_and(|user| [0, geteuid().as_raw(), self.server].contains(&user)) {
                continue;
            }
            let Ok(copy) = socket.try_clone() else { continue };
            // Kept even where nothing more comes of it: to the server, its end would be the VM's.
            *self.ends.lock().as_mut()? = copy;
            let answered = socket.write_all(&[CALL_TAKEN]);
            match answered.and_then(|()| greeting(&socket)) {
                Ok(Some((id, memory)))
                    if u32::from(id) % before.sections == before.section
                        && identity(&memory).is_ok_and(|memory| memory == before.memory) =>
                {
                    return Some((socket, id));
                }
                Ok(_) => {
                    tracing::warn!("an ivshmem server called with another section: nobody listens to it")
                }
                Err(error) => tracing::info!(%error, "an ivshmem server called, and was gone"),
            }
        }
    }
}

/// The thread that listens to a server; ends when dropped, upon which the server gives the section to others.
pub(crate) struct Client {
    listener: Option<UnixListener>,
    ends: Arc<Mutex<Option<UnixStream>>>,
    thread: Option<JoinHandle<Arc<Ivshmem>>>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Client")
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if let Some(listener) = &self.listener {
            // SAFETY: plain integers; the descriptor is open.
            unsafe { libc::shutdown(listener.as_raw_fd(), libc::SHUT_RDWR) };
        }
        if let Some(socket) = self.ends.lock().take() {
            let _ = socket.shutdown(Shutdown::Both);
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::{ControlMessage, sendmsg};

    use super::*;

    #[test]
    fn descriptors_that_nobody_expects_are_closed() {
        let (near, far) = UnixStream::pair().unwrap();
        let (watched, sent) = UnixStream::pair().unwrap();
        let many = vec![sent.as_raw_fd(); MOST_DESCRIPTORS];
        let bytes = PROTOCOL_VERSION.to_le_bytes();
        let rights = [ControlMessage::ScmRights(&many)];
        sendmsg::<()>(far.as_raw_fd(), &[std::io::IoSlice::new(&bytes)], &rights, MsgFlags::empty(), None)
            .unwrap();
        drop(sent);
        assert!(greet(near, Path::new("server")).is_err());
        // A child that another test starts has copies as well, until it runs its program.
        watched.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
        assert_eq!(std::io::Read::read(&mut &watched, &mut [0]).unwrap(), 0, "all copies are closed");
    }
}
