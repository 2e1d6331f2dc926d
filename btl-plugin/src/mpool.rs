//! The memory pool `vmshm`: gives `MPI_Alloc_mem` memory of our section, which peers can pull from without a copy.
//!
//! It is a component of its own for Open MPI, found as `mca_mpool_vmshm.so`; that must be a link to `mca_btl_vmshm.so`,
//! so that both share one attached endpoint.

use std::cell::UnsafeCell;
use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

use vmshm_transport::attach::Source;
use vmshm_transport::{Fragment, Purpose, copy_from_shared};

use crate::component::register_variable;
use crate::fabric::{FABRIC, Fabric};
use crate::heap;
use crate::help;
use crate::ompi::{self, MPOOL, mca_mpool_base_module_t, mca_mpool_vmshm_component};

struct Priority(UnsafeCell<c_int>);

// SAFETY: written by Open MPI only while it registers the component, on one thread.
unsafe impl Sync for Priority {}

static PRIORITY: Priority = Priority(UnsafeCell::new(60));

/// Memory that a program has from us, by its address.
#[derive(Default)]
pub struct Given(HashMap<usize, Fragment>);

impl Given {
    /// Copies what the program still has. After MPI_Finalize it may look at that memory, but the section is others' then.
    /// None where it has more than `limit` bytes.
    pub fn keep(&mut self, limit: usize) -> Option<Kept> {
        if self.0.values().map(Fragment::capacity).sum::<usize>() > limit {
            return None;
        }
        let copy = |fragment: Fragment| {
            let mut bytes = vec![0; fragment.capacity()];
            // SAFETY: the fragment has so many bytes, and the mapping is there. In an open region peers may write them
            // at the same time.
            unsafe { copy_from_shared(fragment.ptr(), bytes.as_mut_ptr(), bytes.len()) };
            (fragment.ptr(), bytes)
        };
        Some(Kept(self.0.drain().map(|(_, fragment)| copy(fragment)).collect()))
    }
}

/// Memory that a program has not given back, by its address.
pub struct Kept(Vec<(*mut u8, Vec<u8>)>);

impl Kept {
    /// Puts it back where the program knows it, as ordinary memory. To be called when the region is not mapped any more.
    pub fn restore(mut self) {
        // SAFETY: a plain question.
        let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096);
        self.0.sort_unstable_by_key(|(address, _)| *address);
        // Two pieces may share a page: pages below this address are there already.
        let mut mapped = 0;
        for (address, bytes) in self.0 {
            let start = (address.addr() / page * page).max(mapped);
            let end = (address.addr() + bytes.len()).next_multiple_of(page);
            if start < end {
                if !map(address.with_addr(start), end - start) {
                    help::verbose("memory of MPI_Alloc_mem that the program has not freed is lost");
                    continue;
                }
                mapped = end;
            }
            // SAFETY: all pages of this piece have just been mapped for it, and its content was moved away before.
            unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), address, bytes.len()) };
        }
    }
}

/// How much memory of programs may be copied without harm: a part of what this process has left, in bytes. A section lies
/// in the host's memory, and can be larger than all that a VM has.
pub fn copy_limit() -> usize {
    heap::left() / 4
}

/// Maps fresh memory at an address where nothing is mapped; false if there is something.
fn map(address: *mut u8, len: usize) -> bool {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: nothing that is mapped is replaced.
    let mapped = unsafe { libc::mmap(address.cast(), len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    if mapped != libc::MAP_FAILED && mapped != address.cast() {
        // A kernel before 4.17 takes the address for a hint.
        // SAFETY: the mapping is new and nobody knows it.
        unsafe { libc::munmap(mapped, len) };
    }
    mapped == address.cast()
}

/// Registers the parameter.
pub unsafe extern "C" fn register() -> c_int {
    if ompi::running() != Ok(ompi::BUILT_FOR) {
        // The BTL says so to the user.
        return ompi::OPAL_ERR_NOT_AVAILABLE as c_int;
    }
    // SAFETY: the static has the type that is named.
    unsafe {
        register_variable(
            &raw mut (*mca_mpool_vmshm_component.get()).mpool_version,
            c"priority",
            c"Priority of memory in the vmshm section for MPI_Alloc_mem, which is then sent without a copy by the sender. \
              Ordinary memory has 50.",
            ompi::MCA_BASE_VAR_TYPE_INT,
            ompi::OPAL_INFO_LVL_5,
            PRIORITY.0.get().cast(),
        );
        let module = &mut *MPOOL.get();
        module.mpool_component = mca_mpool_vmshm_component.get();
        module.mpool_alloc = Some(alloc);
        module.mpool_realloc = Some(realloc);
        module.mpool_free = Some(free);
        module.flags = ompi::MCA_MPOOL_FLAGS_MPI_ALLOC_MEM;
        module.mpool_name = c"vmshm".as_ptr().cast_mut();
    }
    ompi::OPAL_SUCCESS as c_int
}

/// Offers the pool, where the BTL has attached to a region.
///
/// Other transports ask for memory too while they are initialised, and must register what programs give them later. An
/// InfiniBand adapter cannot register a guest's device memory, nor can a guest's kernel read it for another process, as
/// `vader` has it do (CMA): beside such a transport, memory of the section is for those who ask for it by name (the info
/// key `mpool_hints` with the value `vmshm`).
pub unsafe extern "C" fn query(
    hints: *const c_char,
    priority: *mut c_int,
    module: *mut *mut mca_mpool_base_module_t,
) -> c_int {
    // SAFETY: Open MPI gives NULL or NUL-terminated text.
    let is_named = !hints.is_null()
        && unsafe { CStr::from_ptr(hints) }.to_bytes().windows(5).any(|word| word == b"vmshm");
    let Some(is_file) = FABRIC
        .lock()
        .as_ref()
        .filter(|fabric| fabric.has_started)
        .map(|fabric| matches!(fabric.endpoint.source(), Source::File(_)))
    else {
        return ompi::OPAL_ERR_NOT_AVAILABLE as c_int;
    };
    if !is_named && ompi::others_read(is_file) {
        return ompi::OPAL_ERR_NOT_AVAILABLE as c_int;
    }
    // SAFETY: Open MPI gives valid pointers, and has registered the parameter.
    unsafe {
        *priority = if is_named { c_int::MAX } else { *PRIORITY.0.get() };
        *module = MPOOL.get();
    }
    ompi::OPAL_SUCCESS as c_int
}

/// Takes memory of the section, unless there is none left for this purpose. After NULL, Open MPI calls malloc.
fn take(fabric: &mut Fabric, len: usize, align: usize, purpose: Purpose) -> Option<*mut u8> {
    let fragment = fabric.endpoint.fragment_for(len, purpose)?;
    let address = fragment.ptr();
    if address.align_offset(align.max(1)) != 0 {
        fabric.endpoint.free(fragment);
        return None;
    }
    fabric.given.0.insert(address.addr(), fragment);
    Some(address)
}

/// Whether programs want memory of the section without asking for it: others do not read it, and it is not slow.
pub fn is_wanted() -> bool {
    FABRIC.lock().as_ref().is_some_and(|fabric| {
        let is_file = matches!(fabric.endpoint.source(), Source::File(_));
        fabric.endpoint.advice().is_none() && !ompi::others_read(is_file)
    })
}

/// Takes memory for a window, aligned to a power of two, and copied like other memory of programs if the section is left
/// before it is given back. None where there is no room: the last of it is for what is `small`.
pub fn take_aligned(len: usize, align: usize, small: bool) -> Option<*mut u8> {
    let mut fabric = FABRIC.lock();
    let fabric = fabric.as_mut()?;
    // Whole chunks lie on pages.
    let len = len.checked_next_multiple_of(align)?;
    take(fabric, len, 16, if small { Purpose::Small } else { Purpose::Large })
}

/// Gives back memory that the program has from us; nothing happens for other memory.
pub fn give_back(address: *mut u8) {
    if let Some(fabric) = FABRIC.lock().as_mut() {
        release(fabric, address);
    }
}

fn release(fabric: &mut Fabric, address: *mut u8) {
    if let Some(fragment) = fabric.given.0.remove(&address.addr()) {
        fabric.endpoint.free(fragment);
    }
}

/// What is in ordinary memory since the section was full.
struct Refused {
    count: AtomicU64,
    bytes: AtomicU64,
}

impl Refused {
    const fn new() -> Self {
        Self { count: AtomicU64::new(0), bytes: AtomicU64::new(0) }
    }

    fn add(&self, len: usize) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(len as u64, Ordering::Relaxed);
    }

    fn tell(&self, what: &str) {
        let [count, bytes] = [&self.count, &self.bytes].map(|sum| sum.load(Ordering::Relaxed));
        if count > 0 {
            help::verbose(&format!(
                "{what}: {count} allocations of {bytes} bytes in ordinary memory, since the section was full"
            ));
        }
    }
}

static ALLOCATIONS: Refused = Refused::new();
static WINDOWS: Refused = Refused::new();

/// Counts a window's memory where it is not in the section though that was wanted: some process's was full.
pub fn count_window(base: *mut u8, len: usize) {
    let is_placed = |fabric: &Fabric| len == 0 || fabric.endpoint.expose(base, len as u64).is_some();
    if is_wanted() && !FABRIC.lock().as_ref().is_some_and(is_placed) {
        WINDOWS.add(len);
    }
}

/// Tells how much found the section full.
pub fn tell() {
    ALLOCATIONS.tell("MPI_Alloc_mem");
    WINDOWS.tell("windows");
}

unsafe extern "C" fn alloc(_: *mut mca_mpool_base_module_t, len: usize, align: usize, _: u32) -> *mut c_void {
    let mut fabric = FABRIC.lock();
    let Some(fabric) = fabric.as_mut() else { return ptr::null_mut() };
    let taken = take(fabric, len, align, Purpose::Large);
    if taken.is_none() {
        ALLOCATIONS.add(len);
    }
    taken.map_or(ptr::null_mut(), |address| address.cast())
}

unsafe extern "C" fn realloc(_: *mut mca_mpool_base_module_t, old: *mut c_void, len: usize) -> *mut c_void {
    let mut fabric = FABRIC.lock();
    let Some(fabric) = fabric.as_mut() else { return ptr::null_mut() };
    let had = match fabric.given.0.get(&old.addr()) {
        Some(fragment) => fragment.capacity(),
        None if old.is_null() => 0,
        None => return ptr::null_mut(),
    };
    if had >= len && !old.is_null() {
        return old;
    }
    let Some(new) = take(fabric, len, align_of::<u128>(), Purpose::Large) else { return ptr::null_mut() };
    // SAFETY: both are ours, have room for `had` bytes, and do not overlap.
    unsafe { ptr::copy_nonoverlapping(old.cast::<u8>(), new, had) };
    release(fabric, old.cast());
    new.cast()
}

unsafe extern "C" fn free(_: *mut mca_mpool_base_module_t, address: *mut c_void) {
    give_back(address.cast());
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;
    use vmshm_host::{CreateOptions, RegionName, Registry};
    use vmshm_transport::attach::{Options, open_endpoint};

    use super::*;

    /// Set in the process that runs the test alone.
    const ALONE: &str = "VMSHM_TEST_ALONE";

    #[test]
    fn memory_that_a_program_keeps_is_its_own_when_the_section_is_left() {
        if std::env::var_os(ALONE).is_none() {
            // The threads of other tests would map what they need where the region was.
            let name = "mpool::tests::memory_that_a_program_keeps_is_its_own_when_the_section_is_left";
            let mut command = std::process::Command::new(std::env::current_exe().unwrap());
            let output =
                command.args([name, "--exact", "--test-threads=1"]).env(ALONE, "1").output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && text.contains("1 passed"), "{text}");
            return;
        }
        let directory = TempDir::new_in("/dev/shm").unwrap();
        let registry = Registry::at(directory.path());
        let region =
            registry.create(&RegionName::new("kept").unwrap(), &CreateOptions::new(16 << 20)).unwrap();
        let path = region.path().display().to_string();
        let open = || {
            let options = Options { device: Some(path.clone()), section: Some(0), ..Options::default() };
            Fabric::new(open_endpoint(&options).unwrap())
        };
        let mut fabric = open();
        // Some share a page, some have many.
        let kept: Vec<_> = [100, 200, 5000, 300_000, 64]
            .into_iter()
            .enumerate()
            .map(|(i, len)| {
                let memory = take(&mut fabric, len, 16, Purpose::Large).unwrap();
                // SAFETY: there is room for len bytes.
                unsafe { memory.write_bytes(i as u8 + 1, len) };
                (memory, len, i as u8 + 1)
            })
            .collect();
        assert!(fabric.given.keep(305_000).is_none());
        let copy = fabric.given.keep(copy_limit()).unwrap();
        drop(fabric);
        copy.restore();

        // A sibling takes the same memory of the section, and writes to all it gets.
        let mut sibling = open();
        while let Some(fragment) = sibling.endpoint.fragment(64 << 10) {
            // SAFETY: the fragment has so many bytes.
            unsafe { fragment.ptr().write_bytes(0xff, 64 << 10) };
        }
        for (memory, len, byte) in &kept {
            // SAFETY: restored, with so many bytes; nobody else uses them.
            let bytes = unsafe { std::slice::from_raw_parts(*memory, *len) };
            assert!(bytes.iter().all(|found| found == byte));
        }
        drop(sibling);
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        assert!(!maps.contains(&path), "{maps}");
        for fd in std::fs::read_dir("/proc/self/fd").unwrap().flatten() {
            let is_open = std::fs::read_link(fd.path()).is_ok_and(|file| file.starts_with(&path));
            // The test's own `region` is one.
            assert!(!is_open || fd.file_name().to_str() == Some(&region_fd(&region)));
        }
        // A second time there is something at that address, and it stays.
        assert!(!map(kept[3].0.with_addr(kept[3].0.addr().next_multiple_of(4096)), 4096));
    }

    fn region_fd(region: &vmshm_host::Region) -> String {
        use std::os::fd::AsRawFd;
        region.file().as_raw_fd().to_string()
    }
}
