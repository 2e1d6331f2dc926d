// SPDX-License-Identifier: GPL-2.0

//! One open file.

use core::ptr;
use kernel::{
    prelude::*,
    sync::{
        atomic::{Atomic, Full, Relaxed},
        Arc,
    },
    uaccess::{UserPtr, UserSlice, UserSliceWriter},
};

use crate::{
    abi::driver::{self, DeviceInfo},
    device::Device,
    sys::{Inode, PollTable, WaitQueue},
};

// From `uapi/linux/eventpoll.h`.
const EPOLLIN: u32 = 0x0001;
const EPOLLERR: u32 = 0x0008;
const EPOLLHUP: u32 = 0x0010;
const EPOLLRDNORM: u32 = 0x0040;

const READABLE: u32 = EPOLLIN | EPOLLRDNORM;
const HUNG_UP: u32 = EPOLLHUP | EPOLLERR;

/// No slot is held.
const NO_SLOT: u32 = u32::MAX;

/// One open file.
#[pin_data]
pub(crate) struct OpenFile {
    device: Arc<Device>,
    inode: Inode,
    /// The slot that it holds, or [`NO_SLOT`]; for interrupt handlers. The device's state says
    /// more.
    slot: Atomic<u32>,
    /// Rings since the last `read`.
    rings: Atomic<u64>,
    #[pin]
    waiting: WaitQueue,
}

impl OpenFile {
    /// Opens a device, through `inode`. `ENODEV` if it is gone.
    pub(crate) fn open(device: Arc<Device>, inode: Inode) -> Result<Arc<Self>> {
        device.look_for_section();
        let file = Arc::pin_init(
            try_pin_init!(Self {
                device,
                inode,
                slot: Atomic::new(NO_SLOT),
                rings: Atomic::new(0),
                waiting <- WaitQueue::new(c"vmshm_waiting", kernel::static_lock_class!()),
            }),
            GFP_KERNEL,
        )?;
        file.device.add(&file)?;
        Ok(file)
    }

    /// The last descriptor and the last mapping are gone.
    pub(crate) fn release(this: Arc<Self>) {
        this.device.remove(&this);
    }

    /// A process has closed a descriptor, or has ended.
    ///
    /// If it is the one that took the slot, its endpoint has ended with it, even if a child still
    /// has the file open.
    pub(crate) fn flush(&self) {
        self.device.process_closes(self);
    }

    /// The device that was opened.
    pub(crate) fn device(&self) -> &Device {
        &self.device
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

    /// What can be had without waiting.
    pub(crate) fn poll(&self, table: &PollTable) -> u32 {
        // First the registration, then the look: what comes in between wakes.
        self.waiting.register(table);
        let mut events = 0;
        if self.rings.load(Relaxed) != 0 {
            events |= READABLE;
        }
        if self.device.is_gone() {
            events |= HUNG_UP;
        }
        events
    }

    /// Gives the number of rings since the last time, eight bytes; never blocks.
    ///
    /// Rings that come from another machine at once may be one interrupt, and count as one.
    pub(crate) fn read(&self, to: &mut UserSliceWriter) -> Result<usize> {
        if self.device.is_gone() {
            return Err(ENODEV);
        }
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

    /// An ioctl of `abi/src/driver.rs`. `ENOTTY` for any other.
    pub(crate) fn ioctl(&self, command: u32, argument: UserPtr) -> Result {
        if self.device.is_gone() {
            return Err(ENODEV);
        }
        // The number tells the size; no structure has room between its fields, so that they are
        // read one by one.
        let bytes = (command >> 16 & 0x3fff) as usize;
        let argument = UserSlice::new(argument, bytes);
        match command {
            driver::INFO => self.info(&mut argument.writer()),
            driver::CLAIM => {
                let slot = argument.reader().read()?;
                self.device.claim(self, slot)
            }
            driver::UNCLAIM => self.device.unclaim(self),
            driver::RING => {
                let mut reader = argument.reader();
                let (section, slot) = (reader.read()?, reader.read()?);
                self.device.ring(section, slot)
            }
            driver::EVENTFD => {
                let mut reader = argument.reader();
                let (fd, vector) = (reader.read()?, reader.read()?);
                self.device.set_eventfd(self, fd, vector)
            }
            _ => Err(ENOTTY),
        }
    }

    fn info(&self, to: &mut UserSliceWriter) -> Result {
        let device = &self.device;
        let section = device.ours().unwrap_or(driver::NO_SECTION);
        let DeviceInfo {
            version,
            section,
            region_len,
            vectors,
            memory_type,
            reserved,
        } = DeviceInfo {
            version: driver::VERSION,
            section,
            region_len: device.header().region_len,
            vectors: device.vectors(),
            memory_type: device.memory_type(),
            reserved: [0; 5],
        };
        to.write(&version)?;
        to.write(&section)?;
        to.write(&region_len)?;
        to.write(&vectors)?;
        to.write(&memory_type)?;
        to.write(&reserved)
    }
}
