//! A virtio console, `hvc0` in the guest: what is printed there goes to whoever is connected to a unix socket, and what
//! that one sends is typed there.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use nix::sys::socket::{MsgFlags, recv, send};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;

use crate::error::Error;
use crate::socket_name::SocketName;
use crate::virtio::{Backend, Done, serve_all};

/// Queue of what is typed. The other one is of what is printed.
const TYPED: usize = 0;
/// Bytes that are taken at once.
const MOST: usize = 4096;

/// The console.
#[derive(Debug)]
pub struct Hvc {
    listener: UnixListener,
    /// One at a time; the next one waits until this one leaves.
    client: Option<UnixStream>,
    _name: SocketName,
}

impl Hvc {
    /// A console whose other end is a socket of this name, which is made anew.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn listen(path: &Path) -> Result<Self, Error> {
        let doing = || format!("make the console's socket {}", path.display());
        let bound = SocketName::bind(path, |path| UnixListener::bind(path));
        let (listener, name) = bound.map_err(Error::io(doing()))?;
        listener.set_nonblocking(true).map_err(Error::io(doing()))?;
        Ok(Self { listener, client: None, _name: name })
    }

    /// Receives from the client; an error where nothing has come.
    fn receive(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        loop {
            let client = match &self.client {
                Some(client) => client,
                None => self.client.insert(self.listener.accept()?.0),
            };
            match recv(client.as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT).map_err(io::Error::from) {
                Ok(len @ 1..) => return Ok(len),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Err(error),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // It has left.
                Ok(0) | Err(_) => self.client = None,
            }
        }
    }

    /// Prints. Output that nobody reads is lost: a guest does not wait for a person.
    fn print(&self, bytes: &[u8]) {
        if let Some(client) = &self.client {
            let _ = send(client.as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL);
        }
    }

    fn fill(&mut self, queue: &mut Queue, memory: &GuestMemoryMmap) -> Done {
        let mut done = Done::default();
        loop {
            let Some(chain) = queue.pop_descriptor_chain(memory) else {
                return Done { starved: true, ..done };
            };
            let head = chain.head_index();
            let mut bytes = [0; MOST];
            let mut writer = chain.writer(memory).ok();
            let room = writer.as_ref().map_or(0, |writer| writer.available_bytes().min(MOST));
            // A buffer without room goes back as it is.
            let len = match room {
                0 => 0,
                room => match self.receive(&mut bytes[..room]) {
                    Ok(len) => len,
                    Err(_) => {
                        queue.go_to_previous_position();
                        return done;
                    }
                },
            };
            let written = writer.as_mut().is_some_and(|writer| writer.write_all(&bytes[..len]).is_ok());
            done.used |= queue.add_used(memory, head, if written { len as u32 } else { 0 }).is_ok();
        }
    }

    fn drain(&self, queue: &mut Queue, memory: &GuestMemoryMmap) -> Done {
        serve_all(queue, memory, |chain| {
            if let Ok(mut reader) = chain.reader(memory) {
                let mut bytes = [0; MOST];
                while let Ok(len @ 1..) = reader.read(&mut bytes) {
                    self.print(&bytes[..len]);
                }
            }
            0
        })
    }
}

impl Backend for Hvc {
    const TYPE: u16 = 3;
    const CLASS: u16 = 0x0780;
    const QUEUES: usize = 2;
    const NAME: &'static str = "virtio-console";

    fn features(&self) -> u64 {
        0
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn source(&self) -> Option<BorrowedFd<'_>> {
        Some(self.client.as_ref().map_or(self.listener.as_fd(), AsFd::as_fd))
    }

    fn process(&mut self, index: usize, queue: &mut Queue, memory: &GuestMemoryMmap) -> Done {
        if index == TYPED { self.fill(queue, memory) } else { self.drain(queue, memory) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_client_after_the_other_sees_what_is_printed_and_types() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console");
        let mut console = Hvc::listen(&path).unwrap();
        let mut bytes = [0; 16];
        console.print(b"nobody is there");
        assert!(console.receive(&mut bytes).is_err());
        let mut first = UnixStream::connect(&path).unwrap();
        let mut second = UnixStream::connect(&path).unwrap();
        first.write_all(b"ls\n").unwrap();
        second.write_all(b"pwd\n").unwrap();
        assert_eq!(console.receive(&mut bytes).unwrap(), 3);
        assert!(console.receive(&mut bytes).is_err(), "the second one waits");
        console.print(b"file");
        assert_eq!(first.read(&mut bytes).unwrap(), 4);
        drop(first);
        assert_eq!(console.receive(&mut bytes).unwrap(), 4);
        console.print(b"/");
        assert_eq!(second.read(&mut bytes).unwrap(), 1);
        // A client that does not read makes nobody wait.
        (0..10_000).for_each(|_| console.print(&[b'x'; 1000]));
        drop((second, console));
        assert!(!path.exists());
    }
}
