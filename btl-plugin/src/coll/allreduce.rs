//! `MPI_Allreduce`.

use std::ffi::{c_int, c_void};

use super::datatype::{Shape, is_in_place};
use super::hierarchy::Levels;
use super::op::Operation;
use super::run::{NotDone, SUCCESS, in_levels, must_take, with};
use crate::ompi::{self, Count, mca_coll_base_module_t, ompi_communicator_t, ompi_datatype_t, ompi_op_t};

/// `MPI_Allreduce`.
pub unsafe extern "C" fn allreduce(
    from: *const c_void,
    to: *mut c_void,
    count: Count,
    datatype: *mut ompi_datatype_t,
    op: *mut ompi_op_t,
    comm: *mut ompi_communicator_t,
    module: *mut mca_coll_base_module_t,
) -> c_int {
    // SAFETY: Open MPI calls this for all members of the module's communicator. The buffers have `count` elements, for which
    // the operation is defined.
    unsafe {
        let shape = Shape::new(datatype, count);
        if shape.bytes() == 0 {
            return SUCCESS;
        }
        let levels = |levels: &Levels| {
            let is_theirs = !shape.goes_back() && ompi::vmshm_coll_commutes(op);
            is_theirs.then(|| levels.allreduce(from, to, count, datatype, op))
        };
        if let Some(rc) = in_levels(module, comm, levels) {
            return rc;
        }
        with(
            module,
            comm,
            |met| {
                must_take(met, shape.bytes())?;
                if !met.group.fits(shape.element()) || shape.goes_back() {
                    return Err(NotDone::Declined);
                }
                let source = shape.source(if is_in_place(from) { to } else { from })?;
                let sink = shape.sink(to);
                let mut operation = Operation::new(op, &shape);
                let (from, to, len) = (source.bytes(), sink.bytes(), shape.bytes());
                met.group.all_reduce(from, to, len, &mut operation, &mut met.waiting)?;
                Ok(sink.deliver()?)
            },
            |below| {
                let module = below.coll_allreduce_module;
                Some(below.coll_allreduce?(from, to, count, datatype, op, comm, module))
            },
        )
    }
}
