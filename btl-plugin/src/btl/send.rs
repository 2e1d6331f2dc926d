//! send: the message of a descriptor.

use std::ffi::c_int;
use std::ptr;

use super::prepare::free;
use crate::ompi::{self, mca_btl_base_descriptor_t, mca_btl_base_endpoint_t, mca_btl_base_module_t};
use crate::process::{Descriptor, INSTANCE, MODULE, Posted, from_endpoint, loss};

const SUCCESS: c_int = ompi::OPAL_SUCCESS as c_int;

/// Sends a descriptor's message.
pub unsafe extern "C" fn send(
    _: *mut mca_btl_base_module_t,
    endpoint: *mut mca_btl_base_endpoint_t,
    descriptor: *mut mca_btl_base_descriptor_t,
    tag: u8,
) -> c_int {
    let descriptor = Descriptor::from_c(descriptor);
    let mut guard = INSTANCE.lock();
    let Some(instance) = guard.as_mut() else { return ompi::OPAL_ERR_UNREACH as c_int };
    let Some(peer) = instance.engine.peer(from_endpoint(endpoint)) else {
        return ompi::OPAL_ERR_UNREACH as c_int;
    };
    // SAFETY: Open MPI gives a descriptor of ours, and leaves it to us if this returns no error. The flag is set before
    // the message is in flight: a callback is due whenever it completes later.
    let posted = unsafe {
        if Descriptor::has_fragment(descriptor) || !instance.engine.is_free(peer) {
            Descriptor::always_call_back(descriptor);
        }
        instance.post(peer, descriptor, ompi::to_wire(tag))
    };
    if posted != Posted::Lost {
        // The header of a long message is on its way: now its prefix.
        instance.engine.fill();
    }
    match posted {
        Posted::Later => {
            // A full ring was not foreseen above. The lock is still held: it cannot have completed yet.
            // SAFETY: the descriptor is ours, and in flight until its callback, which has not been called.
            unsafe { Descriptor::always_call_back(descriptor) };
            SUCCESS
        }
        Posted::Done => {
            drop(guard);
            // SAFETY: the message is in the ring; the descriptor is complete, and freed only if it is ours.
            unsafe {
                if Descriptor::call_back(descriptor, MODULE.get(), SUCCESS) {
                    free(ptr::null_mut(), Descriptor::to_c(descriptor));
                }
            }
            1
        }
        Posted::Lost => {
            loss::report(&mut guard, peer);
            ompi::OPAL_ERR_UNREACH as c_int
        }
    }
}
