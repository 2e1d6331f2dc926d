//! Parameters of all four components: what a user can set with `--mca`.

use std::cell::UnsafeCell;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::ptr;
use std::time::Duration;

use vmshm_messaging::{Params, Pipeline};
use vmshm_transport::MAX_INLINE;
use vmshm_transport::attach::{self, Options};
use vmshm_transport::collective::{MAX_CHUNK, MAX_CHUNKS, MIN_CHUNK, MIN_CHUNKS};
use vmshm_transport::tune::Tuning;

use crate::ompi::{self, mca_base_component_t};

/// Longest message that goes through the ring by itself, bytes: all that can. In interleaved runs on a quiet machine 512
/// bytes took 0.70 µs that way and 0.80 µs in a fragment; around 900 the two are even.
const DEFAULT_INLINE: usize = MAX_INLINE;

/// Parameters of the BTL, beside those that all BTLs have. Open MPI writes them while the component registers.
struct Btl {
    device: UnsafeCell<*mut c_char>,
    section: UnsafeCell<c_int>,
    max_inline: UnsafeCell<usize>,
    chunk_size: UnsafeCell<usize>,
    chunks: UnsafeCell<c_uint>,
    leave: UnsafeCell<usize>,
    patience: UnsafeCell<c_uint>,
    sleep_after: UnsafeCell<c_uint>,
}

// SAFETY: written by Open MPI only while it registers and closes the component, on one thread.
unsafe impl Sync for Btl {}

static BTL: Btl = Btl {
    device: UnsafeCell::new(ptr::null_mut()),
    section: UnsafeCell::new(-1),
    max_inline: UnsafeCell::new(DEFAULT_INLINE),
    chunk_size: UnsafeCell::new(0),
    chunks: UnsafeCell::new(0),
    leave: UnsafeCell::new(0),
    patience: UnsafeCell::new(30),
    sleep_after: UnsafeCell::new(0),
};

/// Parameters of the collective component. Open MPI writes them while the component registers.
struct Coll {
    priority: UnsafeCell<c_int>,
    chunk: UnsafeCell<usize>,
    turn: UnsafeCell<usize>,
    levels: UnsafeCell<c_int>,
}

// SAFETY: written by Open MPI only while it registers the component, on one thread.
unsafe impl Sync for Coll {}

static COLL: Coll = Coll {
    priority: UnsafeCell::new(60),
    chunk: UnsafeCell::new(0),
    turn: UnsafeCell::new(0),
    levels: UnsafeCell::new(0),
};

/// The priority of a component.
struct Priority(UnsafeCell<c_int>);

// SAFETY: written by Open MPI only while it registers the component, on one thread.
unsafe impl Sync for Priority {}

static MPOOL_PRIORITY: Priority = Priority(UnsafeCell::new(60));
static OSC_PRIORITY: Priority = Priority(UnsafeCell::new(110));

/// Registers the parameters of the BTL, but for those that all BTLs have.
pub fn register_btl() {
    // SAFETY: all pointers are to statics; Open MPI copies the texts.
    unsafe {
        ompi::mca_base_var_group_component_register(
            ompi::btl_version(),
            c"Shared memory between virtual machines (vmshm)".as_ptr(),
        );
        register_variable(
            ompi::btl_version(),
            c"device",
            c"Where the shared region is: a device of the guest driver (/dev/vmshm0), a PCI address (0000:00:04.0), a region \
              file or its name. Empty: the environment's VMSHM_DEVICE, else the first one found.",
            ompi::MCA_BASE_VAR_TYPE_STRING,
            ompi::OPAL_INFO_LVL_2,
            BTL.device.get().cast(),
        );
        register_variable(
            ompi::btl_version(),
            c"section",
            c"Which section of the region this process writes, on a region file, where no device says it. -1: the environment's \
              VMSHM_SECTION, else the first one free.",
            ompi::MCA_BASE_VAR_TYPE_INT,
            ompi::OPAL_INFO_LVL_4,
            BTL.section.get().cast(),
        );
        register_variable(
            ompi::btl_version(),
            c"max_inline",
            c"Maximum size (in bytes, including header) of messages that travel in the ring itself rather than in a \
              fragment beside it.",
            ompi::MCA_BASE_VAR_TYPE_SIZE_T,
            ompi::OPAL_INFO_LVL_5,
            BTL.max_inline.get().cast(),
        );
        register_variable(
            ompi::btl_version(),
            c"chunk_size",
            c"Bytes that a long message from ordinary memory is cut into, so that the receiver copies one piece while the \
              sender copies the next. 0: what suits this machine, as shown by `vmshm tune`.",
            ompi::MCA_BASE_VAR_TYPE_SIZE_T,
            ompi::OPAL_INFO_LVL_5,
            BTL.chunk_size.get().cast(),
        );
        register_variable(
            ompi::btl_version(),
            c"chunks",
            c"How many such pieces are under way at most; a peer that has none may always get two. 0: what suits this machine, as shown by `vmshm tune`.",
            ompi::MCA_BASE_VAR_TYPE_UNSIGNED_INT,
            ompi::OPAL_INFO_LVL_5,
            BTL.chunks.get().cast(),
        );
        register_variable(
            ompi::btl_version(),
            c"leave",
            c"From so many bytes on that it has just written for others to read, a process that waits for them fills its \
              nearest cache with something else, since others read that cache slowly; more than the longest message: never. \
              0: what suits this machine, as shown by `vmshm tune`.",
            ompi::MCA_BASE_VAR_TYPE_SIZE_T,
            ompi::OPAL_INFO_LVL_6,
            BTL.leave.get().cast(),
        );
        register_variable(
            ompi::btl_version(),
            c"patience",
            c"Seconds without a heartbeat after which the processes of another machine are taken for dead (must be >= 1).",
            ompi::MCA_BASE_VAR_TYPE_UNSIGNED_INT,
            ompi::OPAL_INFO_LVL_4,
            BTL.patience.get().cast(),
        );
        register_variable(
            ompi::btl_version(),
            c"sleep_after",
            c"Microseconds of waiting in vain after which a process stops polling and sleeps until its doorbell rings, which \
              frees its CPU and costs latency. It polls for the first half of that time, and yields in the second. A loop of \
              MPI_Test sleeps too, unless it computes for half a millisecond in between. Needs the guest driver and a device with doorbells (vmshm serve); elsewhere a process yields. 0: never.",
            ompi::MCA_BASE_VAR_TYPE_UNSIGNED_INT,
            ompi::OPAL_INFO_LVL_3,
            BTL.sleep_after.get().cast(),
        );
    }
}

/// Registers the parameters of the collective component.
pub fn register_coll() {
    // SAFETY: the statics have the types that are named.
    unsafe {
        register_variable(
            ompi::coll_version(),
            c"priority",
            c"Priority of collective operations through the shared region, for communicators whose processes all see it. \
              tuned has 30. Negative: never.",
            ompi::MCA_BASE_VAR_TYPE_INT,
            ompi::OPAL_INFO_LVL_5,
            COLL.priority.get().cast(),
        );
        register_variable(
            ompi::coll_version(),
            c"chunk",
            c"Bytes of the pieces in which long payloads go through the section (8192 to 1048576). 0: what suits this machine.",
            ompi::MCA_BASE_VAR_TYPE_SIZE_T,
            ompi::OPAL_INFO_LVL_5,
            COLL.chunk.get().cast(),
        );
        register_variable(
            ompi::coll_version(),
            c"turn",
            c"Bytes that these pieces take in turn, of the section of each process, for each communicator with long payloads: \
              what was used last lies in the cache of its reader, and is slow to get back. As much as all processes have \
              room for. 0: what suits this machine.",
            ompi::MCA_BASE_VAR_TYPE_SIZE_T,
            ompi::OPAL_INFO_LVL_5,
            COLL.turn.get().cast(),
        );
        register_variable(
            ompi::coll_version(),
            c"levels",
            c"1: take communicators whose processes see several regions too, and do their operations within each region \
              first. 2: within each virtual machine (section of a region) before that, which may help where many processes share \
              one. This makes communicators at the first operation, so it must not be mixed with MPI_Comm_idup, and is not done \
              where threads share MPI (MPI_THREAD_MULTIPLE). All processes must say the same. 0: no levels.",
            ompi::MCA_BASE_VAR_TYPE_INT,
            ompi::OPAL_INFO_LVL_5,
            COLL.levels.get().cast(),
        );
    }
}

/// Registers the parameter of the component for windows.
pub fn register_osc() {
    // SAFETY: the static has the type that is named.
    unsafe {
        register_variable(
            ompi::osc_version(),
            c"priority",
            c"Priority of windows in sections, for communicators whose processes all see one region. On one host, where sm \
              has 100, only where processes may write each other's sections. Negative: never.",
            ompi::MCA_BASE_VAR_TYPE_INT,
            ompi::OPAL_INFO_LVL_5,
            OSC_PRIORITY.0.get().cast(),
        );
    }
}

/// Registers the parameter of the memory pool.
pub fn register_mpool() {
    // SAFETY: the static has the type that is named.
    unsafe {
        register_variable(
            ompi::mpool_version(),
            c"priority",
            c"Priority of memory in the vmshm section for MPI_Alloc_mem, which is then sent without a copy by the sender. \
              Ordinary memory has 50.",
            ompi::MCA_BASE_VAR_TYPE_INT,
            ompi::OPAL_INFO_LVL_5,
            MPOOL_PRIORITY.0.get().cast(),
        );
    }
}

/// Registers a parameter of a component.
///
/// # Safety
/// `storage` must be a static of the type that `kind` says.
unsafe fn register_variable(
    component: *const mca_base_component_t,
    name: &CStr,
    description: &CStr,
    kind: ompi::mca_base_var_type_t,
    level: ompi::mca_base_var_info_lvl_t,
    storage: *mut c_void,
) {
    // SAFETY: the texts are NUL-terminated and copied; the caller vouches for the storage.
    unsafe {
        ompi::mca_base_component_var_register(
            component,
            name.as_ptr(),
            description.as_ptr(),
            kind,
            ptr::null_mut(),
            0,
            0,
            level,
            ompi::MCA_BASE_VAR_SCOPE_READONLY,
            storage,
        );
    }
}

/// Device or region that the user wants to attach to.
pub fn options() -> Result<Options, attach::AttachError> {
    let mut options = Options::from_env()?;
    // SAFETY: Open MPI holds NULL or NUL-terminated text there, and a number; it does not change them meanwhile.
    unsafe {
        let device = *BTL.device.get();
        if !device.is_null() && *device != 0 {
            options.device = Some(CStr::from_ptr(device).to_string_lossy().into_owned());
        }
        if let Ok(section) = u32::try_from(*BTL.section.get()) {
            options.section = Some(section);
        }
        options.patience = Duration::from_secs(u64::from(*BTL.patience.get()));
        options.sleep = *BTL.sleep_after.get() > 0;
    }
    Ok(options)
}

/// Checks the parameters of the BTL.
///
/// # Errors
/// What is wrong, for the user.
pub fn check() -> Result<(), String> {
    // SAFETY: Open MPI does not change them after the component was registered.
    let (section, max_inline, patience, chunk_size) =
        unsafe { (*BTL.section.get(), *BTL.max_inline.get(), *BTL.patience.get(), *BTL.chunk_size.get()) };
    let wrong =
        |name, value: String, range: String| Err(format!("btl_vmshm_{name} is {value}: it must be {range}."));
    if section < -1 {
        return wrong("section", section.to_string(), "-1 or the number of a section".into());
    }
    if max_inline > MAX_INLINE {
        return wrong("max_inline", max_inline.to_string(), format!("at most {MAX_INLINE} bytes"));
    }
    if patience == 0 {
        return wrong("patience", patience.to_string(), "1 second or more".into());
    }
    if chunk_size > Params::MAX_MESSAGE {
        let longest = Params::MAX_MESSAGE;
        return wrong("chunk_size", chunk_size.to_string(), format!("at most {longest} bytes"));
    }
    Ok(())
}

/// The engine's tuning, in a section of so many bytes, for messages of up to `reserve` bytes.
pub fn engine(reserve: usize, section: u64) -> Params {
    // SAFETY: Open MPI writes the statics only while it registers the component.
    let (chunk_size, chunks, leave, sleep_after) =
        unsafe { (*BTL.chunk_size.get(), *BTL.chunks.get(), *BTL.leave.get(), *BTL.sleep_after.get()) };
    let tuning = Tuning::of_this_machine();
    let given = |value: usize| (value > 0).then_some(value);
    let pipeline = Pipeline::new(tuning, given(chunk_size), given(chunks as usize), section);
    Params {
        max_message: Params::MAX_MESSAGE,
        reserve,
        // As much as suits the chunks of a long message, for the same reason.
        eager: pipeline.eager(),
        pipeline,
        sends_prefix: true,
        evict_from: given(leave).unwrap_or(tuning.evict_from),
        sleep_after: (sleep_after > 0).then(|| Duration::from_micros(sleep_after.into())),
    }
}

/// Largest message that travels inline.
#[inline]
pub fn max_inline() -> usize {
    // SAFETY: Open MPI writes the static only while it registers the component.
    unsafe { *BTL.max_inline.get() }
}

/// The priority of collective operations.
pub fn coll_priority() -> c_int {
    // SAFETY: Open MPI writes the static only while it registers the component.
    unsafe { *COLL.priority.get() }
}

/// From how many different places on operations have levels.
pub fn coll_levels() -> c_int {
    // SAFETY: Open MPI writes the static only while it registers the component.
    unsafe { *COLL.levels.get() }
}

/// The priority of windows.
pub fn osc_priority() -> c_int {
    // SAFETY: Open MPI writes the static only while it registers the component.
    unsafe { *OSC_PRIORITY.0.get() }
}

/// The priority of the memory pool.
pub fn mpool_priority() -> c_int {
    // SAFETY: Open MPI writes the static only while it registers the component.
    unsafe { *MPOOL_PRIORITY.0.get() }
}

/// Bytes of a chunk, within bounds and whole pages.
pub fn coll_chunk() -> usize {
    // SAFETY: not changed after the component was registered.
    let chunk = match unsafe { *COLL.chunk.get() } {
        0 => Tuning::of_this_machine().coll_chunk_size,
        given => given,
    };
    chunk.clamp(MIN_CHUNK, MAX_CHUNK) & !4095
}

/// About the part of a section that a process gives to the chunks of one communicator, at most: there are other
/// communicators, other processes, and messages.
const SECTION_PART: u64 = 128;

/// How many chunks of this length a member of so many uses in turn, in a section of so many bytes: a power of two.
pub fn coll_chunks(chunk: usize, members: usize, section: u64) -> u64 {
    // SAFETY: not changed after the component was registered.
    let turn = match unsafe { *COLL.turn.get() } {
        // A reader of several comes back to each the later.
        0 => Tuning::of_this_machine().coll_rotation / (members - 1).max(1),
        given => given,
    };
    let most = (turn as u64).min(section / SECTION_PART) / chunk as u64;
    // Rounded up between the bounds, which are powers of two themselves.
    most.clamp(MIN_CHUNKS, MAX_CHUNKS).next_power_of_two()
}
