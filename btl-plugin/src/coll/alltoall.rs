//! `MPI_Alltoall`.

use std::ffi::{c_int, c_void};

use super::datatype::{Parts, Shape, is_in_place, parts};
use super::run::{NotDone, SUCCESS, must_take, with};
use crate::ompi::{self, mca_coll_base_module_t, ompi_communicator_t, ompi_datatype_t};

/// `MPI_Alltoall`.
pub unsafe extern "C" fn alltoall(
    from: *const c_void,
    from_count: c_int,
    from_type: *mut ompi_datatype_t,
    to: *mut c_void,
    to_count: c_int,
    to_type: *mut ompi_datatype_t,
    comm: *mut ompi_communicator_t,
    module: *mut mca_coll_base_module_t,
) -> c_int {
    // SAFETY: as in `allgather`; both buffers have so many elements for each member.
    unsafe {
        let part = Shape::new(to_type, to_count);
        let len = part.bytes();
        if len == 0 {
            return SUCCESS;
        }
        let place = |member: usize| part.behind(to, member as isize * to_count as isize);
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
                    // What arrives takes the place of what is sent.
                    let mut packed = vec![0u8; len * size];
                    for (member, bytes) in packed.chunks_exact_mut(len).enumerate() {
                        part.pack(place(member), bytes.as_mut_ptr())?;
                    }
                    Parts::Packed(packed)
                } else {
                    let shape = Shape::new(from_type, from_count);
                    let out = |member: usize| {
                        shape.behind(from.cast_mut(), member as isize * from_count as isize).cast_const()
                    };
                    kept = shape.copy(out(me), &part, place(me));
                    if shape.bytes() == len {
                        parts(&shape, size, out)?
                    } else {
                        // Open MPI refuses this before, unless it is told not to look at arguments.
                        kept = Err(ompi::MPI_ERR_TRUNCATE as c_int);
                        Parts::Packed(vec![0u8; len * size])
                    }
                };
                if part.is_contiguous() && part.layout().extent as usize * to_count as usize == len {
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
