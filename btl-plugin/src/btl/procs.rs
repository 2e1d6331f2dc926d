//! add_procs, del_procs, register_error: the processes of a job.

use std::ffi::c_int;
use std::ptr;

use vmshm_transport::{ConnectError, Peer};

use crate::heap;
use crate::ompi::help::{self, Topic};
use crate::ompi::{self, mca_btl_base_endpoint_t, mca_btl_base_module_t, opal_bitmap_t, opal_proc_t};
use crate::process::{INSTANCE, from_endpoint, loss, to_endpoint};

const SUCCESS: c_int = ompi::OPAL_SUCCESS as c_int;

/// Meets processes.
pub unsafe extern "C" fn add_procs(
    _: *mut mca_btl_base_module_t,
    count: usize,
    procs: *mut *mut opal_proc_t,
    endpoints: *mut *mut mca_btl_base_endpoint_t,
    reachable: *mut opal_bitmap_t,
) -> c_int {
    let has_started =
        INSTANCE.lock().as_mut().map(|instance| std::mem::replace(&mut instance.has_started, true));
    if has_started == Some(false) {
        heap::open();
    }
    for i in 0..count {
        // SAFETY: Open MPI gives count processes and room for as many endpoints.
        unsafe {
            let proc = *procs.add(i);
            let peer = meet(proc);
            *endpoints.add(i) = peer.map_or(ptr::null_mut(), to_endpoint);
            if peer.is_some() && !reachable.is_null() {
                let rc = ompi::opal_bitmap_set_bit(reachable, i as c_int);
                if rc != SUCCESS {
                    return rc;
                }
            }
        }
    }
    SUCCESS
}

/// Meets a process, wherever its host's name says it is: who sees the same region can be reached.
///
/// # Safety
/// `proc` is a process of Open MPI.
unsafe fn meet(proc: *mut opal_proc_t) -> Option<Peer> {
    // SAFETY: the caller vouches for it.
    let name = unsafe {
        if ptr::eq(proc, ompi::opal_proc_local_get()) {
            return None;
        }
        ompi::lookup(proc)?
    };
    let met = INSTANCE.lock().as_mut()?.connect(&name, proc);
    match met {
        Ok(peer) => Some(peer),
        // Not an error: other ways may lead there.
        Err(ConnectError::OtherRegion | ConnectError::Ourselves) => None,
        Err(error) => {
            // SAFETY: the caller vouches for the process.
            let who = unsafe { ompi::describe(proc) };
            let message = format!("{who} is not reached this way: {error}.");
            loss::report_lost_device(&mut INSTANCE.lock());
            if matches!(error, ConnectError::Gone) {
                help::verbose(&message);
            } else {
                help::show(Topic::Unavailable, &message);
            }
            None
        }
    }
}

/// Forgets processes.
pub unsafe extern "C" fn del_procs(
    _: *mut mca_btl_base_module_t,
    count: usize,
    _: *mut *mut opal_proc_t,
    endpoints: *mut *mut mca_btl_base_endpoint_t,
) -> c_int {
    if let Some(instance) = INSTANCE.lock().as_mut() {
        for i in 0..count {
            // SAFETY: Open MPI gives count endpoints.
            instance.remove(from_endpoint(unsafe { *endpoints.add(i) }));
        }
    }
    SUCCESS
}

/// Notes what Open MPI calls when a peer is lost.
pub unsafe extern "C" fn register_error(
    _: *mut mca_btl_base_module_t,
    callback: ompi::mca_btl_base_module_error_cb_fn_t,
) -> c_int {
    loss::set_callback(callback);
    SUCCESS
}
