//! The handover to a child at a fork: the program's memory in the section, as it is between the last handler before the fork and
//! the first one after it.
//!
//! The section is shared with all its readers, so a child's pages are copies, made before the fork and moved into place
//! after it. No lock is held in between: glibc takes its own there, under which other threads may allocate. They get
//! ordinary memory meanwhile, so that the list of blocks that the child gets is complete.
//!
//! `posix_spawn`, `vfork` and `system` know nothing of this, since their children share the parent's memory until they run
//! another program.

use std::ops::Range;
use std::ptr;
use std::slice;

use vmshm_transport::{Holder, Memory};

use crate::available::copy_limit;
use crate::notice::{self, News};
use crate::space::Space;

/// Bytes that are copied without asking how much memory there is: a fork itself takes as much.
const LITTLE: usize = 1 << 20;

/// Ranges of addresses that a child's memory is put together from: each is a mapping of its own there, of which the kernel
/// allows some 65,000.
const RANGES: usize = 64;

/// The least length of such a range, bytes, and what both ends are multiples of: a large page of the processor.
pub const GRAIN: usize = 2 << 20;

/// State that the forking thread hands to its child and takes back in the parent. It lies in a mapping of its own, with the
/// list of blocks behind it: no allocator is asked, since others' handlers may have locked theirs.
#[derive(Debug)]
pub struct Handover {
    /// Bytes of the mapping.
    len: usize,
    /// The thread's signal mask. Signals wait, lest a handler fork in between, or run in the child before its memory is there.
    pub signals: libc::sigset_t,
    section: Range<usize>,
    /// The parts of the section where the child needs its own memory. Others' processes, where there are some, lie between.
    spans: Ranges,
    /// Chunks in these that are in use, but not for blocks: memory of MPI_Alloc_mem and of windows, messages.
    chunks: Ranges,
    /// Blocks by the address that the program knows.
    blocks: &'static [Range<usize>],
    /// As long as the section, with the copies at the same distances. NULL where there is none.
    copy: *mut u8,
    /// In the child: all of it is in place.
    is_in_place: bool,
    /// Bytes in use, and how many may be copied.
    wanted: usize,
    limit: usize,
}

impl Handover {
    /// Lists what has to be copied. NULL where there is no memory for the list.
    pub fn of<M: Memory>(space: &Space<M>, grain: usize) -> *mut Self {
        let blocks = space.blocks();
        let len = size_of::<Self>() + blocks.len() * size_of::<Range<usize>>();
        let Some(memory) = map(len) else { return ptr::null_mut() };
        let section = space.addresses();
        let made = memory.cast::<Self>();
        // SAFETY: the mapping is new and has room for both, aligned to 8 bytes; all zeros is a signal set.
        let made = unsafe {
            let first = made.add(1).cast::<Range<usize>>();
            let mut count = 0;
            for block in blocks {
                first.add(count).write(block);
                count += 1;
            }
            made.write(Self {
                len,
                signals: std::mem::zeroed(),
                section: section.clone(),
                spans: Ranges::new(),
                chunks: Ranges::new(),
                blocks: slice::from_raw_parts(first, count),
                copy: ptr::null_mut(),
                is_in_place: false,
                wanted: 0,
                limit: 0,
            });
            &mut *made
        };
        let chunk = vmshm_transport::ChunkAllocator::<M>::GRAIN;
        for (at, _) in space.holders().filter(|(_, holder)| *holder == Holder::Endpoint) {
            let start = (at / grain * grain).max(section.start);
            made.spans.add(start..(at + chunk).next_multiple_of(grain).min(section.end));
        }
        let mut spans = made.spans.iter().peekable();
        for (at, holder) in space.holders() {
            while spans.next_if(|span| span.end <= at).is_some() {}
            if holder != Holder::Nobody
                && spans.peek().is_some_and(|span| span.contains(&at))
                && !space.has(at)
            {
                made.chunks.add(at..at + chunk);
            }
        }
        drop(spans);
        made.wanted = made.pieces().map(|piece| piece.len()).sum();
        made
    }

    fn pieces(&self) -> impl Iterator<Item = &Range<usize>> {
        self.chunks.iter().chain(self.blocks)
    }

    /// Copies what is in use, if there is memory for it.
    pub fn copy(&mut self) {
        self.limit = if self.wanted > LITTLE { copy_limit() } else { LITTLE };
        if self.wanted > self.limit {
            return;
        }
        let Some(copy) = map(self.section.len()) else { return };
        for piece in self.pieces() {
            let from = ptr::with_exposed_provenance::<u8>(piece.start);
            let to = copy.wrapping_add(piece.start - self.section.start);
            // SAFETY: both have so many bytes. Other threads may write meanwhile, as they may while any process forks.
            unsafe { ptr::copy_nonoverlapping(from, to, piece.len()) };
        }
        self.copy = copy;
    }

    /// In the child: moves the copies to where the program knows their originals.
    pub fn put_in_place(&mut self) {
        if self.copy.is_null() {
            return;
        }
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        self.is_in_place = self.spans.iter().all(|span| {
            let from = self.copy.wrapping_add(span.start - self.section.start).cast();
            let to = ptr::with_exposed_provenance_mut::<libc::c_void>(span.start);
            // SAFETY: the copy is ours; the pages at its new place are replaced by it, with the same content.
            unsafe { libc::mremap(from, span.len(), span.len(), flags, to) == to }
        });
        // SAFETY: what was not moved is used by nobody.
        unsafe { libc::munmap(self.copy.cast(), self.section.len()) };
        if !self.is_in_place {
            notice::once(
                News::Mapping,
                format_args!(
                    "this child of a fork can't map a copy of the program's memory in the section (VMSHM_HEAP): it can read it, \
                 and is killed by SIGSEGV if it writes there. vm.max_map_count may be too low for the program."
                ),
            );
        }
    }

    /// In the parent: frees the mappings. Returns the signal mask, and what was wanted and allowed where there is no copy.
    ///
    /// # Safety
    /// `this` came from [`Handover::of`], and nothing of it is used any more.
    pub unsafe fn discard(this: *mut Self) -> (libc::sigset_t, Option<(usize, usize)>) {
        // SAFETY: the caller vouches for it; both mappings are ours.
        unsafe {
            let made = &*this;
            let (signals, len) = (made.signals, made.len);
            let missing = made.copy.is_null().then_some((made.wanted, made.limit));
            if missing.is_none() {
                libc::munmap(made.copy.cast(), made.section.len());
            }
            libc::munmap(this.cast(), len);
            (signals, missing)
        }
    }

    /// In the child: whether it has a copy, in place.
    pub fn is_copied(&self) -> bool {
        self.is_in_place
    }

    /// The block at an address that the program knows.
    pub fn find(&self, address: usize) -> Option<&Range<usize>> {
        let found = self.blocks.binary_search_by_key(&address, |block| block.start);
        found.ok().map(|index| &self.blocks[index])
    }
}

/// Blocks all signals but those that the thread's own doing raises: device memory may go away.
pub fn block_signals(before: &mut libc::sigset_t) {
    // SAFETY: both sets are initialised before they are used.
    unsafe {
        let mut all = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        for own in [libc::SIGBUS, libc::SIGSEGV, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP] {
            libc::sigdelset(&raw mut all, own);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, before);
    }
}

pub fn unblock_signals(before: &libc::sigset_t) {
    // SAFETY: the set is initialised.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before, ptr::null_mut()) };
}

/// Fresh memory, of which only what is touched is taken.
fn map(len: usize) -> Option<*mut u8> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: the kernel chooses an address where nothing is, and the rest is about this mapping alone. Without rights at
    // first, since the kernel fills what a program has locked beforehand (mlockall). With large pages, few blocks far apart
    // would take all memory there is.
    unsafe {
        let memory = libc::mmap(ptr::null_mut(), len, libc::PROT_NONE, flags, -1, 0);
        if memory == libc::MAP_FAILED {
            return None;
        }
        libc::munlock(memory, len);
        libc::madvise(memory, len, libc::MADV_NOHUGEPAGE);
        if libc::mprotect(memory, len, libc::PROT_READ | libc::PROT_WRITE) != 0 {
            libc::munmap(memory, len);
            return None;
        }
        Some(memory.cast())
    }
}

/// Ranges in order, at most [`RANGES`].
#[derive(Debug)]
struct Ranges {
    count: usize,
    list: [Range<usize>; RANGES],
}

impl Ranges {
    const fn new() -> Self {
        Self { count: 0, list: [const { 0..0 }; RANGES] }
    }

    /// Adds what begins behind the beginning of the last one. Memory that touches it is joined to it, and so is all where there are
    /// too many: the gaps are then taken for parts.
    fn add(&mut self, range: Range<usize>) {
        match self.list[..self.count].last_mut() {
            Some(last) if range.start <= last.end || self.count == RANGES => {
                last.end = last.end.max(range.end)
            }
            _ => {
                self.list[self.count] = range;
                self.count += 1;
            }
        }
    }

    fn iter(&self) -> slice::Iter<'_, Range<usize>> {
        self.list[..self.count].iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_joined_and_never_too_many() {
        let mut ranges = Ranges::new();
        for start in [0, 4, 8, 20] {
            ranges.add(start..start + 4);
        }
        assert_eq!(ranges.iter().cloned().collect::<Vec<_>>(), [0..12, 20..24]);
        for start in (100..).step_by(10).take(2 * RANGES) {
            ranges.add(start..start + 4);
        }
        assert_eq!(ranges.iter().len(), RANGES);
        assert_eq!(ranges.iter().last().unwrap().end, 100 + 10 * (2 * RANGES - 1) + 4);
    }
}
