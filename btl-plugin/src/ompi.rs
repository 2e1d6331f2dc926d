//! All that depends on the version of Open MPI: its types and functions, and the statics that it reads.

use std::cell::UnsafeCell;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::mem::MaybeUninit;
use std::ptr;

use vmshm_transport::abi::EndpointName;
use zerocopy::{FromZeros, IntoBytes};

pub use sys::*;

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
    const fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    /// The struct, for C.
    pub const fn get(&self) -> *mut T {
        self.0.get()
    }
}

/// The symbol that Open MPI looks for in `mca_btl_vmshm.so`.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)]
pub static mca_btl_vmshm_component: Global<mca_btl_base_component_t> =
    Global::new(mca_btl_base_component_t {
        btl_version: mca_base_component_t {
            mca_major_version: MCA_BASE_VERSION_MAJOR as c_int,
            mca_minor_version: MCA_BASE_VERSION_MINOR as c_int,
            mca_release_version: MCA_BASE_VERSION_RELEASE as c_int,
            mca_project_name: name("opal"),
            mca_project_major_version: OPAL_MAJOR_VERSION as c_int,
            mca_project_minor_version: OPAL_MINOR_VERSION as c_int,
            mca_project_release_version: OPAL_RELEASE_VERSION as c_int,
            mca_type_name: name("btl"),
            mca_type_major_version: 3,
            mca_type_minor_version: 1,
            mca_type_release_version: 0,
            mca_component_name: name("vmshm"),
            mca_component_major_version: OPAL_MAJOR_VERSION as c_int,
            mca_component_minor_version: OPAL_MINOR_VERSION as c_int,
            mca_component_release_version: OPAL_RELEASE_VERSION as c_int,
            mca_open_component: Some(crate::component::open),
            mca_close_component: Some(crate::component::close),
            mca_query_component: None,
            mca_register_component_params: Some(crate::component::register),
            mca_component_flags: 0,
            reserved: [0; 28],
        },
        btl_data: mca_base_component_data_t { param_field: 0, reserved: [0; 32] },
        btl_init: Some(crate::component::init),
        btl_progress: Some(crate::component::progress),
    });

/// The symbol that Open MPI looks for in `mca_mpool_vmshm.so`, which is the same file.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)]
pub static mca_mpool_vmshm_component: Global<mca_mpool_base_component_t> =
    Global::new(mca_mpool_base_component_t {
        mpool_version: mca_base_component_t {
            mca_register_component_params: Some(crate::mpool::register),
            ..component("mpool", [3, 0, 0])
        },
        mpool_data: mca_base_component_data_t { param_field: 0, reserved: [0; 32] },
        mpool_query: Some(crate::mpool::query),
    });

/// The symbol that Open MPI looks for in `mca_coll_vmshm.so`, which is the same file too.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)]
pub static mca_coll_vmshm_component: Global<mca_coll_base_component_t> =
    Global::new(mca_coll_base_component_2_0_0_t {
        collm_version: mca_base_component_t {
            mca_project_name: name("ompi"),
            mca_register_component_params: Some(crate::coll::register),
            ..component("coll", [2, 0, 0])
        },
        collm_data: mca_base_component_data_t { param_field: 0, reserved: [0; 32] },
        collm_init_query: Some(crate::coll::init_query),
        collm_comm_query: Some(crate::coll::comm_query),
    });

/// The symbol that Open MPI looks for in `mca_osc_vmshm.so`, which is the same file too.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)]
pub static mca_osc_vmshm_component: Global<ompi_osc_base_component_t> =
    Global::new(ompi_osc_base_component_2_0_0_t {
        osc_version: mca_base_component_t {
            mca_project_name: name("ompi"),
            mca_register_component_params: Some(crate::osc::register),
            ..component("osc", [3, 0, 0])
        },
        osc_data: mca_base_component_data_t { param_field: 0, reserved: [0; 32] },
        osc_init: Some(crate::osc::init),
        osc_query: Some(crate::osc::query),
        osc_select: Some(crate::osc::select),
        osc_finalize: Some(crate::osc::finalize),
    });

/// A component `vmshm` of a framework whose interface has the given version.
const fn component(framework: &str, interface: [c_int; 3]) -> mca_base_component_t {
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

// The interface that the numbers above name; another one needs another look at every line of this crate.
const _: () = assert!(BTL_VERSION == 310);

/// The one module of the component. All zero until the component registers its parameters.
// SAFETY: the struct holds numbers, pointers and optional functions, for all of which zero is a value.
pub static MODULE: Global<mca_btl_base_module_t> =
    Global::new(unsafe { MaybeUninit::zeroed().assume_init() });

/// The memory pool's module. All zero until its component registers.
// SAFETY: as above.
pub static MPOOL: Global<mca_mpool_base_module_t> =
    Global::new(unsafe { MaybeUninit::zeroed().assume_init() });

/// Text in one of the fixed arrays of a component.
const fn name<const N: usize>(text: &str) -> [c_char; N] {
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

/// A version of Open MPI: major, minor, release.
pub type Version = (u32, u32, u32);

/// The version that this plugin was built for.
pub const BUILT_FOR: Version = (OPAL_MAJOR_VERSION, OPAL_MINOR_VERSION, OPAL_RELEASE_VERSION);

/// The version of the Open MPI that has loaded this plugin, or what stands in its place.
///
/// The loader compares only the version of the component interface. But structs which that version does not cover
/// (convertors, processes, the module itself) are shared with Open MPI too, and nothing promises that they stay as they
/// are from one release to the next: so all three numbers must agree.
pub fn running() -> Result<Version, String> {
    // SAFETY: dlsym takes any NUL-terminated name.
    let symbol = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"opal_version_string".as_ptr()) };
    // A Python program may have loaded Open MPI privately; the copy that this plugin is linked to is found by name.
    let symbol = if symbol.is_null() { in_library(c"opal_version_string") } else { symbol };
    if symbol.is_null() {
        return Err("no opal_version_string".into());
    }
    // SAFETY: in every Open MPI the symbol is a NUL-terminated array of characters.
    let text = unsafe { CStr::from_ptr(symbol.cast::<c_char>()) }.to_string_lossy();
    parse(&text).ok_or_else(|| text.into_owned())
}

/// Looks a symbol up in the library that provides [`mca_btl_base_param_register`].
fn in_library(symbol: &CStr) -> *mut c_void {
    let mut info = MaybeUninit::<libc::Dl_info>::zeroed();
    let inside: unsafe extern "C" fn(_, _) -> _ = mca_btl_base_param_register;
    // SAFETY: dladdr fills info where it returns non-zero, and takes any address.
    unsafe {
        if libc::dladdr(inside as *const c_void, info.as_mut_ptr()) == 0 {
            return ptr::null_mut();
        }
        let library = libc::dlopen(info.assume_init().dli_fname, libc::RTLD_LAZY | libc::RTLD_NOLOAD);
        if library.is_null() { ptr::null_mut() } else { libc::dlsym(library, symbol.as_ptr()) }
    }
}

/// Reads "4.1.4", "v4.1.4" or "4.1.5rc1, ...".
fn parse(text: &str) -> Option<Version> {
    let digits = text.trim_start_matches(|c: char| !c.is_ascii_digit());
    let mut parts = digits.splitn(3, '.').map(|part| {
        let end = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
        part[..end].parse::<u32>().ok()
    });
    Some((parts.next()??, parts.next()??, parts.next()??))
}

/// Makes a C string of any text; what follows a NUL is lost.
pub fn c_text(text: &str) -> CString {
    let end = text.find('\0').unwrap_or(text.len());
    CString::new(&text[..end]).unwrap_or_default()
}

/// Publishes an endpoint's name for all processes; `Err` is Open MPI's code.
pub fn publish(name: &EndpointName) -> Result<(), c_int> {
    let bytes = name.as_bytes();
    // SAFETY: the component begins with its mca_base_component_t; the bytes outlive the call, which copies them.
    let rc = unsafe {
        vmshm_ompi_publish(
            &raw const (*mca_btl_vmshm_component.get()).btl_version,
            bytes.as_ptr().cast::<c_void>(),
            bytes.len(),
        )
    };
    if rc == OPAL_SUCCESS as c_int { Ok(()) } else { Err(rc) }
}

/// The endpoint's name that a process has published, if it has one.
///
/// # Safety
/// `proc` is a process of Open MPI.
pub unsafe fn lookup(proc: *const opal_proc_t) -> Option<EndpointName> {
    let mut name = EndpointName::new_zeroed();
    let bytes = name.as_mut_bytes();
    // SAFETY: as above; at most bytes.len() bytes are written.
    let rc = unsafe {
        vmshm_ompi_lookup(
            &raw const (*mca_btl_vmshm_component.get()).btl_version,
            proc,
            bytes.as_mut_ptr().cast::<c_void>(),
            bytes.len(),
        )
    };
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

/// Whether Open MPI serves several threads at a time.
pub fn has_threads() -> bool {
    // SAFETY: no arguments.
    unsafe { vmshm_ompi_threads() }
}

/// Whether some other transport of this process has hardware read memory that is sent, or the kernel where `kernel_reads`
/// says that it can't.
pub fn others_read(kernel_reads: bool) -> bool {
    // SAFETY: the module is compared, not used.
    unsafe { vmshm_ompi_others_read(MODULE.get(), kernel_reads) }
}

/// Whether the user asked for this component by name: `--mca btl vmshm,self`.
pub fn is_selected() -> bool {
    // SAFETY: no arguments; the list is NULL or NUL-terminated text.
    let list = unsafe {
        let list = vmshm_ompi_selection();
        if list.is_null() {
            return false;
        }
        CStr::from_ptr(list)
    };
    list.to_str()
        .is_ok_and(|list| !list.starts_with('^') && list.split(',').any(|item| item.trim() == "vmshm"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_in_all_their_spellings() {
        assert_eq!(parse("4.1.4"), Some((4, 1, 4)));
        assert_eq!(parse("v4.1.12"), Some((4, 1, 12)));
        assert_eq!(parse("5.0.7rc1, repo rev: v5.0.7rc1"), Some((5, 0, 7)));
        assert_eq!(parse("4.1"), None);
        assert_eq!(parse(""), None);
    }

    #[test]
    fn the_open_mpi_that_this_test_is_linked_to_is_the_one_it_was_built_for() {
        assert_eq!(running(), Ok(BUILT_FOR));
    }

    #[test]
    fn text_with_a_nul_is_cut_there() {
        assert_eq!(c_text("a\0b").as_c_str(), c"a");
    }
}
