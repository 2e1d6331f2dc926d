//! Frames on a unix stream socket: before each stands its length, four bytes, the most significant first, as with QEMU's
//! `-netdev stream`.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use nix::sys::socket::{MsgFlags, recv, send};

use crate::socket_name::SocketName;

/// Bytes of a length.
const LENGTH: usize = 4;
/// The longest frame that a peer may announce: QEMU's longest, with room for what tunnels add.
const LONGEST: usize = 68 << 10;
/// Bytes that are taken at once.
const MOST: usize = 16 << 10;

/// One end.
#[derive(Debug)]
pub(crate) struct Stream {
    /// Where peers come to, one after the other. The connecting end has none, and is alone once its peer has left.
    listener: Option<(UnixListener, SocketName)>,
    peer: Option<UnixStream>,
    /// Bytes that came and are not taken yet.
    came: Vec<u8>,
    /// The rest of a frame of which the socket took a part: nothing else may go before it.
    rest: Vec<u8>,
}

impl Stream {
    /// Waits for a peer on a socket of this name, which is made anew.
    pub(crate) fn listen(path: &Path) -> io::Result<Self> {
        let (listener, name) = SocketName::bind(path, |path| UnixListener::bind(path))?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener: Some((listener, name)), peer: None, came: Vec::new(), rest: Vec::new() })
    }

    /// Connects to a socket of this name.
    pub(crate) fn connect(path: &Path) -> io::Result<Self> {
        let peer = Some(UnixStream::connect(path)?);
        Ok(Self { listener: None, peer, came: Vec::new(), rest: Vec::new() })
    }

    /// The descriptor that can be read when there is something to do.
    pub(crate) fn source(&self) -> Option<BorrowedFd<'_>> {
        let listener = || self.listener.as_ref().map(|(listener, _)| listener.as_fd());
        self.peer.as_ref().map(AsFd::as_fd).or_else(listener)
    }

    /// The peer, or the next one.
    fn peer(&mut self) -> io::Result<&UnixStream> {
        if self.peer.is_none() {
            let (listener, _) = self.listener.as_ref().ok_or(ErrorKind::NotConnected)?;
            self.peer = Some(listener.accept()?.0);
        }
        self.peer.as_ref().ok_or(ErrorKind::NotConnected.into())
    }

    fn lose(&mut self, why: &str) {
        tracing::info!(why, "the other end of a network card's stream is gone");
        self.peer = None;
        self.came.clear();
        self.rest.clear();
    }

    /// The next frame, and its length. One that is longer than `frame` is left out.
    pub(crate) fn receive(&mut self, frame: &mut [u8]) -> io::Result<usize> {
        loop {
            while let Some(head) = self.came.first_chunk::<LENGTH>() {
                let len = u32::from_be_bytes(*head) as usize;
                if len > LONGEST {
                    self.lose("it announced a frame that is too long");
                    break;
                }
                let Some(bytes) = self.came.get(LENGTH..LENGTH + len) else { break };
                let fits = frame.get_mut(..len).filter(|frame| !frame.is_empty());
                let taken = fits.map(|frame| frame.copy_from_slice(bytes));
                self.came.drain(..LENGTH + len);
                if taken.is_some() {
                    return Ok(len);
                }
            }
            let mut bytes = [0; MOST];
            let fd = self.peer()?.as_raw_fd();
            match recv(fd, &mut bytes, MsgFlags::MSG_DONTWAIT).map_err(io::Error::from) {
                Ok(0) => self.lose("it closed the connection"),
                Ok(len) => self.came.extend(&bytes[..len]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Err(error),
                Err(error) => self.lose(&error.to_string()),
            }
        }
    }

    /// Sends a frame whole, or not at all.
    pub(crate) fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        if !self.rest.is_empty() {
            let rest = std::mem::take(&mut self.rest);
            self.rest = self.put(&rest)?;
        }
        if !self.rest.is_empty() {
            return Err(ErrorKind::WouldBlock.into());
        }
        let length = (frame.len() as u32).to_be_bytes();
        let all = [&length, frame].concat();
        self.rest = self.put(&all)?;
        if self.rest.len() == all.len() {
            self.rest.clear();
            return Err(ErrorKind::WouldBlock.into());
        }
        Ok(())
    }

    /// Sends, and returns the bytes that the socket did not take.
    fn put(&mut self, bytes: &[u8]) -> io::Result<Vec<u8>> {
        let fd = self.peer()?.as_raw_fd();
        match send(fd, bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL).map_err(io::Error::from) {
            Ok(len) => Ok(bytes[len..].to_vec()),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                Ok(bytes.to_vec())
            }
            Err(error) => {
                self.lose(&error.to_string());
                Err(error)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn pair() -> (Stream, Stream, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("net");
        let server = Stream::listen(&path).unwrap();
        (server, Stream::connect(&path).unwrap(), dir)
    }

    #[test]
    fn frames_go_both_ways_and_the_next_peer_begins_anew() {
        let (mut server, mut client, dir) = pair();
        client.send(b"one").unwrap();
        client.send(b"two!").unwrap();
        let mut frame = [0; 8];
        assert_eq!(server.receive(&mut frame).unwrap(), 3);
        assert_eq!(server.receive(&mut frame).unwrap(), 4);
        assert_eq!(frame[..4], *b"two!");
        assert!(server.receive(&mut frame).is_err());
        server.send(b"back").unwrap();
        assert_eq!(client.receive(&mut frame).unwrap(), 4);
        drop(client);
        // A frame of which a part came is nobody's.
        let mut raw = UnixStream::connect(dir.path().join("net")).unwrap();
        raw.write_all(&[0, 0, 0, 9, 1]).unwrap();
        assert!(server.receive(&mut frame).is_err());
        drop(raw);
        let mut third = Stream::connect(&dir.path().join("net")).unwrap();
        third.send(b"third").unwrap();
        assert_eq!(server.receive(&mut frame).unwrap(), 5);
        drop(server);
        assert!(third.receive(&mut frame).is_err() && third.send(b"alone").is_err());
        assert!(third.source().is_none(), "nothing more is waited for");
        assert!(Stream::connect(&dir.path().join("net")).is_err(), "the name is gone");
    }

    #[test]
    fn frames_that_are_too_long_are_left_out_and_announced_nonsense_ends_the_connection() {
        let (mut server, mut client, dir) = pair();
        let mut frame = [0; 8];
        client.send(&[7; 9000]).unwrap();
        client.send(b"").unwrap();
        client.send(b"short").unwrap();
        assert_eq!(server.receive(&mut frame).unwrap(), 5);
        drop(client);
        let mut raw = UnixStream::connect(dir.path().join("net")).unwrap();
        raw.write_all(&[0xff; 64]).unwrap();
        assert!(server.receive(&mut frame).is_err());
        assert!(server.peer.is_none());
    }

    #[test]
    fn frames_that_a_slow_peer_has_no_room_for_are_lost_whole() {
        let (mut server, mut client, _dir) = pair();
        let sent =
            (0..1000u32).filter(|i| client.send(&[i.to_be_bytes(), [0; 4]].concat().repeat(200)).is_ok());
        let sent: Vec<_> = sent.collect();
        assert!(sent.len() < 1000, "there is no end to the socket's room");
        let mut frame = [0; 1600];
        let mut came = Vec::new();
        loop {
            // The end of the last one that was sent in part.
            let _ = client.send(&[0xff; 8]);
            match server.receive(&mut frame) {
                Ok(1600) => came.push(u32::from_be_bytes(frame[..4].try_into().unwrap())),
                Ok(8) => break,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(came, sent);
    }
}
