//! What a forked child sees: the program's memory as it was, and its own.
//!
//! The section is shared with all who map it. A child would write to its parent's memory, so its pages are replaced by
//! copies, made before the fork and moved into place after it. `posix_spawn`, `vfork` and `system` know nothing of this,
//! since their children share the parent's memory until they run another program.

use std::mem;
use std::ops::Range;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

use super::HEAP;
use crate::help::{self, Topic};
use crate::mpool::copy_limit;

/// Bytes that are copied without asking how much memory there is.
const LITTLE: usize = 64 << 20;

/// Where the section lies, for who cannot ask the heap. Empty where there is none.
static START: AtomicUsize = AtomicUsize::new(0);
static LEN: AtomicUsize = AtomicUsize::new(0);

/// Forks under way from within the heap, as a signal's handler may do: the lock is not theirs to open. Changed only by the
/// thread that holds it.
static WITHIN: AtomicU32 = AtomicU32::new(0);

/// Copies of pages: where they belong, where they are, bytes.
pub struct Snapshot(Vec<(*mut u8, *mut libc::c_void, usize)>);

// SAFETY: the pointers are addresses of the process, which any thread may use.
unsafe impl Send for Snapshot {}

impl Snapshot {
    /// Copies pages, all or none.
    fn of(pages: Vec<(*mut u8, usize)>) -> Option<Self> {
        let total: usize = pages.iter().map(|(_, len)| len).sum();
        if total > LITTLE && total > copy_limit() {
            return None;
        }
        let mut copies = Self(Vec::with_capacity(pages.len()));
        for (from, len) in pages {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            // SAFETY: the kernel chooses an address where nothing is.
            let to =
                unsafe { libc::mmap(ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
            if to == libc::MAP_FAILED {
                copies.discard();
                return None;
            }
            // SAFETY: both have len bytes. Other threads may write meanwhile, as they may while any process forks.
            unsafe { ptr::copy_nonoverlapping(from, to.cast(), len) };
            copies.0.push((from, to, len));
        }
        Some(copies)
    }

    /// Moves the copies over what they are copies of; else, where pages are huge and cannot be replaced in part, replaces all
    /// of the section that lies at `section`. False where neither can be done.
    fn put_in_place(self, section: Range<usize>) -> bool {
        let moved = self.0.iter().all(|(place, from, len)| {
            let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
            // SAFETY: the copy is ours; the pages at its new place are replaced by it, with the same content.
            unsafe { libc::mremap(*from, *len, *len, flags, *place) != libc::MAP_FAILED }
        });
        moved || self.replace(section)
    }

    /// Puts memory of the child's own in place of the section.
    fn replace(self, section: Range<usize>) -> bool {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let rights = libc::PROT_READ | libc::PROT_WRITE;
        // A copy that was moved before another could not be is gone from where it was.
        if self.0.iter().any(|(_, from, _)| !is_mapped(*from)) {
            return false;
        }
        let start = ptr::with_exposed_provenance_mut(section.start);
        // SAFETY: the section's pages are replaced; the copies of those that the program uses lie elsewhere.
        let own = unsafe { libc::mmap(start, section.len(), rights, flags | libc::MAP_FIXED, -1, 0) };
        if own == libc::MAP_FAILED {
            return false;
        }
        for (place, from, len) in &self.0 {
            // SAFETY: both have len bytes and are the child's own.
            unsafe { ptr::copy_nonoverlapping(from.cast::<u8>().cast_const(), *place, *len) };
        }
        self.discard();
        true
    }

    fn discard(self) {
        for (_, copy, len) in self.0 {
            // SAFETY: the copy is ours, and nobody uses it.
            unsafe { libc::munmap(copy, len) };
        }
    }
}

/// Whether there is memory at the start of a page.
fn is_mapped(page: *mut libc::c_void) -> bool {
    let mut resident = 0;
    // SAFETY: the kernel writes one byte for one page.
    unsafe { libc::mincore(page, 1, &raw mut resident) == 0 }
}

/// Has the three functions below called at each fork.
pub fn handle() {
    // SAFETY: they are made for it, and this library is never unmapped.
    unsafe { libc::pthread_atfork(Some(before), Some(in_parent), Some(in_child)) };
}

/// Says where the section lies, once it has the heap; an empty range at the heap's end.
pub fn guard(section: &Range<usize>) {
    START.store(section.start, Ordering::Relaxed);
    LEN.store(section.len(), Ordering::Relaxed);
}

/// Has a child fail that writes to its parent's memory, better than let it. Most children only run another program.
fn protect_section() {
    let (start, len) = (START.load(Ordering::Relaxed), LEN.load(Ordering::Relaxed));
    if len > 0 {
        // SAFETY: the range is mapped; nothing is written to it any more by code that may.
        unsafe { libc::mprotect(ptr::with_exposed_provenance_mut(start), len, libc::PROT_READ) };
    }
}

/// Whether this fork's `before` found the thread inside the heap.
fn was_within() -> bool {
    let forks = WITHIN.load(Ordering::Relaxed);
    if forks > 0 {
        WITHIN.store(forks - 1, Ordering::Relaxed);
    }
    forks > 0
}

extern "C" fn before() {
    let Some(mut heap) = HEAP.enter() else {
        // The child keeps out of it for ever.
        HEAP.close_to_children();
        WITHIN.fetch_add(1, Ordering::Relaxed);
        return;
    };
    HEAP.close_to_children();
    if let Some(heap) = heap.as_mut() {
        // A child's pages are its own, and a child of it has copies as of all else.
        let pages = if heap.space.is_private() { Vec::new() } else { heap.space.in_use() };
        heap.copy = Snapshot::of(pages);
    }
    // Held until after the fork.
    mem::forget(heap);
}

extern "C" fn in_parent() {
    if was_within() {
        return;
    }
    let copy = {
        // SAFETY: `before` has left the lock with this thread.
        let mut heap = unsafe { HEAP.resume() };
        let Some(heap) = heap.as_mut() else { return };
        heap.copy.take()
    };
    match copy {
        Some(copy) => copy.discard(),
        None => advise(),
    }
}

/// What becomes of a child without a copy was told, or nothing can be told any more.
static TOLD: AtomicBool = AtomicBool::new(false);

/// Has nothing told of forks from now on: Open MPI cannot after it was finalized.
pub fn be_quiet() {
    TOLD.store(true, Ordering::Relaxed);
}

/// Tells the user, once, what becomes of a child without a copy. Any thread may fork, also one that may not call MPI: so the
/// fabric is left alone, whose lock is for one thread only after a plain `MPI_Init`.
fn advise() {
    if TOLD.swap(true, Ordering::Relaxed) {
        return;
    }
    // SAFETY: the thread's own variable, which is to be what fork left in it.
    let (errno, before) = unsafe { (libc::__errno_location(), *libc::__errno_location()) };
    help::show(
        Topic::Advice,
        "The program has forked, and its memory in the section (VMSHM_HEAP) is more than a quarter of what this \
         machine has left, so that it was not copied: the child can read it, and is killed by SIGSEGV if it writes \
         there. Children that only run another program are well. For others, set VMSHM_HEAP_MIN (bytes) so that less \
         is placed, or do without VMSHM_HEAP.",
    );
    // SAFETY: as above.
    unsafe { *errno = before };
}

extern "C" fn in_child() {
    if was_within() {
        return protect_section();
    }
    // SAFETY: `before` has left the lock with this thread.
    let mut heap = unsafe { HEAP.renew() };
    let Some(heap) = heap.as_mut() else { return };
    let section = heap.space.addresses();
    let is_whole = heap.copy.take().is_some_and(|copy| copy.put_in_place(section));
    heap.space.make_private();
    if !is_whole {
        protect_section();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fork_from_within_the_heap_leaves_the_lock_as_it_is() {
        let held = HEAP.enter().unwrap();
        before();
        in_parent();
        assert!(HEAP.enter().is_none(), "this thread still holds it");
        drop(held);

        // A handler that forks while another fork is under way.
        before();
        before();
        in_parent();
        assert!(HEAP.enter().is_none());
        in_parent();
        assert!(HEAP.enter().is_some());
        assert_eq!(WITHIN.load(Ordering::Relaxed), 0);
    }
}
