//! Waiting for the doorbell.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use crate::memory::Device;
use crate::memory::Mapping;
use crate::memory::driver::{self, Woken};

/// Sleeper of one endpoint: waits for its doorbell. It borrows nothing, so that other threads can use the endpoint meanwhile.
///
/// One thread should wait at a time: a ring wakes all that wait, but only one of them is told.
#[derive(Debug, Clone)]
pub struct Sleeper {
    mapping: Arc<Mapping>,
    section: u32,
    slot: u32,
}

impl Sleeper {
    pub(crate) fn new(mapping: Arc<Mapping>, section: u32, slot: u32) -> Self {
        Self { mapping, section, slot }
    }

    /// Waits until the doorbell rings, the time is over, or a signal comes; true if it rang. Called after
    /// [`Endpoint::fall_asleep`](crate::Endpoint::fall_asleep) said true. Returns at once when the device is gone.
    pub fn wait(&self, timeout: Duration) -> bool {
        match driver::wait(self.mapping.file(), timeout) {
            Woken::Rung => true,
            Woken::Nothing => false,
            Woken::Lost => {
                self.mapping.lose();
                false
            }
        }
    }

    /// Descriptor for callers that wait for more than the doorbell: readable from a ring on until the next [`Sleeper::wait`]
    /// takes it, and hung up when the device is gone.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.mapping.file().as_fd()
    }

    /// Rings the endpoint's own doorbell: another thread of the process wakes the one that waits.
    pub fn ring_self(&self) {
        self.mapping.ring(self.section, self.slot);
    }
}
