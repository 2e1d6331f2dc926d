//! When a window may be accessed, for both kinds of them: fences, groups that start and post, locks.

use std::cell::{Cell, RefCell};
use std::ffi::c_int;
use std::sync::atomic::{self, AtomicU32, Ordering};

use super::members::{Members, checked, code};
use super::window::of;
use crate::ompi::{self, ompi_group_t, ompi_win_t};
use crate::process::sleep;

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
    fn new(kind: u32, assert: c_int) -> Self {
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
fn is_checked(assert: c_int) -> bool {
    assert.cast_unsigned() & ompi::MPI_MODE_NOCHECK == 0
}

/// The epochs of groups that a window is in.
#[derive(Debug, Default)]
pub struct Groups {
    /// Those whose memory `MPI_Win_start` is for.
    started: RefCell<Option<Vec<usize>>>,
    /// Those who have to complete after `MPI_Win_post`.
    posted: RefCell<Option<Vec<usize>>>,
}

/// How a kind of window keeps its processes apart. Errors are Open MPI's codes. What is called with a rank is called with
/// that of a process of the window.
pub trait Epochs {
    /// Its processes.
    fn members(&self) -> &Members;
    /// Its groups.
    fn groups(&self) -> &Groups;
    /// How this process has locked another one.
    fn locked(&self, rank: usize) -> &Cell<Option<Locked>>;

    /// What this process has done before is done, and seen by others after a barrier.
    fn fence(&self) -> Result<(), c_int>;
    /// Waits until a process has posted.
    fn await_post(&self, rank: usize);
    /// Tells a process that what was done to its memory is done.
    fn complete(&self, rank: usize) -> Result<(), c_int>;
    /// Tells a process that it may begin.
    fn post(&self, rank: usize);
    /// Whether these processes have all completed; if so, their completions are used up.
    fn take_completed(&self, ranks: &[usize]) -> bool;
    /// Asks for a lock.
    fn ask_lock(&self, rank: usize, kind: Locked) -> Result<(), c_int>;
    /// Waits for what was asked for.
    fn await_lock(&self, rank: usize);
    /// Gives a lock of this kind back, when all is done that was done under it.
    fn unlock(&self, rank: usize, kind: Locked) -> Result<(), c_int>;
    /// What others have written is seen, and what was written here.
    fn sync(&self);
    /// What was done to a process's memory is done.
    fn flush(&self, rank: c_int) -> Result<(), c_int>;
    /// What was done to all processes' memory is done.
    fn flush_all(&self) -> Result<(), c_int>;
    /// Ends the window, for all processes; it is dropped next.
    fn close(&self) -> c_int;
}

pub unsafe extern "C" fn fence<W: Epochs>(_: c_int, win: *mut ompi_win_t) -> c_int {
    // SAFETY: Open MPI gives a window, whose communicator is ours.
    unsafe {
        let window = of::<W>(win);
        let done = window.fence();
        // The others wait for this process, whatever has become of its accesses.
        code(checked(ompi::vmshm_osc_barrier(window.members().comm)).and(done))
    }
}

/// Does all of these, and returns the first error.
pub fn all(results: impl Iterator<Item = Result<(), c_int>>) -> Result<(), c_int> {
    results.fold(Ok(()), Result::and)
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

pub unsafe extern "C" fn complete<W: Epochs>(win: *mut ompi_win_t) -> c_int {
    // What was written directly is seen before its end is told.
    order();
    // SAFETY: Open MPI gives a window.
    let window = unsafe { of::<W>(win) };
    let Some(ranks) = window.groups().started.take() else { return OUT_OF_ORDER };
    code(all(ranks.into_iter().map(|rank| window.complete(rank))))
}

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

fn ask_lock(window: &impl Epochs, rank: usize, kind: Locked) -> Result<(), c_int> {
    let locked = window.locked(rank);
    if locked.get().is_some() {
        return Err(OUT_OF_ORDER);
    }
    locked.set(Some(kind));
    window.ask_lock(rank, kind)
}

fn give_back(window: &impl Epochs, rank: usize) -> Result<(), c_int> {
    window.unlock(rank, window.locked(rank).take().ok_or(OUT_OF_ORDER)?)
}

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
        ask_lock(window, rank, Locked::new(kind.cast_unsigned(), assert))?;
        window.await_lock(rank);
        Ok(())
    };
    code(work())
}

pub unsafe extern "C" fn unlock<W: Epochs>(rank: c_int, win: *mut ompi_win_t) -> c_int {
    // SAFETY: Open MPI gives a window.
    let window = unsafe { of::<W>(win) };
    code(window.members().index(rank).and_then(|rank| give_back(window, rank)))
}

pub unsafe extern "C" fn lock_all<W: Epochs>(assert: c_int, win: *mut ompi_win_t) -> c_int {
    // SAFETY: Open MPI gives a window.
    let window = unsafe { of::<W>(win) };
    let (kind, ranks) = (Locked::new(ompi::MPI_LOCK_SHARED, assert), 0..window.members().all.len());
    let asked = ranks.clone().try_for_each(|rank| ask_lock(window, rank, kind));
    if asked.is_ok() {
        ranks.into_iter().for_each(|rank| window.await_lock(rank));
    }
    code(asked)
}

pub unsafe extern "C" fn unlock_all<W: Epochs>(win: *mut ompi_win_t) -> c_int {
    // SAFETY: Open MPI gives a window.
    let window = unsafe { of::<W>(win) };
    code(all((0..window.members().all.len()).map(|rank| give_back(window, rank))))
}

pub unsafe extern "C" fn sync<W: Epochs>(win: *mut ompi_win_t) -> c_int {
    // SAFETY: Open MPI gives a window.
    unsafe { of::<W>(win) }.sync();
    SUCCESS
}

pub unsafe extern "C" fn flush<W: Epochs>(rank: c_int, win: *mut ompi_win_t) -> c_int {
    // SAFETY: Open MPI gives a window.
    code(unsafe { of::<W>(win) }.flush(rank))
}

pub unsafe extern "C" fn flush_all<W: Epochs>(win: *mut ompi_win_t) -> c_int {
    // SAFETY: Open MPI gives a window.
    code(unsafe { of::<W>(win) }.flush_all())
}

pub unsafe extern "C" fn flush_local<W: Epochs>(_: c_int, win: *mut ompi_win_t) -> c_int {
    // SAFETY: Open MPI gives a window.
    unsafe { sync::<W>(win) }
}
