//! All that depends on the version of Open MPI: bindings to its types and functions, and conversions.

pub mod help;
// Differences of the releases: a file a series, as build.rs has found it, and what several series have.
#[cfg(not(ompi = "4.1"))]
mod btl_3_3;
#[cfg(not(ompi = "6.0"))]
mod int_counts;
#[cfg(ompi = "6.0")]
mod size_counts;
#[cfg(ompi = "4.1")]
mod v4_1;
#[cfg(ompi = "5.0")]
mod v5_0;
#[cfg(ompi = "6.0")]
mod v6_0;
mod version;

use std::borrow::Cow;
use std::cell::UnsafeCell;
use std::ffi::{CStr, CString, c_char, c_int, c_void};

use vmshm_transport::abi::EndpointName;
use zerocopy::{FromZeros, IntoBytes};

pub use sys::*;
#[cfg(ompi = "4.1")]
pub use v4_1::*;
#[cfg(ompi = "5.0")]
pub use v5_0::*;
#[cfg(ompi = "6.0")]
pub use v6_0::*;
pub use version::{built_for, is_built_for_this, running};

/// The headers of the Open MPI that this plugin was built for, as bindgen reads them.
#[allow(
    missing_docs,
    missing_debug_implementations,
    clippy::all,
    clippy::pedantic,
    clippy::undocumented_unsafe_blocks
)]
#[allow(non_camel_case_types, non_snake_case, non_upper_case_globals, dead_code, clippy::ptr_as_ptr)]
mod sys {
    include!(concat!(env!("OUT_DIR"), "/ompi.rs"));
}

/// A C struct that Open MPI reads and writes whenever it likes.
#[repr(transparent)]
#[derive(Debug)]
pub struct Global<T>(UnsafeCell<T>);

// SAFETY: nothing here makes a reference to the content; Open MPI changes it only while it registers, opens and closes
// the component, on one thread.
unsafe impl<T> Sync for Global<T> {}

impl<T> Global<T> {
    /// A struct for C.
    pub const fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    /// The struct, for C.
    pub const fn get(&self) -> *mut T {
        self.0.get()
    }
}

/// Observer of messages, whichever callback they are for.
pub trait Observer {
    /// A message with this tag has come, for a callback with these data; `forward` hands it to the one that it gets.
    fn see(tag: u8, data: *mut c_void, forward: impl FnOnce(Callback));
}

// The four components, which Open MPI looks for by these names. They are defined where all that they name is known.
unsafe extern "C" {
    safe static mca_btl_vmshm_component: Global<mca_btl_base_component_t>;
    safe static mca_mpool_vmshm_component: Global<mca_mpool_base_component_t>;
    safe static mca_coll_vmshm_component: Global<mca_coll_base_component_t>;
    safe static mca_osc_vmshm_component: Global<ompi_osc_base_component_t>;
}

/// The BTL component.
pub fn btl_component() -> *mut mca_btl_base_component_t {
    mca_btl_vmshm_component.get()
}

/// The memory pool's component.
pub fn mpool_component() -> *mut mca_mpool_base_component_t {
    mca_mpool_vmshm_component.get()
}

/// The name and version of the BTL component, by which its parameters and what it publishes are known.
pub fn btl_version() -> *const mca_base_component_t {
    // SAFETY: the component is a static; no reference is made.
    unsafe { &raw const (*btl_component()).btl_version }
}

/// The same of the memory pool's component.
pub fn mpool_version() -> *const mca_base_component_t {
    // SAFETY: the component is a static; no reference is made.
    unsafe { &raw const (*mpool_component()).mpool_version }
}

/// The same of the collective component.
pub fn coll_version() -> *const mca_base_component_t {
    // SAFETY: the component is a static; no reference is made.
    unsafe { &raw const (*mca_coll_vmshm_component.get()).collm_version }
}

/// The same of the component for windows.
pub fn osc_version() -> *const mca_base_component_t {
    // SAFETY: the component is a static; no reference is made.
    unsafe { &raw const (*mca_osc_vmshm_component.get()).osc_version }
}

/// A component `vmshm` of a framework whose interface has the given version.
pub const fn component(framework: &str, interface: [c_int; 3]) -> mca_base_component_t {
    mca_base_component_t {
        mca_major_version: MCA_BASE_VERSION_MAJOR as c_int,
        mca_minor_version: MCA_BASE_VERSION_MINOR as c_int,
        mca_release_version: MCA_BASE_VERSION_RELEASE as c_int,
        mca_project_name: name("opal"),
        mca_project_major_version: OPAL_MAJOR_VERSION as c_int,
        mca_project_minor_version: OPAL_MINOR_VERSION as c_int,
        mca_project_release_version: OPAL_RELEASE_VERSION as c_int,
        mca_type_name: name(framework),
        mca_type_major_version: interface[0],
        mca_type_minor_version: interface[1],
        mca_type_release_version: interface[2],
        mca_component_name: name("vmshm"),
        mca_component_major_version: OPAL_MAJOR_VERSION as c_int,
        mca_component_minor_version: OPAL_MINOR_VERSION as c_int,
        mca_component_release_version: OPAL_RELEASE_VERSION as c_int,
        mca_open_component: None,
        mca_close_component: None,
        mca_query_component: None,
        mca_register_component_params: None,
        mca_component_flags: 0,
        reserved: [0; 28],
    }
}

/// Text in one of the fixed arrays of a component.
pub const fn name<const N: usize>(text: &str) -> [c_char; N] {
    let mut to = [0; N];
    let bytes = text.as_bytes();
    assert!(bytes.len() < N);
    let mut i = 0;
    while i < bytes.len() {
        to[i] = bytes[i].cast_signed();
        i += 1;
    }
    to
}

/// Makes a C string of any text; what follows a NUL is lost.
pub fn c_text(text: &str) -> CString {
    let end = text.find('\0').unwrap_or(text.len());
    CString::new(&text[..end]).unwrap_or_default()
}

/// Publishes an endpoint's name for all processes; `Err` is Open MPI's code.
pub fn publish(name: &EndpointName) -> Result<(), c_int> {
    let bytes = name.as_bytes();
    // SAFETY: the bytes outlive the call, which copies them.
    let rc = unsafe { vmshm_ompi_publish(btl_version(), bytes.as_ptr().cast::<c_void>(), bytes.len()) };
    if rc == OPAL_SUCCESS as c_int { Ok(()) } else { Err(rc) }
}

/// The endpoint's name that a process has published, if it has one.
///
/// # Safety
/// `proc` is a process of Open MPI.
pub unsafe fn lookup(proc: *const opal_proc_t) -> Option<EndpointName> {
    let mut name = EndpointName::new_zeroed();
    let bytes = name.as_mut_bytes();
    // SAFETY: the bytes outlive the call; at most bytes.len() bytes are written.
    let rc =
        unsafe { vmshm_ompi_lookup(btl_version(), proc, bytes.as_mut_ptr().cast::<c_void>(), bytes.len()) };
    (rc == OPAL_SUCCESS as c_int).then_some(name)
}

/// How a user knows a process: its name and its host.
///
/// # Safety
/// `proc` is a process of Open MPI.
pub unsafe fn describe(proc: *const opal_proc_t) -> String {
    // SAFETY: both calls return NUL-terminated text that lives until the next few calls.
    unsafe {
        let name = CStr::from_ptr(vmshm_ompi_name(proc)).to_string_lossy();
        let host = CStr::from_ptr(vmshm_ompi_host(proc)).to_string_lossy();
        format!("process {name} on {host}")
    }
}

/// Where a convertor's bytes begin, if their data type has no gaps: the most usual case of `opal_convertor_need_buffers` and
/// `opal_convertor_get_current_pointer`, without a call. The others are for `vmshm_ompi_contiguous`.
///
/// # Safety
/// `convertor` is Open MPI's.
#[inline(always)]
pub unsafe fn start_without_gaps(convertor: *const opal_convertor_t) -> Option<*const u8> {
    const PLAIN: u32 = CONVERTOR_HOMOGENEOUS | OPAL_DATATYPE_FLAG_NO_GAPS;
    // SAFETY: the caller vouches for it, and with it for its data type.
    unsafe {
        if (*convertor).flags & PLAIN != PLAIN {
            return None;
        }
        let offset = (*convertor).bConverted.wrapping_add_signed((*(*convertor).pDesc).true_lb);
        Some((*convertor).pBaseBuf.cast::<u8>().wrapping_add(offset))
    }
}

/// Whether Open MPI serves several threads at a time.
pub fn has_threads() -> bool {
    // SAFETY: no arguments.
    unsafe { vmshm_ompi_threads() }
}

/// Whether some transport of this process beside `ours` has hardware read memory that is sent, or the kernel where `kernel_reads`
/// says that it can't.
///
/// # Safety
/// `ours` is the BTL's module.
pub unsafe fn others_read(ours: *const mca_btl_base_module_t, kernel_reads: bool) -> bool {
    // SAFETY: the caller vouches for it; it is only compared.
    unsafe { vmshm_ompi_others_read(ours, kernel_reads) }
}

/// Whether the user asked for this component by name: `--mca btl vmshm,self`.
pub fn is_selected() -> bool {
    // SAFETY: no arguments; the list is NULL or NUL-terminated text that stays.
    let list = unsafe { list(vmshm_ompi_selection()) };
    !list.is_empty() && !list.starts_with('^') && lets_in(&list, "vmshm")
}

/// Whether the user's choice of point-to-point layers lets this one run: `--mca pml ucx`, `--mca pml ^cm` or no choice.
pub fn may_run_pml(name: &str) -> bool {
    // SAFETY: no arguments; the list is NULL or NUL-terminated text that stays.
    lets_in(&unsafe { list(vmshm_ompi_pml_selection()) }, name)
}

/// A list of components; empty for none.
///
/// # Safety
/// `text` is NULL, or ends in NUL and stays.
unsafe fn list<'a>(text: *const c_char) -> Cow<'a, str> {
    if text.is_null() {
        return "".into();
    }
    // SAFETY: the caller vouches for it.
    unsafe { CStr::from_ptr(text) }.to_string_lossy()
}

/// Whether a list of components as Open MPI's parameters have it, `a,b` or `^a,b`, lets one in. An empty list does.
fn lets_in(list: &str, name: &str) -> bool {
    let names = |list: &str| list.split(',').any(|item| item.trim() == name);
    match list.strip_prefix('^') {
        Some(without) => !names(without),
        None => list.is_empty() || names(list),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_with_a_nul_is_cut_there() {
        assert_eq!(c_text("a\0b").as_c_str(), c"a");
    }

    #[test]
    fn lists_of_components_are_read_as_open_mpi_reads_them() {
        for list in ["", "ucx", "ob1,ucx", "^cm", "^cm,ob1"] {
            assert!(lets_in(list, "ucx"), "{list}");
        }
        for list in ["ob1", "ob1,cm", "^ucx", "^cm,ucx"] {
            assert!(!lets_in(list, "ucx"), "{list}");
        }
    }
}
