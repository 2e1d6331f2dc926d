//! Names of endpoints, as processes have published them.

use std::collections::HashMap;

use parking_lot::Mutex;
use vmshm_transport::abi::EndpointName;

use crate::ompi::{self, opal_proc_t};

/// Endpoints that processes have published, so that Open MPI is asked once.
static NAMES: Mutex<Option<HashMap<usize, Option<EndpointName>>>> = Mutex::new(None);

/// The endpoint that a process has published.
///
/// # Safety
/// `proc` is a process of Open MPI.
pub unsafe fn name_of(proc: *const opal_proc_t) -> Option<EndpointName> {
    let mut names = NAMES.lock();
    let names = names.get_or_insert_default();
    // SAFETY: the caller vouches for it.
    *names.entry(proc.addr()).or_insert_with(|| unsafe { ompi::lookup(proc) })
}

/// Forgets all endpoints.
pub fn forget_names() {
    *NAMES.lock() = None;
}
