//! `MPI_Barrier`.

use std::ffi::c_int;

use super::run::{in_levels, with};
use crate::ompi::{mca_coll_base_module_t, ompi_communicator_t};

/// `MPI_Barrier`.
pub unsafe extern "C" fn barrier(
    comm: *mut ompi_communicator_t,
    module: *mut mca_coll_base_module_t,
) -> c_int {
    // SAFETY: Open MPI calls this for all members of a communicator that the module was made for.
    unsafe {
        if let Some(rc) = in_levels(module, comm, |levels| Some(levels.barrier())) {
            return rc;
        }
        with(
            module,
            comm,
            |met| Ok(met.group.barrier(&mut met.waiting)?),
            |below| Some(below.coll_barrier?(comm, below.coll_barrier_module)),
        )
    }
}
