//! alloc, free, prepare_src: descriptors.

use std::ffi::c_int;
use std::ptr;

use vmshm_transport::copy_to_shared;

use crate::ompi::{
    self, mca_btl_base_descriptor_t, mca_btl_base_endpoint_t, mca_btl_base_module_t, opal_convertor_t,
};
use crate::process::{Descriptor, INSTANCE, from_endpoint};

const SUCCESS: c_int = ompi::OPAL_SUCCESS as c_int;

/// Hands out a descriptor.
pub unsafe extern "C" fn alloc(
    _: *mut mca_btl_base_module_t,
    endpoint: *mut mca_btl_base_endpoint_t,
    order: u8,
    size: usize,
    flags: u32,
) -> *mut mca_btl_base_descriptor_t {
    let mut instance = INSTANCE.lock();
    let Some(instance) = instance.as_mut() else { return ptr::null_mut() };
    let Some(peer) = instance.engine.peer(from_endpoint(endpoint)) else { return ptr::null_mut() };
    instance.descriptor(peer, size, order, flags).map_or(ptr::null_mut(), Descriptor::to_c)
}

/// Takes a descriptor back.
pub unsafe extern "C" fn free(
    _: *mut mca_btl_base_module_t,
    descriptor: *mut mca_btl_base_descriptor_t,
) -> c_int {
    let descriptor = Descriptor::from_c(descriptor);
    match INSTANCE.lock().as_mut() {
        // SAFETY: Open MPI gives back what alloc or prepare_src gave it.
        Some(instance) => unsafe { instance.free(descriptor) },
        // SAFETY: Open MPI gives back what alloc or prepare_src gave it. The section is gone, and the fragment with it.
        None => drop(unsafe { Descriptor::take_back(descriptor) }),
    }
    SUCCESS
}

/// Copies the convertor's next bytes to `to`, and returns how many, or None where it cannot. Not by `memcpy`: on AMD's Zen
/// glibc takes `rep movsb` from 2 KiB on, also where it crawls, as from the start of a page to behind a header.
///
/// # Safety
/// `convertor` is Open MPI's and has `len` bytes, and `to` is memory of our section with room for them.
#[inline]
pub unsafe fn pack(convertor: *mut opal_convertor_t, to: *mut u8, len: usize) -> Option<usize> {
    let mut data = ptr::null_mut();
    // SAFETY: the caller vouches for it; `contiguous` says that len bytes lie at data.
    unsafe {
        if ompi::vmshm_ompi_contiguous(convertor, &mut data) {
            copy_to_shared(data.cast::<u8>(), to, len);
            return Some(len);
        }
        let mut packed = len;
        (ompi::vmshm_ompi_pack(convertor, to.cast(), &mut packed) >= 0).then_some(packed)
    }
}

/// Hands out a descriptor, and packs a message into it.
pub unsafe extern "C" fn prepare_src(
    _: *mut mca_btl_base_module_t,
    endpoint: *mut mca_btl_base_endpoint_t,
    convertor: *mut opal_convertor_t,
    order: u8,
    reserve: usize,
    size: *mut usize,
    flags: u32,
) -> *mut mca_btl_base_descriptor_t {
    // SAFETY: Open MPI gives a valid pointer.
    let wanted = unsafe { *size };
    let handed = {
        let mut instance = INSTANCE.lock();
        let Some(instance) = instance.as_mut() else { return ptr::null_mut() };
        let Some(peer) = instance.engine.peer(from_endpoint(endpoint)) else { return ptr::null_mut() };
        // Open MPI keeps to the limits of the module, so that the sum neither overflows nor is out of bounds.
        instance.descriptor(peer, reserve.saturating_add(wanted), order, flags)
    };
    let Some(descriptor) = handed else { return ptr::null_mut() };
    // SAFETY: the descriptor is ours and has room for reserve + wanted bytes.
    unsafe {
        let (data, _) = Descriptor::payload(descriptor);
        let Some(packed) = pack(convertor, data.add(reserve), wanted) else {
            free(ptr::null_mut(), Descriptor::to_c(descriptor));
            return ptr::null_mut();
        };
        *size = packed;
        Descriptor::shorten(descriptor, reserve + packed);
    }
    Descriptor::to_c(descriptor)
}
