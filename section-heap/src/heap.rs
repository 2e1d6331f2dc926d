//! The program's large allocations, in our section: what `libvmshm_heap.so` asks when the user has preloaded it and set
//! `VMSHM_HEAP`.
//!
//! Any thread may be here at any time, also one that holds a plugin's lock: nothing here ever waits for that. A program has one
//! heap, so that this is the process's and not an engine's.

use std::ffi::{c_int, c_void};
use std::mem;
use std::ops::Range;
use std::path::Path;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use vmshm_transport::abi::heap::{self as table, Table};
use vmshm_transport::{ChunkAllocator, Mapping};

use crate::child;
use crate::handover::{GRAIN, Handover, block_signals, unblock_signals};
use crate::lock::Lock;
use crate::notice::{self, News};
use crate::space::{Counts, Space};

/// Forks under way. Memory allocated meanwhile must not be in the section; raised only by the holder of the heap's lock.
static FORKS: AtomicU32 = AtomicU32::new(0);

/// Whether a fork is under way. Asked by the holder of the heap's lock.
fn is_under_way() -> bool {
    FORKS.load(Ordering::Relaxed) > 0
}

/// The heap's blocks. None before `begin`.
static HEAP: Lock<Option<Heap>> = Lock::new(None);

#[derive(Debug)]
struct Heap {
    space: Space<Mapping>,
    /// Bytes of the region's pages: less than one cannot be replaced in a child.
    page: usize,
}

/// The outcome of [`begin`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begun {
    /// Allocations are placed in the section from now on.
    Placed,
    /// Not in this process: an earlier heap is still in use, or the section has no room.
    Declined,
    /// The program has an allocator of its own.
    Foreign,
    /// The preloaded library is of another version.
    OtherVersion,
}

/// Whether `libvmshm_heap.so` is loaded.
pub fn is_preloaded() -> bool {
    shim().is_some()
}

/// Begins to place allocations of at least `min` bytes in a section, whose pages have `page` bytes. Notices begin with `label`,
/// and are given once among processes with the same `directory`.
pub fn begin(
    runs: ChunkAllocator<Arc<Mapping>>,
    page: usize,
    min: usize,
    label: &'static str,
    directory: Option<&Path>,
) -> Begun {
    let Some(register) = shim() else { return Begun::Declined };
    let range = runs.addresses();
    let Some(space) = Space::new(runs) else { return Begun::Declined };
    let heap = Heap { space, page };
    notice::prepare(label, directory);
    let is_new = HEAP.enter().is_some_and(|mut held| {
        // After an earlier life in this process there may be blocks of it.
        let is_new = held.is_none() && child::guard(&range).is_ok();
        if is_new {
            *held = Some(heap);
        }
        is_new
    });
    if !is_new {
        return Begun::Declined;
    }
    // The shim keeps it for ever.
    let table = Box::leak(Box::new(table_of(range, min)));
    // SAFETY: the table stays, and its functions do what the shim expects.
    match unsafe { register(table) } {
        0 => Begun::Placed,
        table::FOREIGN => Begun::Foreign,
        _ => Begun::OtherVersion,
    }
}

fn table_of(range: Range<usize>, min: usize) -> Table {
    Table {
        version: table::VERSION,
        min,
        start: range.start,
        end: range.end,
        allocate,
        free,
        usable,
        before_fork,
        in_parent,
        in_child,
    }
}

/// The outcome of [`end`].
#[derive(Debug)]
pub struct Ended {
    /// The program still uses some of the memory: then the section has to stay as it is.
    pub is_used: bool,
    /// Counts of allocations; none in a child, or where there was no heap.
    pub counts: Option<Counts>,
}

/// Ends the placing of allocations.
pub fn end() -> Ended {
    let (used, unused) = (Ended { is_used: true, counts: None }, Ended { is_used: false, counts: None });
    if child::is_one() {
        return used;
    }
    let Some(register) = shim() else { return unused };
    let (counts, heap) = {
        let Some(mut held) = HEAP.enter() else { return used };
        let Some(heap) = held.as_mut() else { return unused };
        // SAFETY: NULL is allowed.
        unsafe { register(ptr::null()) };
        let counts = heap.space.counts;
        // A thread that forks just now is reading it.
        if heap.space.is_empty() && !is_under_way() {
            let start = heap.space.addresses().start;
            let none = table_of(start..start, usize::MAX);
            // SAFETY: the table stays, and nothing of its memory is in use.
            unsafe { register(Box::leak(Box::new(none))) };
            let _ = child::guard(&(start..start));
            (counts, held.take())
        } else {
            (counts, None)
        }
    };
    // The heap is dropped outside of its lock: with it, the region may be unmapped.
    Ended { is_used: heap.is_none(), counts: Some(counts) }
}

/// The shim's function, if it is loaded.
fn shim() -> Option<table::Register> {
    // SAFETY: dlsym takes any NUL-terminated name; the symbol of this name has this type.
    unsafe {
        let symbol = libc::dlsym(libc::RTLD_DEFAULT, table::REGISTER.as_ptr());
        (!symbol.is_null()).then(|| mem::transmute::<*mut c_void, table::Register>(symbol))
    }
}

/// Runs `work` on the heap, if there is one and this thread is not inside it already. Leaves `errno` as it was.
fn with<T>(work: impl FnOnce(&mut Heap) -> T) -> Option<T> {
    // SAFETY: the thread's own variable.
    let errno: *mut c_int = unsafe { libc::__errno_location() };
    // SAFETY: the thread's own variable.
    let before = unsafe { *errno };
    let done = HEAP.enter().and_then(|mut held| held.as_mut().map(work));
    // SAFETY: the thread's own variable.
    unsafe { *errno = before };
    done
}

unsafe extern "C" fn allocate(len: usize, align: usize) -> *mut c_void {
    if child::is_one() {
        return ptr::null_mut();
    }
    let memory = with(|heap| if is_under_way() { None } else { heap.space.allocate(len, align) });
    memory.flatten().map_or(ptr::null_mut(), |memory| memory.cast())
}

unsafe extern "C" fn free(memory: *mut c_void) {
    match child::is_one() {
        true => child::free(memory.addr()),
        false => with(|heap| heap.space.free(memory.addr())).unwrap_or(()),
    }
}

unsafe extern "C" fn usable(memory: *mut c_void) -> usize {
    let found = match child::is_one() {
        true => child::usable(memory.addr()),
        false => with(|heap| heap.space.usable(memory.addr())).flatten(),
    };
    found.unwrap_or(0)
}

/// Before a fork: NULL where there is no heap, or its lock is not to be had. Then a child can only read the section.
unsafe extern "C" fn before_fork(may_wait: bool) -> *mut libc::c_void {
    if child::is_one() {
        // All its memory is its own, or can only be read.
        return ptr::null_mut();
    }
    let made = {
        let held = if may_wait { HEAP.enter() } else { HEAP.try_enter() };
        let Some(held) = held else { return ptr::null_mut() };
        let Some(heap) = held.as_ref() else { return ptr::null_mut() };
        let made = Handover::of(&heap.space, heap.page.max(GRAIN));
        if !made.is_null() {
            FORKS.fetch_add(1, Ordering::Relaxed);
        }
        made
    };
    // SAFETY: it is NULL, or new and nobody else's.
    if let Some(made) = unsafe { made.as_mut() } {
        made.copy();
        block_signals(&mut made.signals);
    }
    made.cast()
}

/// After a fork, in the parent.
unsafe extern "C" fn in_parent(handover: *mut libc::c_void) {
    let handover = handover.cast::<Handover>();
    if handover.is_null() {
        return;
    }
    FORKS.fetch_sub(1, Ordering::Relaxed);
    // SAFETY: it is what `before_fork` made for this fork, which is over.
    let (signals, missing) = unsafe { Handover::discard(handover) };
    if let Some((wanted, limit)) = missing {
        notice::once(
            News::Fork,
            format_args!(
                "the program has forked, and its {} MiB of memory in the section (VMSHM_HEAP) were not copied for the child: at \
             most {} MiB may be, a quarter of what is left to it, and its limits have to allow a mapping of the section's \
             length. So the child can read that memory, and is killed by SIGSEGV if it writes there. Children that only run another program are well. For others, give the program more memory \
             (machine or control group), set VMSHM_HEAP_MIN (bytes) so that less is placed, or do without VMSHM_HEAP.",
                wanted >> 20,
                limit >> 20
            ),
        );
    }
    unblock_signals(&signals);
}

/// After a fork, in the child.
unsafe extern "C" fn in_child(handover: *mut libc::c_void) {
    let handover = handover.cast::<Handover>();
    // SAFETY: it is NULL or what `before_fork` made for this fork, and this is the child, whose memory is marked if there is a heap.
    unsafe {
        child::settle(handover);
        if let Some(made) = handover.as_ref() {
            unblock_signals(&made.signals);
        }
    }
}
