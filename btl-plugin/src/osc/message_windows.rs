//! Windows whose accesses come as messages: their origins wait until this process makes progress.

use std::ffi::c_int;
use std::sync::atomic::{AtomicIsize, Ordering};

use crate::ompi::{self, ompi_osc_base_module_free_fn_t, ompi_osc_base_module_t, ompi_win_t};
use crate::process::Lock;

/// How many such windows there are.
static COUNT: AtomicIsize = AtomicIsize::new(0);

/// Such windows of other components, by their modules, and how they end.
static WATCHED: Lock<Vec<Watched>> = Lock::new(Vec::new());

struct Watched {
    module: *mut ompi_osc_base_module_t,
    free: ompi_osc_base_module_free_fn_t,
}

// SAFETY: any thread may use modules of Open MPI's.
unsafe impl Send for Watched {}

/// Whether there are such windows.
pub fn is_used() -> bool {
    COUNT.load(Ordering::Relaxed) > 0
}

/// Counts one such window more, or one less.
pub fn count(change: isize) {
    COUNT.fetch_add(change, Ordering::Relaxed);
}

/// Counts a window of another component until it is freed.
///
/// # Safety
/// `module` is that of a new window, and nobody uses it yet.
pub unsafe fn watch(module: *mut ompi_osc_base_module_t) {
    // SAFETY: the caller vouches for it.
    let free = unsafe { (*module).osc_free.replace(end) };
    WATCHED.lock().push(Watched { module, free });
    count(1);
}

/// Frees a window as its component does.
unsafe extern "C" fn end(win: *mut ompi_win_t) -> c_int {
    // SAFETY: Open MPI gives one of its windows.
    let module = unsafe { ompi::vmshm_osc_module(win) };
    let watched = {
        let mut all = WATCHED.lock();
        all.iter().position(|watched| watched.module == module).map(|at| all.swap_remove(at))
    };
    count(-1);
    match watched.and_then(|watched| watched.free) {
        // SAFETY: this is the function that the window had.
        Some(free) => unsafe { free(win) },
        None => ompi::OPAL_ERR_NOT_FOUND,
    }
}
