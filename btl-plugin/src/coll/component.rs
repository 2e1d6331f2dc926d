//! The component's functions, which Open MPI calls once, and for each new communicator.

use std::ffi::c_int;
use std::ptr;

use vmshm_transport::abi::EndpointName;

use super::functions;
use super::hierarchy::{By, has_neighbours, is_one_region};
use super::meet::Members;
use super::names::name_of;
use super::state::{self, State};
use crate::ompi::{self, mca_coll_base_module_t, ompi_communicator_t, vmshm_coll_module_t};
use crate::process::{INSTANCE, params};

/// Registers the parameters.
pub unsafe extern "C" fn register() -> c_int {
    if !ompi::is_built_for_this() {
        // The BTL says so to the user.
        return ompi::OPAL_ERR_NOT_AVAILABLE as c_int;
    }
    params::register_coll();
    ompi::OPAL_SUCCESS as c_int
}

/// The criterion that parts the members into levels, if the user wants levels.
fn parted_by(names: &[EndpointName], endpoints: u32) -> Option<By> {
    let levels = params::coll_levels();
    let (by, least) = match is_one_region(names) {
        false => (By::Region, 1),
        true => (By::Section { endpoints }, 2),
    };
    (levels >= least && has_neighbours(names, by)).then_some(by)
}

/// Called once.
pub unsafe extern "C" fn init_query(_: bool, _: bool) -> c_int {
    ompi::OPAL_SUCCESS as c_int
}

/// Offers a module for a communicator, if all of its processes have published an endpoint in one region, or in several
/// where the user wants levels. All of them come to the same conclusion, since all know the same; whether it works they find
/// out together when it is first used.
pub unsafe extern "C" fn comm_query(
    comm: *mut ompi_communicator_t,
    priority: *mut c_int,
) -> *mut mca_coll_base_module_t {
    // SAFETY: Open MPI gives a valid communicator and a valid pointer, and has registered the parameters.
    unsafe {
        *priority = params::coll_priority();
        // A member that waits in one of ours does not learn that the communicator was revoked.
        if *priority < 0 || ompi::vmshm_coll_survives() {
            return ptr::null_mut();
        }
        let Some(state) = offer(comm) else { return ptr::null_mut() };
        let module = ompi::vmshm_coll_new(Some(state::destruct));
        if module.is_null() {
            return ptr::null_mut();
        }
        (*module).state = State::keep(state).cast();
        functions::fill(&raw mut (*module).super_);
        (*module).super_.coll_module_enable = Some(enable);
        (*module).super_.coll_module_disable = Some(disable);
        module.cast()
    }
}

/// # Safety
/// `comm` is a communicator of Open MPI.
unsafe fn offer(comm: *mut ompi_communicator_t) -> Option<State> {
    let endpoints =
        INSTANCE.lock().as_ref().map(|instance| instance.engine.endpoint().region().header().endpoints)?;
    // SAFETY: the caller vouches for the communicator, and the ranks are its.
    unsafe {
        let size = usize::try_from(ompi::vmshm_coll_size(comm)).ok()?;
        if size < 2 || ompi::vmshm_coll_is_inter(comm) {
            return None;
        }
        let me = usize::try_from(ompi::vmshm_coll_rank(comm)).ok()?;
        let procs: Vec<_> = (0..size).map(|rank| ompi::vmshm_coll_proc(comm, rank as c_int)).collect();
        if procs.iter().any(|proc| proc.is_null() || !ompi::vmshm_coll_same_job(*proc, procs[me])) {
            // Of another job's processes, not everyone need know the same.
            return None;
        }
        let names = procs.iter().map(|proc| name_of(*proc)).collect::<Option<Vec<_>>>()?;
        let levels = parted_by(&names, endpoints);
        if !is_one_region(&names) && levels.is_none() {
            return None;
        }
        Some(State::new(Members { me, procs, names, endpoints }, levels))
    }
}

/// Gives the communicator back.
unsafe extern "C" fn disable(module: *mut mca_coll_base_module_t, comm: *mut ompi_communicator_t) -> c_int {
    // SAFETY: the module is one that `comm_query` made, and has been enabled for this communicator.
    unsafe { ompi::vmshm_coll_restore(module.cast::<vmshm_coll_module_t>(), comm) };
    ompi::OPAL_SUCCESS as c_int
}

/// Remembers the functions below.
unsafe extern "C" fn enable(module: *mut mca_coll_base_module_t, comm: *mut ompi_communicator_t) -> c_int {
    // SAFETY: the module is one that `comm_query` made, not used before.
    match unsafe { ompi::vmshm_coll_save(module.cast::<vmshm_coll_module_t>(), comm) } {
        true => ompi::OPAL_SUCCESS as c_int,
        false => ompi::OPAL_ERR_NOT_FOUND,
    }
}
