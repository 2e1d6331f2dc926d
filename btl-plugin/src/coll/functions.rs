//! The operations that a module takes over.
//!
//! A payload of no bytes at all is no operation for anyone: Open MPI itself returns early on members that give a count of
//! zero, and others may come here with elements of no size.
//!
//! Where a member fails to copy its own part it does the rest all the same: the others go on to the next step.

use super::{allgather, allreduce, alltoall, barrier, bcast, gather, reduce, scatter};
use crate::ompi::mca_coll_base_module_t;

/// Gives a module our functions.
///
/// # Safety
/// The module is ours, and Open MPI does not use it yet.
pub unsafe fn fill(module: *mut mca_coll_base_module_t) {
    // SAFETY: the caller vouches for it.
    let module = unsafe { &mut *module };
    module.coll_allgather = Some(allgather::allgather);
    module.coll_allgatherv = Some(allgather::allgatherv);
    module.coll_allreduce = Some(allreduce::allreduce);
    module.coll_alltoall = Some(alltoall::alltoall);
    module.coll_alltoallv = Some(alltoall::alltoallv);
    module.coll_barrier = Some(barrier::barrier);
    module.coll_bcast = Some(bcast::bcast);
    module.coll_gather = Some(gather::gather);
    module.coll_gatherv = Some(gather::gatherv);
    module.coll_reduce = Some(reduce::reduce);
    module.coll_scatter = Some(scatter::scatter);
    module.coll_scatterv = Some(scatter::scatterv);
}
