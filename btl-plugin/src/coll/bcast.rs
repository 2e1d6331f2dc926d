//! `MPI_Bcast`.

use std::ffi::{c_int, c_void};

use super::datatype::Shape;
use super::hierarchy::Levels;
use super::run::{SUCCESS, in_levels, must_take, with};
use crate::ompi::{Count, mca_coll_base_module_t, ompi_communicator_t, ompi_datatype_t};

/// `MPI_Bcast`.
pub unsafe extern "C" fn bcast(
    buffer: *mut c_void,
    count: Count,
    datatype: *mut ompi_datatype_t,
    root: c_int,
    comm: *mut ompi_communicator_t,
    module: *mut mca_coll_base_module_t,
) -> c_int {
    // SAFETY: Open MPI calls this for all members of the module's communicator. The buffer has `count` elements.
    unsafe {
        let shape = Shape::new(datatype, count);
        if shape.bytes() == 0 {
            return SUCCESS;
        }
        let levels = |levels: &Levels| Some(levels.bcast(buffer, count, datatype, root as usize));
        if let Some(rc) = in_levels(module, comm, levels) {
            return rc;
        }
        with(
            module,
            comm,
            |met| {
                must_take(met, shape.bytes())?;
                let (root, len) = (root as usize, shape.bytes());
                if root == met.group.me() {
                    let source = shape.source(buffer)?;
                    met.group.broadcast(root, source.bytes().cast_mut(), len, &mut met.waiting)?;
                    return Ok(());
                }
                let sink = shape.sink(buffer);
                met.group.broadcast(root, sink.bytes(), len, &mut met.waiting)?;
                Ok(sink.deliver()?)
            },
            |below| Some(below.coll_bcast?(buffer, count, datatype, root, comm, below.coll_bcast_module)),
        )
    }
}
