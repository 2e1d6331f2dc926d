//! When a direct window may be accessed: fences, groups that start and post, locks.

use std::ffi::c_int;
use std::sync::atomic::{self, AtomicU32, Ordering};

use super::direct::{Direct, of};
use super::members::{Members, checked, code};
use crate::ompi::{self, ompi_group_t, ompi_win_t};
use crate::sleep;

const SUCCESS: c_int = ompi::OPAL_SUCCESS as c_int;

/// The calls do not follow each other as MPI asks.
pub const OUT_OF_ORDER: c_int = ompi::OMPI_ERR_RMA_SYNC as c_int;

/// Messages are looked for once in so many calls that have nothing to wait for.
const IDLE: u32 = 32;

/// Such calls, of all windows.
static CALLS: AtomicU32 = AtomicU32::new(0);

/// How a process is locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Locked {
    /// Against all others.
    Alone,
    /// Against those who lock it alone.
    Shared,
    /// Not at all: the user knows that it need not be.
    Unchecked,
}

impl Locked {
    /// What a call of `MPI_Win_lock` is for.
    pub fn new(kind: u32, assert: c_int) -> Self {
        match kind {
            _ if !is_checked(assert) => Self::Unchecked,
            ompi::MPI_LOCK_EXCLUSIVE => Self::Alone,
            _ => Self::Shared,
        }
    }
}

/// Lets messages come, and other processes run where there are more of them than cores; the loss of one is noticed here.
pub fn pause() {
    // SAFETY: no lock of ours is held, nor is a window's borrowed.
    sleep::awake(|| unsafe { ompi::opal_progress() });
}

/// Orders as [`order`] does, and lets messages come now and then: who accesses memory again and again waits for something,
/// and others may wait for a message of its.
pub fn rest() {
    if !cfg!(target_arch = "x86_64") {
        order();
    }
    // There, this orders as a fence does, for half the price.
    if CALLS.fetch_add(1, Ordering::SeqCst).is_multiple_of(IDLE) {
        pause();
    }
}

/// What was written before is seen before what is written after.
pub fn order() {
    atomic::fence(Ordering::SeqCst);
}

/// Whether others are to be waited for.
pub fn is_checked(assert: c_int) -> bool {
    assert.cast_unsigned() & ompi::MPI_MODE_NOCHECK == 0
}

pub unsafe extern "C" fn fence(_: c_int, win: *mut ompi_win_t) -> c_int {
    order();
    // SAFETY: Open MPI gives a window, whose communicator is ours.
    unsafe { ompi::vmshm_osc_barrier(of(win).members.comm) }
}

/// Which ranks of a window a group has, for an epoch that is new unless one has `begun`.
///
/// # Errors
/// Some are not the window's, or there is an epoch.
///
/// # Safety
/// `group` is Open MPI's.
pub unsafe fn ranks(members: &Members, group: *mut ompi_group_t, begun: bool) -> Result<Vec<usize>, c_int> {
    if begun {
        return Err(OUT_OF_ORDER);
    }
    // SAFETY: the caller vouches for the group; there is room for as many ranks.
    let ranks = unsafe {
        let mut ranks = vec![0; usize::try_from(ompi::vmshm_osc_count(group)).unwrap_or(0)];
        checked(ompi::vmshm_osc_ranks(members.comm, group, ranks.as_mut_ptr()))?;
        ranks
    };
    let known = |rank| usize::try_from(rank).ok().filter(|rank| *rank < members.all.len());
    ranks.into_iter().map(known).collect::<Option<_>>().ok_or(OUT_OF_ORDER)
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
            window.targets[window.members.me].state.take_post(rank, pause);
        }
    }
    window.started.replace(Some(ranks));
    SUCCESS
}

pub unsafe extern "C" fn complete(win: *mut ompi_win_t) -> c_int {
    order();
    // SAFETY: Open MPI gives a window.
    let window = unsafe { of(win) };
    let Some(ranks) = window.started.take() else { return OUT_OF_ORDER };
    for rank in ranks {
        window.targets[rank].state.complete();
    }
    SUCCESS
}

pub unsafe extern "C" fn post(group: *mut ompi_group_t, assert: c_int, win: *mut ompi_win_t) -> c_int {
    order();
    // SAFETY: Open MPI gives a window and a group.
    let (window, ranks) = unsafe {
        let window = of(win);
        (window, ranks(&window.members, group, window.posted.get().is_some()))
    };
    let ranks = match ranks {
        Ok(ranks) => ranks,
        Err(code) => return code,
    };
    window.posted.set(Some(ranks.len() as u64));
    if is_checked(assert) {
        for rank in ranks {
            window.targets[rank].state.post(window.members.me);
        }
    }
    SUCCESS
}

/// Whether all have completed; then the epoch is over.
fn is_over(window: &Direct, count: u64) -> bool {
    let is_over = window.targets[window.members.me].state.take_completed(count);
    if is_over {
        window.posted.set(None);
        order();
    }
    is_over
}

pub unsafe extern "C" fn wait(win: *mut ompi_win_t) -> c_int {
    // SAFETY: Open MPI gives a window.
    let window = unsafe { of(win) };
    let Some(count) = window.posted.get() else { return OUT_OF_ORDER };
    while !is_over(window, count) {
        pause();
    }
    SUCCESS
}

pub unsafe extern "C" fn test(win: *mut ompi_win_t, flag: *mut c_int) -> c_int {
    // SAFETY: Open MPI gives a window.
    let window = unsafe { of(win) };
    let Some(count) = window.posted.get() else { return OUT_OF_ORDER };
    let is_over = is_over(window, count);
    if !is_over {
        pause();
    }
    // SAFETY: Open MPI gives room for a flag.
    unsafe { *flag = is_over.into() };
    SUCCESS
}

/// Locks a process.
fn lock_one(window: &Direct, rank: c_int, kind: Locked) -> Result<(), c_int> {
    let target = window.target(rank)?;
    if target.lock.get().is_some() {
        return Err(OUT_OF_ORDER);
    }
    match kind {
        Locked::Alone => target.state.lock_alone(pause),
        Locked::Shared => target.state.lock_shared(pause),
        Locked::Unchecked => {}
    }
    target.lock.set(Some(kind));
    order();
    Ok(())
}

/// Unlocks a process.
fn unlock_one(window: &Direct, rank: c_int) -> Result<(), c_int> {
    let target = window.target(rank)?;
    match target.lock.take().ok_or(OUT_OF_ORDER)? {
        Locked::Alone => target.state.unlock_alone(),
        Locked::Shared => target.state.unlock_shared(),
        Locked::Unchecked => {}
    }
    rest();
    Ok(())
}

pub unsafe extern "C" fn lock(kind: c_int, rank: c_int, assert: c_int, win: *mut ompi_win_t) -> c_int {
    // SAFETY: Open MPI gives a window.
    code(lock_one(unsafe { of(win) }, rank, Locked::new(kind.cast_unsigned(), assert)))
}

pub unsafe extern "C" fn unlock(rank: c_int, win: *mut ompi_win_t) -> c_int {
    // SAFETY: Open MPI gives a window.
    code(unlock_one(unsafe { of(win) }, rank))
}

pub unsafe extern "C" fn lock_all(assert: c_int, win: *mut ompi_win_t) -> c_int {
    // SAFETY: Open MPI gives a window.
    let window = unsafe { of(win) };
    let kind = Locked::new(ompi::MPI_LOCK_SHARED, assert);
    code((0..window.targets.len()).try_for_each(|rank| lock_one(window, rank as c_int, kind)))
}

pub unsafe extern "C" fn unlock_all(win: *mut ompi_win_t) -> c_int {
    // SAFETY: Open MPI gives a window.
    let window = unsafe { of(win) };
    code((0..window.targets.len()).try_for_each(|rank| unlock_one(window, rank as c_int)))
}

pub unsafe extern "C" fn sync(win: *mut ompi_win_t) -> c_int {
    // SAFETY: Open MPI gives a window.
    unsafe { flush_all(win) }
}

pub unsafe extern "C" fn flush(_: c_int, win: *mut ompi_win_t) -> c_int {
    // SAFETY: Open MPI gives a window.
    unsafe { flush_all(win) }
}

/// All is over when its function returns.
pub unsafe extern "C" fn flush_all(_: *mut ompi_win_t) -> c_int {
    rest();
    SUCCESS
}
