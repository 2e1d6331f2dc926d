//! VMs that an earlier server has left behind, and that still live.

use std::collections::BTreeMap;
use std::os::fd::{FromRawFd, OwnedFd};

use nix::sys::epoll::{Epoll, EpollFlags};
use tracing::{info, warn};

use super::events::{Source, watch};
use super::peers::Peers;
use crate::error::Error;
use crate::process::Process;
use crate::region::Region;
use crate::state::{State, owner};

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

/// A descriptor that becomes readable when the process ends.
fn pidfd(pid: u32) -> Option<OwnedFd> {
    let pid = libc::pid_t::try_from(pid).ok().filter(|&pid| pid > 0)?;
    // SAFETY: plain integers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = i32::try_from(fd).ok().filter(|&fd| fd >= 0)?;
    // SAFETY: the descriptor is new and nobody else's.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}
