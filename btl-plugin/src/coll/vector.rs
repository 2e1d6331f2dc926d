//! Operations whose parts have any lengths: gatherv, scatterv, alltoallv.

use std::ffi::{c_int, c_void};
use std::{mem, ptr};

use vmshm_transport::collective::{CollError, Given, Late, Part};

use super::datatype::Shape;
use super::datatype::is_in_place;
use super::group::Met;
use super::run::{NotDone, with};
use crate::ompi::help;
use crate::ompi::{self, mca_coll_base_module_t, ompi_communicator_t, ompi_datatype_t, ompi_request_t};

/// A part of a buffer: how many elements, and where.
type Elements = (Shape, *mut c_void);

/// The messages that bring what is too long for a slot.
struct Messages<'a, G, T> {
    comm: *mut ompi_communicator_t,
    given: G,
    taken: T,
    requests: Vec<*mut ompi_request_t>,
    /// The members whose parts come as messages.
    from: Vec<usize>,
    /// Where parts go that are longer than the place for them.
    unwanted: Vec<Vec<u8>>,
    /// Bytes of a chunk, and whether one would have had room for a part that is sent.
    chunk: usize,
    lacked_room: &'a mut bool,
    /// Open MPI's code of the first failure.
    rc: c_int,
}

impl<G: Fn(usize) -> Elements, T: Fn(usize) -> Elements> Messages<'_, G, T> {
    fn begin(
        &mut self,
        start: unsafe extern "C" fn(
            *mut c_void,
            c_int,
            *mut ompi_datatype_t,
            c_int,
            *mut ompi_communicator_t,
            *mut *mut ompi_request_t,
        ) -> c_int,
        member: usize,
        (shape, buffer): Elements,
    ) {
        let mut request = ptr::null_mut();
        // SAFETY: the buffer has its shape until `wait` has returned, and the member is one of the communicator.
        let rc = unsafe {
            start(buffer, shape.count(), shape.datatype(), member as c_int, self.comm, &raw mut request)
        };
        if rc == 0 {
            self.requests.push(request);
        } else if self.rc == 0 {
            self.rc = rc;
        }
    }

    /// Ends an exchange that came to this: waits for all messages. After [`CollError::LengthMismatch`], too, they are under way, and the
    /// members are at the same step.
    fn end(&mut self, done: Result<(), CollError>) -> Result<(), NotDone> {
        match done {
            Err(broken @ CollError::LengthMismatch { .. }) => {
                // What this fails with is told anyway.
                let _ = self.wait();
                help::verbose(&format!("a collective operation failed: {broken}"));
                Err(NotDone::Failed(ompi::MPI_ERR_TRUNCATE as c_int))
            }
            Err(broken) => {
                // Messages may still come here.
                mem::forget(mem::take(&mut self.unwanted));
                Err(NotDone::OutOfStep(broken))
            }
            Ok(()) => Ok(self.wait()?),
        }
    }

    /// Waits until all messages have been sent and received.
    fn wait(&mut self) -> Result<(), c_int> {
        if !self.requests.is_empty() {
            // SAFETY: these are requests that nobody has waited for yet.
            let rc = unsafe { ompi::vmshm_coll_wait(self.requests.len(), self.requests.as_mut_ptr()) };
            self.rc = if self.rc == 0 { rc } else { self.rc };
        }
        if self.rc == 0 { Ok(()) } else { Err(self.rc) }
    }
}

impl<G: Fn(usize) -> Elements, T: Fn(usize) -> Elements> Late for Messages<'_, G, T> {
    #[cold]
    fn send(&mut self, member: usize) {
        let elements = (self.given)(member);
        *self.lacked_room |= elements.0.bytes() <= self.chunk;
        self.begin(ompi::vmshm_coll_isend, member, elements);
    }

    #[cold]
    fn receive(&mut self, member: usize, told: usize) {
        let elements = (self.taken)(member);
        if told <= elements.0.bytes() {
            self.from.push(member);
            self.begin(ompi::vmshm_coll_irecv, member, elements);
            return;
        }
        // Open MPI 4.1 writes behind a buffer that is too short for a message that is pulled.
        let mut unwanted: Vec<u8> = Vec::new();
        if let (Ok(count), Ok(())) = (c_int::try_from(told), unwanted.try_reserve_exact(told)) {
            // SAFETY: a datatype of Open MPI.
            let bytes = unsafe { Shape::new(ompi::vmshm_coll_byte(), count) };
            self.begin(ompi::vmshm_coll_irecv, member, (bytes, unwanted.as_mut_ptr().cast()));
            self.unwanted.push(unwanted);
        }
    }
}

/// Gives the other members their parts, and takes ours. It is done also where a member fails to copy its own part, since the others
/// go on to the next step. `only` is the one whom alone anything is given, where that is known to all.
///
/// # Safety
/// The parts have their shapes, and do not overlap.
unsafe fn exchange(
    met: &mut Met,
    comm: *mut ompi_communicator_t,
    only: Option<usize>,
    given: impl Fn(usize) -> Elements,
    taken: impl Fn(usize) -> Elements,
) -> Result<(), NotDone> {
    met.ask_for_room()?;
    let (size, me, room) = (met.group.size(), met.group.me(), met.group.chunk());
    let is_plain = |(shape, _): Elements| shape.bytes() == 0 || shape.is_contiguous();
    let plain = (0..size)
        .filter(|member| *member != me)
        .all(|member| is_plain(given(member)) && is_plain(taken(member)));
    let mut late = Messages {
        comm,
        given: &given,
        taken: &taken,
        requests: Vec::new(),
        from: Vec::new(),
        unwanted: Vec::new(),
        chunk: met.chunks_of(1),
        lacked_room: &mut met.lacked_room,
        rc: 0,
    };
    // SAFETY: the caller vouches for the parts.
    unsafe {
        if plain {
            let from = |member: usize| -> Given {
                let (shape, buffer) = given(member);
                (shape.first(buffer.cast()), shape.bytes())
            };
            let to = |member: usize| -> Part {
                let (shape, buffer) = taken(member);
                (shape.first(buffer.cast()), shape.bytes())
            };
            let done = met.group.exchange_vector(only, from, to, &mut late, &mut met.waiting);
            return late.end(done);
        }
        let mut sources = Vec::with_capacity(size);
        let mut sinks = Vec::with_capacity(size);
        for member in 0..size {
            let (shape, buffer) = given(member);
            // What certainly is a message needs no packing here.
            let packs = member != me && (shape.is_contiguous() || shape.bytes() <= room);
            sources.push((packs.then(|| shape.source(buffer)).transpose()?, shape.bytes()));
            let (shape, buffer) = taken(member);
            sinks.push((shape.sink(buffer), shape.bytes()));
        }
        let from = |member: usize| -> Given {
            let (source, len) = &sources[member];
            (source.as_ref().map_or(ptr::null(), |source| source.bytes()), *len)
        };
        let to = |member: usize| -> Part { (sinks[member].0.bytes(), sinks[member].1) };
        let done = met.group.exchange_vector(only, from, to, &mut late, &mut met.waiting);
        late.end(done)?;
        for (member, (sink, len)) in sinks.into_iter().enumerate() {
            if member != me && len > 0 && !late.from.contains(&member) {
                sink.deliver()?;
            }
        }
        Ok(())
    }
}

/// No elements.
fn nothing(shape: Shape) -> Elements {
    (shape.times(0), ptr::null_mut())
}

pub(super) unsafe extern "C" fn gatherv(
    from: *const c_void,
    from_count: c_int,
    from_type: *mut ompi_datatype_t,
    to: *mut c_void,
    counts: *const c_int,
    places: *const c_int,
    to_type: *mut ompi_datatype_t,
    root: c_int,
    comm: *mut ompi_communicator_t,
    module: *mut mca_coll_base_module_t,
) -> c_int {
    // SAFETY: Open MPI calls this for all members of a communicator that the module was made for; at the root there is a
    // count and a place for each member, and only its `to` is used.
    unsafe {
        with(
            module,
            comm,
            |met| {
                let (me, root) = (met.group.me(), root as usize);
                if root != me {
                    let mine = Shape::new(from_type, from_count);
                    let given = |member: usize| {
                        if member == root { (mine, from.cast_mut()) } else { nothing(mine) }
                    };
                    return exchange(met, comm, Some(root), given, |_| nothing(mine));
                }
                let element = Shape::new(to_type, 1);
                let part = |member: usize| {
                    (element.times(*counts.add(member)), element.behind(to, *places.add(member) as isize))
                };
                let (my_shape, my_place) = part(me);
                let kept = match is_in_place(from) {
                    true => Ok(()),
                    false => Shape::new(from_type, from_count).copy(from, &my_shape, my_place),
                };
                exchange(met, comm, Some(root), |_| nothing(element), part)?;
                Ok(kept?)
            },
            |below| {
                let (function, module) = (below.coll_gatherv?, below.coll_gatherv_module);
                Some(function(from, from_count, from_type, to, counts, places, to_type, root, comm, module))
            },
        )
    }
}

pub(super) unsafe extern "C" fn scatterv(
    from: *const c_void,
    counts: *const c_int,
    places: *const c_int,
    from_type: *mut ompi_datatype_t,
    to: *mut c_void,
    to_count: c_int,
    to_type: *mut ompi_datatype_t,
    root: c_int,
    comm: *mut ompi_communicator_t,
    module: *mut mca_coll_base_module_t,
) -> c_int {
    // SAFETY: as in `gatherv`; only the root's `from` is used.
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
                let element = Shape::new(from_type, 1);
                let part = |member: usize| {
                    let place = element.behind(from.cast_mut(), *places.add(member) as isize);
                    (element.times(*counts.add(member)), place)
                };
                let (my_shape, my_place) = part(me);
                let kept = match is_in_place(to) {
                    true => Ok(()),
                    false => my_shape.copy(my_place, &Shape::new(to_type, to_count), to),
                };
                exchange(met, comm, None, part, |_| nothing(element))?;
                Ok(kept?)
            },
            |below| {
                let (function, module) = (below.coll_scatterv?, below.coll_scatterv_module);
                Some(function(from, counts, places, from_type, to, to_count, to_type, root, comm, module))
            },
        )
    }
}

pub(super) unsafe extern "C" fn alltoallv(
    from: *const c_void,
    from_counts: *const c_int,
    from_places: *const c_int,
    from_type: *mut ompi_datatype_t,
    to: *mut c_void,
    to_counts: *const c_int,
    to_places: *const c_int,
    to_type: *mut ompi_datatype_t,
    comm: *mut ompi_communicator_t,
    module: *mut mca_coll_base_module_t,
) -> c_int {
    // SAFETY: as in `gatherv`; all counts and places are there for each member.
    unsafe {
        with(
            module,
            comm,
            |met| {
                // What arrives would take the place of what is sent; it is so at all members.
                if is_in_place(from) || !met.group.has_tables() {
                    return Err(NotDone::Declined);
                }
                let (from_element, to_element) = (Shape::new(from_type, 1), Shape::new(to_type, 1));
                let given = |member: usize| {
                    let place = from_element.behind(from.cast_mut(), *from_places.add(member) as isize);
                    (from_element.times(*from_counts.add(member)), place)
                };
                let taken = |member: usize| {
                    let place = to_element.behind(to, *to_places.add(member) as isize);
                    (to_element.times(*to_counts.add(member)), place)
                };
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
