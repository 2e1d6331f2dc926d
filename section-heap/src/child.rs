//! The heap in a forked child: what its parent had in the section is there, and nothing of it is the section's.
//!
//! Neither the heap's lock nor what it guards is touched there, since another thread may have been at it when the process
//! forked. A child allocates ordinary memory; what it frees is its own copy, or nothing.

use std::io;
use std::ops::Range;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicUsize, Ordering};

use crate::handover::Handover;
use crate::notice::{self, News};

/// A word that the kernel sets to 0 in every child that has memory of its own, however it was made. Children that share
/// their parent's, by vfork or as threads, find it as it was. NULL before there is a heap.
static MARK: AtomicPtr<AtomicU32> = AtomicPtr::new(ptr::null_mut());

/// In a child: the section is out of its reach.
static IS_SETTLED: AtomicBool = AtomicBool::new(false);

/// In a child: what it was left with, or NULL.
static LEFT: AtomicPtr<Handover> = AtomicPtr::new(ptr::null_mut());

/// Where the section lies. Empty where there is none.
static START: AtomicUsize = AtomicUsize::new(0);
static LEN: AtomicUsize = AtomicUsize::new(0);

/// Says where the section lies, once it has the heap; an empty range at the heap's end.
///
/// # Errors
///
/// The kernel cannot mark children.
pub fn guard(section: &Range<usize>) -> io::Result<()> {
    if MARK.load(Ordering::Relaxed).is_null() {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let rights = libc::PROT_READ | libc::PROT_WRITE;
        let len = crate::space::PAGE;
        // SAFETY: the kernel chooses an address where nothing is; the page is kept for ever.
        unsafe {
            let page = libc::mmap(ptr::null_mut(), len, rights, flags, -1, 0);
            if page == libc::MAP_FAILED || libc::madvise(page, len, libc::MADV_WIPEONFORK) != 0 {
                return Err(io::Error::last_os_error());
            }
            let mark = page.cast::<AtomicU32>();
            (*mark).store(1, Ordering::Relaxed);
            MARK.store(mark, Ordering::Release);
        }
    }
    START.store(section.start, Ordering::Relaxed);
    LEN.store(section.len(), Ordering::Relaxed);
    Ok(())
}

/// Where the section lies.
fn section() -> Range<usize> {
    let start = START.load(Ordering::Relaxed);
    start..start + LEN.load(Ordering::Relaxed)
}

/// Whether this process is a child of the one that has the section, which it then leaves alone from now on.
pub fn is_one() -> bool {
    let mark = MARK.load(Ordering::Acquire);
    // SAFETY: the page is kept for ever.
    if mark.is_null() || unsafe { (*mark).load(Ordering::Relaxed) } != 0 {
        return false;
    }
    if !IS_SETTLED.load(Ordering::Relaxed) {
        // By `clone`, which calls no handlers.
        // SAFETY: NULL is allowed.
        unsafe { settle(ptr::null_mut()) };
    }
    true
}

/// In a child, before anything else uses the section there: takes what the thread that forked has handed over, or NULL.
///
/// # Safety
///
/// This is a child; `handover` is NULL or what was made before the fork for it.
pub unsafe fn settle(handover: *mut Handover) {
    let section = section();
    // A child's child has all that is its parent's.
    if IS_SETTLED.swap(true, Ordering::Relaxed) || section.is_empty() {
        return;
    }
    // Nothing is ever to write to the parent's memory, better a child that fails. Most only run another program.
    // SAFETY: the range is mapped.
    unsafe {
        libc::mprotect(ptr::with_exposed_provenance_mut(section.start), section.len(), libc::PROT_READ)
    };
    // SAFETY: the caller vouches for it; it is this process's copy.
    match unsafe { handover.as_mut() } {
        Some(handover) => {
            handover.put_in_place();
            LEFT.store(handover, Ordering::Relaxed);
        }
        None => notice::once(
            News::Clone,
            format_args!(
                "a child has no copy of the program's memory in the section (VMSHM_HEAP), since it was made by clone, or while \
             the allocator was at work: it can read that memory, and is killed by SIGSEGV if it writes there. Use fork, or \
             do without VMSHM_HEAP."
            ),
        ),
    }
}

fn left() -> Option<&'static Handover> {
    // SAFETY: what is stored there stays as it is for ever.
    unsafe { LEFT.load(Ordering::Relaxed).as_ref() }
}

/// In a child: gives back the memory of a block that is its own.
pub fn free(address: usize) {
    if let Some(block) = left().filter(|left| left.is_copied()).and_then(|left| left.find(address)) {
        // SAFETY: the block's pages are this process's, and the program uses them no more.
        unsafe { libc::madvise(ptr::with_exposed_provenance_mut(address), block.len(), libc::MADV_DONTNEED) };
    }
}

/// In a child: bytes that may be used from a block's address on.
pub fn usable(address: usize) -> Option<usize> {
    left()?.find(address).map(|block| block.len())
}
