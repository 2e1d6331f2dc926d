//! VMs that an earlier server has left behind, and that still live: those of our own VMM are called, and join again.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollFlags};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, recv, socket, sockopt::PeerCredentials,
};
use tracing::{info, warn};

use super::events::{Source, watch};
use super::peers::Peers;
use crate::error::Error;
use crate::process::Process;
use crate::region::Region;
use crate::state::{State, owner};

/// The byte by which a VM that is called says that it stays.
pub const CALL_TAKEN: u8 = 1;

/// For VMs that are called, all together: their VMMs answer at once unless they are stopped.
const PATIENCE: Duration = Duration::from_secs(1);

/// Where the VM that has a section listens to calls of a restarted server: an abstract unix socket, named by device and inode of
/// the region's file.
///
/// # Errors
/// None that can happen: such names are short.
pub fn call_address((device, inode): (u64, u64), section: u32) -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(format!("vmshm-member-{device:x}-{inode:x}-{section}"))
}

/// VMs to which an earlier server gave sections, and that still live. They have no connection, so they hear of nobody who joins
/// or leaves.
#[derive(Debug)]
pub(super) struct Earlier {
    pub(super) by_section: BTreeMap<u32, EarlierVm>,
}

/// One of them.
#[derive(Debug)]
pub(super) struct EarlierVm {
    pub(super) process: Process,
    /// Readable when it ends; `None` where its process can't be told, which is then taken for living.
    _pidfd: Option<OwnedFd>,
}

impl Earlier {
    /// Finds the VMs of an earlier server that still live; the sections of those that have ended go back.
    pub(super) fn take_over(peers: &mut Peers, epoll: &Epoll) -> Result<Self, Error> {
        let mut by_section = BTreeMap::new();
        let deadline = Instant::now() + PATIENCE;
        for section in 0..peers.region.header().sections {
            let entry = peers.region.ledger()?.row(section)?.entry;
            if State::of(&entry) != State::Joined {
                continue;
            }
            let process = owner(&entry);
            // Open first, then compare: so the pidfd is of that process and of no later one with its pid.
            let pidfd = pidfd(process.pid);
            if !process.is_alive() {
                info!(section, pid = process.pid, "its VM ended while nobody served");
                peers.give_back(section);
                continue;
            }
            if let Some(socket) = call(&peers.region, section, process, deadline) {
                match peers.admit(section, socket, process, false) {
                    Ok(()) => continue,
                    Err(error) => warn!(section, %error, "its VM cannot join again"),
                }
            }
            match &pidfd {
                Some(fd) => {
                    warn!(
                        section,
                        pid = process.pid,
                        "its VM was started under an earlier server, still runs and keeps the section; it and VMs that \
                         join now can't ring each other, so that processes that sleep are late by up to 64 ms: restart \
                         that VM to mend it"
                    );
                    watch(epoll, fd, EpollFlags::EPOLLIN, Source::Earlier(section))?;
                }
                None => warn!(
                    section,
                    "an earlier server gave it to a VM whose process can't be told from here, and which is taken for \
                     running: when it has ended, `vmshm region release --force` frees the section"
                ),
            }
            by_section.insert(section, EarlierVm { process, _pidfd: pidfd });
        }
        peers.send_all();
        Ok(Self { by_section })
    }

    /// Forgets those whose section was given back by hand.
    pub(super) fn forget_released(&mut self, region: &Region) -> Result<(), Error> {
        let ledger = region.ledger()?;
        for section in self.by_section.keys().copied().collect::<Vec<_>>() {
            if State::of(&ledger.row(section)?.entry) != State::Joined {
                self.by_section.remove(&section);
            }
        }
        Ok(())
    }

    /// Gives back the section of one that has ended.
    pub(super) fn ended(&mut self, peers: &mut Peers, section: u32) {
        if self.by_section.remove(&section).is_some() {
            info!(section, "the VM of an earlier server ended");
            peers.give_back(section);
            peers.send_all();
        }
    }
}

/// Calls the VM of a process; `None` where that is none of our VMM's, or does not answer.
fn call(region: &Region, section: u32, process: Process, deadline: Instant) -> Option<UnixStream> {
    let meta = region.file().metadata().ok()?;
    let address = call_address((meta.dev(), meta.ino()), section).ok()?;
    let address = UnixAddr::new_abstract(address.as_abstract_name()?).ok()?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = UnixStream::from(socket(AddressFamily::Unix, SockType::Stream, flags, None).ok()?);
    connect(socket.as_raw_fd(), &address).ok()?;
    // Anybody can have taken the name; who listens is told by the kernel.
    let pid = getsockopt(&socket, PeerCredentials).ok()?.pid();
    if u32::try_from(pid) != Ok(process.pid) || !process.is_known() {
        return None;
    }
    let left = deadline.saturating_duration_since(Instant::now());
    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::try_from(left).ok()?).ok()?;
    let mut byte = [0];
    let came = recv(socket.as_raw_fd(), &mut byte, nix::sys::socket::MsgFlags::MSG_DONTWAIT).ok()?;
    (came == 1 && byte == [CALL_TAKEN]).then_some(socket)
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
