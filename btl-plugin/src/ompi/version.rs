//! The version of the Open MPI that runs, beside the one that this plugin was built for.

use std::ffi::{CStr, c_char, c_void};
use std::mem::MaybeUninit;
use std::ptr;

use super::{OPAL_MAJOR_VERSION, OPAL_MINOR_VERSION, OPAL_RELEASE_VERSION, mca_btl_base_param_register};

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
}
