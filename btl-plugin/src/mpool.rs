//! The memory pool `vmshm`: gives `MPI_Alloc_mem` memory of our section, which peers can get from without a copy.
//!
//! It is a component of its own for Open MPI, found as `mca_mpool_vmshm.so`; that must be a link to `mca_btl_vmshm.so`,
//! so that both share one attached endpoint.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

use vmshm_transport::Purpose;
use vmshm_transport::attach::Source;

use crate::ompi::{self, Global, help, mca_mpool_base_module_t};
use crate::process::{INSTANCE, Instance, is_wanted, others_read, params};
use crate::ucx;

/// The pool's module. All zero until its component registers.
// SAFETY: the struct holds numbers, pointers and optional functions, for all of which zero is a value.
static MPOOL: Global<mca_mpool_base_module_t> = Global::new(unsafe { MaybeUninit::zeroed().assume_init() });

/// Opens the component, before a point-to-point layer is: the moment for the UCX transport.
pub unsafe extern "C" fn open() -> c_int {
    ucx::load();
    ompi::OPAL_SUCCESS as c_int
}

/// Registers the parameter.
pub unsafe extern "C" fn register() -> c_int {
    if !ompi::is_built_for_this() {
        // The BTL says so to the user.
        return ompi::OPAL_ERR_NOT_AVAILABLE as c_int;
    }
    params::register_mpool();
    // SAFETY: nobody uses the module before the component is registered.
    unsafe {
        let module = &mut *MPOOL.get();
        module.mpool_component = ompi::mpool_component();
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
    let Some(is_file) = INSTANCE
        .lock()
        .as_ref()
        .filter(|instance| instance.has_started)
        .map(|instance| matches!(instance.engine.endpoint().source(), Source::File(_)))
    else {
        return ompi::OPAL_ERR_NOT_AVAILABLE as c_int;
    };
    if !is_named && others_read(is_file) {
        return ompi::OPAL_ERR_NOT_AVAILABLE as c_int;
    }
    // SAFETY: Open MPI gives valid pointers, and has registered the parameter.
    unsafe {
        *priority = if is_named { c_int::MAX } else { params::mpool_priority() };
        *module = MPOOL.get();
    }
    ompi::OPAL_SUCCESS as c_int
}

/// Takes memory for a window, aligned to a power of two, and copied like other memory of programs if the section is left
/// before it is given back. None where there is no room: the last of it is for what is `small`.
pub fn take_aligned(len: usize, align: usize, small: bool) -> Option<*mut u8> {
    // Whole chunks lie on pages.
    let len = len.checked_next_multiple_of(align)?;
    take(len, 16, if small { Purpose::Small } else { Purpose::Large })
}

/// Takes memory of the section; `None` where there is none left for this purpose.
fn take(len: usize, align: usize, purpose: Purpose) -> Option<*mut u8> {
    let mut instance = INSTANCE.lock();
    let Instance { engine, pool, .. } = instance.as_mut()?;
    pool.take(engine.endpoint_mut(), len, align, purpose)
}

/// Gives back memory that the program has from us; nothing happens for other memory.
pub fn give_back(address: *mut u8) {
    if let Some(Instance { engine, pool, .. }) = INSTANCE.lock().as_mut() {
        pool.give_back(engine.endpoint_mut(), address);
    }
}

/// Allocations in ordinary memory since the section was full.
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
    let is_placed =
        |instance: &Instance| len == 0 || instance.engine.endpoint().expose(base, len as u64).is_some();
    if is_wanted() && !INSTANCE.lock().as_ref().is_some_and(is_placed) {
        WINDOWS.add(len);
    }
}

/// Tells how much found the section full.
pub fn tell() {
    ALLOCATIONS.tell("MPI_Alloc_mem");
    WINDOWS.tell("windows");
}

unsafe extern "C" fn alloc(_: *mut mca_mpool_base_module_t, len: usize, align: usize, _: u32) -> *mut c_void {
    if INSTANCE.lock().is_none() {
        return ptr::null_mut();
    }
    let taken = take(len, align, Purpose::Large);
    if taken.is_none() {
        // After NULL, Open MPI calls malloc.
        ALLOCATIONS.add(len);
    }
    taken.map_or(ptr::null_mut(), |address| address.cast())
}

unsafe extern "C" fn realloc(_: *mut mca_mpool_base_module_t, old: *mut c_void, len: usize) -> *mut c_void {
    let had = {
        let instance = INSTANCE.lock();
        let Some(instance) = instance.as_ref() else { return ptr::null_mut() };
        match instance.pool.capacity(old.cast()) {
            Some(had) => had,
            None if old.is_null() => 0,
            None => return ptr::null_mut(),
        }
    };
    if had >= len && !old.is_null() {
        return old;
    }
    let Some(new) = take(len, align_of::<u128>(), Purpose::Large) else { return ptr::null_mut() };
    // SAFETY: both are ours, have room for `had` bytes, and do not overlap.
    unsafe { ptr::copy_nonoverlapping(old.cast::<u8>(), new, had) };
    give_back(old.cast());
    new.cast()
}

unsafe extern "C" fn free(_: *mut mca_mpool_base_module_t, address: *mut c_void) {
    give_back(address.cast());
}
