//! `MPI_Reduce`.

use std::ffi::{c_int, c_void};
use std::ptr;

use super::datatype::{Shape, is_in_place};
use super::hierarchy::Levels;
use super::op::Operation;
use super::run::{NotDone, SUCCESS, in_levels, must_take, with};
use crate::ompi::{self, Count, mca_coll_base_module_t, ompi_communicator_t, ompi_datatype_t, ompi_op_t};

/// `MPI_Reduce`.
pub unsafe extern "C" fn reduce(
    from: *const c_void,
    to: *mut c_void,
    count: Count,
    datatype: *mut ompi_datatype_t,
    op: *mut ompi_op_t,
    root: c_int,
    comm: *mut ompi_communicator_t,
    module: *mut mca_coll_base_module_t,
) -> c_int {
    // SAFETY: Open MPI calls this for all members of the module's communicator. The buffers have `count` elements, for which
    // the operation is defined; only the root's `to` is used.
    unsafe {
        let shape = Shape::new(datatype, count);
        if shape.bytes() == 0 {
            return SUCCESS;
        }
        let levels = |levels: &Levels| {
            let root = root as usize;
            let is_theirs = !shape.goes_back() && ompi::vmshm_coll_commutes(op) && levels.is_led_by(root);
            is_theirs.then(|| levels.reduce(from, to, count, datatype, op, root))
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
                let root = root as usize;
                let source = shape.source(if is_in_place(from) { to } else { from })?;
                let mut operation = Operation::new(op, &shape);
                let (from, len) = (source.bytes(), shape.bytes());
                if root != met.group.me() {
                    met.group.reduce(root, from, ptr::null_mut(), len, &mut operation, &mut met.waiting)?;
                    return Ok(());
                }
                let sink = shape.sink(to);
                met.group.reduce(root, from, sink.bytes(), len, &mut operation, &mut met.waiting)?;
                Ok(sink.deliver()?)
            },
            |below| {
                let module = below.coll_reduce_module;
                Some(below.coll_reduce?(from, to, count, datatype, op, root, comm, module))
            },
        )
    }
}
