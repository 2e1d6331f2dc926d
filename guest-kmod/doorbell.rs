// SPDX-License-Identifier: GPL-2.0

//! Doorbells: who listens to which interrupt, and ringing those of others.
//!
//! The doorbell of endpoint slot `s` is interrupt vector `s` modulo the number of vectors, which is
//! the same in all machines of a region. So an interrupt may be meant for one of several slots, and
//! a process may be woken in vain.

use kernel::{prelude::*, sync::Arc};

use crate::{
    abi::{
        ivshmem::REG_DOORBELL,
        region::{SectionEntry, SECTION_JOINED},
    },
    device::{Bars, Device},
    file::OpenFile,
    section,
    sys::EventFd,
};

/// Largest number that the device's doorbell register takes for a machine.
const MAX_ID: u32 = u16::MAX as u32;

/// No machine has the section. The kernel's Rust code has no name for it.
fn not_connected() -> Error {
    Error::from_errno(-(kernel::bindings::ENOTCONN as i32))
}

/// An open file, to be told when it rings.
pub(crate) struct Listener {
    pub(crate) file: Arc<OpenFile>,
    /// An eventfd, and the vector whose interrupts it counts.
    pub(crate) eventfd: Option<(EventFd, u32)>,
}

impl Device {
    /// An interrupt has come. Called by its handler.
    pub(crate) fn rung(&self, vector: u32) {
        self.signal(vector, |slot| self.vector(slot) == Some(vector));
    }

    /// The doorbell of a slot; none on a device without doorbells.
    fn vector(&self, slot: u32) -> Option<u32> {
        slot.checked_rem(self.vectors())
    }

    /// Tells who listens to `vector`, or holds a slot that `is_meant`, that it has rung.
    fn signal(&self, vector: u32, is_meant: impl Fn(u32) -> bool) {
        for listener in &*self.listeners.lock() {
            if listener.file.slot().is_none_or(&is_meant) {
                listener.file.signal();
            }
            if let Some((eventfd, _)) = listener
                .eventfd
                .as_ref()
                .filter(|(_, theirs)| *theirs == vector)
            {
                eventfd.signal();
            }
        }
    }

    /// Tells all who listen that something has changed.
    fn signal_all(&self) {
        for listener in &*self.listeners.lock() {
            listener.file.signal();
            if let Some((eventfd, _)) = &listener.eventfd {
                eventfd.signal();
            }
        }
    }

    /// Tells all who wait that the device is gone.
    pub(crate) fn hang_up(&self) {
        for listener in &*self.listeners.lock() {
            listener.file.hang_up();
            if let Some((eventfd, _)) = &listener.eventfd {
                eventfd.signal();
            }
        }
    }

    /// Has all endpoints of all machines look at the region: an endpoint of ours has died.
    pub(crate) fn tell_all(&self) {
        let vectors = self.vectors();
        if vectors == 0 {
            return;
        }
        self.signal_all();
        let ours = self.ours();
        for number in (0..self.header().sections).filter(|&number| Some(number) != ours) {
            // One at a time, since nobody can sleep meanwhile.
            let _ = self.bars.try_access_with(|bars| {
                let machine = self.machine(bars, number)?;
                for vector in 0..vectors {
                    // Whoever can't be told looks by itself, if later.
                    let _ = ring_machine(bars, machine, vector);
                }
                Some(())
            });
        }
    }

    /// Rings an endpoint. Errors as for `RING`.
    pub(crate) fn ring(&self, section: u32, slot: u32) -> Result {
        if self.is_gone() {
            return Err(ENODEV);
        }
        let vector = self.vector(slot).ok_or(ENXIO)?;
        if section >= self.header().sections || slot >= self.header().endpoints {
            return Err(EINVAL);
        }
        if self.ours() == Some(section) {
            self.signal(vector, |theirs| theirs == slot);
            return Ok(());
        }
        let rung = self.bars.try_access_with(|bars| {
            let machine = self.machine(bars, section).ok_or_else(not_connected)?;
            ring_machine(bars, machine, vector)
        });
        rung.ok_or(ENODEV)?
    }

    /// By which number the doorbell register knows the machine that has a section, if it is there.
    fn machine(&self, bars: &Bars, number: u32) -> Option<u32> {
        let SectionEntry { state, vm_id, .. } =
            section::entry(&bars.memory, self.header(), number)?;
        let machine = vm_id.checked_sub(1)?;
        (state == SECTION_JOINED && machine <= MAX_ID).then_some(machine)
    }

    /// Has an eventfd signalled by the interrupts of a vector, or none. Errors as for `EVENTFD`.
    pub(crate) fn set_eventfd(&self, file: &OpenFile, fd: i32, vector: u32) -> Result {
        if self.is_gone() {
            return Err(ENODEV);
        }
        if self.vectors() == 0 {
            return Err(ENXIO);
        }
        let mut eventfd = None;
        if fd != -1 {
            if vector >= self.vectors() {
                return Err(EINVAL);
            }
            eventfd = Some((EventFd::from_fd(fd)?, vector));
        }
        if let Some(listener) = self
            .listeners
            .lock()
            .iter_mut()
            .find(|listener| listener.file.is(file))
        {
            core::mem::swap(&mut listener.eventfd, &mut eventfd);
        }
        // What was there before is given up here, when the lock is free again.
        drop(eventfd);
        // The device may have been lost meanwhile: then nobody would ever signal it.
        if self.is_gone() {
            return Err(ENODEV);
        }
        Ok(())
    }
}

fn ring_machine(bars: &Bars, machine: u32, vector: u32) -> Result {
    let registers = bars.registers.as_ref().ok_or(ENXIO)?;
    registers.write(REG_DOORBELL, machine << 16 | vector)
}
