//! Completions of gets, puts and atomic operations, as Open MPI wants to be told.

use std::ffi::{c_int, c_void};

use vmshm_transport::PeerError;

use super::module::MODULE;
use crate::ompi::{
    self, mca_btl_base_endpoint_t, mca_btl_base_rdma_completion_fn_t, mca_btl_base_registration_handle_t,
};

const SUCCESS: c_int = ompi::OPAL_SUCCESS as c_int;

/// The completion of an operation on a peer's memory.
#[derive(Debug)]
pub struct Completion {
    /// The peer.
    pub endpoint: *mut mca_btl_base_endpoint_t,
    /// Where the bytes are or come to, here.
    pub local: *mut c_void,
    /// Handle that `register_mem` has given for that memory, or NULL.
    pub local_handle: *mut mca_btl_base_registration_handle_t,
    /// Open MPI's function, with its two arguments.
    pub callback: mca_btl_base_rdma_completion_fn_t,
    pub context: *mut c_void,
    pub data: *mut c_void,
}

impl Completion {
    /// Tells Open MPI that the operation is over, or will never be.
    ///
    /// # Safety
    /// The fields are those that Open MPI gave for one operation. No lock may be held.
    pub unsafe fn call_back(self, status: c_int) {
        let Some(callback) = self.callback else { return };
        let Self { endpoint, local, local_handle, context, data, .. } = self;
        // SAFETY: the caller vouches for all of them.
        unsafe { callback(MODULE.get(), endpoint, local, local_handle, context, data, status) };
    }

    /// Tells Open MPI that an operation is over, and whether the peer could be reached; the code for its function, which
    /// is that of success.
    ///
    /// # Safety
    /// As [`Completion::call_back`].
    pub unsafe fn done<T>(self, result: Result<T, PeerError>) -> c_int {
        let status = if result.is_ok() { SUCCESS } else { ompi::OPAL_ERR_UNREACH as c_int };
        // SAFETY: the caller vouches for it.
        unsafe { self.call_back(status) };
        SUCCESS
    }
}
