//! RAM of a VM: allocated on the node and the pages asked for, and touched before the guest runs.

use std::io;
use std::num::NonZeroUsize;
use std::ptr::NonNull;

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};
use vmshm_host::{PageSize, format_bytes, nodes, pools};

use crate::error::Error;
use crate::layout;

/// Touch this much at once, so that progress is seen.
const STEP: usize = 256 << 20;

/// Pages as large as this are used where the kernel has them, so the RAM begins on such an address.
const HUGE: usize = 2 << 20;

/// What the RAM of a VM shall be like.
#[derive(Debug, Clone, Copy)]
pub struct RamOptions {
    /// Bytes, a multiple of the page size.
    pub len: u64,
    /// Pages; [`PageSize::Base`] becomes transparent huge pages where the kernel allows those.
    pub pages: PageSize,
    /// The NUMA node that all of it comes from, or `None` for the kernel's choice.
    pub node: Option<u32>,
    /// Whether all pages are there before the guest runs.
    pub prefault: bool,
}

/// The RAM of a VM, unmapped when dropped.
#[derive(Debug)]
pub struct Ram {
    map: GuestMemoryMmap,
    areas: Vec<Area>,
}

impl Ram {
    /// Allocates RAM. `progress` hears how many bytes of how many are touched.
    ///
    /// # Errors
    /// A length that is no multiple of the page size, or a node without enough free pages.
    pub fn new(options: &RamOptions, mut progress: impl FnMut(u64, u64)) -> Result<Self, Error> {
        let page = options.pages.bytes();
        if options.len < 1 << 20 || !options.len.is_multiple_of(page) {
            return Err(Error::Invalid {
                what: "memory of",
                value: format!("{} bytes", options.len),
                why: format!("is no multiple of {}, or less than 1 MiB", format_bytes(page)),
            });
        }
        check_room(options)?;
        let mut areas = Vec::new();
        let mut regions = Vec::new();
        for (start, len) in layout::ram(options.len) {
            let area = Area::new(len as usize, options)?;
            let prot = libc::PROT_READ | libc::PROT_WRITE;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            // SAFETY: the area is a mapping of that length, and lives as long as this value's map.
            let region =
                unsafe { MmapRegion::build_raw(area.start.as_ptr().cast(), area.len.get(), prot, flags) };
            let region = region.map_err(|error| Error::io("use guest memory")(io::Error::other(error)))?;
            regions.extend(GuestRegionMmap::new(region, GuestAddress(start)));
            areas.push(area);
        }
        let map = GuestMemoryMmap::from_regions(regions)
            .map_err(|error| Error::io("use guest memory")(io::Error::other(error)))?;
        if options.prefault {
            let mut done = 0;
            for area in &areas {
                area.populate(|step| {
                    done += step;
                    progress(done, options.len);
                })?;
            }
        }
        Ok(Self { map, areas })
    }

    /// The RAM by guest-physical address.
    pub fn map(&self) -> &GuestMemoryMmap {
        &self.map
    }

    /// Fills all of it with zeros. No vCPU runs, and no device has a buffer of the guest's.
    pub(crate) fn clear(&self) {
        for area in &self.areas {
            // SAFETY: our own mapping, of which no reference exists; who else has its address rests, as the caller sees to.
            unsafe { area.start.cast::<u8>().write_bytes(0, area.len.get()) };
        }
    }

    /// Bytes.
    pub fn len(&self) -> u64 {
        self.areas.iter().map(|area| area.len.get() as u64).sum()
    }

    /// Never: RAM has at least a megabyte.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The ranges by guest-physical address, and where they are mapped in this process.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = (u64, NonNull<libc::c_void>, u64)> + '_ {
        let starts = layout::ram(self.len()).into_iter();
        starts.zip(&self.areas).map(|((start, len), area)| (start, area.start, len))
    }
}

/// An anonymous mapping.
#[derive(Debug)]
struct Area {
    start: NonNull<libc::c_void>,
    len: NonZeroUsize,
}

// SAFETY: the pointer is only an address to hand to KVM and to vm-memory.
unsafe impl Send for Area {}
// SAFETY: as for Send.
unsafe impl Sync for Area {}

impl Area {
    fn new(len: usize, options: &RamOptions) -> Result<Self, Error> {
        let doing = || format!("map {} of guest memory", format_bytes(len as u64));
        let (flags, spare) = match options.pages {
            PageSize::Base => (MapFlags::MAP_NORESERVE, HUGE),
            PageSize::Huge2M => (MapFlags::MAP_HUGETLB | MapFlags::MAP_HUGE_2MB, 0),
            PageSize::Huge1G => (MapFlags::MAP_HUGETLB | MapFlags::MAP_HUGE_1GB, 0),
        };
        let whole = len.checked_add(spare).and_then(NonZeroUsize::new);
        let whole = whole.ok_or_else(|| Error::io(doing())(io::ErrorKind::InvalidInput.into()))?;
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice changes no memory in use.
        let mapped = unsafe { mmap_anonymous(None, whole, prot, MapFlags::MAP_PRIVATE | flags) }
            .map_err(Error::sys(doing()))?;
        let head = if spare == 0 { 0 } else { mapped.as_ptr().align_offset(HUGE) };
        // SAFETY: head is less than spare, so the mapping goes on there.
        let start = unsafe { mapped.byte_add(head) };
        let area = Self { start, len: NonZeroUsize::new(len).expect("checked with whole") };
        for (at, cut) in [(mapped, head), (start.map_addr(|a| a.saturating_add(len)), spare - head)] {
            if cut > 0 {
                // SAFETY: what lies before and behind the aligned part; nobody uses it.
                let _ = unsafe { munmap(at, cut) };
            }
        }
        if let Some(node) = options.node {
            area.bind(node)?;
        }
        let advise = |advice| {
            // SAFETY: our own mapping. These advices change neither content nor extent; a kernel that does not know
            // one loses nothing.
            let _ = unsafe { madvise(start, len, advice) };
        };
        advise(MmapAdvise::MADV_DONTDUMP);
        if options.pages == PageSize::Base {
            advise(MmapAdvise::MADV_HUGEPAGE);
            advise(MmapAdvise::MADV_UNMERGEABLE);
        }
        Ok(area)
    }

    /// Binds to a node. The host's NUMA balancing leaves memory with a policy of its own alone.
    fn bind(&self, node: u32) -> Result<(), Error> {
        let mut mask = vec![0u64; node as usize / 64 + 1];
        mask[node as usize / 64] |= 1 << (node % 64);
        // The kernel reads one bit less than it is told.
        let bits = mask.len() * 64 + 1;
        let (start, len) = (self.start.as_ptr(), self.len.get());
        // SAFETY: the range is our own mapping, and the mask has as many bits as announced.
        let rc =
            unsafe { libc::syscall(libc::SYS_mbind, start, len, libc::MPOL_BIND, mask.as_ptr(), bits, 0) };
        if rc != 0 {
            let doing = format!("bind guest memory to NUMA node {node}");
            return Err(Error::io(doing)(io::Error::last_os_error()));
        }
        Ok(())
    }

    fn populate(&self, mut progress: impl FnMut(u64)) -> Result<(), Error> {
        let mut done = 0;
        while done < self.len.get() {
            let step = STEP.min(self.len.get() - done);
            // SAFETY: inside our own mapping.
            let at = unsafe { self.start.byte_add(done) };
            // SAFETY: inside our own mapping; populating changes no byte of it.
            if unsafe { libc::madvise(at.as_ptr(), step, libc::MADV_POPULATE_WRITE) } == 0 {
                done += step;
                progress(step as u64);
                continue;
            }
            let error = io::Error::last_os_error();
            if !matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) {
                return Err(Error::io("touch guest memory")(error));
            }
        }
        Ok(())
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        // SAFETY: our own mapping; the VM that had its address is closed, and the map goes with this value.
        let _ = unsafe { munmap(self.start, self.len.get()) };
    }
}

/// Refuses memory that is not there. Bound memory would not fail: the kernel would kill processes until it fits.
fn check_room(options: &RamOptions) -> Result<(), Error> {
    let place = match options.node {
        Some(id) => {
            let all = nodes();
            if !all.iter().any(|node| node.id == id && node.has_memory) {
                let with: Vec<_> =
                    all.iter().filter(|node| node.has_memory).map(|node| node.id.to_string()).collect();
                return Err(Error::Invalid {
                    what: "NUMA node",
                    value: id.to_string(),
                    why: format!("does not exist or has no memory; nodes with memory: {}", with.join(", ")),
                });
            }
            format!("on NUMA node {id}")
        }
        None => "on this host".to_owned(),
    };
    let page = options.pages.bytes();
    let wanted = options.len / page;
    let free = if options.pages == PageSize::Base {
        let free = match options.node {
            Some(id) => nodes().iter().find(|node| node.id == id).map_or(0, |node| node.free),
            None => vmshm_host::available_memory().unwrap_or(u64::MAX),
        };
        free / page
    } else {
        pools(options.node).iter().find(|pool| pool.page_len == page).map_or(0, |pool| pool.free)
    };
    if wanted <= free {
        return Ok(());
    }
    let cure = match (options.pages, options.node) {
        (PageSize::Base, _) => "give the VM less memory, or another node".to_owned(),
        (_, Some(id)) => format!(
            "enlarge the pool: `echo N | sudo tee /sys/devices/system/node/node{id}/hugepages/hugepages-{}kB/nr_hugepages`",
            page >> 10
        ),
        (_, None) => format!(
            "enlarge the pool: `echo N | sudo tee /sys/kernel/mm/hugepages/hugepages-{}kB/nr_hugepages`",
            page >> 10
        ),
    };
    let pages = format_bytes(page);
    Err(Error::NoRoom {
        wanted: format!("{wanted} pages of {pages}"),
        place,
        free: format!("{free} are"),
        cure,
    })
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    const OPTIONS: RamOptions =
        RamOptions { len: 3 << 20, pages: PageSize::Base, node: None, prefault: true };

    #[test]
    fn all_of_it_is_there_and_progress_ends_at_the_whole() {
        let mut last = (0, 0);
        let ram = Ram::new(&OPTIONS, |done, all| last = (done, all)).unwrap();
        assert_eq!(last, (3 << 20, 3 << 20));
        let (start, address, len) = ram.ranges().next().unwrap();
        assert_eq!((start, len), (0, 3 << 20));
        assert_eq!(address.as_ptr().addr() % HUGE, 0);
        ram.map().write_obj(7u64, GuestAddress((3 << 20) - 8)).unwrap();
        assert!(ram.map().write_obj(7u64, GuestAddress((3 << 20) - 7)).is_err());
    }

    #[test]
    fn a_node_that_is_not_there_and_pages_that_are_not_there_are_named() {
        let text = Ram::new(&RamOptions { node: Some(4000), ..OPTIONS }, |_, _| ()).unwrap_err().to_string();
        assert!(text.contains("4000") && text.contains("nodes with memory"), "{text}");
        let much = RamOptions { len: 1 << 50, pages: PageSize::Huge2M, ..OPTIONS };
        let text = Ram::new(&much, |_, _| ()).unwrap_err().to_string();
        assert!(text.contains("536870912 pages of") && text.contains("nr_hugepages"), "{text}");
        let text = Ram::new(&RamOptions { len: 5 << 10, ..OPTIONS }, |_, _| ()).unwrap_err().to_string();
        assert!(text.contains("multiple"), "{text}");
    }
}
