//! A virtio network card whose frames go through a unix socket or a tap device.
//!
//! On datagram sockets a datagram is a frame, as with QEMU's `-netdev dgram`: two VMs are joined by a pair of sockets, without
//! privileges. A stream socket is as with QEMU's `-netdev stream`.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use virtio_bindings::virtio_net::{VIRTIO_NET_F_MAC, VIRTIO_NET_F_MTU};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;

use crate::error::Error;
use crate::interrupts::Interrupts;
use crate::socket_name::SocketName;
use crate::space::Space;
use crate::stream::Stream;
use crate::vhost::Vhost;
use crate::virtio::{Backend, Done, Virtio, Worker, serve_all};

/// Queue of frames to the guest, and from it.
const RECEIVE: usize = 0;
/// Bytes of the header before each frame.
const HEADER: usize = 12;
/// Longest payload of a frame.
const MTU: u16 = 1500;
/// Longest frame with all its headers, rounded up.
const FRAME: usize = 2048;

/// A network card.
#[derive(Debug)]
pub struct Net {
    link: Link,
    mac: [u8; 6],
}

#[derive(Debug)]
enum Link {
    Socket {
        socket: UnixDatagram,
        /// Where frames of the guest go. Nobody need be there yet.
        to: PathBuf,
        _name: SocketName,
    },
    Stream(Stream),
    Tap(File),
}

impl Net {
    /// A card on the socket `local`, which is made anew; frames of the guest go to the socket `to`.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn socket(local: &Path, to: &Path, mac: [u8; 6]) -> Result<Self, Error> {
        let doing = || format!("make the network socket {}", local.display());
        let bound = SocketName::bind(local, |local| UnixDatagram::bind(local));
        let (socket, _name) = bound.map_err(Error::io(doing()))?;
        socket.set_nonblocking(true).map_err(Error::io(doing()))?;
        let link = Link::Socket { socket, to: to.to_owned(), _name };
        Ok(Self { link, mac })
    }

    /// A card on a stream socket of this name, which is made anew: one peer after the other connects to it.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn listen(path: &Path, mac: [u8; 6]) -> Result<Self, Error> {
        let stream = Stream::listen(path);
        let stream = stream.map_err(Error::io(format!("make the network socket {}", path.display())))?;
        Ok(Self { link: Link::Stream(stream), mac })
    }

    /// A card that is connected to a stream socket of this name.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn connect(path: &Path, mac: [u8; 6]) -> Result<Self, Error> {
        let doing = || {
            let path = path.display();
            format!(
                "connect to the network socket {path} (start first what listens there, as with stream:{path},server)"
            )
        };
        let stream = Stream::connect(path).map_err(Error::io(doing()))?;
        Ok(Self { link: Link::Stream(stream), mac })
    }

    /// A card on an existing tap device of this name.
    ///
    /// # Errors
    /// No such device, or no permission.
    pub fn tap(name: &str, mac: [u8; 6]) -> Result<Self, Error> {
        let doing = || {
            format!(
                "use the tap device {name:?} (make it with `sudo ip tuntap add {name} mode tap user $USER`)"
            )
        };
        let mut request = Request { name: [0; 16], flags: 0x1002, rest: [0; 22] };
        if name.is_empty() || name.len() >= request.name.len() {
            return Err(Error::io(doing())(io::ErrorKind::InvalidInput.into()));
        }
        request.name[..name.len()].copy_from_slice(name.as_bytes());
        let mut options = File::options();
        options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
        let file = options.open("/dev/net/tun").map_err(Error::io(doing()))?;
        // SAFETY: the kernel reads and writes a request of this layout, which outlives the call.
        if unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut request) } != 0 {
            return Err(Error::io(doing())(io::Error::last_os_error()));
        }
        Ok(Self { link: Link::Tap(file), mac })
    }

    /// The device, and its thread where the kernel does not see to its queues.
    pub(crate) fn start(
        self,
        bars: [u64; 2],
        space: &Arc<Space>,
        interrupts: Arc<dyn Interrupts>,
    ) -> Result<(Arc<Virtio>, Option<Worker>), Error> {
        if let Link::Tap(tap) = &self.link {
            match Vhost::open(tap, space) {
                Ok(vhost) => {
                    tracing::info!("vhost-net, in the kernel, moves a network card's frames");
                    return Ok((Virtio::in_kernel(&self, vhost, bars, interrupts)?, None));
                }
                Err(why) => tracing::info!(why, "a thread moves a network card's frames, without vhost-net"),
            }
        }
        Virtio::start(self, bars, space, interrupts).map(|(device, worker)| (device, Some(worker)))
    }

    fn receive(&mut self, frame: &mut [u8]) -> io::Result<usize> {
        match &mut self.link {
            Link::Socket { socket, .. } => socket.recv(frame),
            Link::Stream(stream) => stream.receive(frame),
            Link::Tap(file) => (&*file).read(frame),
        }
    }

    /// Sends a frame, or loses it, as networks may.
    fn send(&mut self, frame: &[u8]) {
        let sent = match &mut self.link {
            Link::Socket { socket, to, .. } => socket.send_to(frame, to).map(drop),
            Link::Stream(stream) => stream.send(frame),
            Link::Tap(file) => (&*file).write(frame).map(drop),
        };
        if let Err(error) = sent {
            tracing::trace!(%error, "a frame is lost");
        }
    }

    /// Frames from outside into the guest's buffers.
    fn fill(&mut self, queue: &mut Queue, memory: &GuestMemoryMmap) -> Done {
        let mut done = Done::default();
        let mut frame = [0; HEADER + FRAME];
        // One buffer per frame.
        frame[10] = 1;
        loop {
            let Some(chain) = queue.pop_descriptor_chain(memory) else {
                return Done { starved: true, ..done };
            };
            let len = match self.receive(&mut frame[HEADER..]) {
                Ok(0) => 0,
                Ok(len) => HEADER + len,
                Err(_) => {
                    // Nothing more from outside: the buffer is for the next frame.
                    queue.go_to_previous_position();
                    return done;
                }
            };
            let head = chain.head_index();
            let written = match chain.writer(memory) {
                Ok(mut writer) if writer.available_bytes() >= len => {
                    writer.write_all(&frame[..len]).map_or(0, |()| len as u32)
                }
                // A frame that does not fit is lost.
                _ => 0,
            };
            done.used |= queue.add_used(memory, head, written).is_ok();
        }
    }

    /// Frames of the guest to outside.
    fn drain(&mut self, queue: &mut Queue, memory: &GuestMemoryMmap) -> Done {
        serve_all(queue, memory, |chain| {
            if let Ok(mut reader) = chain.reader(memory) {
                let len = reader.available_bytes();
                let mut frame = [0; HEADER + FRAME];
                if (HEADER..=frame.len()).contains(&len) && reader.read_exact(&mut frame[..len]).is_ok() {
                    self.send(&frame[HEADER..len]);
                }
            }
            0
        })
    }
}

/// `struct ifreq` as TUNSETIFF takes it: a tap, without packet information.
#[repr(C)]
struct Request {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

const TUNSETIFF: libc::c_ulong = 0x4004_54ca;

impl Backend for Net {
    const TYPE: u16 = 1;
    const CLASS: u16 = 0x0200;
    const QUEUES: usize = 2;
    const NAME: &'static str = "virtio-net";

    fn features(&self) -> u64 {
        1 << VIRTIO_NET_F_MAC | 1 << VIRTIO_NET_F_MTU
    }

    fn config(&self) -> Vec<u8> {
        let mut config = self.mac.to_vec();
        // Status and number of queue pairs, which no feature makes valid.
        config.extend([0; 4]);
        config.extend(MTU.to_le_bytes());
        config
    }

    fn source(&self) -> Option<BorrowedFd<'_>> {
        match &self.link {
            Link::Socket { socket, .. } => Some(socket.as_fd()),
            Link::Stream(stream) => stream.source(),
            Link::Tap(file) => Some(file.as_fd()),
        }
    }

    fn process(&mut self, index: usize, queue: &mut Queue, memory: &GuestMemoryMmap) -> Done {
        if index == RECEIVE { self.fill(queue, memory) } else { self.drain(queue, memory) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_go_from_socket_to_socket_and_are_lost_where_nobody_is() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        let mut left = Net::socket(&a, &b, [2; 6]).unwrap();
        left.send(b"lost");
        let mut right = Net::socket(&b, &a, [4; 6]).unwrap();
        left.send(b"frame");
        let mut frame = [0; 16];
        assert_eq!(right.receive(&mut frame).unwrap(), 5);
        assert_eq!(frame[..5], *b"frame");
        assert!(right.receive(&mut frame).is_err(), "nothing waits");
        drop(right);
        assert!(!b.exists());
        // A socket that a killed VMM left is replaced; a file is not.
        drop(UnixDatagram::bind(&b).unwrap());
        drop(Net::socket(&b, &a, [4; 6]).unwrap());
        std::fs::write(&b, "mine").unwrap();
        assert!(Net::socket(&b, &a, [4; 6]).unwrap_err().to_string().contains("network socket"));
        assert_eq!(std::fs::read(&b).unwrap(), b"mine");
    }

    /// A QEMU whose hub joins a stream and a pair of datagram sockets, both of which it has us talk to.
    fn hub(dir: &Path, server: &str) -> Option<std::process::Child> {
        let at = |name: &str| dir.join(name).display().to_string();
        let mut command = std::process::Command::new("qemu-system-x86_64");
        command.args(["-M", "none", "-nodefaults", "-display", "none", "-netdev"]);
        command
            .arg(format!("stream,id=s,server={server},addr.type=unix,addr.path={}", at("stream")))
            .arg("-netdev");
        let (local, remote) = (at("qemu"), at("us"));
        command.arg(format!(
            "dgram,id=d,local.type=unix,local.path={local},remote.type=unix,remote.path={remote}"
        ));
        for (port, netdev) in ["s", "d"].iter().enumerate() {
            command.args(["-netdev", &format!("hubport,id=h{port},hubid=0,netdev={netdev}")]);
        }
        command.spawn().inspect_err(|error| eprintln!("skipped: no qemu-system-x86_64: {error}")).ok()
    }

    #[test]
    fn qemu_understands_our_stream_and_we_understand_its_own() {
        for server in ["off", "on"] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("stream");
            // QEMU connects when it starts.
            let listening = (server == "off").then(|| Net::listen(&path, [2; 6]).unwrap());
            let Some(mut qemu) = hub(dir.path(), server) else { return };
            let end = std::time::Instant::now() + std::time::Duration::from_secs(30);
            let mut until = |what: &str, done: &mut dyn FnMut() -> bool| {
                while !done() {
                    assert!(qemu.try_wait().unwrap().is_none(), "QEMU ended");
                    assert!(std::time::Instant::now() < end, "{what}");
                    std::thread::sleep(std::time::Duration::from_millis(5));
                }
            };
            let mut stream = listening;
            until("the stream", &mut || {
                stream = stream.take().or_else(|| Net::connect(&path, [2; 6]).ok());
                stream.is_some()
            });
            let mut stream = stream.unwrap();
            let mut dgram = Net::socket(&dir.path().join("us"), &dir.path().join("qemu"), [4; 6]).unwrap();
            let mut frame = [0; FRAME];
            for len in [60, 61, 1514] {
                let sent: Vec<_> = (0..len).map(|i| i as u8).collect();
                until("a frame by the stream", &mut || {
                    stream.send(&sent);
                    dgram.receive(&mut frame).is_ok_and(|got| frame[..got] == sent)
                });
                until("a frame to the stream", &mut || {
                    dgram.send(&sent);
                    stream.receive(&mut frame).is_ok_and(|got| frame[..got] == sent)
                });
            }
            qemu.kill().unwrap();
            qemu.wait().unwrap();
        }
    }

    #[test]
    fn a_tap_that_is_not_there_is_named_with_the_cure() {
        for name in ["", "a-name-that-is-too-long"] {
            let text = Net::tap(name, [2; 6]).unwrap_err().to_string();
            assert!(text.contains("ip tuntap add"), "{text}");
        }
    }
}
