//! The program's large allocations, in our section: what `libvmshm_heap.so` asks when the user has preloaded it and set
//! `VMSHM_HEAP`.
//!
//! Any thread may be here at any time, also one that holds the fabric: nothing here ever waits for the fabric.

mod child;
mod fork;
mod left;
mod lock;
mod space;
mod tell;

use std::ffi::{c_int, c_void};
use std::io::{self, Write};
use std::mem;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::ptr;

use vmshm_transport::ChunkAllocator;
use vmshm_transport::abi::heap::{self as table, Table};
use vmshm_transport::attach::Source;

use crate::fabric::FABRIC;
use crate::help::{self, Topic};
use crate::ompi;
use lock::Lock;
use space::Space;

pub use left::left;

/// Bytes from which on an allocation is placed, unless `VMSHM_HEAP_MIN` says otherwise: about the length from which on
/// one copy is faster than two.
const DEFAULT_MIN: usize = 16 << 10;

/// What is placed where. None before `open`.
static HEAP: Lock<Option<Heap>> = Lock::new(None);

struct Heap {
    space: Space<vmshm_transport::Mapping>,
    /// Print the counts at the end.
    is_verbose: bool,
    /// Bytes of the region's pages: less than one cannot be replaced in a child.
    page: usize,
}

/// What a user has set.
struct Wish {
    is_verbose: bool,
    min: usize,
}

impl Wish {
    /// Reads `VMSHM_HEAP` and `VMSHM_HEAP_MIN`.
    fn from_env() -> Result<Option<Self>, String> {
        let set = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let is_verbose = match set("VMSHM_HEAP").as_deref() {
            None | Some("0") => return Ok(None),
            Some("1") => false,
            Some("verbose") => true,
            Some(other) => return Err(format!("VMSHM_HEAP is {other:?}: it must be 1, verbose or 0.")),
        };
        let min = match set("VMSHM_HEAP_MIN") {
            None => DEFAULT_MIN,
            Some(text) => match text.parse() {
                Ok(min) if min >= space::PAGE => min,
                _ => {
                    return Err(format!(
                        "VMSHM_HEAP_MIN is {text:?}: it must be a number of bytes, {} at least.",
                        space::PAGE
                    ));
                }
            },
        };
        Ok(Some(Self { is_verbose, min }))
    }
}

/// Begins to place allocations, if the user wants that. Called when all transports are initialised.
pub fn open() {
    let wish = match Wish::from_env() {
        Ok(Some(wish)) => wish,
        Ok(None) => return,
        Err(message) => return help::show(Topic::Parameter, &message),
    };
    let Some(register) = shim() else {
        return help::show(
            Topic::Advice,
            "VMSHM_HEAP is set, but libvmshm_heap.so is not loaded, so that the program's memory stays where it is: \
             `eval \"$(vmshm env --heap)\"` before mpirun sets both, and `mpirun -x LD_PRELOAD -x VMSHM_HEAP` takes \
             them to other machines.",
        );
    };
    let found = FABRIC.lock().as_ref().map(|fabric| {
        let endpoint = &fabric.endpoint;
        // What hugetlbfs calls a block is a page.
        let page = endpoint.memory().file().metadata().map_or(0, |data| data.blksize() as usize);
        (
            ChunkAllocator::of(endpoint),
            matches!(endpoint.source(), Source::File(_)),
            endpoint.advice().is_some(),
            page,
        )
    });
    let Some((runs, is_file, is_slow, page)) = found else { return };
    if is_slow {
        return help::show(
            Topic::Advice,
            "VMSHM_HEAP is set, but the shared memory is not mapped cached, so that the program would compute in slow \
             memory: it stays where it is. With the guest driver, and a region of 4 GiB or more, it can be placed.",
        );
    }
    if ompi::others_read(is_file) {
        return help::show(
            Topic::Advice,
            "VMSHM_HEAP is set, but another transport beside vmshm has hardware or the kernel read the program's \
             memory, which they cannot do where it is a device's: it stays where it is. `--mca btl vmshm,self` leaves \
             vmshm alone; beside vader it takes `--mca btl_vader_single_copy_mechanism none`.",
        );
    }
    let range = runs.addresses();
    let Some(space) = Space::new(runs) else { return };
    let heap = Heap { space, is_verbose: wish.is_verbose, page };
    tell::prepare();
    let is_new = HEAP.enter().is_some_and(|mut held| {
        // After an earlier life in this process there may be blocks of it.
        let is_new = held.is_none() && child::guard(&range).is_ok();
        if is_new {
            *held = Some(heap);
        }
        is_new
    });
    if !is_new {
        return;
    }
    let table = table_of(range, wish.min);
    // The shim keeps it for ever.
    let table = Box::leak(Box::new(table));
    // SAFETY: the table stays, and its functions do what the shim expects.
    match unsafe { register(table) } {
        0 => {}
        table::FOREIGN => help::show(
            Topic::Advice,
            "VMSHM_HEAP is set, but the program has an allocator of its own (a sanitizer, jemalloc, tcmalloc), so that its \
             memory stays where it is.",
        ),
        _ => {
            help::verbose(
                "libvmshm_heap.so is of another version than the plugin: the heap stays where it is",
            );
        }
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
        before_fork: fork::before,
        in_parent: fork::in_parent,
        in_child: fork::in_child,
    }
}

/// Ends the placing of allocations. True if the program still uses some: then the section has to stay as it is.
pub fn close() -> bool {
    if child::is_one() {
        return true;
    }
    let Some(register) = shim() else { return false };
    let ended = {
        let Some(mut held) = HEAP.enter() else { return true };
        let Some(heap) = held.as_mut() else { return false };
        // SAFETY: NULL is allowed.
        unsafe { register(ptr::null()) };
        let line = heap.space.counts.to_string();
        let told = (heap.is_verbose, line);
        // Who forks just now is reading it.
        if heap.space.is_empty() && !fork::is_under_way() {
            let start = heap.space.addresses().start;
            let none = table_of(start..start, usize::MAX);
            // SAFETY: the table stays, and nothing of its memory is in use.
            unsafe { register(Box::leak(Box::new(none))) };
            let _ = child::guard(&(start..start));
            (told, held.take())
        } else {
            (told, None)
        }
    };
    let ((is_verbose, line), space) = ended;
    let is_used = space.is_none();
    // Outside of the lock: with it, the region may be unmapped.
    drop(space);
    help::verbose(&line);
    if is_verbose {
        // At once, as other processes write there too.
        let line = format!("[{}] {line}\n", std::process::id());
        let _ = io::stderr().write_all(line.as_bytes());
    }
    is_used
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
    // SAFETY: as above.
    let before = unsafe { *errno };
    let done = HEAP.enter().and_then(|mut held| held.as_mut().map(work));
    // SAFETY: as above.
    unsafe { *errno = before };
    done
}

unsafe extern "C" fn allocate(len: usize, align: usize) -> *mut c_void {
    if child::is_one() {
        return ptr::null_mut();
    }
    let memory = with(|heap| if fork::is_under_way() { None } else { heap.space.allocate(len, align) });
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
