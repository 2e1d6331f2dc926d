//! What Open MPI calls for the component, and for each new communicator.

use std::cell::UnsafeCell;
use std::collections::HashMap;
use std::ffi::c_int;
use std::ptr;

use parking_lot::Mutex;
use vmshm_transport::abi::EndpointName;
use vmshm_transport::collective::{MAX_CHUNK, MAX_CHUNKS, MIN_CHUNK, MIN_CHUNKS};
use vmshm_transport::tune::Tuning;

use super::levels::{By, has_neighbours, is_one_region};
use super::operations;
use super::state::{self, State};
use crate::component::register_variable;
use crate::fabric::FABRIC;
use crate::ompi::{
    self, mca_coll_base_module_t, mca_coll_vmshm_component, ompi_communicator_t, opal_proc_t,
    vmshm_coll_module_t,
};

/// What the user can set. Open MPI writes it while the component registers.
struct Parameters {
    priority: UnsafeCell<c_int>,
    chunk: UnsafeCell<usize>,
    turn: UnsafeCell<usize>,
    levels: UnsafeCell<c_int>,
}

// SAFETY: written by Open MPI only while it registers the component, on one thread.
unsafe impl Sync for Parameters {}

static PARAMETERS: Parameters = Parameters {
    priority: UnsafeCell::new(60),
    chunk: UnsafeCell::new(0),
    turn: UnsafeCell::new(0),
    levels: UnsafeCell::new(0),
};

/// Registers the parameters.
pub unsafe extern "C" fn register() -> c_int {
    if ompi::running() != Ok(ompi::BUILT_FOR) {
        // The BTL says so to the user.
        return ompi::OPAL_ERR_NOT_AVAILABLE as c_int;
    }
    // SAFETY: the statics have the types that are named.
    unsafe {
        let version = &raw const (*mca_coll_vmshm_component.get()).collm_version;
        register_variable(
            version,
            c"priority",
            c"Priority of collective operations through the shared region, for communicators whose processes all see it. \
              tuned has 30. Negative: never.",
            ompi::MCA_BASE_VAR_TYPE_INT,
            ompi::OPAL_INFO_LVL_5,
            PARAMETERS.priority.get().cast(),
        );
        register_variable(
            version,
            c"chunk",
            c"Bytes of the pieces in which long payloads go through the section (8192 to 1048576). 0: what suits this machine.",
            ompi::MCA_BASE_VAR_TYPE_SIZE_T,
            ompi::OPAL_INFO_LVL_5,
            PARAMETERS.chunk.get().cast(),
        );
        register_variable(
            version,
            c"turn",
            c"Bytes that these pieces take in turn, of the section of each process, for each communicator with long payloads: \
              what was used last lies in the cache of its reader, and is slow to get back. As much as all processes have \
              room for. 0: what suits this machine.",
            ompi::MCA_BASE_VAR_TYPE_SIZE_T,
            ompi::OPAL_INFO_LVL_5,
            PARAMETERS.turn.get().cast(),
        );
        register_variable(
            version,
            c"levels",
            c"1: take communicators whose processes see several regions too, and do their operations within each region \
              first. 2: within each virtual machine (section of a region) before that, which may help where many processes share \
              one. This makes communicators at the first operation, so it must not be mixed with MPI_Comm_idup, and is not done \
              where threads share MPI (MPI_THREAD_MULTIPLE). All processes must say the same. 0: no levels.",
            ompi::MCA_BASE_VAR_TYPE_INT,
            ompi::OPAL_INFO_LVL_5,
            PARAMETERS.levels.get().cast(),
        );
    }
    ompi::OPAL_SUCCESS as c_int
}

/// Bytes of a chunk, within bounds and whole pages.
pub fn chunk() -> usize {
    // SAFETY: not changed after the component was registered.
    let chunk = match unsafe { *PARAMETERS.chunk.get() } {
        0 => Tuning::of_this_machine().coll_chunk_size,
        given => given,
    };
    chunk.clamp(MIN_CHUNK, MAX_CHUNK) & !4095
}

/// About the part of a section that a process gives to the chunks of one communicator, at most: there are other
/// communicators, other processes, and messages.
const SECTION_PART: u64 = 128;

/// How many chunks of this length a member of so many uses in turn, in a section of so many bytes: a power of two.
pub fn chunks(chunk: usize, members: usize, section: u64) -> u64 {
    // SAFETY: not changed after the component was registered.
    let turn = match unsafe { *PARAMETERS.turn.get() } {
        // Who reads from several comes back to each the later.
        0 => Tuning::of_this_machine().coll_rotation / (members - 1).max(1),
        given => given,
    };
    let most = (turn as u64).min(section / SECTION_PART) / chunk as u64;
    // Rounded up between the bounds, which are powers of two themselves.
    most.clamp(MIN_CHUNKS, MAX_CHUNKS).next_power_of_two()
}

/// What the members are parted by, so that each part does an operation first, if the user wants that.
fn parted_by(names: &[EndpointName], endpoints: u32) -> Option<By> {
    // SAFETY: not changed after the component was registered.
    let levels = unsafe { *PARAMETERS.levels.get() };
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

/// What processes have published, so that it is asked for once.
static NAMES: Mutex<Option<HashMap<usize, Option<EndpointName>>>> = Mutex::new(None);

/// The endpoint that a process has published.
///
/// # Safety
/// `proc` is a process of Open MPI.
unsafe fn name_of(proc: *const opal_proc_t) -> Option<EndpointName> {
    let mut names = NAMES.lock();
    let names = names.get_or_insert_default();
    // SAFETY: the caller vouches for it.
    *names.entry(proc.addr()).or_insert_with(|| unsafe { ompi::lookup(proc) })
}

/// Forgets what processes have published.
pub fn forget_names() {
    *NAMES.lock() = None;
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
        *priority = *PARAMETERS.priority.get();
        if *priority < 0 {
            return ptr::null_mut();
        }
        let Some(state) = offer(comm) else { return ptr::null_mut() };
        let module = ompi::vmshm_coll_new(Some(state::destruct));
        if module.is_null() {
            return ptr::null_mut();
        }
        (*module).state = State::keep(state).cast();
        operations::fill(&raw mut (*module).super_);
        (*module).super_.coll_module_enable = Some(enable);
        module.cast()
    }
}

/// # Safety
/// `comm` is a communicator of Open MPI.
unsafe fn offer(comm: *mut ompi_communicator_t) -> Option<State> {
    let endpoints = FABRIC.lock().as_ref().map(|fabric| fabric.endpoint.region().header().endpoints)?;
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
        Some(State::new(me, procs, names, endpoints, levels))
    }
}

/// Remembers the functions below.
unsafe extern "C" fn enable(module: *mut mca_coll_base_module_t, comm: *mut ompi_communicator_t) -> c_int {
    // SAFETY: the module is one that `comm_query` made, not used before.
    match unsafe { ompi::vmshm_coll_save(module.cast::<vmshm_coll_module_t>(), comm) } {
        true => ompi::OPAL_SUCCESS as c_int,
        false => ompi::OPAL_ERR_NOT_FOUND,
    }
}
