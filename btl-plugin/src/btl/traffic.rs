//! Performance variables: traffic with each process of a communicator, by the way that it took.
//!
//! A message costs nothing for them: the transport knows its rings' positions anyway, and counts only what is longer.

use std::collections::HashMap;
use std::ffi::{CStr, c_int, c_void};
use std::ptr;

use vmshm_transport::{Amount, Traffic};

use crate::ompi::{self, mca_base_pvar_event_t, mca_base_pvar_t, ompi_communicator_t};
use crate::process::INSTANCE;

const SUCCESS: c_int = ompi::OPAL_SUCCESS as c_int;

/// A way, whose messages and bytes are a variable each.
struct Way {
    messages: &'static CStr,
    bytes: &'static CStr,
    about: &'static CStr,
    amount: fn(&Traffic) -> Amount,
}

static WAYS: [Way; 6] = [
    Way {
        messages: c"inline_sent",
        bytes: c"inline_sent_bytes",
        about: c"Messages in the ring itself that were sent to each process, Open MPI's own among them; in bytes, those that they \
                 took of the ring, in slots of 32",
        amount: |traffic| traffic.inline_sent,
    },
    Way {
        messages: c"inline_received",
        bytes: c"inline_received_bytes",
        about: c"Messages in the ring itself that were received from each process; in bytes, as those that were sent",
        amount: |traffic| traffic.inline_received,
    },
    Way {
        messages: c"fragments_sent",
        bytes: c"fragments_sent_bytes",
        about: c"Fragments of the section that were sent to each process: messages, and pieces of long ones",
        amount: |traffic| traffic.fragments_sent,
    },
    Way {
        messages: c"fragments_received",
        bytes: c"fragments_received_bytes",
        about: c"Fragments of its section that were received from each process",
        amount: |traffic| traffic.fragments_received,
    },
    Way {
        messages: c"gets",
        bytes: c"get_bytes",
        about: c"Reads in place of the section of each process: of memory from MPI_Alloc_mem, of windows, and of the first part \
                 of long messages",
        amount: |traffic| traffic.gets,
    },
    Way {
        messages: c"puts",
        bytes: c"put_bytes",
        about: c"Writes to the section of each process, atomic operations among them: only in an open region",
        amount: |traffic| traffic.puts,
    },
];

/// Registers the variables; each has a value for each process of the communicator that it is bound to.
pub fn register() {
    const GETTERS: [ompi::mca_base_get_value_fn_t; 2] = [Some(messages), Some(bytes)];
    const CLASSES: [u32; 2] = [ompi::MCA_BASE_PVAR_CLASS_COUNTER, ompi::MCA_BASE_PVAR_CLASS_AGGREGATE];
    for way in &WAYS {
        for ((name, class), get) in [way.messages, way.bytes].into_iter().zip(CLASSES).zip(GETTERS) {
            // SAFETY: the texts are NUL-terminated and copied; the context is a static, as are the functions.
            unsafe {
                ompi::mca_base_component_pvar_register(
                    ompi::btl_version(),
                    name.as_ptr(),
                    way.about.as_ptr(),
                    ompi::OPAL_INFO_LVL_4,
                    class as c_int,
                    ompi::MCA_BASE_VAR_TYPE_UNSIGNED_LONG_LONG,
                    ptr::null_mut(),
                    ompi::MCA_BASE_VAR_BIND_MPI_COMM as c_int,
                    ompi::MCA_BASE_PVAR_FLAG_READONLY | ompi::MCA_BASE_PVAR_FLAG_CONTINUOUS,
                    get,
                    None,
                    Some(notify),
                    ptr::from_ref(way).cast_mut().cast(),
                );
            }
        }
    }
}

/// Says how many values a variable has, when it is bound to a communicator.
unsafe extern "C" fn notify(
    _: *mut mca_base_pvar_t,
    event: mca_base_pvar_event_t,
    comm: *mut c_void,
    count: *mut c_int,
) -> c_int {
    if event == ompi::MCA_BASE_PVAR_HANDLE_BIND {
        // SAFETY: Open MPI gives the communicator that the variable is bound to, and room for the number.
        unsafe { *count = ompi::vmshm_coll_size(comm.cast()) };
    }
    SUCCESS
}

unsafe extern "C" fn messages(
    variable: *const mca_base_pvar_t,
    values: *mut c_void,
    comm: *mut c_void,
) -> c_int {
    // SAFETY: the caller is Open MPI.
    unsafe { get(variable, values, comm, |amount| amount.count) }
}

unsafe extern "C" fn bytes(
    variable: *const mca_base_pvar_t,
    values: *mut c_void,
    comm: *mut c_void,
) -> c_int {
    // SAFETY: the caller is Open MPI.
    unsafe { get(variable, values, comm, |amount| amount.bytes) }
}

/// Gets the values of a variable: 0 for processes that are not reached by vmshm.
///
/// # Safety
/// `variable` is one of ours, `comm` a communicator, and `values` has room for a number for each of its processes.
unsafe fn get(
    variable: *const mca_base_pvar_t,
    values: *mut c_void,
    comm: *mut c_void,
    number: fn(Amount) -> u64,
) -> c_int {
    let (values, comm) = (values.cast::<u64>(), comm.cast::<ompi_communicator_t>());
    // SAFETY: the context is what `register` gave.
    let way = unsafe { &*(*variable).ctx.cast::<Way>() };
    let held = INSTANCE.lock();
    let mut traffic = HashMap::new();
    if let Some(instance) = held.as_ref() {
        for (peer, proc) in instance.processes() {
            traffic.insert(proc, instance.engine.endpoint().traffic(peer));
        }
    }
    drop(held);
    // SAFETY: the caller vouches for communicator and room.
    unsafe {
        for rank in 0..ompi::vmshm_coll_size(comm) {
            let with = traffic.get(&ompi::vmshm_coll_proc(comm, rank)).copied().unwrap_or_default();
            values.add(rank as usize).write(number((way.amount)(&with)));
        }
    }
    SUCCESS
}
