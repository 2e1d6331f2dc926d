//! `MPI_Allgather`, `MPI_Allgatherv`.

use std::ffi::{c_int, c_void};
use std::ptr;

use super::datatype::{Shape, is_in_place};
use super::group::Met;
use super::run::{NotDone, SUCCESS, must_take, with};
use crate::ompi::{
    self, Count, Counts, Places, mca_coll_base_module_t, ompi_communicator_t, ompi_datatype_t,
};

/// `MPI_Allgather`.
pub unsafe extern "C" fn allgather(
    from: *const c_void,
    from_count: Count,
    from_type: *mut ompi_datatype_t,
    to: *mut c_void,
    to_count: Count,
    to_type: *mut ompi_datatype_t,
    comm: *mut ompi_communicator_t,
    module: *mut mca_coll_base_module_t,
) -> c_int {
    // SAFETY: Open MPI calls this for all members of the module's communicator. `from` has its elements, and `to` has them for
    // each member.
    unsafe {
        let part = Shape::new(to_type, to_count);
        if part.bytes() == 0 {
            return SUCCESS;
        }
        let place = |member: usize| part.part(to, member);
        with(
            module,
            comm,
            |met| {
                must_take(met, part.bytes())?;
                let mine = match is_in_place(from) {
                    true => part,
                    false => Shape::new(from_type, from_count),
                };
                all_gather(met, from, mine, part.is_contiguous(), |member| (part, place(member)))
            },
            |below| {
                let (function, module) = (below.coll_allgather?, below.coll_allgather_module);
                Some(function(from, from_count, from_type, to, to_count, to_type, comm, module))
            },
        )
    }
}

/// Collects the members' parts at all of them. `place` says how and where each is to lie, and `contiguous` whether all lie
/// there as they are.
///
/// # Safety
/// The buffers have their shapes.
unsafe fn all_gather(
    met: &mut Met,
    from: *const c_void,
    mine: Shape,
    contiguous: bool,
    place: impl Fn(usize) -> (Shape, *mut c_void),
) -> Result<(), NotDone> {
    let (size, me) = (met.group.size(), met.group.me());
    let (my_shape, my_place) = place(me);
    // SAFETY: the caller vouches for the buffers.
    unsafe {
        let in_place = is_in_place(from);
        let source = if in_place { my_shape.source(my_place)? } else { mine.source(from)? };
        if contiguous {
            let part = |member: usize| {
                let (shape, place) = place(member);
                let stays = in_place && member == me;
                (if stays { ptr::null_mut() } else { shape.first(place.cast()) }, shape.bytes())
            };
            met.group.all_gather(source.bytes(), mine.bytes(), part, &mut met.waiting)?;
            return Ok(mine.must_fit(&my_shape)?);
        }
        let kept = if in_place { Ok(()) } else { mine.copy(from, &my_shape, my_place) };
        let sinks: Vec<_> = (0..size)
            .map(&place)
            .enumerate()
            // Our own part lies where it should.
            .map(|(member, (shape, place))| (member != me).then(|| (shape.sink(place), shape.bytes())))
            .collect();
        let part = |member: usize| match &sinks[member] {
            Some((sink, len)) => (sink.bytes(), *len),
            None => (ptr::null_mut(), 0),
        };
        met.group.all_gather(source.bytes(), mine.bytes(), part, &mut met.waiting)?;
        for (sink, _) in sinks.into_iter().flatten() {
            sink.deliver()?;
        }
        Ok(kept?)
    }
}

/// `MPI_Allgatherv`.
pub unsafe extern "C" fn allgatherv(
    from: *const c_void,
    from_count: Count,
    from_type: *mut ompi_datatype_t,
    to: *mut c_void,
    counts: Counts,
    places: Places,
    to_type: *mut ompi_datatype_t,
    comm: *mut ompi_communicator_t,
    module: *mut mca_coll_base_module_t,
) -> c_int {
    // SAFETY: Open MPI calls this for all members of the module's communicator. `from` has its elements, and for each member
    // there is a count and a place in `to`.
    unsafe {
        let part = |member: usize| {
            let shape = Shape::new(to_type, ompi::count_of(counts, member));
            (shape, shape.behind(to, ompi::place_of(places, member)))
        };
        // Asked first, since others may have nothing to do here.
        if (0..ompi::vmshm_coll_size(comm)).all(|member| part(member as usize).0.bytes() == 0) {
            return SUCCESS;
        }
        with(
            module,
            comm,
            |met| {
                let longest = (0..met.group.size()).map(|member| part(member).0.bytes()).max().unwrap_or(0);
                must_take(met, longest)?;
                let mine = match is_in_place(from) {
                    true => part(met.group.me()).0,
                    false => Shape::new(from_type, from_count),
                };
                let contiguous = (0..met.group.size()).all(|member| part(member).0.is_contiguous());
                all_gather(met, from, mine, contiguous, part)
            },
            |below| {
                let (function, module) = (below.coll_allgatherv?, below.coll_allgatherv_module);
                Some(function(from, from_count, from_type, to, counts, places, to_type, comm, module))
            },
        )
    }
}
