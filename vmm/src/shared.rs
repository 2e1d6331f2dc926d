//! The shared BAR of a VM: a region, mapped so that only the VM's own section can be written.
//!
//! The promise is kept twice. KVM gets every other part as a read-only memory slot, and this process maps it without
//! the right to write, so that neither the guest nor a fault of the VMM changes a byte of another's section.

use std::io;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::mman::{MapFlags, ProtFlags, madvise, mmap, mprotect, munmap};
use uuid::Uuid;
use vmshm_abi::region::SectionEntry;
use vmshm_host::{Ledger, Region};

use crate::error::Error;

/// A part of the BAR, which becomes one memory slot of KVM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// First byte, from the start of the region.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// Whether the VM may write there.
    pub writable: bool,
}

/// A region as one VM has it.
#[derive(Debug)]
pub struct Shared {
    start: NonNull<libc::c_void>,
    len: NonZeroUsize,
    parts: Vec<Part>,
    /// The region's name.
    name: String,
    section: u32,
    node: Option<u32>,
    hold: Hold,
    dropped: AtomicU64,
}

/// By what the section is the VM's. The region's file stays open only where it is needed again.
#[derive(Debug)]
enum Hold {
    /// It was free before, and is to be so again.
    Lent(Box<Region>),
    /// It was assigned before, and stays so.
    Assigned {
        /// Has the lock.
        _ledger: Option<Ledger>,
    },
    /// The server's word.
    Given,
}

// SAFETY: the pointer is only an address to hand to KVM; no method reads or writes through it.
unsafe impl Send for Shared {}
// SAFETY: as for Send.
unsafe impl Sync for Shared {}

impl Shared {
    /// Takes a section for the VM with this UUID, and maps the region.
    ///
    /// The section stays taken (a lock in the region's ledger, which the kernel drops with this process) until the value is
    /// dropped.
    ///
    /// # Errors
    /// A region that may not be written, a section that another VM or process has, or no address space.
    pub fn take(region: Region, section: u32, uuid: Uuid) -> Result<Self, Error> {
        if !region.is_writable() {
            return Err(Error::RegionReadOnly { path: region.path().display().to_string() });
        }
        let was_free = region.occupy(section, uuid)?;
        // Not what the region's table says, which a member of the host may have overwritten.
        let mapped =
            region.decided(section).map_err(Error::from).and_then(|own| Self::map(&region, section, &own));
        match mapped {
            Ok(mut shared) => {
                shared.hold = if was_free {
                    Hold::Lent(Box::new(region))
                } else {
                    Hold::Assigned { _ledger: region.into_ledger() }
                };
                Ok(shared)
            }
            Err(error) => {
                if was_free {
                    give_back(&region, section);
                }
                Err(error)
            }
        }
    }

    /// Maps a region whose server has given this VM a section.
    pub(crate) fn given(region: Region, section: u32) -> Result<Self, Error> {
        if !region.is_writable() {
            return Err(Error::RegionReadOnly { path: region.path().display().to_string() });
        }
        // The client of a server need not be the region's owner: the table is all that it may read.
        let own = region.entry(section)?;
        Self::map(&region, section, &own)
    }

    fn map(region: &Region, section: u32, own: &SectionEntry) -> Result<Self, Error> {
        let parts = parts(region, own);
        let path = region.path().display().to_string();
        let doing = || format!("map the region {path}");
        let len = usize::try_from(region.header().region_len)
            .ok()
            .and_then(NonZeroUsize::new)
            .ok_or_else(|| Error::io(doing())(io::ErrorKind::InvalidInput.into()))?;
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice changes no memory in use.
        let start = unsafe { mmap(None, len, ProtFlags::PROT_READ, flags, region.file(), 0) }
            .map_err(Error::sys(doing()))?;
        let (name, dropped) = (region.name(), AtomicU64::new(0));
        let node = u32::try_from(own.node).ok();
        let shared = Self { start, len, parts, name, section, node, hold: Hold::Given, dropped };
        // SAFETY: our own mapping; what the advice changes is core dumps only.
        let _ = unsafe { madvise(start, len.get(), nix::sys::mman::MmapAdvise::MADV_DONTDUMP) };
        for part in shared.parts.iter().filter(|part| part.writable) {
            let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
            // SAFETY: a part lies in our own mapping, on page boundaries, as the checked table says.
            unsafe { mprotect(shared.address(part), part.len as usize, prot) }
                .map_err(Error::sys(doing()))?;
        }
        Ok(shared)
    }

    /// Bytes of the BAR, a power of two.
    pub fn len(&self) -> u64 {
        self.len.get() as u64
    }

    /// Never: a region has at least a header.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The VM's own section.
    pub fn section(&self) -> u32 {
        self.section
    }

    /// The NUMA node of the host that the section lies on, if it is bound to one.
    pub(crate) fn node(&self) -> Option<u32> {
        self.node
    }

    /// The parts, ascending and without gaps.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Where a part is mapped in this process.
    pub(crate) fn address(&self, part: &Part) -> NonNull<libc::c_void> {
        assert!(part.offset + part.len <= self.len(), "a part lies inside the mapping");
        // SAFETY: inside the mapping, as was just checked.
        unsafe { self.start.byte_add(part.offset as usize) }
    }

    /// Stores into read-only parts that were dropped so far.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Counts a store that was dropped, and tells of the first one.
    pub(crate) fn drop_store(&self, offset: u64) {
        if self.dropped.fetch_add(1, Ordering::Relaxed) == 0 {
            tracing::warn!(
                region = %self.name,
                own_section = self.section,
                offset = format_args!("{offset:#x}"),
                "the VM stored to memory that is not its own; such stores are dropped and, from now on, only counted"
            );
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: our own mapping, and whoever gave its address to KVM has closed that VM before.
        let _ = unsafe { munmap(self.start, self.len.get()) };
        if let Hold::Lent(region) = &self.hold {
            give_back(region, self.section);
        }
    }
}

fn give_back(region: &Region, section: u32) {
    if let Err(error) = region.release(section, true) {
        tracing::warn!(section, %error, "cannot give the section back");
    }
}

/// Cuts a region into what a VM may write and what not: its own section, or all sections of an open region.
fn parts(region: &Region, own: &SectionEntry) -> Vec<Part> {
    let header = region.header();
    let (start, end) = if header.is_open() {
        // Header and table are the host's even then.
        (header.table_end, header.region_len)
    } else {
        (own.offset, own.offset + own.len)
    };
    let part = |offset, end: u64, writable| Part { offset, len: end - offset, writable };
    let all = [part(0, start, false), part(start, end, true), part(end, header.region_len, false)];
    all.into_iter().filter(|part| part.len > 0).collect()
}
