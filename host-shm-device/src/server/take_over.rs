//! VMs that an earlier server has left behind, and that still live.

use std::os::fd::{FromRawFd, OwnedFd};

use nix::sys::epoll::EpollFlags;
use tracing::{info, warn};

use super::{Server, Source, watch};
use crate::error::Error;
use crate::process::Process;
use crate::table::{State, owner};

/// A VM to which an earlier server gave a section, and that still lives. It has no connection, so it hears of nobody who joins
/// or leaves.
#[derive(Debug)]
pub(super) struct Earlier {
    pub(super) owner: Process,
    /// Says when it ends; none where its process can't be told, which is then taken for living.
    _pidfd: Option<OwnedFd>,
}

impl Server {
    /// Sees which VMs of an earlier server still live.
    pub(super) fn take_over(&mut self) -> Result<(), Error> {
        for section in 0..self.region.header().sections {
            let entry = self.region.ledger()?.row(section)?.entry;
            if State::of(&entry) != State::Joined {
                continue;
            }
            let owner = owner(&entry);
            // Open first, then compare: so the pidfd is of that process and of no later one with its pid.
            let pidfd = pidfd(owner.pid);
            if !owner.is_alive() {
                info!(section, pid = owner.pid, "its VM ended while nobody served");
                self.give_back(section);
                continue;
            }
            match &pidfd {
                Some(fd) => {
                    warn!(
                        section,
                        pid = owner.pid,
                        "its VM was started under an earlier server, still runs and keeps the section; it and VMs that \
                         join now can't ring each other, so that processes that sleep are late by up to 64 ms: restart \
                         that VM to mend it"
                    );
                    watch(&self.epoll, fd, EpollFlags::EPOLLIN, Source::Earlier(section))?;
                }
                None => warn!(
                    section,
                    "an earlier server gave it to a VM whose process can't be told from here, and which is taken for \
                     running: when it has ended, `vmshm region release --force` frees the section"
                ),
            }
            self.earlier.insert(section, Earlier { owner, _pidfd: pidfd });
        }
        Ok(())
    }

    /// Forgets those whose section was given back by hand.
    pub(super) fn forget_released(&mut self) -> Result<(), Error> {
        let ledger = self.region.ledger()?;
        for section in self.earlier.keys().copied().collect::<Vec<_>>() {
            let entry = ledger.row(section)?.entry;
            if State::of(&entry) != State::Joined {
                self.earlier.remove(&section);
            }
        }
        Ok(())
    }

    pub(super) fn earlier_ended(&mut self, section: u32) {
        if self.earlier.remove(&section).is_some() {
            info!(section, "the VM of an earlier server ended");
            self.give_back(section);
            self.send_all();
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
