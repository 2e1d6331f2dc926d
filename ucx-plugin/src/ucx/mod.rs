//! UCX as this library was built for it: bindings, its statuses, its log.

#[allow(
    missing_docs,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    dead_code,
    unused_imports,
    unsafe_op_in_unsafe_fn,
    unnecessary_transmutes,
    clippy::all,
    clippy::ptr_as_ptr,
    clippy::undocumented_unsafe_blocks,
    clippy::missing_safety_doc,
    reason = "bindgen made it"
)]
mod bindings {
    include!(concat!(env!("OUT_DIR"), "/ucx.rs"));
}

use std::ffi::{CStr, CString, OsStr, c_char, c_void};
use std::fs;
use std::mem::{MaybeUninit, size_of};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

pub use bindings::*;

// A program's linker wants each library named.
#[cfg(test)]
#[link(name = "uct")]
#[link(name = "ucs")]
unsafe extern "C" {}

/// Series that this library knows the structures of.
const SERIES: (&str, &str) = (env!("VMSHM_UCX_MAJOR"), env!("VMSHM_UCX_MINOR"));

/// Checks that the running UCX is one, of the series that this library was built for.
///
/// # Errors
///
/// The running release, or where its parts lie, for the user.
pub fn check_running() -> Result<(), String> {
    let (mut major, mut minor, mut release) = (0, 0, 0);
    // SAFETY: there is room for three numbers.
    unsafe { ucp_get_version(&mut major, &mut minor, &mut release) };
    let known = format!("{}.{}", SERIES.0, SERIES.1);
    if format!("{major}.{minor}") != known {
        return Err(format!(
            "vmshm: this transport was built for UCX {known}, and {major}.{minor}.{release} is running: it stays out"
        ));
    }
    // A function of each library.
    let parts: [*const c_void; 3] =
        [ucp_get_version as _, uct_component_register as _, ucs_class_call_cleanup_chain as _];
    let folders: Vec<PathBuf> = parts.into_iter().filter_map(folder).collect();
    if let Some(other) = folders.iter().find(|folder| **folder != folders[0]) {
        return Err(format!(
            "vmshm: of the UCX in this process one library lies in {} and another in {}: this transport stays out; \
             LD_LIBRARY_PATH brings all from one place",
            folders[0].display(),
            other.display(),
        ));
    }
    // SAFETY: both are UCX's constants.
    let sizes = unsafe { (uct_base_iface_t_class.size, uct_base_ep_t_class.size) };
    if sizes != (size_of::<uct_base_iface_t>(), size_of::<uct_base_ep_t>()) {
        return Err(format!(
            "vmshm: this UCX {known} was built with options that change its structures (such as --enable-stats): this transport \
             stays out"
        ));
    }
    Ok(())
}

/// The folder of the library that has this function.
fn folder(function: *const c_void) -> Option<PathBuf> {
    let mut info = MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: dladdr fills info where it returns non-zero, and the file's name ends in NUL.
    let file = unsafe {
        if libc::dladdr(function, info.as_mut_ptr()) == 0 {
            return None;
        }
        CStr::from_ptr(info.assume_init().dli_fname)
    };
    fs::canonicalize(OsStr::from_bytes(file.to_bytes())).ok()?.parent().map(Path::to_owned)
}

fn text(line: &str) -> CString {
    CString::new(line.replace('\0', " ")).unwrap_or_default()
}

/// Warns the user.
pub fn warn(line: &str) {
    // SAFETY: the text ends in NUL and outlives the call.
    unsafe { vmshm_ucx_warn(text(line).as_ptr()) };
}

/// Tells those who ask for it, by UCX_LOG_LEVEL=diag.
pub fn tell(line: &str) {
    // SAFETY: the text ends in NUL and outlives the call.
    unsafe { vmshm_ucx_diag(text(line).as_ptr()) };
}

/// Copies a name into one of UCX's fields, cut to its length.
pub fn put_name(field: &mut [c_char], name: &str) {
    let most = field.len() - 1;
    for (to, from) in field.iter_mut().zip(name.bytes().take(most).chain([0])) {
        *to = from.cast_signed();
    }
}

/// Notes that a part of an operation is over; calls back for the last part.
///
/// # Safety
///
/// `completion` is UCX's, and waits for this part.
pub unsafe fn complete(completion: *mut uct_completion_t, status: ucs_status_t) {
    // SAFETY: the caller vouches for it.
    unsafe {
        if status != UCS_OK && (*completion).status == UCS_OK {
            (*completion).status = status;
        }
        (*completion).count -= 1;
        if (*completion).count == 0
            && let Some(function) = (*completion).func
        {
            function(completion);
        }
    }
}
