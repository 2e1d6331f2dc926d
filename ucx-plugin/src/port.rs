//! The state of an interface, and how much of it is at rest.

use vmshm_transport::{Glance, Inbox};

use crate::iface::State;
use crate::lock::{Guard, Lock};
use crate::memory::Forget;

/// The state of an interface. Callbacks into UCX never run while it is held, but for those that pack or unpack: they come back with more.
pub struct Port(Lock<State>);

impl Port {
    pub fn new(state: State) -> Self {
        Self(Lock::new(state))
    }

    /// For all that may make something due: the next progress looks everywhere.
    pub fn lock(&self) -> Guard<'_, State> {
        let mut state = self.0.lock();
        state.is_at_rest = false;
        state
    }

    /// For the quick ways of sending, and for all else that makes nothing due: where progress is at rest, it stays so.
    #[inline(always)]
    pub fn lock_quick(&self) -> Guard<'_, State> {
        self.0.lock()
    }

    /// For progress; none while it is in use.
    #[inline(always)]
    pub fn try_lock(&self) -> Option<Guard<'_, State>> {
        self.0.try_lock()
    }
}

impl State {
    /// What a glance at the ring shows.
    #[inline(always)]
    pub fn glance(&mut self) -> Glance {
        match &mut self.inbox {
            Some(inbox) if self.is_at_rest => self.engine.glance(inbox),
            _ => Glance::More,
        }
    }

    /// Notes whether there is nothing to do until somebody locks the state, or a message comes.
    pub fn rest(&mut self, inbox: &Inbox) {
        self.is_at_rest = !self.is_due() && !self.is_armed && self.engine.is_quiet(inbox);
    }
}

impl Forget for Port {
    fn forget(&self, key: u64) {
        let mut state = self.lock_quick();
        if let Some(source) = state.sources.remove(&key) {
            state.engine.unexpose(source);
        }
    }
}
