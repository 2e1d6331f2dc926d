//! Direct windows: everyone may write everyone's memory, and does all by itself. So it is in an open region, and among
//! processes of one section.

use std::cell::{Cell, RefCell};
use std::ffi::{c_int, c_void};
use std::ptr;

use vmshm_transport::abi::{EndpointId, EndpointName};

use super::epochs;
use super::members::{self, Member, Members, Wanted, checked, code};
use super::requests;
use super::state::State;
use crate::fabric::FABRIC;
use crate::ompi::{self, ompi_datatype_t, ompi_op_t, ompi_osc_base_module_t, ompi_win_t};

const SUCCESS: c_int = ompi::OPAL_SUCCESS as c_int;

/// A direct window.
#[repr(C)]
pub struct Direct {
    /// What Open MPI calls: it takes the window for this.
    functions: ompi_osc_base_module_t,
    /// Its processes.
    pub members: Members,
    /// What they have for each other.
    pub targets: Vec<Target>,
    /// The user asks for the others' memory, to use it as its own.
    is_shared: bool,
    /// Those whose memory an epoch of `MPI_Win_start` is for.
    pub started: RefCell<Option<Vec<usize>>>,
    /// How many have to complete after `MPI_Win_post`.
    pub posted: Cell<Option<u64>>,
}

/// A process of the window.
pub struct Target {
    member: Member,
    /// Its words.
    pub state: State,
    /// How this process has locked it.
    pub lock: Cell<Option<epochs::Locked>>,
}

/// The window's own functions.
const FUNCTIONS: ompi_osc_base_module_t = ompi_osc_base_module_t {
    osc_win_shared_query: Some(shared_query),
    osc_win_attach: Some(attach),
    osc_win_detach: Some(detach),
    osc_free: Some(free),
    osc_put: Some(put),
    osc_get: Some(get),
    osc_accumulate: Some(accumulate),
    osc_compare_and_swap: Some(compare_and_swap),
    osc_fetch_and_op: Some(requests::fetch_and_op),
    osc_get_accumulate: Some(get_accumulate),
    osc_rput: Some(requests::rput),
    osc_rget: Some(requests::rget),
    osc_raccumulate: Some(requests::raccumulate),
    osc_rget_accumulate: Some(requests::rget_accumulate),
    osc_fence: Some(epochs::fence),
    osc_start: Some(epochs::start),
    osc_complete: Some(epochs::complete),
    osc_post: Some(epochs::post),
    osc_wait: Some(epochs::wait),
    osc_test: Some(epochs::test),
    osc_lock: Some(epochs::lock),
    osc_unlock: Some(epochs::unlock),
    osc_lock_all: Some(epochs::lock_all),
    osc_unlock_all: Some(epochs::unlock_all),
    osc_sync: Some(epochs::sync),
    osc_flush: Some(epochs::flush),
    osc_flush_all: Some(epochs::flush_all),
    osc_flush_local: Some(epochs::flush),
    osc_flush_local_all: Some(epochs::flush_all),
};

/// Whether all processes with these names may write each other's sections.
pub fn is_possible(names: &[EndpointName]) -> bool {
    FABRIC.lock().as_ref().is_some_and(|fabric| {
        let region = fabric.endpoint.region();
        let section = |name: &EndpointName| {
            let (section, _) = region.place(EndpointId(name.id))?;
            Some(section.entry.offset)
        };
        let mine = section(&fabric.endpoint.name());
        mine.is_some() && (region.is_open() || names.iter().all(|name| section(name) == mine))
    })
}

/// Makes a direct window, or returns false if some process's memory is not in its section.
///
/// # Errors
/// Open MPI's code.
///
/// # Safety
/// All of it is Open MPI's, for a new window. All processes call this with names of all of them.
pub unsafe fn make(win: *mut ompi_win_t, wanted: &Wanted, names: &[EndpointName]) -> Result<bool, c_int> {
    // SAFETY: the caller vouches for all.
    let Some(members) = (unsafe { members::meet(wanted, names, State::len(names.len()), true)? }) else {
        return Ok(false);
    };
    let target = |member: &Member| Target {
        member: *member,
        // SAFETY: its process has cleared so many bytes there; they are in the region, which stays mapped, and may be
        // written, as `is_possible` said.
        state: unsafe { State::new(member.words) },
        lock: Cell::new(None),
    };
    let window = Box::new(Direct {
        functions: FUNCTIONS,
        targets: members.all.iter().map(target).collect(),
        members,
        is_shared: wanted.flavor == ompi::MPI_WIN_FLAVOR_SHARED,
        started: RefCell::new(None),
        posted: Cell::new(None),
    });
    // SAFETY: as above.
    unsafe { ompi::vmshm_osc_set_module(win, Box::into_raw(window).cast()) };
    Ok(true)
}

/// The window behind Open MPI's.
///
/// # Safety
/// Open MPI calls this for a direct window, which it has not freed.
#[inline]
pub unsafe fn of<'a>(win: *mut ompi_win_t) -> &'a Direct {
    // SAFETY: the caller vouches for it: `make` has put it there.
    unsafe { &*ompi::vmshm_osc_module(win).cast::<Direct>() }
}

impl Direct {
    /// A process by its rank.
    ///
    /// # Errors
    /// There is none.
    #[inline]
    pub fn target(&self, rank: c_int) -> Result<&Target, c_int> {
        let target = usize::try_from(rank).ok().and_then(|rank| self.targets.get(rank));
        target.ok_or(ompi::OPAL_ERR_BAD_PARAM)
    }
}

unsafe extern "C" fn put(
    origin: *const c_void,
    origin_count: c_int,
    origin_type: *mut ompi_datatype_t,
    target: c_int,
    displacement: isize,
    target_count: c_int,
    target_type: *mut ompi_datatype_t,
    win: *mut ompi_win_t,
) -> c_int {
    let work = || {
        // SAFETY: Open MPI gives a window, datatypes, and elements of the origin's.
        unsafe {
            let target = of(win).target(target)?;
            let to = target.member.elements(displacement, target_count, target_type)?;
            checked(ompi::vmshm_osc_copy(
                origin,
                origin_count,
                origin_type,
                to.cast(),
                target_count,
                target_type,
            ))
        }
    };
    code(work())
}

unsafe extern "C" fn get(
    origin: *mut c_void,
    origin_count: c_int,
    origin_type: *mut ompi_datatype_t,
    target: c_int,
    displacement: isize,
    target_count: c_int,
    target_type: *mut ompi_datatype_t,
    win: *mut ompi_win_t,
) -> c_int {
    let work = || {
        // SAFETY: Open MPI gives a window, datatypes, and room for the origin's elements.
        unsafe {
            let target = of(win).target(target)?;
            let from = target.member.elements(displacement, target_count, target_type)?;
            checked(ompi::vmshm_osc_copy(
                from.cast(),
                target_count,
                target_type,
                origin,
                origin_count,
                origin_type,
            ))
        }
    };
    code(work())
}

unsafe extern "C" fn accumulate(
    origin: *const c_void,
    origin_count: c_int,
    origin_type: *mut ompi_datatype_t,
    target: c_int,
    displacement: isize,
    target_count: c_int,
    target_type: *mut ompi_datatype_t,
    op: *mut ompi_op_t,
    win: *mut ompi_win_t,
) -> c_int {
    let work = || {
        // SAFETY: Open MPI gives a window, datatypes, an operation, and elements of the origin's.
        unsafe {
            let target = of(win).target(target)?;
            let at = target.member.elements(displacement, target_count, target_type)?.cast();
            checked(ompi::vmshm_osc_fits(origin_count, origin_type, target_count, target_type, op))?;
            checked(target.state.guarded(epochs::pause, || {
                ompi::vmshm_osc_combine(origin, origin_count, origin_type, at, target_count, target_type, op)
            }))
        }
    };
    code(work())
}

unsafe extern "C" fn get_accumulate(
    origin: *const c_void,
    origin_count: c_int,
    origin_type: *mut ompi_datatype_t,
    result: *mut c_void,
    result_count: c_int,
    result_type: *mut ompi_datatype_t,
    target: c_int,
    displacement: isize,
    target_count: c_int,
    target_type: *mut ompi_datatype_t,
    op: *mut ompi_op_t,
    win: *mut ompi_win_t,
) -> c_int {
    let work = || {
        // SAFETY: Open MPI gives a window, datatypes, an operation, elements of the origin's and room for the result's.
        unsafe {
            let target = of(win).target(target)?;
            let at = target.member.elements(displacement, target_count, target_type)?.cast();
            checked(ompi::vmshm_osc_fits(origin_count, origin_type, target_count, target_type, op))?;
            target.state.guarded(epochs::pause, || {
                checked(ompi::vmshm_osc_copy(
                    at,
                    target_count,
                    target_type,
                    result,
                    result_count,
                    result_type,
                ))?;
                checked(ompi::vmshm_osc_combine(
                    origin,
                    origin_count,
                    origin_type,
                    at,
                    target_count,
                    target_type,
                    op,
                ))
            })
        }
    };
    code(work())
}

unsafe extern "C" fn compare_and_swap(
    origin: *const c_void,
    compare: *const c_void,
    result: *mut c_void,
    datatype: *mut ompi_datatype_t,
    target: c_int,
    displacement: isize,
    win: *mut ompi_win_t,
) -> c_int {
    let work = || {
        // SAFETY: Open MPI gives a window, a datatype, two elements of it and room for one.
        unsafe {
            let target = of(win).target(target)?;
            let at = target.member.elements(displacement, 1, datatype)?.cast();
            target.state.guarded(epochs::pause, || {
                ompi::vmshm_osc_swap(origin, compare, result, datatype, at);
            });
        }
        Ok(())
    };
    code(work())
}

unsafe extern "C" fn shared_query(
    win: *mut ompi_win_t,
    rank: c_int,
    size: *mut usize,
    unit: *mut c_int,
    base: *mut c_void,
) -> c_int {
    // SAFETY: Open MPI gives a window.
    let window = unsafe { of(win) };
    if !window.is_shared {
        return ompi::MPI_ERR_WIN as c_int;
    }
    // Without a rank, the first one that has memory is meant.
    let found = if rank == ompi::MPI_PROC_NULL {
        window.members.all.iter().find(|member| member.len > 0)
    } else {
        match window.target(rank) {
            Ok(target) => Some(&target.member),
            Err(code) => return code,
        }
    };
    let (at, len, scale) =
        found.map_or((ptr::null_mut(), 0, 0), |member| (member.base, member.len, member.unit));
    // SAFETY: there is room for all three; the base is a pointer to one.
    unsafe {
        *size = len;
        *unit = scale;
        *base.cast::<*mut u8>() = at;
    }
    SUCCESS
}

unsafe extern "C" fn attach(_: *mut ompi_win_t, _: *mut c_void, _: usize) -> c_int {
    ompi::MPI_ERR_RMA_ATTACH as c_int
}

unsafe extern "C" fn detach(_: *mut ompi_win_t, _: *const c_void) -> c_int {
    ompi::MPI_ERR_RMA_ATTACH as c_int
}

unsafe extern "C" fn free(win: *mut ompi_win_t) -> c_int {
    // SAFETY: Open MPI gives a window, and does not use it after this.
    let window = unsafe { Box::from_raw(ompi::vmshm_osc_module(win).cast::<Direct>()) };
    // SAFETY: the communicator is the window's. After the barrier nobody uses our memory any more.
    unsafe { ompi::vmshm_osc_barrier(window.members.comm) }
}
