//! The messages of the ivshmem server protocol, as QEMU's `ivshmem-spec` has them: eight little-endian bytes,
//! some with a file descriptor beside them. A server only sends; a client never does.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use vmshm_abi::ivshmem::{MSG_SHARED_MEMORY, PROTOCOL_VERSION};

/// One message to a client.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    word: i64,
    fd: Option<Arc<OwnedFd>>,
}

impl Message {
    /// The first message: which protocol this is.
    pub(crate) fn version() -> Self {
        Self { word: PROTOCOL_VERSION, fd: None }
    }

    /// The second message: the client's own id. Later, to the others: that the peer has left.
    pub(crate) fn id(id: u32) -> Self {
        Self { word: i64::from(id), fd: None }
    }

    /// In place of the second message: an id that cannot be, so that the client gives up.
    pub(crate) fn refusal() -> Self {
        Self { word: -1, fd: None }
    }

    /// The shared memory.
    pub(crate) fn memory(fd: &Arc<OwnedFd>) -> Self {
        Self { word: MSG_SHARED_MEMORY, fd: Some(Arc::clone(fd)) }
    }

    /// The next interrupt vector of a peer, or of the client itself.
    pub(crate) fn vector(id: u32, fd: &Arc<OwnedFd>) -> Self {
        Self { word: i64::from(id), fd: Some(Arc::clone(fd)) }
    }
}

/// Messages that still have to go to one client.
#[derive(Debug, Default)]
pub(crate) struct Outbox(VecDeque<Message>);

/// How far sending got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sent {
    /// Everything is sent.
    All,
    /// The client must read first.
    Blocked,
    /// The client is gone.
    Gone,
}

impl Outbox {
    pub(crate) fn push(&mut self, message: Message) {
        self.0.push_back(message);
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Sends what the socket takes without waiting.
    pub(crate) fn send(&mut self, socket: &UnixStream) -> Sent {
        while let Some(message) = self.0.front() {
            let bytes = message.word.to_le_bytes();
            let fds: Vec<_> = message.fd.iter().map(|fd| fd.as_raw_fd()).collect();
            let rights = [ControlMessage::ScmRights(&fds)];
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            let control = if fds.is_empty() { &[][..] } else { &rights[..] };
            match sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(&bytes)], control, flags, None) {
                // Eight bytes go into one socket buffer or not at all.
                Ok(8) => drop(self.0.pop_front()),
                Err(Errno::EINTR) => {}
                // ETOOMANYREFS: too many descriptors wait in sockets that nobody reads.
                Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM | Errno::ETOOMANYREFS) => {
                    return Sent::Blocked;
                }
                Ok(_) | Err(_) => return Sent::Gone,
            }
        }
        Sent::All
    }
}
