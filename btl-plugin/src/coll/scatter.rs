//! `MPI_Scatter`, `MPI_Scatterv`.

use std::ffi::{c_int, c_void};
use std::ptr;

use super::datatype::{Shape, is_in_place, parts};
use super::run::{NotDone, SUCCESS, must_take, with};
use super::vector::{elements, exchange, nothing};
use crate::ompi::{
    self, Count, Counts, Places, mca_coll_base_module_t, ompi_communicator_t, ompi_datatype_t,
};

/// `MPI_Scatter`.
pub unsafe extern "C" fn scatter(
    from: *const c_void,
    from_count: Count,
    from_type: *mut ompi_datatype_t,
    to: *mut c_void,
    to_count: Count,
    to_type: *mut ompi_datatype_t,
    root: c_int,
    comm: *mut ompi_communicator_t,
    module: *mut mca_coll_base_module_t,
) -> c_int {
    // SAFETY: Open MPI calls this for all members of the module's communicator. `to` has its elements, and at the root `from`
    // has them for each member.
    unsafe {
        let is_root = ompi::vmshm_coll_rank(comm) == root;
        let part = if is_root { Shape::new(from_type, from_count) } else { Shape::new(to_type, to_count) };
        if part.bytes() == 0 {
            return SUCCESS;
        }
        let place = |member: usize| part.part(from.cast_mut(), member).cast_const();
        with(
            module,
            comm,
            |met| {
                let (root, me, size, len) = (root as usize, met.group.me(), met.group.size(), part.bytes());
                must_take(met, len.saturating_mul(size - 1))?;
                if !met.group.has_shares() {
                    return Err(NotDone::Declined);
                }
                if root != me {
                    let sink = part.sink(to);
                    met.group.scatter(root, ptr::null(), sink.bytes(), len, &mut met.waiting)?;
                    return Ok(sink.deliver()?);
                }
                let kept = match is_in_place(to) {
                    true => Ok(()),
                    false => part.copy(place(me), &Shape::new(to_type, to_count), to),
                };
                let all = parts(&part, size, place)?;
                met.group.scatter(root, all.bytes(), ptr::null_mut(), len, &mut met.waiting)?;
                Ok(kept?)
            },
            |below| {
                let (function, module) = (below.coll_scatter?, below.coll_scatter_module);
                Some(function(from, from_count, from_type, to, to_count, to_type, root, comm, module))
            },
        )
    }
}

/// `MPI_Scatterv`.
pub unsafe extern "C" fn scatterv(
    from: *const c_void,
    counts: Counts,
    places: Places,
    from_type: *mut ompi_datatype_t,
    to: *mut c_void,
    to_count: Count,
    to_type: *mut ompi_datatype_t,
    root: c_int,
    comm: *mut ompi_communicator_t,
    module: *mut mca_coll_base_module_t,
) -> c_int {
    // SAFETY: Open MPI calls this for all members of a communicator that the module was made for; at the root there is a
    // count and a place for each member, and only its `from` is used.
    unsafe {
        with(
            module,
            comm,
            |met| {
                if !met.group.has_tables() {
                    return Err(NotDone::Declined);
                }
                let (me, root) = (met.group.me(), root as usize);
                if root != me {
                    let mine = Shape::new(to_type, to_count);
                    let taken = |member: usize| if member == root { (mine, to) } else { nothing(mine) };
                    return exchange(met, comm, None, |_| nothing(mine), taken);
                }
                let part = elements(from_type, from.cast_mut(), counts, places);
                let (my_shape, my_place) = part(me);
                let kept = match is_in_place(to) {
                    true => Ok(()),
                    false => my_shape.copy(my_place, &Shape::new(to_type, to_count), to),
                };
                exchange(met, comm, None, part, |_| nothing(my_shape))?;
                Ok(kept?)
            },
            |below| {
                let (function, module) = (below.coll_scatterv?, below.coll_scatterv_module);
                Some(function(from, counts, places, from_type, to, to_count, to_type, root, comm, module))
            },
        )
    }
}
