//! Epochs: when a window may be accessed, for both kinds of windows, and how a process waits in them.

use std::cell::{Cell, RefCell};
use std::ffi::c_int;
use std::sync::atomic::{self, AtomicU32, Ordering};

use super::members::Members;
use crate::ompi;
use crate::process::sleep;

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
    /// Against exclusive locks.
    Shared,
    /// Not at all: the user knows that it need not be.
    Unchecked,
}

impl Locked {
    /// The lock that a call of `MPI_Win_lock` asks for.
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
    sleep::awake(|| unsafe {
        ompi::opal_progress();
    });
}

/// Orders as [`order`] does, and lets messages come now and then: a process that accesses memory again and again waits for
/// something, and others may wait for a message of this process.
pub fn rest() {
    if !cfg!(target_arch = "x86_64") {
        order();
    }
    // There, this orders as a fence does, for half the price.
    if CALLS.fetch_add(1, Ordering::SeqCst).is_multiple_of(IDLE) {
        pause();
    }
}

/// A full fence: stores before it are seen before stores after it.
pub fn order() {
    atomic::fence(Ordering::SeqCst);
}

/// Whether others are to be waited for.
pub fn is_checked(assert: c_int) -> bool {
    assert.cast_unsigned() & ompi::MPI_MODE_NOCHECK == 0
}

/// The epochs of groups that a window is in.
#[derive(Debug, Default)]
pub struct Groups {
    /// The ranks of `MPI_Win_start`'s group.
    pub started: RefCell<Option<Vec<usize>>>,
    /// The ranks of `MPI_Win_post`'s group, which have to complete.
    pub posted: RefCell<Option<Vec<usize>>>,
}

/// How a kind of window keeps its processes apart. Errors are Open MPI's codes. A function with a rank is called with
/// that of a process of the window.
pub trait Epochs {
    /// Its processes.
    fn members(&self) -> &Members;
    /// Its groups.
    fn groups(&self) -> &Groups;
    /// How this process has locked another one.
    fn locked(&self, rank: usize) -> &Cell<Option<Locked>>;

    /// Completes this process's accesses, so that others see them after a barrier.
    fn fence(&self) -> Result<(), c_int>;
    /// Waits until a process has posted.
    fn await_post(&self, rank: usize);
    /// Tells a process that what was done to its memory is done.
    fn complete(&self, rank: usize) -> Result<(), c_int>;
    /// Tells a process that it may begin.
    fn post(&self, rank: usize);
    /// Whether these processes have all completed; if so, their completions are used up.
    fn take_completed(&self, ranks: &[usize]) -> bool;
    /// Requests a lock.
    fn request_lock(&self, rank: usize, kind: Locked) -> Result<(), c_int>;
    /// Waits for what was asked for.
    fn await_lock(&self, rank: usize);
    /// Gives a lock of this kind back, when all is done that was done under it.
    fn unlock(&self, rank: usize, kind: Locked) -> Result<(), c_int>;
    /// Orders this process's own loads and stores with others' accesses, as `MPI_Win_sync` does.
    fn sync(&self);
    /// Completes this process's accesses to a process's memory.
    fn flush(&self, rank: c_int) -> Result<(), c_int>;
    /// Completes this process's accesses to all processes' memory.
    fn flush_all(&self) -> Result<(), c_int>;
    /// Ends the window, for all processes; it is dropped next.
    fn close(&self) -> c_int;
}

/// Does all of these, and returns the first error.
pub fn all(results: impl Iterator<Item = Result<(), c_int>>) -> Result<(), c_int> {
    results.fold(Ok(()), Result::and)
}
