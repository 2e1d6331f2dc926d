//! State that all threads of a VM agree on: whether it runs, rests or has ended, and how.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// How a VM ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The guest switched itself off.
    PowerOff,
    /// The guest asked for a reset. Its vCPUs rest, until [`Machine::reset`](crate::Machine::reset) or the VM's end.
    Reset,
    /// [`Running::stop`](crate::Running::stop) was called.
    Stopped,
    /// The VM cannot go on, for this reason.
    Failed(String),
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::PowerOff => "the guest switched itself off",
            Self::Reset => "the guest reset itself",
            Self::Stopped => "the VM was stopped",
            Self::Failed(why) => why,
        })
    }
}

#[derive(Debug, Default)]
struct State {
    end: Option<End>,
    paused: bool,
    /// vCPU threads that rest.
    resting: usize,
}

impl State {
    /// Whether no vCPU is to run any more.
    fn is_over(&self) -> bool {
        !matches!(self.end, None | Some(End::Reset))
    }
}

/// State that all threads of a VM agree on.
#[derive(Debug, Default)]
pub(crate) struct Control {
    /// Whether vCPUs must look at the state before they run on.
    attention: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
    /// Returns from KVM.
    pub(crate) exits: AtomicU64,
}

impl Control {
    /// Ends the VM. The first reason stays, unless that is a reset, which need not be the end.
    pub(crate) fn end(&self, end: End) {
        let mut state = self.state.lock();
        if !state.is_over() {
            state.end = Some(end);
        }
        self.attention.store(true, Ordering::SeqCst);
        self.changed.notify_all();
    }

    /// How the VM ended, if it has.
    pub(crate) fn ended(&self) -> Option<End> {
        self.state.lock().end.clone()
    }

    /// Waits until the VM ends, at most for `limit`.
    pub(crate) fn wait(&self, limit: Duration) -> Option<End> {
        let mut state = self.state.lock();
        let goes_on = |state: &mut State| state.end.is_none();
        match std::time::Instant::now().checked_add(limit) {
            Some(until) => {
                self.changed.wait_while_until(&mut state, goes_on, until);
            }
            None => self.changed.wait_while(&mut state, goes_on),
        }
        state.end.clone()
    }

    /// Makes vCPUs rest, or go on.
    pub(crate) fn pause(&self, paused: bool) {
        let mut state = self.state.lock();
        state.paused = paused;
        let attention = paused || state.end.is_some();
        self.attention.store(attention, Ordering::SeqCst);
        self.changed.notify_all();
    }

    /// Lets vCPUs that rest after a reset go on.
    pub(crate) fn begin_anew(&self) {
        let mut state = self.state.lock();
        if state.end == Some(End::Reset) {
            state.end = None;
            self.attention.store(state.paused, Ordering::SeqCst);
            self.changed.notify_all();
        }
    }

    /// Whether that many vCPUs rest, or the VM has ended.
    pub(crate) fn rests(&self, vcpus: usize) -> bool {
        let state = self.state.lock();
        state.resting >= vcpus || state.is_over()
    }

    /// For a vCPU thread before it runs guest code: rests while the VM is paused or reset. `false` where it has ended.
    pub(crate) fn pass(&self) -> bool {
        if !self.attention.load(Ordering::SeqCst) {
            return true;
        }
        let mut state = self.state.lock();
        state.resting += 1;
        self.changed.wait_while(&mut state, |state| {
            !state.is_over() && (state.paused || state.end == Some(End::Reset))
        });
        state.resting -= 1;
        !state.is_over()
    }
}
