//! `MPI_Alltoall`, `MPI_Alltoallv`.

use std::ffi::{c_int, c_void};

use super::datatype::{Parts, Shape, is_in_place, parts};
use super::run::{NotDone, SUCCESS, must_take, with};
use super::vector::{elements, exchange};
use crate::ompi::{
    self, Count, Counts, Places, mca_coll_base_module_t, ompi_communicator_t, ompi_datatype_t,
};

/// `MPI_Alltoall`.
pub unsafe extern "C" fn alltoall(
    from: *const c_void,
    from_count: Count,
    from_type: *mut ompi_datatype_t,
    to: *mut c_void,
    to_count: Count,
    to_type: *mut ompi_datatype_t,
    comm: *mut ompi_communicator_t,
    module: *mut mca_coll_base_module_t,
) -> c_int {
    // SAFETY: Open MPI calls this for all members of the module's communicator. Both buffers have their elements for each
    // member.
    unsafe {
        let part = Shape::new(to_type, to_count);
        let len = part.bytes();
        if len == 0 {
            return SUCCESS;
        }
        let place = |member: usize| part.part(to, member);
        with(
            module,
            comm,
            |met| {
                let (size, me) = (met.group.size(), met.group.me());
                must_take(met, len.saturating_mul(size - 1))?;
                if !met.group.has_shares() {
                    return Err(NotDone::Declined);
                }
                let mut kept = Ok(());
                let all = if is_in_place(from) {
                    // Received parts take the place of sent ones.
                    let mut packed = vec![0u8; len * size];
                    for (member, bytes) in packed.chunks_exact_mut(len).enumerate() {
                        part.pack(place(member), bytes.as_mut_ptr())?;
                    }
                    Parts::Packed(packed)
                } else {
                    let shape = Shape::new(from_type, from_count);
                    let out = |member: usize| shape.part(from.cast_mut(), member).cast_const();
                    kept = shape.copy(out(me), &part, place(me));
                    if shape.bytes() == len {
                        parts(&shape, size, out)?
                    } else {
                        // Open MPI refuses this before, unless it is told not to look at arguments.
                        kept = Err(ompi::MPI_ERR_TRUNCATE as c_int);
                        Parts::Packed(vec![0u8; len * size])
                    }
                };
                if part.is_contiguous() && part.layout().extent as usize * ompi::non_negative(to_count) == len
                {
                    let to = part.sink(to).bytes();
                    met.group.all_to_all(all.bytes(), to, len, &mut met.waiting)?;
                    return Ok(kept?);
                }
                let mut arrived = vec![0u8; len * size];
                met.group.all_to_all(all.bytes(), arrived.as_mut_ptr(), len, &mut met.waiting)?;
                for (member, bytes) in arrived.chunks_exact(len).enumerate().filter(|(m, _)| *m != me) {
                    part.unpack(place(member), bytes.as_ptr())?;
                }
                Ok(kept?)
            },
            |below| {
                let (function, module) = (below.coll_alltoall?, below.coll_alltoall_module);
                Some(function(from, from_count, from_type, to, to_count, to_type, comm, module))
            },
        )
    }
}

/// `MPI_Alltoallv`.
pub unsafe extern "C" fn alltoallv(
    from: *const c_void,
    from_counts: Counts,
    from_places: Places,
    from_type: *mut ompi_datatype_t,
    to: *mut c_void,
    to_counts: Counts,
    to_places: Places,
    to_type: *mut ompi_datatype_t,
    comm: *mut ompi_communicator_t,
    module: *mut mca_coll_base_module_t,
) -> c_int {
    // SAFETY: Open MPI calls this for all members of a communicator that the module was made for; there are counts and places
    // for each member.
    unsafe {
        with(
            module,
            comm,
            |met| {
                // Received parts would take the place of sent ones; all members give `MPI_IN_PLACE`, or none.
                if is_in_place(from) || !met.group.has_tables() {
                    return Err(NotDone::Declined);
                }
                let given = elements(from_type, from.cast_mut(), from_counts, from_places);
                let taken = elements(to_type, to, to_counts, to_places);
                let (mine, my_place) = given(met.group.me());
                let (kept, kept_place) = taken(met.group.me());
                let kept = mine.copy(my_place, &kept, kept_place);
                exchange(met, comm, None, given, taken)?;
                Ok(kept?)
            },
            |below| {
                let (function, module) = (below.coll_alltoallv?, below.coll_alltoallv_module);
                Some(function(
                    from,
                    from_counts,
                    from_places,
                    from_type,
                    to,
                    to_counts,
                    to_places,
                    to_type,
                    comm,
                    module,
                ))
            },
        )
    }
}
