//! put, flush: a peer's memory, written in open regions.

use std::convert::identity;
use std::ffi::{c_int, c_void};

use vmshm_transport::Peer;
use vmshm_transport::attach::Attached;

use super::register_mem::read;
use crate::ompi::{
    self, mca_btl_base_endpoint_t, mca_btl_base_module_t, mca_btl_base_rdma_completion_fn_t,
    mca_btl_base_registration_handle_t,
};
use crate::process::{Completion, INSTANCE, from_endpoint};

const SUCCESS: c_int = ompi::OPAL_SUCCESS as c_int;

/// Does `work` on `len` bytes of a peer's memory, under the lock.
///
/// # Errors
/// Open MPI's code, where there is no such memory.
///
/// # Safety
/// `handle` is a copy of a peer's handle, or NULL.
pub unsafe fn at_remote<T>(
    endpoint: *const mca_btl_base_endpoint_t,
    address: u64,
    handle: *const mca_btl_base_registration_handle_t,
    len: u64,
    work: impl FnOnce(&mut Attached, Peer, u64) -> T,
) -> Result<T, c_int> {
    let mut instance = INSTANCE.lock();
    let engine = &mut instance.as_mut().ok_or(ompi::OPAL_ERR_UNREACH as c_int)?.engine;
    let peer = engine.peer(from_endpoint(endpoint));
    // SAFETY: the caller vouches for it.
    let offset = unsafe { read(handle) }.and_then(|handle| handle.resolve(address, len));
    let (peer, offset) = peer.zip(offset).ok_or(ompi::OPAL_ERR_BAD_PARAM as c_int)?;
    Ok(work(engine.endpoint_mut(), peer, offset))
}

/// Copies our own memory to a peer's.
pub unsafe extern "C" fn put(
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
    let work = |endpoint: &mut Attached, peer, offset| {
        // SAFETY: Open MPI gives size bytes.
        unsafe { endpoint.put(peer, offset, local.cast(), size) }
    };
    let completion = Completion { endpoint, local, local_handle, callback, context, data };
    // SAFETY: Open MPI gives the handle that the peer sent; the callback gets what was given for it.
    unsafe {
        at_remote(endpoint, address, remote_handle, size as u64, work)
            .map_or_else(identity, |done| completion.done(done))
    }
}

/// Waits for all operations on peers' memory; each is over when its function returns.
pub unsafe extern "C" fn flush(_: *mut mca_btl_base_module_t, _: *mut mca_btl_base_endpoint_t) -> c_int {
    SUCCESS
}
