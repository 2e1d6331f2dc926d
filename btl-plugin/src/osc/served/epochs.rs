//! When a served window may be accessed: fences, groups that start and post, locks.

use std::ffi::c_int;

use super::request::{Kind, Request};
use super::{Served, Side, Word, forget, of};
use crate::ompi::{self, ompi_group_t, ompi_win_t};
use crate::osc::epochs::{is_checked, order, pause, ranks};
use crate::osc::members::code;

pub use crate::osc::epochs::{Locked, OUT_OF_ORDER};

const SUCCESS: c_int = ompi::OPAL_SUCCESS as c_int;

pub unsafe extern "C" fn fence(_: c_int, win: *mut ompi_win_t) -> c_int {
    // SAFETY: Open MPI gives a window, whose communicator is ours.
    unsafe {
        let window = of(win);
        window.flush_all();
        order();
        ompi::vmshm_osc_barrier(window.members.comm)
    }
}

pub unsafe extern "C" fn start(group: *mut ompi_group_t, assert: c_int, win: *mut ompi_win_t) -> c_int {
    // SAFETY: Open MPI gives a window and a group.
    let (window, ranks) = unsafe {
        let window = of(win);
        (window, ranks(&window.members, group, window.started.borrow().is_some()))
    };
    let ranks = match ranks {
        Ok(ranks) => ranks,
        Err(code) => return code,
    };
    if is_checked(assert) {
        for &rank in &ranks {
            let side = &window.sides[rank];
            side.posts.set(side.posts.get() + 1);
            side.await_word(Word::Posted, side.posts.get());
        }
    }
    window.started.replace(Some(ranks));
    SUCCESS
}

pub unsafe extern "C" fn complete(win: *mut ompi_win_t) -> c_int {
    // SAFETY: Open MPI gives a window.
    let window = unsafe { of(win) };
    let Some(ranks) = window.started.take() else { return OUT_OF_ORDER };
    for rank in ranks {
        let side = &window.sides[rank];
        window.flush(side);
        side.ours.count(Word::Completed);
    }
    SUCCESS
}

pub unsafe extern "C" fn post(group: *mut ompi_group_t, assert: c_int, win: *mut ompi_win_t) -> c_int {
    order();
    // SAFETY: Open MPI gives a window and a group.
    let (window, ranks) = unsafe {
        let window = of(win);
        (window, ranks(&window.members, group, window.posted.borrow().is_some()))
    };
    let ranks = match ranks {
        Ok(ranks) => ranks,
        Err(code) => return code,
    };
    if is_checked(assert) {
        for &rank in &ranks {
            window.sides[rank].ours.count(Word::Posted);
        }
    }
    window.posted.replace(Some(ranks));
    SUCCESS
}

/// Whether all have completed; then the epoch is over. None where there is none.
fn is_over(window: &Served) -> Option<bool> {
    let mut posted = window.posted.borrow_mut();
    let sides = || posted.iter().flatten().map(|rank| &window.sides[*rank]);
    let has_completed = |side: &Side| side.theirs.load(Word::Completed) > side.completions.get();
    posted.as_ref()?;
    if !sides().all(has_completed) {
        return Some(false);
    }
    sides().for_each(|side| side.completions.set(side.completions.get() + 1));
    *posted = None;
    Some(true)
}

pub unsafe extern "C" fn wait(win: *mut ompi_win_t) -> c_int {
    // SAFETY: Open MPI gives a window.
    let window = unsafe { of(win) };
    loop {
        match is_over(window) {
            Some(true) => return SUCCESS,
            Some(false) => pause(),
            None => return OUT_OF_ORDER,
        }
    }
}

pub unsafe extern "C" fn test(win: *mut ompi_win_t, flag: *mut c_int) -> c_int {
    // SAFETY: Open MPI gives a window.
    let Some(is_over) = is_over(unsafe { of(win) }) else { return OUT_OF_ORDER };
    if !is_over {
        pause();
    }
    // SAFETY: Open MPI gives room for a flag.
    unsafe { *flag = is_over.into() };
    SUCCESS
}

/// Asks for a lock.
fn ask(window: &Served, side: &Side, kind: Locked) -> Result<(), c_int> {
    if side.lock.get().is_some() {
        return Err(OUT_OF_ORDER);
    }
    let wanted = match kind {
        Locked::Alone => Some(Kind::LockAlone),
        Locked::Shared => Some(Kind::Lock),
        Locked::Unchecked => None,
    };
    side.lock.set(Some(kind));
    if let Some(wanted) = wanted {
        side.asked.set(side.asked.get() + 1);
        window.ask(side, &Request::new(window.name, wanted, 0), &[])?;
    }
    Ok(())
}

fn unlock_one(window: &Served, side: &Side) -> Result<(), c_int> {
    let kind = side.lock.take().ok_or(OUT_OF_ORDER)?;
    window.flush(side);
    if kind != Locked::Unchecked {
        window.ask(side, &Request::new(window.name, Kind::Unlock, 0), &[])?;
    }
    Ok(())
}

pub unsafe extern "C" fn lock(kind: c_int, rank: c_int, assert: c_int, win: *mut ompi_win_t) -> c_int {
    let work = || {
        // SAFETY: Open MPI gives a window.
        let window = unsafe { of(win) };
        let side = window.side(rank)?;
        ask(window, side, Locked::new(kind.cast_unsigned(), assert))?;
        side.await_word(Word::Granted, side.asked.get());
        Ok(())
    };
    code(work())
}

pub unsafe extern "C" fn unlock(rank: c_int, win: *mut ompi_win_t) -> c_int {
    // SAFETY: Open MPI gives a window.
    let window = unsafe { of(win) };
    code(window.side(rank).and_then(|side| unlock_one(window, side)))
}

pub unsafe extern "C" fn lock_all(assert: c_int, win: *mut ompi_win_t) -> c_int {
    // SAFETY: Open MPI gives a window.
    let window = unsafe { of(win) };
    let kind = Locked::new(ompi::MPI_LOCK_SHARED, assert);
    let asked = window.sides.iter().try_for_each(|side| ask(window, side, kind));
    if asked.is_ok() {
        window.sides.iter().for_each(|side| side.await_word(Word::Granted, side.asked.get()));
    }
    code(asked)
}

pub unsafe extern "C" fn unlock_all(win: *mut ompi_win_t) -> c_int {
    // SAFETY: Open MPI gives a window.
    let window = unsafe { of(win) };
    code(window.sides.iter().try_for_each(|side| unlock_one(window, side)))
}

/// All that is ours is seen by others, and theirs by us; what they ask for is done.
pub unsafe extern "C" fn sync(_: *mut ompi_win_t) -> c_int {
    order();
    pause();
    SUCCESS
}

pub unsafe extern "C" fn flush(rank: c_int, win: *mut ompi_win_t) -> c_int {
    // SAFETY: Open MPI gives a window.
    let window = unsafe { of(win) };
    code(window.side(rank).map(|side| window.flush(side)))
}

pub unsafe extern "C" fn flush_all(win: *mut ompi_win_t) -> c_int {
    // SAFETY: Open MPI gives a window.
    unsafe { of(win) }.flush_all();
    SUCCESS
}

/// Requests have their data with them.
pub unsafe extern "C" fn flush_local(_: c_int, win: *mut ompi_win_t) -> c_int {
    // SAFETY: Open MPI gives a window.
    unsafe { sync(win) }
}

pub unsafe extern "C" fn free(win: *mut ompi_win_t) -> c_int {
    // SAFETY: Open MPI gives a window, and does not use it after this.
    unsafe {
        let window = of(win);
        // After the barrier nobody reads our memory, or has requests of ours to do.
        window.flush_all();
        let code = ompi::vmshm_osc_barrier(window.members.comm);
        let window = ompi::vmshm_osc_module(win).cast::<Served>();
        forget(window);
        drop(Box::from_raw(window));
        code
    }
}
