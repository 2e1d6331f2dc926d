// SPDX-License-Identifier: GPL-2.0

//! Doorbells: who listens to which interrupt, and ringing those of others.
//!
//! The doorbell of endpoint slot `s` is interrupt vector `s` modulo the number of vectors, which is
//! the same in all machines of a region. So an interrupt may be meant for one of several slots, and
//! a process may be woken in vain.

use kernel::{
    prelude::*,
    sync::{
        atomic::{Atomic, Relaxed},
        Arc,
    },
};

use crate::{
    abi::{
        ivshmem::REG_DOORBELL,
        region::{RegionHeader, SectionEntry, SECTION_JOINED},
    },
    bars::Bars,
    section,
    sys::{EventFd, IrqLock},
    waiter::Waiter,
};

/// Largest number that the device's doorbell register takes for a machine.
const MAX_ID: u32 = u16::MAX as u32;

/// No machine has the section. The kernel's Rust code has no name for it.
fn not_connected() -> Error {
    Error::from_errno(-(kernel::bindings::ENOTCONN as i32))
}

/// The doorbells of a device, and the open files that listen to them.
#[pin_data]
pub(crate) struct Doorbells {
    /// Number of doorbells; set once, before anyone can open the device.
    vectors: Atomic<u32>,
    /// Has room for all that can be, and never grows.
    #[pin]
    listeners: IrqLock<KVVec<Listener>>,
}

/// An open file, to be told when it rings.
struct Listener {
    file: Arc<Waiter>,
    /// An eventfd, and the vector whose interrupts it counts.
    eventfd: Option<(EventFd, u32)>,
}

impl Doorbells {
    /// None so far, and room for `files` that listen.
    pub(crate) fn new(files: usize) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            vectors: Atomic::new(0),
            listeners <- IrqLock::new(
                KVVec::with_capacity(files, GFP_KERNEL)?,
                c"vmshm_listeners",
                kernel::static_lock_class!()
            ),
        })
    }

    /// Number of doorbells; 0 if there are none.
    pub(crate) fn vectors(&self) -> u32 {
        self.vectors.load(Relaxed)
    }

    /// Says how many doorbells there are, when all of them have a handler.
    pub(crate) fn set_vectors(&self, vectors: u32) {
        self.vectors.store(vectors, Relaxed);
    }

    /// The doorbell of a slot; `None` on a device without doorbells.
    pub(crate) fn vector(&self, slot: u32) -> Option<u32> {
        slot.checked_rem(self.vectors())
    }

    /// Has `file` listen. `ENFILE` where there is no room.
    pub(crate) fn add(&self, file: &Arc<Waiter>) -> Result {
        let listener = Listener {
            file: file.clone(),
            eventfd: None,
        };
        let added = self.listeners.lock().push_within_capacity(listener);
        added.map_err(|_| ENFILE)
    }

    /// Forgets `file`.
    pub(crate) fn remove(&self, file: &Waiter) {
        let listener = {
            let mut listeners = self.listeners.lock();
            let index = listeners.iter().position(|one| one.file.is(file));
            index.and_then(|index| listeners.remove(index).ok())
        };
        // Dropped when the lock is free again: to give up an eventfd takes others.
        drop(listener);
    }

    /// Has an eventfd signalled by the interrupts of a vector, or none if `fd` is -1. Errors as for
    /// `EVENTFD`.
    pub(crate) fn set_eventfd(&self, file: &Waiter, fd: i32, vector: u32) -> Result {
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
        // The one before is given up here, when the lock is free again.
        drop(eventfd);
        Ok(())
    }

    /// Tells who listens to `vector`, or holds a slot that `is_meant`, that it has rung.
    pub(crate) fn signal(&self, vector: u32, is_meant: impl Fn(u32) -> bool) {
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
    pub(crate) fn signal_all(&self) {
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
}

/// Rings one doorbell of the machine that has a section. `ENOTCONN` if none has it.
pub(crate) fn ring(bars: &Bars, header: &RegionHeader, section: u32, vector: u32) -> Result {
    let machine = machine(bars, header, section).ok_or_else(not_connected)?;
    ring_machine(bars, machine, vector)
}

/// Rings the first `vectors` doorbells, all there are, of the machine that has a section.
pub(crate) fn ring_all(bars: &Bars, header: &RegionHeader, section: u32, vectors: u32) {
    let Some(machine) = machine(bars, header, section) else {
        return;
    };
    for vector in 0..vectors {
        // An endpoint that can't be told looks by itself, if later.
        let _ = ring_machine(bars, machine, vector);
    }
}

/// By which number the doorbell register knows the machine that has a section, if it is there.
fn machine(bars: &Bars, header: &RegionHeader, number: u32) -> Option<u32> {
    let SectionEntry { state, vm_id, .. } = section::entry(&bars.memory, header, number)?;
    let machine = vm_id.checked_sub(1)?;
    (state == SECTION_JOINED && machine <= MAX_ID).then_some(machine)
}

fn ring_machine(bars: &Bars, machine: u32, vector: u32) -> Result {
    let registers = bars.registers.as_ref().ok_or(ENXIO)?;
    registers.write(REG_DOORBELL, machine << 16 | vector)
}
