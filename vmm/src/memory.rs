//! RAM of a VM: allocated on the nodes and the pages asked for, and touched before the guest runs.

use std::io;
use std::num::NonZeroUsize;
use std::ptr::NonNull;

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};
use vmshm_host::{PageSize, format_bytes, nodes, pools};

use crate::error::Error;
use crate::layout;
use crate::place::Placement;

/// Touch this much at once, so that progress is seen.
const STEP: usize = 256 << 20;

/// Pages as large as this are used where the kernel has them, so the RAM begins on such an address.
const HUGE: usize = 2 << 20;

/// Options of a VM's RAM.
#[derive(Debug, Clone, Copy)]
pub struct RamOptions<'a> {
    /// Bytes, a multiple of the page size.
    pub len: u64,
    /// Pages; [`PageSize::Base`] becomes transparent huge pages where the kernel allows those.
    pub pages: PageSize,
    /// The NUMA nodes that it comes from, in parts as equal as can be; none for the kernel's choice. Several become the
    /// guest's own nodes.
    pub nodes: &'a [u32],
    /// Whether it may come from elsewhere.
    pub placement: Placement,
}

impl RamOptions<'_> {
    /// So many bytes, wherever the kernel takes them from.
    pub fn anywhere(len: u64, pages: PageSize) -> Self {
        Self { len, pages, nodes: &[], placement: Placement::Require }
    }

    /// Number of the node in `nodes`, guest-physical address and length of each range.
    pub fn ranges(&self) -> Vec<(usize, u64, u64)> {
        layout::ranges(&self.parts())
    }

    /// Bytes of each part: of each node, or of the whole.
    fn parts(&self) -> Vec<u64> {
        layout::shares(self.len, self.nodes.len().max(1), self.pages.bytes().max(HUGE as u64))
    }
}

/// The RAM of a VM, unmapped when dropped.
#[derive(Debug)]
pub struct Ram {
    map: GuestMemoryMmap,
    areas: Vec<Area>,
    nodes: Vec<u32>,
}

impl Ram {
    /// Allocates RAM. `progress` hears how many bytes of how many are touched.
    ///
    /// # Errors
    /// A length that is no multiple of the page size, or a node without enough free pages.
    pub fn new(options: &RamOptions<'_>, mut progress: impl FnMut(u64, u64)) -> Result<Self, Error> {
        let page = options.pages.bytes();
        if options.len < 1 << 20 || !options.len.is_multiple_of(page) {
            return Err(Error::Invalid {
                what: "memory of",
                value: format!("{} bytes", options.len),
                why: format!(
                    "is no multiple of {}, or less than 1 MiB: give for example 1G",
                    format_bytes(page)
                ),
            });
        }
        let parts = options.parts();
        if parts.contains(&0) {
            return Err(Error::Invalid {
                what: "memory of",
                value: format_bytes(options.len),
                why: format!("cannot be split over {} NUMA nodes: give more", parts.len()),
            });
        }
        check_room(options, &parts)?;
        let mut areas = Vec::new();
        let mut regions = Vec::new();
        for (part, start, len) in layout::ranges(&parts) {
            let area = Area::new(part, start, len as usize, options)?;
            let prot = libc::PROT_READ | libc::PROT_WRITE;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            // SAFETY: the area is a mapping of that length, and lives as long as this value's map.
            let region =
                unsafe { MmapRegion::build_raw(area.mapped.as_ptr().cast(), area.len.get(), prot, flags) };
            let region = region.map_err(|error| Error::io("use guest memory")(io::Error::other(error)))?;
            regions.extend(GuestRegionMmap::new(region, GuestAddress(start)));
            areas.push(area);
        }
        let map = GuestMemoryMmap::from_regions(regions)
            .map_err(|error| Error::io("use guest memory")(io::Error::other(error)))?;
        let mut done = 0;
        for area in &areas {
            area.populate(|step| {
                done += step;
                progress(done, options.len);
            })?;
        }
        Ok(Self { map, areas, nodes: options.nodes.to_vec() })
    }

    /// The RAM by guest-physical address.
    pub fn map(&self) -> &GuestMemoryMmap {
        &self.map
    }

    /// Fills all of it with zeros. No vCPU runs, and no device has a buffer of the guest's.
    pub(crate) fn clear(&self) {
        for area in &self.areas {
            // SAFETY: our own mapping, of which no reference exists; who else has its address rests, as the caller sees to.
            unsafe { area.mapped.cast::<u8>().write_bytes(0, area.len.get()) };
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
        self.areas.iter().map(|area| (area.start, area.mapped, area.len.get() as u64))
    }

    /// Nodes of the host that it was to come from; the guest's nodes are these in order.
    pub(crate) fn nodes(&self) -> &[u32] {
        &self.nodes
    }

    /// Virtual node, guest-physical address and length of each range.
    pub(crate) fn memory(&self) -> impl Iterator<Item = (usize, u64, u64)> + '_ {
        self.areas.iter().map(|area| (area.part, area.start, area.len.get() as u64))
    }
}

/// An anonymous mapping.
#[derive(Debug)]
struct Area {
    /// Which part of the RAM it belongs to.
    part: usize,
    /// Guest-physical address.
    start: u64,
    mapped: NonNull<libc::c_void>,
    len: NonZeroUsize,
}

// SAFETY: the pointer is only an address to hand to KVM and to vm-memory.
unsafe impl Send for Area {}
// SAFETY: as for Send.
unsafe impl Sync for Area {}

impl Area {
    fn new(part: usize, start: u64, len: usize, options: &RamOptions<'_>) -> Result<Self, Error> {
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
        let whole_mapped = unsafe { mmap_anonymous(None, whole, prot, MapFlags::MAP_PRIVATE | flags) }
            .map_err(Error::sys(doing()))?;
        let head = if spare == 0 { 0 } else { whole_mapped.as_ptr().align_offset(HUGE) };
        // SAFETY: head is less than spare, so the mapping goes on there.
        let mapped = unsafe { whole_mapped.byte_add(head) };
        let area = Self { part, start, mapped, len: NonZeroUsize::new(len).expect("no part is empty") };
        for (at, cut) in [(whole_mapped, head), (mapped.map_addr(|a| a.saturating_add(len)), spare - head)] {
            if cut > 0 {
                // SAFETY: what lies before and behind the aligned part; nobody uses it.
                let _ = unsafe { munmap(at, cut) };
            }
        }
        if let Some(&node) = options.nodes.get(part) {
            area.bind(node, options.placement)?;
        }
        let advise = |advice| {
            // SAFETY: our own mapping. These advices change neither content nor extent; a kernel that does not know
            // one loses nothing.
            let _ = unsafe { madvise(mapped, len, advice) };
        };
        advise(MmapAdvise::MADV_DONTDUMP);
        if options.pages == PageSize::Base {
            advise(MmapAdvise::MADV_HUGEPAGE);
            advise(MmapAdvise::MADV_UNMERGEABLE);
        }
        Ok(area)
    }

    /// Binds to a node, or prefers it. The host's NUMA balancing leaves memory with a policy of its own alone.
    fn bind(&self, node: u32, placement: Placement) -> Result<(), Error> {
        let policy = match placement {
            Placement::Require => libc::MPOL_BIND,
            Placement::Prefer => libc::MPOL_PREFERRED,
        };
        let mut mask = vec![0u64; node as usize / 64 + 1];
        mask[node as usize / 64] |= 1 << (node % 64);
        // The kernel reads one bit less than it is told.
        let bits = mask.len() * 64 + 1;
        let (start, len) = (self.mapped.as_ptr(), self.len.get());
        // SAFETY: the range is our own mapping, and the mask has as many bits as announced.
        let rc = unsafe { libc::syscall(libc::SYS_mbind, start, len, policy, mask.as_ptr(), bits, 0) };
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
            let at = unsafe { self.mapped.byte_add(done) };
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
        let _ = unsafe { munmap(self.mapped, self.len.get()) };
    }
}

/// Refuses memory that is not there, or tells of it where it may lie elsewhere. Bound memory would not fail: the kernel
/// would kill processes until it fits.
fn check_room(options: &RamOptions<'_>, parts: &[u64]) -> Result<(), Error> {
    for (&len, &node) in parts.iter().zip(options.nodes) {
        match (check_part(len, options.pages, Some(node)), options.placement) {
            (Err(error @ Error::NoRoom { .. }), Placement::Prefer) => {
                tracing::warn!(%error, "some of the memory comes from other nodes");
            }
            (result, _) => result?,
        }
    }
    if options.nodes.is_empty() || options.placement == Placement::Prefer {
        check_part(options.len, options.pages, None)?;
    }
    Ok(())
}

fn check_part(len: u64, pages: PageSize, node: Option<u32>) -> Result<(), Error> {
    let place = match node {
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
    let page = pages.bytes();
    let wanted = len / page;
    let pool = pools(node).into_iter().find(|pool| pool.page_len == page);
    let free = if pages == PageSize::Base {
        let free = match node {
            Some(id) => nodes().iter().find(|node| node.id == id).map_or(0, |node| node.free),
            None => vmshm_host::available_memory().unwrap_or(u64::MAX),
        };
        free / page
    } else {
        pool.as_ref().map_or(0, |pool| pool.free)
    };
    if wanted <= free {
        return Ok(());
    }
    let cure = match (pages, node, pool) {
        (PageSize::Base, Some(_), _) => "give the VM less memory, or another node".to_owned(),
        (PageSize::Base, None, _) => "give the VM less memory".to_owned(),
        (_, _, None) => "this kernel has no pages of that length: take others by --pages".to_owned(),
        (_, node, Some(pool)) => {
            let dir = match node {
                Some(id) => format!("/sys/devices/system/node/node{id}/hugepages"),
                None => "/sys/kernel/mm/hugepages".to_owned(),
            };
            let all = pool.total + (wanted - free);
            format!("enlarge the pool: `echo {all} | sudo tee {dir}/hugepages-{}kB/nr_hugepages`", page >> 10)
        }
    };
    Err(Error::NoRoom {
        wanted: format!("{wanted} pages of {}", format_bytes(page)),
        place,
        free: format!("{free} are"),
        cure,
    })
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    fn options(nodes: &[u32]) -> RamOptions<'_> {
        RamOptions { nodes, ..RamOptions::anywhere(3 << 20, PageSize::Base) }
    }

    /// The line of `/proc/self/FILE` that begins with an area's address, and those below it.
    fn lines(file: &str, area: &Area) -> String {
        let all = std::fs::read_to_string(format!("/proc/self/{file}")).unwrap();
        let start = format!("\n{:x}", area.mapped.as_ptr().addr());
        all[all.find(&start).expect("the kernel knows the mapping") + 1..].to_owned()
    }

    #[test]
    fn all_of_it_is_there_and_progress_ends_at_the_whole() {
        let mut last = (0, 0);
        let ram = Ram::new(&options(&[]), |done, all| last = (done, all)).unwrap();
        assert_eq!(last, (3 << 20, 3 << 20));
        let (start, address, len) = ram.ranges().next().unwrap();
        assert_eq!((start, len), (0, 3 << 20));
        assert_eq!(address.as_ptr().addr() % HUGE, 0);
        ram.map().write_obj(7u64, GuestAddress((3 << 20) - 8)).unwrap();
        assert!(ram.map().write_obj(7u64, GuestAddress((3 << 20) - 7)).is_err());
    }

    #[test]
    fn a_node_that_is_not_there_and_pages_that_are_not_there_are_named() {
        let fails = |options: &RamOptions<'_>| Ram::new(options, |_, _| ()).unwrap_err().to_string();
        let prefer = |options| RamOptions { placement: Placement::Prefer, ..options };
        for options in [options(&[4000]), prefer(options(&[4000]))] {
            let text = fails(&options);
            assert!(text.contains("4000") && text.contains("nodes with memory"), "{text}");
        }
        let much = RamOptions::anywhere(1 << 50, PageSize::Huge2M);
        for options in [much, prefer(much)] {
            let text = fails(&options);
            assert!(text.contains("536870912 pages of") && text.contains("nr_hugepages"), "{text}");
        }
        let text = fails(&RamOptions { len: 5 << 10, ..much });
        assert!(text.contains("multiple"), "{text}");
        let text = fails(&options(&[0, 0, 0]));
        assert!(text.contains("split over 3 NUMA nodes"), "{text}");
    }

    #[test]
    fn pages_that_a_node_lacks_are_an_error_or_come_from_elsewhere() {
        let Some(node) = nodes().into_iter().find(|node| node.has_memory) else { return };
        let nodes = [node.id];
        let much = RamOptions { nodes: &nodes, ..RamOptions::anywhere(1 << 50, PageSize::Base) };
        let Err(Error::NoRoom { wanted, place, free, .. }) = check_room(&much, &much.parts()) else {
            panic!("a PiB is too much");
        };
        assert_eq!(
            (wanted, place),
            ("274877906944 pages of 4 KiB".into(), format!("on NUMA node {}", node.id))
        );
        assert!(free.ends_with(" are") && free != "0 are", "{free}");
        let much = RamOptions { placement: Placement::Prefer, ..much };
        let text = check_room(&much, &much.parts()).unwrap_err().to_string();
        assert!(text.contains("on this host"), "{text}");
    }

    /// A part for each virtual node, though all come from the same node here.
    #[test]
    fn parts_are_bound_and_neither_balanced_nor_merged() {
        let Some(node) = nodes().into_iter().find(|node| node.has_memory) else { return };
        // As a service manager can switch it on for whole services. Kernels before 6.4 know of none.
        // SAFETY: a flag of this process, about pages whose content stays the same.
        unsafe { libc::prctl(libc::PR_SET_MEMORY_MERGE, 1, 0, 0, 0) };
        for (placement, policy) in [(Placement::Require, "bind"), (Placement::Prefer, "prefer")] {
            let nodes = [node.id, node.id];
            let options = RamOptions { len: 6 << 20, placement, ..options(&nodes) };
            let ram = Ram::new(&options, |_, _| ()).unwrap();
            assert_eq!(ram.memory().collect::<Vec<_>>(), [(0, 0, 4 << 20), (1, 4 << 20, 2 << 20)]);
            ram.map().write_obj(7u64, GuestAddress((4 << 20) - 4)).unwrap();
            for area in &ram.areas {
                // A policy under which the kernel balances would be shown as `bind=balancing`.
                let line = lines("numa_maps", area);
                let words: Vec<_> = line.split_whitespace().take(2).collect();
                assert_eq!(words[1], format!("{policy}:{}", node.id));
                let flags = lines("smaps", area);
                let flags = flags.lines().find(|line| line.starts_with("VmFlags:")).unwrap();
                assert!(!flags.split_whitespace().any(|flag| flag == "mg"), "{flags}");
            }
        }
    }
}
