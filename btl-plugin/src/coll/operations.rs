//! The functions that Open MPI calls.
//!
//! A payload of no bytes at all is no operation for anyone: Open MPI itself returns early on members that give a count of
//! zero, and others may come here with elements of no size.
//!
//! Where a member fails to copy its own part it does the rest all the same: the others go on to the next step.

use std::ffi::{c_int, c_void};
use std::ptr;

use vmshm_transport::collective::CollError;

use super::combine::Operation;
use super::data::Shape;
use super::levels::Levels;
use super::state::{Met, State};
use super::unequal;
use crate::ompi::{
    self, mca_coll_base_module_t, ompi_communicator_t, ompi_datatype_t, ompi_op_t, vmshm_coll_module_t,
};

const SUCCESS: c_int = ompi::OPAL_SUCCESS as c_int;

/// `MPI_IN_PLACE`.
pub fn is_in_place(buffer: *const c_void) -> bool {
    buffer.addr() == 1
}

/// Gives a module our functions.
///
/// # Safety
/// The module is ours, and Open MPI does not use it yet.
pub unsafe fn fill(module: *mut mca_coll_base_module_t) {
    // SAFETY: the caller vouches for it.
    let module = unsafe { &mut *module };
    module.coll_allgather = Some(allgather);
    module.coll_allgatherv = Some(allgatherv);
    module.coll_allreduce = Some(allreduce);
    module.coll_alltoall = Some(alltoall);
    module.coll_alltoallv = Some(unequal::alltoallv);
    module.coll_barrier = Some(barrier);
    module.coll_bcast = Some(bcast);
    module.coll_gather = Some(gather);
    module.coll_gatherv = Some(unequal::gatherv);
    module.coll_reduce = Some(reduce);
    module.coll_scatter = Some(scatter);
    module.coll_scatterv = Some(unequal::scatterv);
}

/// Why an operation is not done here.
pub(super) enum Not {
    /// The component below does it.
    Ours,
    /// It failed, with Open MPI's code.
    Possible(c_int),
    /// The members are out of step.
    Whole(CollError),
}

impl From<CollError> for Not {
    fn from(broken: CollError) -> Self {
        Not::Whole(broken)
    }
}

impl From<c_int> for Not {
    fn from(rc: c_int) -> Self {
        Not::Possible(rc)
    }
}

/// Does an operation with the members, or else with the component below.
///
/// # Safety
/// As [`State::met`].
#[inline]
pub(super) unsafe fn with(
    module: *mut mca_coll_base_module_t,
    comm: *mut ompi_communicator_t,
    work: impl FnOnce(&mut Met) -> Result<(), Not>,
    below: impl FnOnce(&mut ompi::mca_coll_base_comm_coll_t) -> Option<c_int>,
) -> c_int {
    let module = module.cast::<vmshm_coll_module_t>();
    // SAFETY: the module has a state as long as it lives, and its communicator is used by one thread at a time.
    let state = unsafe { &mut *(*module).state.cast::<State>() };
    // SAFETY: the caller vouches for the module and its communicator.
    let done = match unsafe { state.met(module, comm) } {
        Ok(Some(met)) => work(met),
        Ok(None) => Err(Not::Ours),
        Err(rc) => Err(Not::Possible(rc)),
    };
    match done {
        Ok(()) => SUCCESS,
        // SAFETY: what is below was saved when the module was enabled.
        Err(Not::Ours) => below(unsafe { &mut (*module).below }).unwrap_or(ompi::OPAL_ERROR),
        Err(Not::Possible(rc)) => rc,
        Err(Not::Whole(broken)) => state.fail(broken),
    }
}

/// Says that an operation is not for the levels: no code of Open MPI's.
const ELSEWHERE: c_int = c_int::MIN;

/// Does an operation in levels, if there are some; returns Open MPI's code.
///
/// # Safety
/// As [`State::met`].
#[inline]
unsafe fn in_levels(
    module: *mut mca_coll_base_module_t,
    comm: *mut ompi_communicator_t,
    work: impl FnOnce(&Levels) -> Result<(), c_int>,
) -> Option<c_int> {
    let module = module.cast::<vmshm_coll_module_t>();
    // SAFETY: as in `with`; the state is not borrowed while Open MPI may call us again.
    if let Some(by) = unsafe { (*(*module).state.cast::<State>()).levels_due() } {
        // SAFETY: the caller vouches for both.
        if let Err(rc) = unsafe { State::make_levels(module, comm, by) } {
            return Some(rc);
        }
    }
    // SAFETY: as above.
    let state = unsafe { &*(*module).state.cast::<State>() };
    state.levels().map(|levels| work(levels).err().unwrap_or(SUCCESS))
}

/// Fails where payloads of `len` bytes a step are not for us.
#[inline]
fn must_take(met: &mut Met, len: usize) -> Result<(), Not> {
    if met.takes(len)? { Ok(()) } else { Err(Not::Ours) }
}

unsafe extern "C" fn barrier(comm: *mut ompi_communicator_t, module: *mut mca_coll_base_module_t) -> c_int {
    // SAFETY: Open MPI calls this for all members of a communicator that the module was made for.
    unsafe {
        if let Some(rc) = in_levels(module, comm, |levels| levels.barrier()) {
            return rc;
        }
        with(
            module,
            comm,
            |met| Ok(met.group.barrier(&mut met.waiting)?),
            |below| Some(below.coll_barrier?(comm, below.coll_barrier_module)),
        )
    }
}

unsafe extern "C" fn bcast(
    buffer: *mut c_void,
    count: c_int,
    datatype: *mut ompi_datatype_t,
    root: c_int,
    comm: *mut ompi_communicator_t,
    module: *mut mca_coll_base_module_t,
) -> c_int {
    // SAFETY: as in `barrier`; the buffer has `count` elements.
    unsafe {
        let shape = Shape::new(datatype, count);
        if shape.bytes() == 0 {
            return SUCCESS;
        }
        let levels = |levels: &Levels| levels.bcast(buffer, count, datatype, root as usize);
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

unsafe extern "C" fn allreduce(
    from: *const c_void,
    to: *mut c_void,
    count: c_int,
    datatype: *mut ompi_datatype_t,
    op: *mut ompi_op_t,
    comm: *mut ompi_communicator_t,
    module: *mut mca_coll_base_module_t,
) -> c_int {
    // SAFETY: as in `barrier`; the buffers have `count` elements, for which the operation is defined.
    unsafe {
        let shape = Shape::new(datatype, count);
        if shape.bytes() == 0 {
            return SUCCESS;
        }
        let levels = |levels: &Levels| match !shape.goes_back() && ompi::vmshm_coll_commutes(op) {
            true => levels.allreduce(from, to, count, datatype, op),
            false => Err(ELSEWHERE),
        };
        if let Some(rc) = in_levels(module, comm, levels)
            && rc != ELSEWHERE
        {
            return rc;
        }
        with(
            module,
            comm,
            |met| {
                must_take(met, shape.bytes())?;
                if !met.group.fits(shape.element()) || shape.goes_back() {
                    return Err(Not::Ours);
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

unsafe extern "C" fn reduce(
    from: *const c_void,
    to: *mut c_void,
    count: c_int,
    datatype: *mut ompi_datatype_t,
    op: *mut ompi_op_t,
    root: c_int,
    comm: *mut ompi_communicator_t,
    module: *mut mca_coll_base_module_t,
) -> c_int {
    // SAFETY: as in `allreduce`; only the root's `to` is used.
    unsafe {
        let shape = Shape::new(datatype, count);
        if shape.bytes() == 0 {
            return SUCCESS;
        }
        let levels = |levels: &Levels| match !shape.goes_back()
            && ompi::vmshm_coll_commutes(op)
            && levels.is_led_by(root as usize)
        {
            true => levels.reduce(from, to, count, datatype, op, root as usize),
            false => Err(ELSEWHERE),
        };
        if let Some(rc) = in_levels(module, comm, levels)
            && rc != ELSEWHERE
        {
            return rc;
        }
        with(
            module,
            comm,
            |met| {
                must_take(met, shape.bytes())?;
                if !met.group.fits(shape.element()) || shape.goes_back() {
                    return Err(Not::Ours);
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

unsafe extern "C" fn allgather(
    from: *const c_void,
    from_count: c_int,
    from_type: *mut ompi_datatype_t,
    to: *mut c_void,
    to_count: c_int,
    to_type: *mut ompi_datatype_t,
    comm: *mut ompi_communicator_t,
    module: *mut mca_coll_base_module_t,
) -> c_int {
    // SAFETY: as in `barrier`; the buffers have so many elements, `to` for each member.
    unsafe {
        let part = Shape::new(to_type, to_count);
        if part.bytes() == 0 {
            return SUCCESS;
        }
        let place = |member: usize| part.behind(to, member as isize * to_count as isize);
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
) -> Result<(), Not> {
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

unsafe extern "C" fn allgatherv(
    from: *const c_void,
    from_count: c_int,
    from_type: *mut ompi_datatype_t,
    to: *mut c_void,
    counts: *const c_int,
    places: *const c_int,
    to_type: *mut ompi_datatype_t,
    comm: *mut ompi_communicator_t,
    module: *mut mca_coll_base_module_t,
) -> c_int {
    // SAFETY: as in `allgather`; there is a count and a place for each member.
    unsafe {
        let part = |member: usize| {
            let shape = Shape::new(to_type, *counts.add(member));
            (shape, shape.behind(to, *places.add(member) as isize))
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

/// Parts of more than so many chunks are gathered by the component below, which takes 0.8 to 0.9 of the time for them.
const MOST_GATHERED: usize = 64;

unsafe extern "C" fn gather(
    from: *const c_void,
    from_count: c_int,
    from_type: *mut ompi_datatype_t,
    to: *mut c_void,
    to_count: c_int,
    to_type: *mut ompi_datatype_t,
    root: c_int,
    comm: *mut ompi_communicator_t,
    module: *mut mca_coll_base_module_t,
) -> c_int {
    // SAFETY: as in `allgather`; only the root's `to` is used.
    unsafe {
        let is_root = ompi::vmshm_coll_rank(comm) == root;
        let part = if is_root { Shape::new(to_type, to_count) } else { Shape::new(from_type, from_count) };
        if part.bytes() == 0 {
            return SUCCESS;
        }
        let place = |member: usize| part.behind(to, member as isize * to_count as isize);
        with(
            module,
            comm,
            |met| {
                if part.bytes() > met.chunks_of(MOST_GATHERED) {
                    return Err(Not::Ours);
                }
                must_take(met, part.bytes())?;
                let (root, me, size, len) = (root as usize, met.group.me(), met.group.size(), part.bytes());
                if root != me {
                    let source = part.source(from)?;
                    let nowhere = |_| ptr::null_mut();
                    met.group.gather(root, source.bytes(), len, nowhere, &mut met.waiting)?;
                    return Ok(());
                }
                let kept = match is_in_place(from) {
                    true => Ok(()),
                    false => Shape::new(from_type, from_count).copy(from, &part, place(me)),
                };
                if part.is_contiguous() {
                    let bytes = |member: usize| part.sink(place(member)).bytes();
                    met.group.gather(root, ptr::null(), len, bytes, &mut met.waiting)?;
                    return Ok(kept?);
                }
                let mut all = vec![0u8; len * size];
                let packed = all.as_mut_ptr();
                let bytes = |member: usize| packed.add(member * len);
                met.group.gather(root, ptr::null(), len, bytes, &mut met.waiting)?;
                for member in (0..size).filter(|member| *member != me) {
                    part.unpack(place(member), bytes(member))?;
                }
                Ok(kept?)
            },
            |below| {
                let (function, module) = (below.coll_gather?, below.coll_gather_module);
                Some(function(from, from_count, from_type, to, to_count, to_type, root, comm, module))
            },
        )
    }
}

unsafe extern "C" fn scatter(
    from: *const c_void,
    from_count: c_int,
    from_type: *mut ompi_datatype_t,
    to: *mut c_void,
    to_count: c_int,
    to_type: *mut ompi_datatype_t,
    root: c_int,
    comm: *mut ompi_communicator_t,
    module: *mut mca_coll_base_module_t,
) -> c_int {
    // SAFETY: as in `allgather`; only the root's `from` is used.
    unsafe {
        let is_root = ompi::vmshm_coll_rank(comm) == root;
        let part = if is_root { Shape::new(from_type, from_count) } else { Shape::new(to_type, to_count) };
        if part.bytes() == 0 {
            return SUCCESS;
        }
        let place =
            |member: usize| part.behind(from.cast_mut(), member as isize * from_count as isize).cast_const();
        with(
            module,
            comm,
            |met| {
                let (root, me, size, len) = (root as usize, met.group.me(), met.group.size(), part.bytes());
                must_take(met, len.saturating_mul(size - 1))?;
                if !met.group.has_shares() {
                    return Err(Not::Ours);
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

/// Parts of one shape, one after another.
enum Parts {
    AsTheyAre(*const u8),
    Packed(Vec<u8>),
}

impl Parts {
    fn bytes(&self) -> *const u8 {
        match self {
            Parts::AsTheyAre(bytes) => *bytes,
            Parts::Packed(bytes) => bytes.as_ptr(),
        }
    }
}

/// The bytes of `count` parts of one shape.
///
/// # Safety
/// `place` says where each part lies.
unsafe fn parts(part: &Shape, count: usize, place: impl Fn(usize) -> *const c_void) -> Result<Parts, c_int> {
    // SAFETY: the caller vouches for the parts.
    unsafe {
        let first = part.source(place(0))?;
        let len = part.bytes();
        let follow = place(1).addr().wrapping_sub(place(0).addr()) == len;
        if part.is_contiguous() && follow {
            return Ok(Parts::AsTheyAre(first.bytes()));
        }
        let mut packed = vec![0u8; len * count];
        for (member, to) in packed.chunks_exact_mut(len).enumerate() {
            part.pack(place(member), to.as_mut_ptr())?;
        }
        Ok(Parts::Packed(packed))
    }
}

unsafe extern "C" fn alltoall(
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
                    return Err(Not::Ours);
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
