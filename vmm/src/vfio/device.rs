//! The kernel's side of a passed-through function: its registers, its memory, its interrupts.

use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::Arc;

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::sys::uio::{pread, pwrite};
use parking_lot::Mutex;
use vfio_bindings::bindings::vfio::{
    VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_INTX_IRQ_INDEX, VFIO_PCI_MSIX_IRQ_INDEX,
    VFIO_REGION_INFO_FLAG_MMAP, VFIO_REGION_INFO_FLAG_READ, VFIO_REGION_INFO_FLAG_WRITE,
};
use vfio_ioctls::{VfioDevice, VfioRegionInfoCap};
use vmm_sys_util::eventfd::EventFd;

use super::dma::{Dma, refusal};
use crate::error::Error;
use crate::host_device::{Found, Refusal};
use crate::layout;
use crate::space::Space;

const PAGE: u64 = 0x1000;

/// A function as its owner sees it. Nothing here is checked for a guest.
pub(crate) trait Physical: Send + Sync {
    /// Loads from configuration space; ones where there is none.
    fn read_config(&self, at: usize, data: &mut [u8]);
    /// Stores to configuration space.
    fn write_config(&self, at: usize, data: &[u8]);
    /// Bytes of a BAR, 0 where it has none.
    fn bar_len(&self, bar: usize) -> u64;
    /// Loads from a BAR.
    fn read(&self, bar: usize, offset: u64, data: &mut [u8]);
    /// Stores to a BAR.
    fn write(&self, bar: usize, offset: u64, data: &[u8]);
    /// Switches MSI-X on, with an event for each vector, or off.
    fn msix(&self, events: Option<Vec<&EventFd>>) -> Result<(), String>;
    /// Switches the interrupt line on, with the event that raises it and the one that says it was seen to, or off.
    fn line(&self, events: Option<(&EventFd, &EventFd)>) -> Result<(), String>;
    /// Resets the function, if it can be.
    fn reset(&self);
}

/// A function that VFIO gave to this process.
///
/// The crate's own ways to read and write regions say in the log what fails, which a guest could make as long as it likes.
pub(super) struct Device(VfioDevice);

impl Device {
    /// Takes a function into an address space.
    pub(super) fn open(found: &Found, dma: &Dma) -> Result<Self, Refusal> {
        let file = match dma {
            Dma::Container(_) => Path::new("/dev/vfio").join(found.group.to_string()),
            Dma::Iommufd(_) => {
                let name = std::fs::read_dir(found.path.join("vfio-dev")).ok();
                let name = name.and_then(|mut entries| Some(entries.next()?.ok()?.file_name()));
                Path::new("/dev/vfio/devices").join(name.unwrap_or_default())
            }
        };
        let device = VfioDevice::new(&found.path, dma.ops(), true).map_err(|error| refusal(&error, &file))?;
        device.reset();
        Ok(Self(device))
    }

    fn file(&self) -> BorrowedFd<'_> {
        // SAFETY: the device's file is open as long as the device is.
        unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) }
    }

    /// Where so many bytes of a region are in the device's file.
    fn place(&self, region: u32, at: u64, len: usize) -> Option<libc::off_t> {
        let inside = at.checked_add(len as u64)? <= self.0.get_region_size(region);
        inside.then(|| (self.0.get_region_offset(region) + at) as libc::off_t)
    }

    fn load(&self, region: u32, at: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some(place) = self.place(region, at, data.len()) {
            // A load that the device does not answer stays all ones, as on a bus.
            let _ = pread(self.file(), data, place);
        }
    }

    fn store(&self, region: u32, at: u64, data: &[u8]) {
        if let Some(place) = self.place(region, at, data.len()) {
            let _ = pwrite(self.file(), data, place);
        }
    }

    /// The parts of a BAR that can be memory of the guest: all of it that the kernel maps, but the pages of `trapped`.
    pub(super) fn memory(
        &self,
        bar: usize,
        trapped: &[(u64, u64)],
        space: &Arc<Space>,
    ) -> Result<Memory, Error> {
        let index = bar as u32;
        let (flags, len) = (self.0.get_region_flags(index), self.0.get_region_size(index));
        let mut areas = Vec::new();
        if flags & VFIO_REGION_INFO_FLAG_MMAP != 0 {
            areas.push((0, len));
            for cap in self.0.get_region_caps(index) {
                if let VfioRegionInfoCap::SparseMmap(sparse) = cap {
                    areas = sparse.areas.iter().map(|area| (area.offset, area.size)).collect();
                }
            }
        }
        let mut memory = Memory { space: Arc::clone(space), parts: Vec::new(), placed: Mutex::default() };
        for (offset, len) in without(&areas, trapped) {
            let doing = || format!("map {len:#x} bytes of BAR {bar}");
            let Some(size) = NonZeroUsize::new(len as usize) else { continue };
            let mut prot = ProtFlags::empty();
            prot.set(ProtFlags::PROT_READ, flags & VFIO_REGION_INFO_FLAG_READ != 0);
            prot.set(ProtFlags::PROT_WRITE, flags & VFIO_REGION_INFO_FLAG_WRITE != 0);
            let at = self.0.get_region_offset(index) + offset;
            // SAFETY: a new mapping at an address of the kernel's choice changes no memory in use.
            let address =
                unsafe { mmap(None, size, prot, MapFlags::MAP_SHARED, self.file(), at as libc::off_t) }
                    .map_err(Error::sys(doing()))?;
            let writable = prot.contains(ProtFlags::PROT_WRITE);
            memory.parts.push(Part { offset, address, len: size, slot: space.reserve(1)?, writable });
        }
        Ok(memory)
    }
}

impl Physical for Device {
    fn read_config(&self, at: usize, data: &mut [u8]) {
        self.load(VFIO_PCI_CONFIG_REGION_INDEX, at as u64, data);
    }

    fn write_config(&self, at: usize, data: &[u8]) {
        self.store(VFIO_PCI_CONFIG_REGION_INDEX, at as u64, data);
    }

    fn bar_len(&self, bar: usize) -> u64 {
        self.0.get_region_size(bar as u32)
    }

    fn read(&self, bar: usize, offset: u64, data: &mut [u8]) {
        self.load(bar as u32, offset, data);
    }

    fn write(&self, bar: usize, offset: u64, data: &[u8]) {
        self.store(bar as u32, offset, data);
    }

    fn msix(&self, events: Option<Vec<&EventFd>>) -> Result<(), String> {
        let result = match events {
            Some(events) => self.0.enable_irq(VFIO_PCI_MSIX_IRQ_INDEX, events),
            None => self.0.disable_irq(VFIO_PCI_MSIX_IRQ_INDEX),
        };
        result.map_err(|error| error.to_string())
    }

    fn line(&self, events: Option<(&EventFd, &EventFd)>) -> Result<(), String> {
        let result = match events {
            Some((raise, seen)) => self
                .0
                .enable_irq(VFIO_PCI_INTX_IRQ_INDEX, vec![raise])
                .and_then(|()| self.0.set_irq_resample_fd(VFIO_PCI_INTX_IRQ_INDEX, vec![seen])),
            None => self.0.disable_irq(VFIO_PCI_INTX_IRQ_INDEX),
        };
        result.map_err(|error| error.to_string())
    }

    fn reset(&self) {
        self.0.reset();
    }
}

/// A BAR's memory, mapped in this process.
pub(super) struct Memory {
    space: Arc<Space>,
    parts: Vec<Part>,
    placed: Mutex<Option<u64>>,
}

struct Part {
    offset: u64,
    address: NonNull<libc::c_void>,
    len: NonZeroUsize,
    slot: u32,
    writable: bool,
}

// SAFETY: the pointers are only addresses to hand to KVM; no method reads or writes through them.
unsafe impl Send for Memory {}
// SAFETY: as for Send.
unsafe impl Sync for Memory {}

impl Memory {
    /// Shows the memory to the guest, whose BAR begins at this address, or no more.
    ///
    /// # Errors
    /// Other memory lies there; then the guest does not see it.
    pub(super) fn place(&self, bar: Option<u64>) -> Result<(), Error> {
        let mut placed = self.placed.lock();
        if *placed == bar {
            return Ok(());
        }
        *placed = None;
        self.empty();
        let Some(bar) = bar else { return Ok(()) };
        for part in &self.parts {
            let at = Some((bar + part.offset, part.len.get() as u64));
            // SAFETY: the mapping ends with this value, whose slots are emptied before.
            let filled = unsafe { self.space.fill(part.slot, at, part.address, part.writable) };
            if filled.is_err() {
                self.empty();
            }
            filled?;
        }
        *placed = Some(bar);
        Ok(())
    }

    /// Empties all slots. One that is not there cannot be emptied, and need not be.
    fn empty(&self) {
        for part in &self.parts {
            // SAFETY: an empty slot refers to no memory.
            let _ = unsafe { self.space.fill(part.slot, None, part.address, part.writable) };
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.empty();
        for part in &self.parts {
            // SAFETY: our own mapping, of which no slot knows any more.
            let _ = unsafe { munmap(part.address, part.len.get()) };
        }
    }
}

/// The rest of areas, in whole pages, without the pages that the ranges of `trapped` touch.
fn without(areas: &[(u64, u64)], trapped: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let down = |at: u64| at & !(PAGE - 1);
    let up = |at: u64| at.next_multiple_of(PAGE);
    let touched = || trapped.iter().map(|(at, len)| (down(*at), up(at + len) - down(*at)));
    let left = |(start, len): &(u64, u64)| {
        let start_of_page = up(*start);
        layout::without((start_of_page, down(start + len).saturating_sub(start_of_page)), touched())
    };
    areas.iter().flat_map(left).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_with_the_msi_x_table_are_no_memory() {
        assert_eq!(without(&[(0, 0x4000)], &[]), [(0, 0x4000)]);
        assert_eq!(without(&[(0, 0x4000)], &[(0x2000, 0x410)]), [(0, 0x2000), (0x3000, 0x1000)]);
        assert_eq!(without(&[(0, 0x4000)], &[(0x3000, 8), (0x2ff0, 0x10)]), [(0, 0x2000)]);
        assert_eq!(without(&[(0, 0x4000)], &[(0, 0x10), (0x3fff, 1)]), [(0x1000, 0x2000)]);
        assert_eq!(without(&[(0, 0x1000), (0x3000, 0x1000)], &[(0x3000, 1)]), [(0, 0x1000)]);
        assert_eq!(without(&[(0, 0x800)], &[]), [], "less than a page");
        assert_eq!(without(&[(0, 0x2000)], &[(0x1000, 0x8000), (0x1800, 8)]), [(0, 0x1000)]);
    }
}
