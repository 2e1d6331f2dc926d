//! Windows of ours behind Open MPI's, and its codes.

use std::ffi::c_int;

use crate::ompi::{self, ompi_win_t};

/// Open MPI's code for success.
pub const SUCCESS: c_int = ompi::OPAL_SUCCESS as c_int;

/// The window behind Open MPI's.
///
/// # Safety
/// Open MPI calls this for a window of this kind, which it has not freed.
#[inline]
pub unsafe fn of<'a, W>(win: *mut ompi_win_t) -> &'a W {
    // SAFETY: the caller vouches for it: whatever has made the window has put it there.
    unsafe { &*ompi::vmshm_osc_module(win).cast::<W>() }
}

/// The code of a result.
#[inline]
pub fn code(result: Result<(), c_int>) -> c_int {
    result.err().unwrap_or(SUCCESS)
}

/// A code as a result.
#[inline]
pub fn checked(code: c_int) -> Result<(), c_int> {
    if code == SUCCESS { Ok(()) } else { Err(code) }
}
