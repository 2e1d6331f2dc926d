//! The guest's physical memory: RAM and shared BARs as memory slots of KVM.

use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, VmFd};
use parking_lot::Mutex;

use crate::error::Error;
use crate::memory::Ram;
use crate::shared::Shared;

/// A shared BAR, and where the guest sees it.
#[derive(Debug)]
struct Bar {
    shared: Shared,
    /// The first of its slots; each part has one.
    slot: u32,
    address: Mutex<Option<u64>>,
}

/// The guest's physical memory. The order matters: KVM's object goes first, then the memory whose addresses it has.
#[derive(Debug)]
pub(crate) struct Space {
    fd: VmFd,
    bars: Vec<Bar>,
    ram: Ram,
    slots: u32,
}

impl Space {
    pub(crate) fn new(fd: VmFd, ram: Ram) -> Result<Self, Error> {
        let mut space = Self { fd, bars: Vec::new(), ram, slots: 0 };
        for (start, address, len) in space.ram.ranges() {
            // SAFETY: the RAM is dropped after KVM's object, and its length is the mapping's.
            unsafe { set(&space.fd, space.slots, start, address.as_ptr().addr() as u64, len, true)? };
            space.slots += 1;
        }
        Ok(space)
    }

    /// Takes a region in, which the guest sees only once it is [placed](Self::place). Returns its number.
    pub(crate) fn add(&mut self, shared: Shared) -> Result<usize, Error> {
        let most = self.fd.check_extension_int(Cap::NrMemslots);
        let slot = self.slots;
        self.slots += shared.parts().len() as u32;
        if i64::from(self.slots) > i64::from(most) {
            return Err(Error::Capability {
                capability: "memory slots for one more region (KVM_CAP_NR_MEMSLOTS)",
                cure: "give the VM fewer regions",
            });
        }
        self.bars.push(Bar { shared, slot, address: Mutex::new(None) });
        Ok(self.bars.len() - 1)
    }

    /// Shows a region to the guest at an address, or no more. What lay at the old address is gone.
    ///
    /// # Errors
    /// Other memory lies there, or KVM refuses; then the guest does not see the region.
    pub(crate) fn place(&self, bar: usize, address: Option<u64>) -> Result<(), Error> {
        let bar = &self.bars[bar];
        let mut placed = bar.address.lock();
        if *placed == address {
            return Ok(());
        }
        let set_all = |start: u64, on: bool| {
            for (part, slot) in bar.shared.parts().iter().zip(bar.slot..) {
                let mapped = bar.shared.address(part).as_ptr().addr() as u64;
                let len = if on { part.len } else { 0 };
                // SAFETY: `bars` is dropped after KVM's object, and the part lies inside the mapping.
                unsafe { set(&self.fd, slot, start + part.offset, mapped, len, part.writable)? };
            }
            Ok(())
        };
        if let Some(old) = placed.take() {
            set_all(old, false)?;
        }
        let Some(new) = address else { return Ok(()) };
        if new.checked_add(bar.shared.len()).is_none() {
            return Err(Error::Invalid {
                what: "the address",
                value: format!("{new:#x}"),
                why: "leaves no room for the region".into(),
            });
        }
        if let Err(error) = set_all(new, true) {
            for slot in bar.slot..bar.slot + bar.shared.parts().len() as u32 {
                // SAFETY: a slot of no length refers to no memory. Those that were not set are not there to remove.
                let _ = unsafe { set(&self.fd, slot, 0, 0, 0, true) };
            }
            return Err(error);
        }
        *placed = Some(new);
        Ok(())
    }

    /// Counts a store to a read-only part; `false` where no region lies at the address.
    pub(crate) fn drop_store(&self, address: u64) -> bool {
        for bar in &self.bars {
            let placed = *bar.address.lock();
            if let Some(offset) = placed.and_then(|start| address.checked_sub(start))
                && offset < bar.shared.len()
            {
                bar.shared.drop_store(offset);
                return true;
            }
        }
        false
    }

    pub(crate) fn fd(&self) -> &VmFd {
        &self.fd
    }

    pub(crate) fn ram(&self) -> &Ram {
        &self.ram
    }

    pub(crate) fn shared(&self) -> impl Iterator<Item = &Shared> {
        self.bars.iter().map(|bar| &bar.shared)
    }
}

/// # Safety
/// `[address, address + len)` must be a mapping of this process that lives as long as the slot.
unsafe fn set(fd: &VmFd, slot: u32, start: u64, address: u64, len: u64, writable: bool) -> Result<(), Error> {
    let region = kvm_userspace_memory_region {
        slot,
        flags: if writable { 0 } else { KVM_MEM_READONLY },
        guest_phys_addr: start,
        memory_size: len,
        userspace_addr: address,
    };
    // SAFETY: what the caller promises.
    unsafe { fd.set_user_memory_region(region) }
        .map_err(Error::kvm(format!("give the guest {len:#x} bytes of memory at {start:#x}")))
}
