//! The guest's physical memory: RAM and shared BARs as memory slots of KVM.

use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use kvm_bindings::{
    KVM_MEM_READONLY, kvm_create_device, kvm_device_type_KVM_DEV_TYPE_VFIO, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, VmFd};
use parking_lot::Mutex;
use vfio_ioctls::VfioDeviceFd;

use crate::error::Error;
use crate::memory::Ram;
use crate::shared::Shared;

/// DMA: memory that passed-through devices reach, by the guest's physical addresses.
pub(crate) trait Reach: std::fmt::Debug + Send + Sync {
    /// Lets devices reach memory at a guest-physical address; without `writable` they can only read it, and what they
    /// write is refused.
    ///
    /// # Errors
    /// The IOMMU does not take the address, or no more memory may be locked.
    ///
    /// # Safety
    /// `[address, address + len)` is a mapping of this process in which no Rust reference lives: devices change it at
    /// any time until [`Self::unmap`].
    unsafe fn map(
        &self,
        start: u64,
        address: NonNull<libc::c_void>,
        len: u64,
        writable: bool,
    ) -> Result<(), Error>;
    /// Ends [`Self::map`], for a range that it took.
    fn unmap(&self, start: u64, len: u64);
}

/// A shared BAR, and where the guest sees it.
#[derive(Debug)]
struct Bar {
    shared: Shared,
    /// The first of its slots; each part has one.
    slot: u32,
    address: Mutex<Option<u64>>,
    /// Where devices reach it. Stays while the guest does not see the region, which kernels hide and show again at boot:
    /// pinning it anew would take seconds.
    dma: Mutex<Option<u64>>,
}

/// The guest's physical memory. The order matters: KVM's object goes first, then the memory whose addresses it has.
#[derive(Debug)]
pub(crate) struct Space {
    fd: VmFd,
    bars: Vec<Bar>,
    ram: Ram,
    slots: AtomicU32,
    dma: OnceLock<Box<dyn Reach>>,
}

impl Space {
    pub(crate) fn new(fd: VmFd, ram: Ram) -> Result<Self, Error> {
        let space = Self { fd, bars: Vec::new(), ram, slots: AtomicU32::new(0), dma: OnceLock::new() };
        for (start, address, len) in space.ram.ranges() {
            let slot = space.reserve(1)?;
            // SAFETY: the RAM is dropped after KVM's object, and its length is the mapping's.
            unsafe { space.fill(slot, Some((start, len)), address, true)? };
        }
        Ok(space)
    }

    /// Takes memory slots, and returns the first one's number.
    ///
    /// # Errors
    /// KVM has no more.
    pub(crate) fn reserve(&self, count: u32) -> Result<u32, Error> {
        let most = self.fd.check_extension_int(Cap::NrMemslots);
        let slot = self.slots.fetch_add(count, Ordering::Relaxed);
        if i64::from(slot) + i64::from(count) > i64::from(most) {
            return Err(Error::Capability {
                capability: "memory slots for so many regions and devices (KVM_CAP_NR_MEMSLOTS)",
                cure: "give the VM fewer of them",
            });
        }
        Ok(slot)
    }

    /// Fills a slot with memory at a guest-physical address, or empties it.
    ///
    /// # Safety
    /// A mapping of this process of that length lies at `address`, and stays until the slot is emptied or this value
    /// dropped.
    pub(crate) unsafe fn fill(
        &self,
        slot: u32,
        at: Option<(u64, u64)>,
        address: NonNull<libc::c_void>,
        writable: bool,
    ) -> Result<(), Error> {
        let (start, len) = at.unwrap_or((0, 0));
        // SAFETY: what the caller promises.
        unsafe { set(&self.fd, slot, start, address.as_ptr().addr() as u64, len, writable) }
    }

    /// KVM's side of passthrough, by which it hears of devices.
    pub(crate) fn vfio(&self) -> Result<VfioDeviceFd, Error> {
        let mut device =
            kvm_create_device { type_: kvm_device_type_KVM_DEV_TYPE_VFIO, ..kvm_create_device::default() };
        let device = self.fd.create_device(&mut device).map_err(Error::kvm("prepare KVM for passthrough"))?;
        Ok(VfioDeviceFd::new_from_kvm(device))
    }

    /// Lets passed-through devices reach the memory as the guest does: RAM and what it may write of regions to read and
    /// write, all else of regions to read.
    ///
    /// # Errors
    /// The IOMMU refuses.
    pub(crate) fn allow_dma(&self, dma: Box<dyn Reach>) -> Result<(), Error> {
        for (start, address, len) in self.ram.ranges() {
            // SAFETY: guest memory, which changes at any time anyhow, and to which no reference is ever made.
            unsafe { dma.map(start, address, len, true)? };
        }
        self.dma.set(dma).expect("devices are opened once");
        for bar in &self.bars {
            if let Some(start) = *bar.address.lock() {
                self.follow(bar, start)?;
            }
        }
        Ok(())
    }

    /// Lets devices reach a region where the guest sees it.
    fn follow(&self, bar: &Bar, start: u64) -> Result<(), Error> {
        let Some(dma) = self.dma.get() else { return Ok(()) };
        let mut reached = bar.dma.lock();
        if *reached == Some(start) {
            return Ok(());
        }
        let parts = bar.shared.parts();
        if let Some(old) = reached.take() {
            parts.iter().for_each(|part| dma.unmap(old + part.offset, part.len));
        }
        for (done, part) in parts.iter().enumerate() {
            // SAFETY: shared memory, which others change at any time, and to which no reference is ever made.
            let result =
                unsafe { dma.map(start + part.offset, bar.shared.address(part), part.len, part.writable) };
            if result.is_err() {
                parts[..done].iter().for_each(|part| dma.unmap(start + part.offset, part.len));
            }
            result?;
        }
        *reached = Some(start);
        Ok(())
    }

    /// Takes a region in, which the guest sees only once it is [placed](Self::place). Returns its number.
    pub(crate) fn add(&mut self, shared: Shared) -> Result<usize, Error> {
        let slot = self.reserve(shared.parts().len() as u32)?;
        self.bars.push(Bar { shared, slot, address: Mutex::default(), dma: Mutex::default() });
        Ok(self.bars.len() - 1)
    }

    /// Shows a region to the guest at an address, or no more. It no longer lies at the old one.
    ///
    /// # Errors
    /// Other memory lies there, or KVM refuses; then the guest does not see the region. Or the IOMMU does; then devices
    /// do not.
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
        self.follow(bar, new)
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use uuid::Uuid;
    use vmshm_host::{CreateOptions, PageSize, RegionName, Registry};

    use super::*;
    use crate::host::Host;
    use crate::memory::RamOptions;
    use crate::place::Placement;

    /// Ranges that devices reach: start, length, and whether they may write.
    #[derive(Debug, Default, Clone)]
    struct Recorder(Arc<Mutex<Vec<(u64, u64, bool)>>>);

    impl Reach for Recorder {
        unsafe fn map(
            &self,
            start: u64,
            _: NonNull<libc::c_void>,
            len: u64,
            writable: bool,
        ) -> Result<(), Error> {
            if start >= 1 << 40 {
                return Err(Error::Invalid { what: "address", value: String::new(), why: String::new() });
            }
            self.0.lock().push((start, len, writable));
            Ok(())
        }
        fn unmap(&self, start: u64, len: u64) {
            let mut reached = self.0.lock();
            let at = reached.iter().position(|(s, l, _)| (*s, *l) == (start, len));
            reached.remove(at.expect("what is taken away was given"));
        }
    }

    #[test]
    fn devices_reach_what_the_guest_does_and_write_its_own_section_only() {
        let Ok(host) = Host::open() else {
            eprintln!("skipped: no /dev/kvm");
            return;
        };
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let registry = Registry::at(dir.path());
        let name = RegionName::new("vmvfio-dma").unwrap();
        registry.create(&name, &CreateOptions::new(4 << 20)).unwrap();
        let region = registry.open(name.as_str()).unwrap();
        let own = region.entry(1).unwrap();
        let shared = Shared::take(region, 1, Uuid::from_u128(1)).unwrap();
        let ram =
            RamOptions { len: 2 << 20, pages: PageSize::Base, nodes: &[], placement: Placement::Prefer };
        let ram = Ram::new(&ram, |_, _| ()).unwrap();
        let mut space = Space::new(host.kvm.create_vm().unwrap(), ram).unwrap();
        let bar = space.add(shared).unwrap();
        let len = 4 << 20;
        space.place(bar, Some(1 << 35)).unwrap();
        let recorder = Recorder::default();
        space.allow_dma(Box::new(recorder.clone())).unwrap();
        let at = |start: u64| {
            let rest = own.offset + own.len;
            let mut parts = vec![(0, 2 << 20, true), (start, own.offset, false)];
            parts.push((start + own.offset, own.len, true));
            if rest < len {
                parts.push((start + rest, len - rest, false));
            }
            parts
        };
        assert_eq!(*recorder.0.lock(), at(1 << 35));
        // Kernels hide and show BARs at boot.
        space.place(bar, None).unwrap();
        space.place(bar, Some(1 << 35)).unwrap();
        assert_eq!(*recorder.0.lock(), at(1 << 35));
        space.place(bar, Some(1 << 36)).unwrap();
        assert_eq!(*recorder.0.lock(), at(1 << 36));
        assert!(space.place(bar, Some(1 << 40)).is_err(), "the IOMMU refuses");
        assert_eq!(*recorder.0.lock(), at(0)[..1]);
        space.place(bar, Some(1 << 35)).unwrap();
        assert_eq!(*recorder.0.lock(), at(1 << 35));
    }
}
