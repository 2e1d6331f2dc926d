//! Which parts of the section are the program's: whole pages, from runs of the section's chunks.
//!
//! The records of blocks lie outside of the section, in ordinary memory.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use range_alloc::RangeAllocator;
use vmshm_transport::{ChunkAllocator, Holder, Memory};

/// Unit of blocks, bytes.
pub const PAGE: usize = 4096;

/// A run that is shared by smaller blocks, bytes.
const EXTENT: usize = 4 << 20;

/// The longest block of a shared run, bytes; longer ones have a run each.
const SHARED: usize = EXTENT / 8;

/// The program's memory.
#[derive(Debug)]
pub struct Space<M: Memory> {
    runs: ChunkAllocator<Arc<M>>,
    /// Blocks by the address that the program knows.
    blocks: BTreeMap<usize, Block>,
    /// Shared runs by their address.
    extents: BTreeMap<usize, Extent>,
    /// Counts so far.
    pub counts: Counts,
}

#[derive(Debug)]
struct Block {
    start: *mut u8,
    len: usize,
    /// It lies in an extent, else it is a run of its own.
    is_shared: bool,
}

#[derive(Debug)]
struct Extent {
    start: *mut u8,
    /// In pages.
    free: RangeAllocator<usize>,
}

// SAFETY: the pointers are addresses of the process's memory, which any thread may use.
unsafe impl<M: Memory> Send for Space<M> where ChunkAllocator<Arc<M>>: Send {}

/// Counts of allocations.
#[derive(Debug, Default, Clone, Copy)]
pub struct Counts {
    /// Allocations in the section.
    pub placed: u64,
    /// Bytes in the section now.
    pub now: usize,
    /// Bytes in the section, at most.
    pub peak: usize,
    /// Allocations that found the section full.
    pub refused: u64,
    /// Bytes of these.
    pub refused_bytes: u64,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { placed, now, peak, refused, refused_bytes } = self;
        write!(
            f,
            "heap: {placed} allocations in the section, {peak} bytes at most, {now} bytes at the end; {refused} \
             allocations of {refused_bytes} bytes in ordinary memory, since the section was full"
        )
    }
}

impl<M: Memory> Space<M> {
    /// None where the section's chunks begin within pages.
    pub fn new(mut runs: ChunkAllocator<Arc<M>>) -> Option<Self> {
        let probe = runs.take(1)?;
        runs.give_back(probe, 1);
        probe.addr().is_multiple_of(PAGE).then(|| Self {
            runs,
            blocks: BTreeMap::new(),
            extents: BTreeMap::new(),
            counts: Counts::default(),
        })
    }

    /// Memory of a length and an alignment, with any content.
    pub fn allocate(&mut self, len: usize, align: usize) -> Option<*mut u8> {
        // Blocks begin with a page. A larger alignment is found in the midst of a longer block.
        let spare = if align > PAGE { align } else { 0 };
        let wanted = len.checked_add(spare)?.checked_next_multiple_of(PAGE)?;
        let Some(block) = self.block(wanted) else {
            self.counts.refused += 1;
            self.counts.refused_bytes += len as u64;
            return None;
        };
        self.counts.placed += 1;
        self.counts.now += block.len;
        self.counts.peak = self.counts.peak.max(self.counts.now);
        let address = block.start.with_addr(block.start.addr().next_multiple_of(align));
        self.blocks.insert(address.addr(), block);
        Some(address)
    }

    /// A block of `len` bytes or more, whole pages.
    fn block(&mut self, len: usize) -> Option<Block> {
        if len <= SHARED {
            let found = self.extents.values_mut().find_map(|extent| extent.take(len));
            if found.is_some() {
                return found;
            }
            if let Some(start) = self.runs.take(EXTENT) {
                let mut extent = Extent { start, free: RangeAllocator::new(0..EXTENT / PAGE) };
                let block = extent.take(len);
                self.extents.insert(start.addr(), extent);
                return block;
            }
        }
        let start = self.runs.take(len)?;
        Some(Block { start, len: len.next_multiple_of(ChunkAllocator::<Arc<M>>::GRAIN), is_shared: false })
    }

    /// Takes a block back.
    pub fn free(&mut self, address: usize) {
        let Some(block) = self.blocks.remove(&address) else { return };
        self.counts.now -= block.len;
        if !block.is_shared {
            return self.runs.give_back(block.start, block.len);
        }
        let Some((&start, extent)) = self.extents.range_mut(..=block.start.addr()).next_back() else {
            return;
        };
        let first = (block.start.addr() - start) / PAGE;
        extent.free.free_range(first..first + block.len / PAGE);
        let (at, is_free) = (extent.start, extent.free.is_empty());
        // One stays for the next block.
        if is_free && self.extents.len() > 1 {
            self.extents.remove(&start);
            self.runs.give_back(at, EXTENT);
        }
    }

    /// Bytes that may be used from an address on.
    pub fn usable(&self, address: usize) -> Option<usize> {
        self.blocks.get(&address).map(|block| block.start.addr() + block.len - address)
    }

    /// Whether the program uses nothing of it.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Where the section lies.
    pub fn addresses(&self) -> Range<usize> {
        self.runs.addresses()
    }

    /// The program's blocks: the addresses that it knows, in order, and where each block ends.
    pub fn blocks(&self) -> impl ExactSizeIterator<Item = Range<usize>> {
        self.blocks.iter().map(|(address, block)| *address..block.start.addr() + block.len)
    }

    /// The section's chunks, see [`ChunkAllocator::holders`].
    pub fn holders(&self) -> impl Iterator<Item = (usize, Holder)> {
        self.runs.holders()
    }

    /// Whether an address lies in what was taken for blocks, be it one or free. Before a block's first address, where a large
    /// alignment has left a gap, it may say no.
    pub fn has(&self, address: usize) -> bool {
        let block = self.blocks.range(..=address).next_back();
        let extent = self.extents.range(..=address).next_back();
        block.is_some_and(|(_, block)| address < block.start.addr() + block.len)
            || extent.is_some_and(|(start, _)| address < start + EXTENT)
    }
}

impl Extent {
    fn take(&mut self, len: usize) -> Option<Block> {
        let pages = self.free.allocate_range(len / PAGE).ok()?;
        Some(Block { start: self.start.wrapping_add(pages.start * PAGE), len, is_shared: true })
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;
    use vmshm_host::{CreateOptions, RegionName, Registry};
    use vmshm_transport::Mapping;
    use vmshm_transport::attach::{Attached, Options, open_endpoint};

    use super::*;

    const REGION: u64 = 64 << 20;

    fn endpoint() -> (TempDir, Attached) {
        let directory = TempDir::new_in("/dev/shm").unwrap();
        let registry = Registry::at(directory.path());
        let region = registry.create(&RegionName::new("heap").unwrap(), &CreateOptions::new(REGION)).unwrap();
        let device = Some(region.path().display().to_string());
        let endpoint = open_endpoint(&Options { device, section: Some(0), ..Options::default() }).unwrap();
        (directory, endpoint)
    }

    fn space(endpoint: &Attached) -> Space<Mapping> {
        Space::new(ChunkAllocator::of(endpoint)).unwrap()
    }

    #[test]
    fn blocks_are_apart_and_lie_in_the_section() {
        let (_directory, mut endpoint) = endpoint();
        let mut space = space(&endpoint);
        let mut random = 1u64;
        let mut next = |below: usize| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) as usize % below
        };
        let mut held: Vec<(*mut u8, usize, u8)> = Vec::new();
        let mut refused = 0;
        for round in 0..20_000 {
            if next(5) < 3 {
                let len = if next(4) == 0 { next(3 << 20) } else { next(200_000) } + 1;
                let align = 16 << next(14);
                let Some(memory) = space.allocate(len, align) else {
                    refused += 1;
                    continue;
                };
                assert!(memory.addr().is_multiple_of(align));
                assert!(space.usable(memory.addr()).unwrap() >= len);
                assert!(endpoint.expose(memory, len as u64).is_some(), "peers can read it");
                let byte = round as u8;
                // SAFETY: there is room for len bytes.
                unsafe { memory.write_bytes(byte, len) };
                held.push((memory, len, byte));
            } else if !held.is_empty() {
                let (memory, len, byte) = held.swap_remove(next(held.len()));
                // SAFETY: the block has len bytes, and nobody else uses them.
                let bytes = unsafe { std::slice::from_raw_parts(memory, len) };
                assert!(bytes.iter().all(|found| *found == byte));
                space.free(memory.addr());
            }
        }
        assert!(refused > 0, "the section was never full");
        assert_eq!(space.counts.refused, refused);
        for _ in 0..4 {
            assert!(endpoint.fragment(64 << 10).is_some(), "there is always room for messages");
        }
        for (memory, ..) in held {
            space.free(memory.addr());
        }
        assert!(space.is_empty() && space.counts.now == 0 && space.extents.len() <= 1);
    }

    #[test]
    fn what_is_given_back_can_be_had_again() {
        let (_directory, endpoint) = endpoint();
        let mut space = space(&endpoint);
        let fill = |space: &mut Space<Mapping>, len| {
            let mut held = Vec::new();
            while let Some(memory) = space.allocate(len, 16) {
                held.push(memory.addr());
            }
            held
        };
        let first = fill(&mut space, 100_000);
        assert!(first.len() > 100);
        for address in &first {
            space.free(*address);
        }
        let large = fill(&mut space, 2 << 20);
        assert!(large.len() * (2 << 20) > first.len() * 100_000 / 2, "{} large ones", large.len());
        for address in large {
            space.free(address);
        }
        assert_eq!(fill(&mut space, 100_000).len(), first.len());
    }

    #[test]
    fn what_a_fork_has_to_copy_is_known() {
        let (_directory, mut endpoint) = endpoint();
        let mut space = space(&endpoint);
        let other = endpoint.fragment(300_000).unwrap();
        let held: Vec<_> = [(PAGE + 1, 16), (1 << 20, 16), (PAGE, 1 << 16)]
            .into_iter()
            .map(|(len, align)| (space.allocate(len, align).unwrap().addr(), len))
            .collect();
        let mut blocks: Vec<_> = space.blocks().collect();
        assert!(blocks.is_sorted_by_key(|block| block.start));
        blocks.retain(|block| held.iter().any(|(at, len)| *at == block.start && block.len() >= *len));
        assert_eq!(blocks.len(), held.len());
        assert!(held.iter().all(|(at, len)| space.has(*at) && space.has(at + len - 1)));
        let mut ours = space.holders().filter(|(_, holder)| *holder == Holder::Endpoint);
        assert!(ours.any(|(at, _)| at == other.ptr().addr() && !space.has(at)));
    }
}
