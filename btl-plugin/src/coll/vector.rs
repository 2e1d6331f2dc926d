//! The exchange of parts of any lengths, by which gatherv, scatterv and alltoallv work.

use std::ffi::{c_int, c_void};
use std::{mem, ptr};

use vmshm_transport::collective::{CollError, Given, Late, Part};

use super::datatype::Shape;
use super::group::Met;
use super::run::NotDone;
use crate::ompi::help;
use crate::ompi::{self, Count, Counts, Places, ompi_communicator_t, ompi_datatype_t, ompi_request_t};

/// A part of a buffer: how many elements, and where.
pub type Elements = (Shape, *mut c_void);

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
            Count,
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
                // The mismatch is reported in place of an error of this wait.
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
        if let (Ok(count), Ok(())) = (Count::try_from(told), unwanted.try_reserve_exact(told)) {
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
pub unsafe fn exchange(
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
            // A part that certainly goes as a message needs no packing here.
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

/// Each member's part of a buffer, by its rank, as operations of the vector kind are told it.
///
/// # Safety
/// While the result is used: the datatype is one of Open MPI, and there is a count and a place for each member.
pub unsafe fn elements(
    datatype: *mut ompi_datatype_t,
    buffer: *mut c_void,
    counts: Counts,
    places: Places,
) -> impl Fn(usize) -> Elements + Copy {
    // SAFETY: the caller vouches for the datatype.
    let element = unsafe { Shape::new(datatype, 1) };
    move |member: usize| {
        // SAFETY: the caller vouches for the member's count and place.
        let (count, place) = unsafe { (ompi::count_of(counts, member), ompi::place_of(places, member)) };
        (element.times(count), element.behind(buffer, place))
    }
}

/// No elements.
pub fn nothing(shape: Shape) -> Elements {
    (shape.times(0), ptr::null_mut())
}
