//! The program's own large allocations in the section, where the user has preloaded `libvmshm_heap.so` and set `VMSHM_HEAP`.

use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;

use vmshm_section_heap::{Begun, PAGE};
use vmshm_transport::ChunkAllocator;
use vmshm_transport::attach::Source;

use crate::ompi::help::{self, Topic};
use crate::process::{INSTANCE, others_read};

/// Bytes from which on an allocation is placed, unless `VMSHM_HEAP_MIN` says otherwise: about the length from which on
/// one copy is faster than two.
const DEFAULT_MIN: usize = 16 << 10;

/// The user's wish.
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
                Ok(min) if min >= PAGE => min,
                _ => {
                    return Err(format!(
                        "VMSHM_HEAP_MIN is {text:?}: it must be a number of bytes, {} at least.",
                        PAGE
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
    if !vmshm_section_heap::is_preloaded() {
        return help::show(
            Topic::Advice,
            "VMSHM_HEAP is set, but libvmshm_heap.so is not loaded, so that the program's memory stays where it is: \
             `eval \"$(vmshm env --heap)\"` before mpirun sets both, and `mpirun -x LD_PRELOAD -x VMSHM_HEAP` takes \
             them to other machines.",
        );
    }
    let found = INSTANCE.lock().as_ref().map(|instance| {
        let endpoint = instance.engine.endpoint();
        // A page is hugetlbfs's block.
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
    if others_read(is_file) {
        return help::show(
            Topic::Advice,
            "VMSHM_HEAP is set, but another transport beside vmshm has hardware or the kernel read the program's \
             memory, which they cannot do where it is a device's: it stays where it is. `--mca btl vmshm,self` leaves \
             vmshm alone; beside vader it takes `--mca btl_vader_single_copy_mechanism none`.",
        );
    }
    let directory = help::job_directory();
    match vmshm_section_heap::begin(runs, page, wish.min, "btl vmshm", directory.as_deref()) {
        Begun::Placed | Begun::Declined => {}
        Begun::Foreign => help::show(
            Topic::Advice,
            "VMSHM_HEAP is set, but the program has an allocator of its own (a sanitizer, jemalloc, tcmalloc), so that its \
             memory stays where it is.",
        ),
        Begun::OtherVersion => {
            help::verbose(
                "libvmshm_heap.so is of another version than the plugin: the heap stays where it is",
            );
        }
    }
}

/// Ends the placing of allocations. True if the program still uses some: then the section has to stay as it is.
pub fn close() -> bool {
    let ended = vmshm_section_heap::end();
    if let Some(counts) = ended.counts {
        help::verbose(&counts.to_string());
        if let Ok(Some(Wish { is_verbose: true, .. })) = Wish::from_env() {
            // At once, as other processes write there too.
            let line = format!("[{}] {counts}\n", std::process::id());
            let _ = io::stderr().write_all(line.as_bytes());
        }
    }
    ended.is_used
}
