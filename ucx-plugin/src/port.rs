//! The state of an interface, and when it may be used.
//!
//! UCT calls an interface from one thread at a time. Memory is taken back by any thread, though, also while the interface serves peers
//! that read it or write it: so what serves is locked out meanwhile, and nothing else.

use std::collections::HashMap;
use std::ops::{Deref, DerefMut};

use parking_lot::{Mutex, MutexGuard};
use vmshm_messaging::{Guard, Lock};
use vmshm_transport::Glance;

use crate::iface::State;
use crate::memory::Forget;

/// The state of an interface. Callbacks into UCX never run while it is held: they come back with more.
pub struct Port {
    state: Lock<State>,
    served: Mutex<Served>,
}

/// Registered memory that peers reach.
#[derive(Default)]
pub struct Served {
    /// The engine's sources, by the keys of the memory domain.
    sources: HashMap<u64, u64>,
    /// Sources of memory that was taken back. The engine reads none of them again, as whoever makes it serve looks here first.
    ended: Vec<u64>,
}

/// The state while peers are served: no memory is taken back.
pub struct Serving<'a> {
    state: Guard<'a, State>,
    served: MutexGuard<'a, Served>,
}

impl Port {
    pub fn new(state: State) -> Self {
        Self { state: Lock::new(state), served: Mutex::default() }
    }

    /// For all that serves no peers.
    #[inline]
    pub fn lock(&self) -> Guard<'_, State> {
        self.state.lock()
    }

    /// The state without the lock, for the quick ways; none while it is held, or something waits that goes first.
    ///
    /// # Safety
    ///
    /// Nothing that may use the interface is called while the reference lives, such as UCX's callbacks but for those that pack.
    #[inline(always)]
    #[allow(clippy::mut_from_ref, reason = "the mutability is the lock's")]
    pub unsafe fn quick(&self) -> Option<&mut State> {
        // SAFETY: the raw lock is only looked at. It is free, and UCT calls an interface from one thread at a time: nobody has a
        // reference, and the caller makes no second one.
        let state = unsafe { self.state.raw().is_needless().then(|| &mut *self.state.data_ptr()) };
        state.filter(|state| state.waiting.is_empty())
    }

    /// As [`Port::quick`], if nothing was done by others since [`Port::rest`].
    ///
    /// # Safety
    ///
    /// As [`Port::quick`].
    #[inline(always)]
    #[allow(clippy::mut_from_ref, reason = "the mutability is the lock's")]
    pub unsafe fn at_rest(&self) -> Option<&mut State> {
        // SAFETY: as for `quick`.
        unsafe { self.state.raw().is_at_rest().then(|| &mut *self.state.data_ptr()) }
    }

    /// What a glance at the ring shows.
    #[inline(always)]
    pub fn glance(&self) -> Glance {
        // SAFETY: the reference ends here, and nothing of UCX's is called.
        match unsafe { self.at_rest() } {
            Some(State { engine, inbox: Some(inbox), .. }) => engine.glance(inbox),
            _ => Glance::More,
        }
    }

    /// As [`Port::lock`], for something that makes nothing due: where progress is at rest, it stays so.
    pub fn briefly<T>(&self, use_it: impl FnOnce(&mut State) -> T) -> T {
        // SAFETY: the raw lock is only looked at.
        let was_at_rest = unsafe { self.state.raw() }.is_at_rest();
        let result = use_it(&mut self.state.lock());
        if was_at_rest {
            self.rest();
        }
        result
    }

    /// There is nothing to do until somebody uses the state, or a message comes.
    pub fn rest(&self) {
        // SAFETY: the raw lock is only looked at.
        unsafe { self.state.raw() }.rest();
    }

    /// Lends the inbox until the guard is dropped: see [`RawLock::lend`](vmshm_messaging::RawLock::lend).
    pub fn lend_inbox(&self) -> Lent<'_> {
        // SAFETY: the raw lock is only looked at.
        unsafe { self.state.raw() }.lend();
        Lent(self)
    }

    /// The state, to serve peers; none while it is in use, or its inbox is.
    pub fn serve(&self) -> Option<Serving<'_>> {
        // SAFETY: the raw lock is only looked at.
        if unsafe { self.state.raw() }.is_lent() {
            return None;
        }
        let state = self.state.try_lock()?;
        let mut serving = Serving { state, served: self.served.lock() };
        serving.end_sources();
        Some(serving)
    }
}

/// The inbox is lent.
pub struct Lent<'a>(&'a Port);

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        // SAFETY: the raw lock is only looked at.
        unsafe { self.0.state.raw() }.give_back();
    }
}

impl Serving<'_> {
    /// Notes that memory with this key is a source of the engine's.
    pub fn add_source(&mut self, key: u64, source: u64) {
        self.served.sources.insert(key, source);
    }

    /// Does something for which nothing may be held.
    #[inline]
    pub fn unlocked<T>(&mut self, f: impl FnOnce() -> T) -> T {
        let Self { state, served } = self;
        let result = MutexGuard::unlocked(served, || Guard::unlocked(state, f));
        self.end_sources();
        result
    }

    fn end_sources(&mut self) {
        for source in self.served.ended.drain(..) {
            self.state.engine.unexpose(source);
        }
    }
}

impl Deref for Serving<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        &self.state
    }
}

impl DerefMut for Serving<'_> {
    fn deref_mut(&mut self) -> &mut State {
        &mut self.state
    }
}

impl Forget for Port {
    fn forget(&self, key: u64) {
        let mut served = self.served.lock();
        if let Some(source) = served.sources.remove(&key) {
            served.ended.push(source);
        }
    }
}
