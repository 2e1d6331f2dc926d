//! The version of the Open MPI that runs, beside the one that this plugin was built for.

use std::borrow::Cow;
use std::ffi::{CStr, c_char, c_void};
use std::mem::MaybeUninit;
use std::ptr;

use super::{OPAL_IDENT_STRING, mca_btl_base_param_register};

/// The version that this plugin was built for, as `5.0.7` or `6.0.0rc2`.
pub fn built_for() -> Cow<'static, str> {
    String::from_utf8_lossy(OPAL_IDENT_STRING.strip_suffix(b"\0").unwrap_or(OPAL_IDENT_STRING))
}

/// The version of the Open MPI that has loaded this plugin, or what stands in its place.
///
/// The loader compares only the version of the component interface. But structs which that version does not cover
/// (convertors, processes, modules) are shared with Open MPI too, and do not stay as they are from one release to the next:
/// 5.0.10 has moved the functions in a module for collective operations. So all of it must agree.
pub fn running() -> Cow<'static, str> {
    // SAFETY: dlsym takes any NUL-terminated name.
    let symbol = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"opal_version_string".as_ptr()) };
    // A Python program may have loaded Open MPI privately; the copy that this plugin is linked to is found by name.
    let symbol = if symbol.is_null() { in_library(c"opal_version_string") } else { symbol };
    if symbol.is_null() {
        return "of unknown version".into();
    }
    // SAFETY: in every Open MPI the symbol is a NUL-terminated array of characters.
    unsafe { CStr::from_ptr(symbol.cast::<c_char>()) }.to_string_lossy()
}

/// Whether the Open MPI that has loaded this plugin is the one it was built for.
pub fn is_built_for_this() -> bool {
    running() == built_for()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_open_mpi_that_this_test_is_linked_to_is_the_one_it_was_built_for() {
        assert_eq!(running(), built_for());
    }
}
