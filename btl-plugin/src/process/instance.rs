//! The state of this process from `init` to `finalize`: the engine, and what hangs on it.

use vmshm_section_heap::Pool;
use vmshm_transport::abi::EndpointName;
use vmshm_transport::attach::Source;
use vmshm_transport::{ConnectError, Inbox, MAX_INLINE, Peer};

use super::completion::Completion;
use super::descriptor::Descriptor;
use super::left_groups::LeftGroups;
use super::lock::{Guard, Lock};
use super::module::others_read;
use super::other_traffic::OtherTraffic;
use crate::ompi::{Received, opal_proc_t};

/// The engine: a descriptor completes a send, Open MPI's callback a get.
pub type Engine = vmshm_messaging::Engine<*mut Descriptor, Completion>;

/// The instance of this process, from `init` to `finalize`.
///
/// Callbacks into Open MPI never run under the lock: they come back with more messages.
pub static INSTANCE: Lock<Option<Instance>> = Lock::new(None);

/// The instance, held.
pub type Held = Guard<'static, Option<Instance>>;

/// The instance, without the lock: where no other thread may be inside, and this one is not. For callers that count each
/// instruction; none where the lock is needed, or there is no instance.
///
/// # Safety
/// Nothing that may use the instance is called while the reference lives, such as anything of Open MPI's.
#[inline(always)]
pub unsafe fn quick() -> Option<&'static mut Instance> {
    // SAFETY: the raw lock is only looked at.
    if !unsafe { INSTANCE.raw() }.is_needless() {
        return None;
    }
    // SAFETY: the lock is free and there are no other threads, so that nobody has a reference; the caller makes no second one.
    unsafe { (*INSTANCE.data_ptr()).as_mut() }
}

/// As [`quick`], where nothing was done by others since progress has found nothing due: see `RawLock::rest`.
///
/// # Safety
/// As for [`quick`].
#[inline(always)]
pub unsafe fn at_rest() -> Option<&'static mut Instance> {
    // SAFETY: the raw lock is only looked at.
    if !unsafe { INSTANCE.raw() }.is_at_rest() {
        return None;
    }
    // SAFETY: as for `quick`. There is an instance where `rest` is called, and the lock is taken to take it away.
    unsafe { Some((*INSTANCE.data_ptr()).as_mut().unwrap_unchecked()) }
}

/// Uses the instance under the lock for something that makes nothing due: where progress is at rest, it stays so.
pub fn briefly<T>(use_it: impl FnOnce(&mut Instance) -> T) -> Option<T> {
    // SAFETY: the raw lock is only looked at.
    let raw = unsafe { INSTANCE.raw() };
    let was_at_rest = raw.is_at_rest();
    let result = INSTANCE.lock().as_mut().map(use_it);
    if was_at_rest {
        raw.rest();
    }
    result
}

/// Descriptors kept for reuse.
const MAX_SPARE: usize = 64;

/// An engine and all that hangs on it.
pub struct Instance {
    /// The engine.
    pub engine: Engine,
    /// Open MPI's processes, by their peers; none before `add_procs` and after `del_procs`.
    procs: Vec<Option<*mut opal_proc_t>>,
    #[allow(clippy::vec_box, reason = "C knows where they are")]
    spare: Vec<Box<Descriptor>>,
    /// Open MPI has named its processes: all its transports are initialised.
    pub has_started: bool,
    /// Memory that the program has from `MPI_Alloc_mem`.
    pub pool: Pool,
    /// Where messages arrive. Absent while some thread makes progress, lent (see `RawLock::lend`) while those are handed on that were
    /// found at a glance.
    pub inbox: Option<Box<Inbox>>,
    /// What Open MPI's functions are given with a message while it is lent, as the inbox is.
    pub received: Box<Received>,
    /// Where whole messages are copied to from fragments; empty while one is handled.
    pub landing: Vec<u64>,
    /// Messages that come by other transports; absent where the process only spins.
    pub traffic: Option<OtherTraffic>,
    /// Memory of groups that this process has left.
    pub left: LeftGroups,
}

// SAFETY: the raw pointers in it are Open MPI's processes and descriptors, which any thread may use; the lock around the
// instance orders their use.
unsafe impl Send for Instance {}

/// Outcome of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Posted {
    /// It is in the ring, whole.
    Done,
    /// The engine has it; the completion comes later.
    Later,
    /// The peer is gone.
    Lost,
}

impl Instance {
    /// Wraps an engine.
    pub fn new(engine: Engine) -> Self {
        let traffic = engine.params().sleep_after.map(|_| OtherTraffic::new(engine.waker().cloned()));
        Self {
            engine,
            procs: Vec::new(),
            spare: Vec::new(),
            has_started: false,
            pool: Pool::default(),
            inbox: Some(Box::default()),
            received: Box::default(),
            landing: Vec::new(),
            traffic,
            left: LeftGroups::default(),
        }
    }

    /// Meets the process of Open MPI that has published `name`.
    pub fn connect(&mut self, name: &EndpointName, proc: *mut opal_proc_t) -> Result<Peer, ConnectError> {
        let peer = self.engine.connect(name)?;
        let index = peer.index();
        if index >= self.procs.len() {
            self.procs.resize(index + 1, None);
        }
        self.procs[index] = Some(proc);
        Ok(peer)
    }

    /// Forgets Open MPI's process behind a peer.
    pub fn remove(&mut self, index: usize) {
        if let Some(proc) = self.procs.get_mut(index) {
            *proc = None;
        }
    }

    /// Open MPI's process behind a peer.
    pub fn process(&self, peer: Peer) -> Option<*mut opal_proc_t> {
        *self.procs.get(peer.index())?
    }

    /// Peers with a process of Open MPI behind them, and these.
    pub fn processes(&self) -> impl Iterator<Item = (Peer, *mut opal_proc_t)> + '_ {
        let procs = self.procs.iter().enumerate();
        procs.filter_map(|(index, proc)| Some((self.engine.peer(index)?, (*proc)?)))
    }

    /// Hands out a descriptor for a message with `len` bytes. Those that fit inline never fail.
    pub fn descriptor(&mut self, peer: Peer, len: usize, order: u8, flags: u32) -> Option<*mut Descriptor> {
        let fragment = if len <= MAX_INLINE {
            None
        } else if len <= self.engine.params().max_message && self.engine.admits(peer) {
            Some(self.engine.fragment(len)?)
        } else {
            return None;
        };
        let descriptor = self.spare.pop().unwrap_or_else(Descriptor::new);
        Some(descriptor.hand_out(peer, len, fragment, order, flags))
    }

    /// Frees a descriptor.
    ///
    /// # Safety
    /// `descriptor` was handed out by [`Instance::descriptor`] and is not used any more.
    pub unsafe fn free(&mut self, descriptor: *mut Descriptor) {
        // SAFETY: the caller vouches for it.
        let (descriptor, fragment) = unsafe { Descriptor::take_back(descriptor) };
        if let Some(fragment) = fragment {
            self.engine.free(fragment);
        }
        if self.spare.len() < MAX_SPARE {
            self.spare.push(descriptor);
        }
    }

    /// Sends a descriptor's message after all that was sent to the peer before.
    ///
    /// # Safety
    /// `descriptor` was handed out by [`Instance::descriptor`], and C does not touch it until it is called back or freed.
    pub unsafe fn post(&mut self, peer: Peer, descriptor: *mut Descriptor, tag: u8) -> Posted {
        // SAFETY: the caller vouches for it. C has written the bytes of an inline message, which lie in the descriptor.
        unsafe {
            let (data, len) = Descriptor::payload(descriptor);
            match Descriptor::take_fragment(descriptor) {
                None => {
                    let bytes = std::slice::from_raw_parts(data, len);
                    match self.engine.send(peer, tag, bytes, descriptor) {
                        Ok(Some(_)) => Posted::Done,
                        Ok(None) => Posted::Later,
                        Err(_) => Posted::Lost,
                    }
                }
                Some(fragment) => {
                    match self.engine.send_fragment(peer, tag, fragment, len, Some(descriptor)) {
                        Ok(()) => Posted::Later,
                        Err(unsent) => {
                            Descriptor::put_fragment(descriptor, Some(unsent.fragment));
                            Posted::Lost
                        }
                    }
                }
            }
        }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        for (descriptor, _) in self.engine.abandon() {
            // SAFETY: the module is being finalized: Open MPI has no use for its descriptors any more.
            drop(unsafe { Descriptor::take_back(descriptor) });
        }
    }
}

/// Whether programs want memory of the section without asking for it: others do not read it, and it is not slow.
pub fn is_wanted() -> bool {
    INSTANCE.lock().as_ref().is_some_and(|instance| {
        let endpoint = instance.engine.endpoint();
        endpoint.advice().is_none() && !others_read(matches!(endpoint.source(), Source::File(_)))
    })
}
