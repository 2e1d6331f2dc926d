//! The VM's side of the ivshmem server's protocol: asks for a section and hears of peers.

use std::io::{self, IoSliceMut};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use vmshm_abi::ivshmem::{MSG_SHARED_MEMORY, PROTOCOL_VERSION};
use vmshm_host::Region;

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
pub(crate) struct Connection(UnixStream);

/// Connects to a server and takes the section that it gives.
pub(crate) fn join(path: &Path) -> Result<Given, Error> {
    let doing = || format!("join the ivshmem server at {}", path.display());
    let socket = UnixStream::connect(path).map_err(|cause| match cause.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            Error::NoServer { path: path.to_owned() }
        }
        _ => Error::io(doing())(cause),
    })?;
    greet(socket, path)
}

/// Hears a server's greeting.
pub(crate) fn greet(socket: UnixStream, path: &Path) -> Result<Given, Error> {
    let doing = || format!("join the ivshmem server at {}", path.display());
    let connection = Connection(socket);
    let strange = |what: String| Error::io(doing())(io::Error::new(io::ErrorKind::InvalidData, what));
    let next = || {
        let message = connection.receive().map_err(Error::io(doing()))?;
        message.ok_or_else(|| strange("it closed the connection".into()))
    };
    match next()? {
        (PROTOCOL_VERSION, None) => {}
        (version, _) => return Err(strange(format!("it speaks version {version} of the protocol"))),
    }
    let (id, _) = next()?;
    let Ok(id) = u16::try_from(id) else { return Err(Error::TurnedAway { path: path.to_owned() }) };
    let (MSG_SHARED_MEMORY, Some(memory)) = next()? else {
        return Err(strange("it sent no shared memory".into()));
    };
    let region = Region::open(Path::new(&format!("/proc/self/fd/{}", memory.as_raw_fd())))?;
    Ok(Given { region, id, connection })
}

impl Connection {
    /// The next message, and the descriptor beside it; `None` where the server is gone.
    fn receive(&self) -> io::Result<Option<(i64, Option<OwnedFd>)>> {
        let mut word = [0; 8];
        let mut fd = None;
        let mut len = 0;
        while len < word.len() {
            let mut space = cmsg_space!([i32; MOST_DESCRIPTORS]);
            let mut rest = [IoSliceMut::new(&mut word[len..])];
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            let received = match recvmsg::<()>(self.0.as_raw_fd(), &mut rest, Some(&mut space), flags) {
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

    /// Tells a device what the server says, until it is gone.
    pub(crate) fn hear(&self, device: &Ivshmem) {
        loop {
            match self.receive() {
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
                        "the ivshmem server is gone: the VM keeps its memory and doorbells"
                    );
                }
            }
        }
    }

    /// The same in a thread of its own.
    pub(crate) fn serve(self, device: Arc<Ivshmem>) -> Result<Client, Error> {
        let doing = || "start a thread for the ivshmem server";
        let socket = self.0.try_clone().map_err(Error::io(doing()))?;
        let thread = thread::spawn(thread::Kind::Client, "ivshmem", move || {
            self.hear(&device);
            // Dropped by whoever joins the thread, which may do more.
            device
        });
        Ok(Client { socket, thread: Some(thread.map_err(Error::io(doing()))?) })
    }
}

/// The thread that listens to a server; ends when dropped, upon which the server gives the section to others.
pub(crate) struct Client {
    socket: UnixStream,
    thread: Option<JoinHandle<Arc<Ivshmem>>>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Client")
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.socket.shutdown(Shutdown::Both);
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
