// SPDX-License-Identifier: GPL-2.0

//! One open file.

use kernel::{
    prelude::*,
    sync::Arc,
    uaccess::{UserPtr, UserSlice, UserSliceWriter},
};

use crate::{
    abi::driver::{self, DeviceInfo},
    device::Device,
    mmap,
    sys::{Fault, File, FillsPages, Inode, NewVma, Outcome, PollTable},
    waiter::{Waiter, HUNG_UP},
};

/// One open file.
pub(crate) struct OpenFile {
    device: Arc<Device>,
    waiter: Arc<Waiter>,
}

impl File for OpenFile {
    type Device = Device;

    /// `ENODEV` if the device is gone.
    fn open(device: Arc<Device>, inode: Inode) -> Result<Arc<Self>> {
        device.look_for_section();
        let waiter = Waiter::new(inode)?;
        let file = Arc::new(Self { device, waiter }, GFP_KERNEL)?;
        file.device.add(&file.waiter)?;
        Ok(file)
    }

    fn release(this: Arc<Self>) {
        this.device.remove(&this.waiter);
    }

    /// If the process is the one that took the slot, its endpoint has ended with it, even if a child
    /// still has the file open.
    fn flush(&self) {
        self.device.process_closes(&self.waiter);
    }

    fn read(&self, to: &mut UserSliceWriter) -> Result<usize> {
        if self.device.is_gone() {
            return Err(ENODEV);
        }
        self.waiter.read(to)
    }

    fn poll(&self, table: &PollTable) -> u32 {
        let events = self.waiter.poll(table);
        if self.device.is_gone() {
            return events | HUNG_UP;
        }
        events
    }

    /// An ioctl of `abi/src/driver.rs`. `ENOTTY` for any other.
    fn ioctl(&self, command: u32, argument: UserPtr) -> Result {
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
                self.device.claim(&self.waiter, slot)
            }
            driver::UNCLAIM => self.device.unclaim(&self.waiter),
            driver::RING => {
                let mut reader = argument.reader();
                let (section, slot) = (reader.read()?, reader.read()?);
                self.device.ring(section, slot)
            }
            driver::EVENTFD => {
                let mut reader = argument.reader();
                let (fd, vector) = (reader.read()?, reader.read()?);
                self.device.set_eventfd(&self.waiter, fd, vector)
            }
            _ => Err(ENOTTY),
        }
    }

    fn mmap(&self, vma: NewVma<'_, Self>) -> Result {
        mmap::map(&self.device, vma)
    }
}

impl FillsPages for OpenFile {
    fn fault(&self, fault: &Fault) -> Outcome {
        mmap::fault(&self.device, fault)
    }
}

impl OpenFile {
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
