//! Windows of ours behind Open MPI's.

use crate::ompi::{self, ompi_win_t};

/// The window behind Open MPI's.
///
/// # Safety
/// Open MPI calls this for a window of this kind, which it has not freed.
#[inline]
pub unsafe fn of<'a, W>(win: *mut ompi_win_t) -> &'a W {
    // SAFETY: the caller vouches for it: whatever has made the window has put it there.
    unsafe { &*ompi::vmshm_osc_module(win).cast::<W>() }
}
