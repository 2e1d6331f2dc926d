//! The component's functions, which Open MPI calls once, and for each new window.

use std::ffi::{CStr, c_int, c_uint, c_void};

use vmshm_transport::abi::EndpointName;

use super::meet::Wanted;
use super::members::gather;
use super::window::SUCCESS;
use super::{direct, message_windows, served};
use crate::mpool;
use crate::ompi::help::{self, Topic};
use crate::ompi::{
    self, Unit, ompi_communicator_t, ompi_osc_base_component_t, ompi_win_t, opal_info_t, opal_proc_t,
};
use crate::process::{INSTANCE, params};

/// Registers the parameter.
pub unsafe extern "C" fn register() -> c_int {
    if !ompi::is_built_for_this() {
        // The BTL says so to the user.
        return ompi::OPAL_ERR_NOT_AVAILABLE;
    }
    params::register_osc();
    SUCCESS
}

/// Called once.
pub unsafe extern "C" fn init(_: bool, _: bool) -> c_int {
    SUCCESS
}

/// Publishes whether several threads may call MPI at the same time. Others learn of it only if this is called before Open MPI
/// exchanges what processes have published; if it fails, they do without us.
pub fn publish(is_threaded: bool) {
    let bytes = [u8::from(is_threaded)];
    // SAFETY: the component begins with its mca_base_component_t; the byte outlives the call, which copies it.
    unsafe { ompi::vmshm_ompi_publish(ompi::osc_version(), bytes.as_ptr().cast(), bytes.len()) };
}

/// Whether a process has published that one thread at a time calls MPI.
///
/// # Safety
/// `proc` is a process of Open MPI.
unsafe fn is_serial(proc: *const opal_proc_t) -> bool {
    let mut bytes = [u8::MAX];
    // SAFETY: the caller vouches for the process; there is room for the byte.
    let code =
        unsafe { ompi::vmshm_ompi_lookup(ompi::osc_version(), proc, bytes.as_mut_ptr().cast(), bytes.len()) };
    code == SUCCESS && bytes == [0]
}

/// Called at the end.
pub unsafe extern "C" fn finalize() -> c_int {
    SUCCESS
}

/// Another of Open MPI's components.
fn other(name: &CStr) -> Option<*mut ompi_osc_base_component_t> {
    // SAFETY: the name is NUL-terminated.
    let found = unsafe { ompi::vmshm_osc_component(name.as_ptr()) };
    (!found.is_null()).then_some(found)
}

/// The component that makes the window where some process's memory is not in its section, and whether it does all by
/// messages. Sites leave out some: Debian's configuration leaves out `pt2pt`.
///
/// # Safety
/// `comm` is a communicator of Open MPI.
unsafe fn below(
    comm: *mut ompi_communicator_t,
    flavor: c_uint,
) -> Option<(*mut ompi_osc_base_component_t, bool)> {
    let is_shared = flavor == ompi::MPI_WIN_FLAVOR_SHARED;
    // SAFETY: the caller vouches for the communicator.
    if is_shared || flavor == ompi::MPI_WIN_FLAVOR_ALLOCATE && unsafe { !ompi::vmshm_osc_spans_hosts(comm) } {
        let shares = other(c"sm").map(|found| (found, false));
        if is_shared || shares.is_some() {
            return shares;
        }
    }
    other(c"pt2pt").map(|found| (found, true))
}

/// Offers to make a window, if all processes have published an endpoint of our region. All of them come to the same
/// conclusion, since all know the same.
pub unsafe extern "C" fn query(
    _: *mut ompi_win_t,
    _: *mut *mut c_void,
    _: usize,
    _: Unit,
    comm: *mut ompi_communicator_t,
    _: *mut opal_info_t,
    flavor: c_int,
) -> c_int {
    let flavor = flavor.cast_unsigned();
    // SAFETY: Open MPI gives a communicator, and has registered the parameter.
    unsafe {
        let priority = params::osc_priority();
        let Some(names) = members(comm) else { return -1 };
        let below = below(comm, flavor);
        if below.is_none() && flavor == ompi::MPI_WIN_FLAVOR_SHARED {
            // Where a section is full, nobody would make it.
            return -1;
        }
        let is_placed = flavor == ompi::MPI_WIN_FLAVOR_ALLOCATE || flavor == ompi::MPI_WIN_FLAVOR_SHARED;
        if is_placed && direct::is_possible(&names) {
            priority
        } else if below.is_some_and(|(_, is_messages)| !is_messages) {
            -1
        } else if ompi::vmshm_osc_spans_hosts(comm) {
            priority
        } else {
            priority.min(20)
        }
    }
}

/// The endpoints of all processes of a communicator, if all are of our region. Nor may threads of any call MPI at the same time:
/// pt2pt does not serve them, and takes all lesser levels for one, as do we. A job may mix levels.
///
/// # Safety
/// `comm` is a communicator of Open MPI.
unsafe fn members(comm: *mut ompi_communicator_t) -> Option<Vec<EndpointName>> {
    let region = INSTANCE.lock().as_ref().map(|instance| instance.engine.endpoint().name().region_id)?;
    // SAFETY: the caller vouches for the communicator, and the ranks are its.
    unsafe {
        if ompi::vmshm_coll_is_inter(comm) {
            return None;
        }
        let me = ompi::vmshm_coll_proc(comm, ompi::vmshm_coll_rank(comm));
        (0..ompi::vmshm_coll_size(comm))
            .map(|rank| {
                let proc = ompi::vmshm_coll_proc(comm, rank);
                // Of another job's processes, not everyone need know the same.
                if proc.is_null() || !ompi::vmshm_coll_same_job(proc, me) || !is_serial(proc) {
                    return None;
                }
                ompi::lookup(proc).filter(|name| name.region_id == region)
            })
            .collect()
    }
}

/// Makes a window, of memory in our section where there is room.
#[allow(clippy::too_many_arguments, reason = "they are Open MPI's")]
pub unsafe extern "C" fn select(
    win: *mut ompi_win_t,
    base: *mut *mut c_void,
    size: usize,
    unit: Unit,
    comm: *mut ompi_communicator_t,
    info: *mut opal_info_t,
    flavor: c_int,
    model: *mut c_int,
) -> c_int {
    let kind = flavor.cast_unsigned();
    // SAFETY: Open MPI's arguments are handed on; it gives room for a base address and a model.
    unsafe {
        let Some(names) = members(comm) else { return ompi::OPAL_ERR_NOT_SUPPORTED };
        let wanted = Wanted { comm, base, size, unit, flavor: kind, info };
        // Sites may differ in what they leave out.
        let below = below(comm, kind);
        let which = below.map_or(0, |(_, is_messages)| 1 + u64::from(is_messages));
        let all = match gather(comm, &which, names.len()) {
            Ok(all) => all,
            Err(code) => return code,
        };
        let below = below.filter(|_| all.iter().all(|other| *other == which));
        let code = match create(win, &wanted, &names, below.is_none()) {
            Ok(true) => {
                *model = ompi::MPI_WIN_UNIFIED as c_int;
                SUCCESS
            }
            // Some process's memory is not in its section.
            Ok(false) => hand_down(win, &wanted, model, below),
            Err(code) => code,
        };
        if code == SUCCESS && kind == ompi::MPI_WIN_FLAVOR_ALLOCATE {
            mpool::count_window((*base).cast(), size);
        }
        code
    }
}

/// Has another component make a window.
///
/// # Safety
/// As [`select`].
unsafe fn hand_down(
    win: *mut ompi_win_t,
    wanted: &Wanted,
    model: *mut c_int,
    below: Option<(*mut ompi_osc_base_component_t, bool)>,
) -> c_int {
    let Wanted { comm, base, size, unit, flavor, info } = *wanted;
    let Some((below, is_messages)) = below else {
        help::show(
            Topic::Window,
            "some section is too full for the few KiB that it takes, some process cannot be reached, or Open MPI's \
             component for this kind of window is not the same everywhere",
        );
        return ompi::OPAL_ERR_NOT_SUPPORTED;
    };
    // SAFETY: the caller vouches for all; the component is Open MPI's.
    unsafe {
        let Some(make) = (*below).osc_select else { return ompi::OPAL_ERR_NOT_SUPPORTED };
        let code = make(win, base, size, unit, comm, info, flavor.cast_signed(), model);
        if code == SUCCESS && is_messages {
            message_windows::watch(ompi::vmshm_osc_module(win));
        }
        code
    }
}

/// Makes a window of one of our kinds; `is_last` where some process has no other component for it. False if some process's
/// memory is not where this needs it.
///
/// # Errors
/// Open MPI's code.
///
/// # Safety
/// All of it is Open MPI's, for a new window. All processes call this with names of all of them.
unsafe fn create(
    win: *mut ompi_win_t,
    wanted: &Wanted,
    names: &[EndpointName],
    is_last: bool,
) -> Result<bool, c_int> {
    // SAFETY: the caller vouches for all.
    unsafe {
        let is_dynamic = wanted.flavor == ompi::MPI_WIN_FLAVOR_DYNAMIC;
        let is_direct = !is_dynamic && direct::is_possible(names);
        if is_direct && direct::create(win, wanted, names)? {
            return Ok(true);
        }
        if wanted.flavor == ompi::MPI_WIN_FLAVOR_SHARED || (is_direct || is_dynamic) && !is_last {
            return Ok(false);
        }
        served::create(win, wanted, names, is_last)
    }
}
