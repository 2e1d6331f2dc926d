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

use std::ffi::{CString, c_char};
use std::mem::size_of;

pub use bindings::*;

/// Series that this library knows the structures of.
const SERIES: (&str, &str) = (env!("VMSHM_UCX_MAJOR"), env!("VMSHM_UCX_MINOR"));

/// Checks that the running UCX is of the series that this library was built for.
///
/// # Errors
///
/// The running release, for the user.
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
