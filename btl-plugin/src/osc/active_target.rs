//! Active target synchronization: `MPI_Win_fence`, and `post`, `start`, `complete`, `wait`, `test`.

use std::cell::RefCell;
use std::ffi::c_int;

use super::epochs::{Epochs, OUT_OF_ORDER, all, is_checked, order, pause};
use super::members::Members;
use super::window::{SUCCESS, checked, code, of};
use crate::ompi::{self, ompi_group_t, ompi_win_t};

/// `MPI_Win_fence`.
pub unsafe extern "C" fn fence<W: Epochs>(_: c_int, win: *mut ompi_win_t) -> c_int {
    // SAFETY: Open MPI gives a window, whose communicator is ours.
    unsafe {
        let window = of::<W>(win);
        let done = window.fence();
        // The others wait for this process, whatever has become of its accesses.
        code(checked(ompi::vmshm_osc_barrier(window.members().comm)).and(done))
    }
}

/// Which ranks of a window a group has, for an epoch that must be new.
///
/// # Errors
/// Some are not the window's, or there is an epoch.
///
/// # Safety
/// `group` is Open MPI's.
unsafe fn ranks(
    members: &Members,
    group: *mut ompi_group_t,
    epoch: &RefCell<Option<Vec<usize>>>,
) -> Result<Vec<usize>, c_int> {
    if epoch.borrow().is_some() {
        return Err(OUT_OF_ORDER);
    }
    // SAFETY: the caller vouches for the group; there is room for as many ranks.
    let ranks = unsafe {
        let mut ranks = vec![0; usize::try_from(ompi::vmshm_osc_count(group)).unwrap_or(0)];
        checked(ompi::vmshm_osc_ranks(members.comm, group, ranks.as_mut_ptr()))?;
        ranks
    };
    let indices: Result<_, _> = ranks.into_iter().map(|rank| members.index(rank)).collect();
    indices.map_err(|_| OUT_OF_ORDER)
}

/// `MPI_Win_start`.
pub unsafe extern "C" fn start<W: Epochs>(
    group: *mut ompi_group_t,
    assert: c_int,
    win: *mut ompi_win_t,
) -> c_int {
    let work = || {
        // SAFETY: Open MPI gives a window and a group.
        let (window, ranks) = unsafe {
            let window = of::<W>(win);
            (window, ranks(window.members(), group, &window.groups().started)?)
        };
        if is_checked(assert) {
            ranks.iter().for_each(|rank| window.await_post(*rank));
        }
        window.groups().started.replace(Some(ranks));
        Ok(())
    };
    code(work())
}

/// `MPI_Win_complete`.
pub unsafe extern "C" fn complete<W: Epochs>(win: *mut ompi_win_t) -> c_int {
    // Direct stores are seen before the epoch's end is told.
    order();
    // SAFETY: Open MPI gives a window.
    let window = unsafe { of::<W>(win) };
    let Some(ranks) = window.groups().started.take() else { return OUT_OF_ORDER };
    code(all(ranks.into_iter().map(|rank| window.complete(rank))))
}

/// `MPI_Win_post`.
pub unsafe extern "C" fn post<W: Epochs>(
    group: *mut ompi_group_t,
    assert: c_int,
    win: *mut ompi_win_t,
) -> c_int {
    order();
    let work = || {
        // SAFETY: Open MPI gives a window and a group.
        let (window, ranks) = unsafe {
            let window = of::<W>(win);
            (window, ranks(window.members(), group, &window.groups().posted)?)
        };
        if is_checked(assert) {
            ranks.iter().for_each(|rank| window.post(*rank));
        }
        window.groups().posted.replace(Some(ranks));
        Ok(())
    };
    code(work())
}

/// Whether all have completed; then the epoch is over.
///
/// # Errors
/// There is none.
fn is_over(window: &impl Epochs) -> Result<bool, c_int> {
    let mut posted = window.groups().posted.borrow_mut();
    let is_over = window.take_completed(posted.as_ref().ok_or(OUT_OF_ORDER)?);
    if is_over {
        *posted = None;
    }
    Ok(is_over)
}

/// `MPI_Win_wait`.
pub unsafe extern "C" fn wait<W: Epochs>(win: *mut ompi_win_t) -> c_int {
    // SAFETY: Open MPI gives a window.
    let window = unsafe { of::<W>(win) };
    loop {
        match is_over(window) {
            Ok(true) => return SUCCESS,
            Ok(false) => pause(),
            Err(code) => return code,
        }
    }
}

/// `MPI_Win_test`.
pub unsafe extern "C" fn test<W: Epochs>(win: *mut ompi_win_t, flag: *mut c_int) -> c_int {
    // SAFETY: Open MPI gives a window.
    let is_over = match is_over(unsafe { of::<W>(win) }) {
        Ok(is_over) => is_over,
        Err(code) => return code,
    };
    if !is_over {
        pause();
    }
    // SAFETY: Open MPI gives room for a flag.
    unsafe { *flag = is_over.into() };
    SUCCESS
}
