//! finalize: the end of the module.

use std::ffi::c_int;
use std::sync::Arc;
use std::time::Duration;

use crate::ompi::{self, help, mca_btl_base_module_t};
use crate::process::{INSTANCE, loss};
use crate::{coll, heap, mpool};

const SUCCESS: c_int = ompi::OPAL_SUCCESS as c_int;

/// Time for peers to read what was sent to them last.
const PATIENCE: Duration = Duration::from_secs(1);

/// Ends the module.
pub unsafe extern "C" fn finalize(_: *mut mca_btl_base_module_t) -> c_int {
    loss::set_callback(None);
    leave();
    SUCCESS
}

/// Leaves the region, once peers have read what was sent to them last.
pub fn leave() {
    coll::close();
    let Some(mut instance) = INSTANCE.lock().take() else { return };
    let mut inbox = instance.inbox.take().unwrap_or_default();
    instance.engine.drain(&mut inbox, PATIENCE);
    mpool::tell();
    if heap::close() {
        // The program goes on to use memory of the section.
        instance.engine.endpoint_mut().withdraw();
        return;
    }
    // Memory that the program still has becomes ordinary memory, so that the section and the device are free.
    let kept = instance.pool.keep(vmshm_section_heap::copy_limit());
    if kept.is_none() {
        help::verbose("the program has too much memory of MPI_Alloc_mem to copy it: the region stays mapped");
        std::mem::forget(Arc::clone(instance.engine.endpoint().memory()));
    }
    drop(instance);
    if kept.is_some_and(|kept| kept.restore() > 0) {
        help::verbose("memory of MPI_Alloc_mem that the program has not freed is lost");
    }
}
