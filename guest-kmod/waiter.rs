// SPDX-License-Identifier: GPL-2.0

//! An open file as its device knows it: the slot that it holds, and the rings that it waits for.

use core::ptr;
use kernel::{
    prelude::*,
    sync::{
        atomic::{Atomic, Full, Relaxed},
        Arc,
    },
    uaccess::UserSliceWriter,
};

use crate::sys::{Inode, PollTable, WaitQueue};

// From `uapi/linux/eventpoll.h`.
const EPOLLIN: u32 = 0x0001;
const EPOLLERR: u32 = 0x0008;
const EPOLLHUP: u32 = 0x0010;
const EPOLLRDNORM: u32 = 0x0040;

const READABLE: u32 = EPOLLIN | EPOLLRDNORM;
/// The device is gone, as `poll` says it.
pub(crate) const HUNG_UP: u32 = EPOLLHUP | EPOLLERR;

/// No slot is held.
const NO_SLOT: u32 = u32::MAX;

/// An open file, without its device.
#[pin_data]
pub(crate) struct Waiter {
    inode: Inode,
    /// The slot that it holds, or [`NO_SLOT`]; for interrupt handlers. The device's state says
    /// more.
    slot: Atomic<u32>,
    /// Rings since the last `read`.
    rings: Atomic<u64>,
    #[pin]
    waiting: WaitQueue,
}

impl Waiter {
    /// A file that is opened through `inode`.
    pub(crate) fn new(inode: Inode) -> Result<Arc<Self>> {
        Arc::pin_init(
            try_pin_init!(Self {
                inode,
                slot: Atomic::new(NO_SLOT),
                rings: Atomic::new(0),
                waiting <- WaitQueue::new(c"vmshm_waiting", kernel::static_lock_class!()),
            }),
            GFP_KERNEL,
        )
    }

    /// Whether this is `other`.
    pub(crate) fn is(&self, other: &Self) -> bool {
        ptr::eq(self, other)
    }

    /// The slot that it holds.
    pub(crate) fn slot(&self) -> Option<u32> {
        Some(self.slot.load(Relaxed)).filter(|&slot| slot != NO_SLOT)
    }

    /// From now on only rings that are meant for `slot` count, or all of them.
    pub(crate) fn listen_to(&self, slot: Option<u32>) {
        self.slot.store(slot.unwrap_or(NO_SLOT), Relaxed);
    }

    /// Whether both were opened through the same inode.
    pub(crate) fn shares_inode(&self, other: &Self) -> bool {
        self.inode == other.inode
    }

    /// Takes all pages out of all mappings of all files that were opened through the same inode.
    pub(crate) fn unmap(&self) {
        self.inode.unmap();
    }

    /// It has rung: first the count, then the wake-up.
    pub(crate) fn signal(&self) {
        self.rings.fetch_add(1, Full);
        self.waiting.wake(READABLE);
    }

    /// The device is gone.
    pub(crate) fn hang_up(&self) {
        self.waiting.wake(READABLE | HUNG_UP);
    }

    /// Events that are there without waiting.
    pub(crate) fn poll(&self, table: &PollTable) -> u32 {
        // First the registration, then the look: what comes in between wakes.
        self.waiting.register(table);
        if self.rings.load(Relaxed) != 0 {
            READABLE
        } else {
            0
        }
    }

    /// Gives the number of rings since the last time, eight bytes; never blocks.
    ///
    /// Rings that come from another machine at once may be one interrupt, and count as one.
    pub(crate) fn read(&self, to: &mut UserSliceWriter) -> Result<usize> {
        if to.len() < size_of::<u64>() {
            return Err(EINVAL);
        }
        let rings = self.rings.xchg(0, Full);
        if let Err(error) = to.write(&rings) {
            self.rings.fetch_add(rings, Full);
            // Somebody else may have looked meanwhile.
            self.waiting.wake(READABLE);
            return Err(error);
        }
        Ok(size_of::<u64>())
    }
}
