//! Events that the server's one thread waits for.

use std::os::fd::AsFd;

use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};

use crate::error::Error;

/// Milliseconds before a socket that took nothing, though it is not full, is tried again.
pub(super) const RETRY: u16 = 100;

/// Subject of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    Stop,
    Listener(u32),
    Peer(u32),
    Earlier(u32),
    Cleared,
}

impl Source {
    pub(super) fn pack(self) -> u64 {
        match self {
            Self::Stop => 0,
            Self::Listener(i) => 1 << 32 | u64::from(i),
            Self::Peer(i) => 2 << 32 | u64::from(i),
            Self::Earlier(i) => 3 << 32 | u64::from(i),
            Self::Cleared => 4 << 32,
        }
    }

    pub(super) fn unpack(word: u64) -> Self {
        let i = word as u32;
        match word >> 32 {
            1 => Self::Listener(i),
            2 => Self::Peer(i),
            3 => Self::Earlier(i),
            4 => Self::Cleared,
            _ => Self::Stop,
        }
    }
}

/// Waits for a descriptor, too.
pub(super) fn watch(epoll: &Epoll, fd: impl AsFd, interest: EpollFlags, source: Source) -> Result<(), Error> {
    epoll.add(fd, EpollEvent::new(interest, source.pack())).map_err(Error::sys("wait for events"))
}
