//! An operation's way: with the members, in levels, or by the component below.

use std::ffi::c_int;

use vmshm_transport::collective::CollError;

use super::group::Met;
use super::hierarchy::Levels;
use super::state::State;
use crate::ompi::{self, mca_coll_base_module_t, ompi_communicator_t, vmshm_coll_module_t};

/// Open MPI's code for success.
pub const SUCCESS: c_int = ompi::OPAL_SUCCESS as c_int;

/// Why an operation is not done here.
pub enum NotDone {
    /// The component below is to do it.
    Declined,
    /// Failed with Open MPI's code; the members are in step.
    Failed(c_int),
    /// The members are out of step.
    OutOfStep(CollError),
}

impl From<CollError> for NotDone {
    fn from(broken: CollError) -> Self {
        NotDone::OutOfStep(broken)
    }
}

impl From<c_int> for NotDone {
    fn from(rc: c_int) -> Self {
        NotDone::Failed(rc)
    }
}

/// Does an operation with the members, or else with the component below.
///
/// # Safety
/// As [`State::met`].
#[inline]
pub unsafe fn with(
    module: *mut mca_coll_base_module_t,
    comm: *mut ompi_communicator_t,
    work: impl FnOnce(&mut Met) -> Result<(), NotDone>,
    below: impl FnOnce(&mut ompi::mca_coll_base_comm_coll_t) -> Option<c_int>,
) -> c_int {
    let module = module.cast::<vmshm_coll_module_t>();
    // SAFETY: the module has a state as long as it lives, and its communicator is used by one thread at a time.
    let state = unsafe { &mut *(*module).state.cast::<State>() };
    // SAFETY: the caller vouches for the module and its communicator.
    let done = match unsafe { state.met(module, comm) } {
        Ok(Some(met)) => work(met),
        Ok(None) => Err(NotDone::Declined),
        Err(rc) => Err(NotDone::Failed(rc)),
    };
    match done {
        Ok(()) => SUCCESS,
        // SAFETY: what is below was saved when the module was enabled.
        Err(NotDone::Declined) => below(unsafe { &mut (*module).below }).unwrap_or(ompi::OPAL_ERROR),
        Err(NotDone::Failed(rc)) => rc,
        Err(NotDone::OutOfStep(broken)) => state.fail(broken),
    }
}

/// Does an operation in levels, if there are some and `work` does not decline; returns Open MPI's code.
///
/// # Safety
/// As [`State::met`].
#[inline]
pub unsafe fn in_levels(
    module: *mut mca_coll_base_module_t,
    comm: *mut ompi_communicator_t,
    work: impl FnOnce(&Levels) -> Option<Result<(), c_int>>,
) -> Option<c_int> {
    let module = module.cast::<vmshm_coll_module_t>();
    // SAFETY: the module has a state as long as it lives, which is not borrowed while Open MPI may call us again.
    if let Some(by) = unsafe { (*(*module).state.cast::<State>()).levels_due() } {
        // SAFETY: the caller vouches for both.
        if let Err(rc) = unsafe { State::make_levels(module, comm, by) } {
            return Some(rc);
        }
    }
    // SAFETY: the module has a state as long as it lives, and its communicator is used by one thread at a time.
    let state = unsafe { &*(*module).state.cast::<State>() };
    state.levels().and_then(work).map(|done| done.err().unwrap_or(SUCCESS))
}

/// Fails where payloads of `len` bytes a step are not for us.
#[inline]
pub fn must_take(met: &mut Met, len: usize) -> Result<(), NotDone> {
    if met.takes(len)? { Ok(()) } else { Err(NotDone::Declined) }
}
