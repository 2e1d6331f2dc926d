//! Passive target synchronization: `MPI_Win_lock`, `unlock`, `flush`, `sync` and those for all processes.

use std::ffi::c_int;

use super::epochs::{Epochs, Locked, OUT_OF_ORDER, all};
use super::window::{SUCCESS, code, of};
use crate::ompi::{self, ompi_win_t};

fn request_lock(window: &impl Epochs, rank: usize, kind: Locked) -> Result<(), c_int> {
    let locked = window.locked(rank);
    if locked.get().is_some() {
        return Err(OUT_OF_ORDER);
    }
    locked.set(Some(kind));
    window.request_lock(rank, kind)
}

fn release(window: &impl Epochs, rank: usize) -> Result<(), c_int> {
    window.unlock(rank, window.locked(rank).take().ok_or(OUT_OF_ORDER)?)
}

/// `MPI_Win_lock`.
pub unsafe extern "C" fn lock<W: Epochs>(
    kind: c_int,
    rank: c_int,
    assert: c_int,
    win: *mut ompi_win_t,
) -> c_int {
    let work = || {
        // SAFETY: Open MPI gives a window.
        let window = unsafe { of::<W>(win) };
        let rank = window.members().index(rank)?;
        request_lock(window, rank, Locked::new(kind.cast_unsigned(), assert))?;
        window.await_lock(rank);
        Ok(())
    };
    code(work())
}

/// `MPI_Win_unlock`.
pub unsafe extern "C" fn unlock<W: Epochs>(rank: c_int, win: *mut ompi_win_t) -> c_int {
    // SAFETY: Open MPI gives a window.
    let window = unsafe { of::<W>(win) };
    code(window.members().index(rank).and_then(|rank| release(window, rank)))
}

/// `MPI_Win_lock_all`.
pub unsafe extern "C" fn lock_all<W: Epochs>(assert: c_int, win: *mut ompi_win_t) -> c_int {
    // SAFETY: Open MPI gives a window.
    let window = unsafe { of::<W>(win) };
    let (kind, ranks) = (Locked::new(ompi::MPI_LOCK_SHARED, assert), 0..window.members().all.len());
    let asked = ranks.clone().try_for_each(|rank| request_lock(window, rank, kind));
    if asked.is_ok() {
        ranks.into_iter().for_each(|rank| window.await_lock(rank));
    }
    code(asked)
}

/// `MPI_Win_unlock_all`.
pub unsafe extern "C" fn unlock_all<W: Epochs>(win: *mut ompi_win_t) -> c_int {
    // SAFETY: Open MPI gives a window.
    let window = unsafe { of::<W>(win) };
    code(all((0..window.members().all.len()).map(|rank| release(window, rank))))
}

/// `MPI_Win_sync`.
pub unsafe extern "C" fn sync<W: Epochs>(win: *mut ompi_win_t) -> c_int {
    // SAFETY: Open MPI gives a window.
    unsafe { of::<W>(win) }.sync();
    SUCCESS
}

/// `MPI_Win_flush`.
pub unsafe extern "C" fn flush<W: Epochs>(rank: c_int, win: *mut ompi_win_t) -> c_int {
    // SAFETY: Open MPI gives a window.
    code(unsafe { of::<W>(win) }.flush(rank))
}

/// `MPI_Win_flush_all`.
pub unsafe extern "C" fn flush_all<W: Epochs>(win: *mut ompi_win_t) -> c_int {
    // SAFETY: Open MPI gives a window.
    code(unsafe { of::<W>(win) }.flush_all())
}

/// `MPI_Win_flush_local`.
pub unsafe extern "C" fn flush_local<W: Epochs>(_: c_int, win: *mut ompi_win_t) -> c_int {
    // SAFETY: Open MPI gives a window.
    unsafe { sync::<W>(win) }
}
