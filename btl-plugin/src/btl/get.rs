//! get: a peer's memory, as Open MPI's one-sided components and ob1's RGET use it.

use std::ffi::{c_int, c_void};

use vmshm_messaging::{Get, Refused};
use vmshm_transport::{Peer, PeerError, copy_from_shared};

use super::register_mem::read;
use crate::ompi::{
    self, help, mca_btl_base_endpoint_t, mca_btl_base_module_t, mca_btl_base_rdma_completion_fn_t,
    mca_btl_base_registration_handle_t,
};
use crate::process::{Completion, Held, INSTANCE, from_endpoint, loss};

const SUCCESS: c_int = ompi::OPAL_SUCCESS as c_int;

/// Copies a peer's memory to our own: as much as there is room for, since ob1 asks for all of a message that is longer than
/// its receiver's buffer, and tells the receiver so afterwards.
pub unsafe extern "C" fn get(
    _: *mut mca_btl_base_module_t,
    endpoint: *mut mca_btl_base_endpoint_t,
    local: *mut c_void,
    address: u64,
    local_handle: *mut mca_btl_base_registration_handle_t,
    remote_handle: *mut mca_btl_base_registration_handle_t,
    size: usize,
    _: c_int,
    _: c_int,
    callback: mca_btl_base_rdma_completion_fn_t,
    context: *mut c_void,
    data: *mut c_void,
) -> c_int {
    let completion = Completion { endpoint, local, local_handle, callback, context, data };
    let mut guard = INSTANCE.lock();
    let Some(instance) = guard.as_mut() else { return ompi::OPAL_ERR_UNREACH as c_int };
    let peer = instance.engine.peer(from_endpoint(endpoint));
    let Some((peer, proc)) = peer.and_then(|peer| Some((peer, instance.process(peer)?))) else {
        return ompi::OPAL_ERR_BAD_PARAM as c_int;
    };
    let mut len = size;
    // SAFETY: Open MPI's process lives until del_procs; context and data are the caller's, which says what they are.
    let caller = unsafe { ompi::vmshm_ompi_room(proc, context, data, local, size, &mut len) };
    if caller == ompi::VMSHM_OMPI_ROOM_UNKNOWN {
        drop(guard);
        help::verbose(
            "this ob1 does not show how much room a receiver has: it sends a long message in pieces",
        );
        // SAFETY: Open MPI gave all of it for this, and the lock is not held. To ob1 it says: have it sent, not read.
        unsafe { completion.call_back(ompi::OPAL_ERROR) };
        return SUCCESS;
    }
    let len = len.min(size);
    if len == 0 {
        drop(guard);
        // SAFETY: Open MPI gave all of it for this, and the lock is not held.
        return unsafe { completion.done(Ok(())) };
    }
    // SAFETY: Open MPI gives the handle that the peer sent, or NULL.
    let Some(handle) = (unsafe { read(remote_handle) }) else { return ompi::OPAL_ERR_BAD_PARAM as c_int };
    if let Some((source, offset)) = handle.source(address, len as u64) {
        // Only ob1 asks for sources, whatever a peer says.
        return match caller {
            ompi::VMSHM_OMPI_ROOM_KNOWN => {
                let (prefix, local) = (handle.prefix, local.cast());
                let get = Get { source, key: None, offset, prefix, local, len, done: completion };
                // SAFETY: Open MPI gives room for the bytes until the callback.
                unsafe { get_source(guard, peer, get) }
            }
            _ => ompi::OPAL_ERR_BAD_PARAM as c_int,
        };
    }
    let Some(offset) = handle.resolve(address, len as u64) else { return ompi::OPAL_ERR_BAD_PARAM as c_int };
    let endpoint = instance.engine.endpoint();
    let mut done = endpoint.check_remote(peer, offset, len as u64);
    if done.is_ok() {
        let from = endpoint.address(offset, len as u64);
        // A long copy keeps no other thread from sending.
        // SAFETY: len bytes lie in the peer's section, and Open MPI gives room for as many.
        Held::unlocked(&mut guard, || unsafe { copy_from_shared(from, local.cast(), len) });
        done = guard
            .as_mut()
            .map_or(Err(PeerError::Left), |instance| instance.engine.endpoint_mut().confirm_get(peer, len));
    }
    drop(guard);
    // SAFETY: Open MPI gave all of it for this, and the lock is not held.
    unsafe { completion.done(done) }
}

/// Gets a peer's source by rendezvous; the callback comes when it is here.
///
/// # Safety
/// As [`vmshm_messaging::Engine::get`].
unsafe fn get_source(mut guard: Held, peer: Peer, get: Get<Completion>) -> c_int {
    let Some(instance) = guard.as_mut() else { return ompi::OPAL_ERR_UNREACH as c_int };
    // SAFETY: the caller vouches for it.
    match unsafe { instance.engine.get(peer, get) } {
        Ok(None) => SUCCESS,
        Ok(Some(completion)) => {
            drop(guard);
            // SAFETY: Open MPI gave all of it for this, and the lock is not held.
            unsafe { completion.call_back(SUCCESS) };
            SUCCESS
        }
        Err((Refused::Full, _)) => ompi::OPAL_ERR_OUT_OF_RESOURCE as c_int,
        Err((Refused::Lost, _)) => {
            loss::report(&mut guard, peer);
            ompi::OPAL_ERR_UNREACH as c_int
        }
    }
}
