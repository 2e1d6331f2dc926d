//! The memory pool `vmshm`: gives `MPI_Alloc_mem` memory of our section, which peers can pull from without a copy.
//!
//! It is a component of its own for Open MPI, found as `mca_mpool_vmshm.so`; that must be a link to `mca_btl_vmshm.so`,
//! so that both share one attached endpoint.

use std::cell::UnsafeCell;
use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;

use vmshm_transport::Fragment;

use crate::component::register_variable;
use crate::fabric::{FABRIC, Fabric};
use crate::ompi::{self, MPOOL, mca_mpool_base_module_t, mca_mpool_vmshm_component};

/// A section keeps at least this part of its memory for messages.
const HEADROOM: u64 = 16;

struct Priority(UnsafeCell<c_int>);

// SAFETY: written by Open MPI only while it registers the component, on one thread.
unsafe impl Sync for Priority {}

static PRIORITY: Priority = Priority(UnsafeCell::new(60));

/// Memory that a program has from us, by its address.
#[derive(Default)]
pub struct Given(HashMap<usize, Fragment>);

impl Given {
    /// Whether the program still has some.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
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
/// InfiniBand adapter cannot register a guest's device memory: beside such a transport, memory of the section is for those
/// who ask for it by name (the info key `mpool_hints` with the value `vmshm`).
pub unsafe extern "C" fn query(
    hints: *const c_char,
    priority: *mut c_int,
    module: *mut *mut mca_mpool_base_module_t,
) -> c_int {
    // SAFETY: Open MPI gives NULL or NUL-terminated text.
    let is_named = !hints.is_null()
        && unsafe { CStr::from_ptr(hints) }.to_bytes().windows(5).any(|word| word == b"vmshm");
    let is_ready = FABRIC.lock().as_ref().is_some_and(|fabric| fabric.has_started);
    if !is_ready || !(is_named || ompi::is_only_registrar()) {
        return ompi::OPAL_ERR_NOT_AVAILABLE as c_int;
    }
    // SAFETY: Open MPI gives valid pointers, and has registered the parameter.
    unsafe {
        *priority = if is_named { c_int::MAX } else { *PRIORITY.0.get() };
        *module = MPOOL.get();
    }
    ompi::OPAL_SUCCESS as c_int
}

/// Takes memory of the section, unless too little would be left for messages. After NULL, Open MPI calls malloc.
fn take(fabric: &mut Fabric, len: usize, align: usize) -> Option<*mut u8> {
    let headroom = usize::try_from(fabric.endpoint.section().entry.len / HEADROOM).ok()?;
    let fragment = fabric.endpoint.fragment(len)?;
    let Some(left) = fabric.endpoint.fragment(headroom) else {
        fabric.endpoint.free(fragment);
        return None;
    };
    fabric.endpoint.free(left);
    let address = fragment.ptr();
    if address.align_offset(align.max(1)) != 0 {
        fabric.endpoint.free(fragment);
        return None;
    }
    fabric.given.0.insert(address.addr(), fragment);
    Some(address)
}

unsafe extern "C" fn alloc(_: *mut mca_mpool_base_module_t, len: usize, align: usize, _: u32) -> *mut c_void {
    let mut fabric = FABRIC.lock();
    let taken = fabric.as_mut().and_then(|fabric| take(fabric, len, align));
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
    let Some(new) = take(fabric, len, align_of::<u128>()) else { return ptr::null_mut() };
    // SAFETY: both are ours, have room for `had` bytes, and do not overlap.
    unsafe { ptr::copy_nonoverlapping(old.cast::<u8>(), new, had) };
    if let Some(fragment) = fabric.given.0.remove(&old.addr()) {
        fabric.endpoint.free(fragment);
    }
    new.cast()
}

unsafe extern "C" fn free(_: *mut mca_mpool_base_module_t, address: *mut c_void) {
    if let Some(fabric) = FABRIC.lock().as_mut()
        && let Some(fragment) = fabric.given.0.remove(&address.addr())
    {
        fabric.endpoint.free(fragment);
    }
}
