//! Functions of MPI that not every release of it has.

use std::ffi::{CStr, c_void};

/// Looks a function up in the MPI library.
///
/// # Safety
/// `F` is the type of a pointer to the function with this name.
///
/// # Panics
/// If this MPI does not have it: programs that call it are for those that do.
pub(crate) unsafe fn find<F: Copy>(name: &CStr) -> F {
    const { assert!(size_of::<F>() == size_of::<*mut c_void>()) };
    // SAFETY: dlsym takes any name.
    let function = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    assert!(!function.is_null(), "this MPI has no {}", name.to_string_lossy());
    // SAFETY: the caller vouches for the type, which has the size of a pointer.
    unsafe { std::mem::transmute_copy(&function) }
}
