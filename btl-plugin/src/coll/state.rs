//! What a communicator's module knows.

use std::ffi::{c_int, c_void};
use std::hint::spin_loop;
use std::mem;
use std::sync::atomic::Ordering;
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use parking_lot::Mutex;
use vmshm_messaging::Evictor;
use vmshm_transport::abi::{EndpointId, EndpointName};
use vmshm_transport::collective::{BLOCK, CollError, Group, MIN_CHUNKS, Pause, Rank, chunks_len, is_chunk};
use vmshm_transport::tune::Tuning;
use vmshm_transport::{Fragment, Mapping, Memory, Purpose};
use zerocopy::{FromZeros, IntoBytes};

use super::hierarchy::{By, Levels, is_one_region};
use super::names::forget_names;
use crate::ompi::{self, help, ompi_communicator_t, opal_proc_t, vmshm_coll_module_t};
use crate::process::{INSTANCE, Instance, loss, params};

/// How often a member looks for another's step before it lets Open MPI make progress: some microseconds.
const SPINS: u32 = 1000;

/// The same where processes share processors: the one that is waited for may need ours.
const SPINS_SHARED: u32 = 10;

/// Operations with parts of unequal lengths between two times that members ask one another for room.
const UNEQUAL: u32 = 64;

/// Errors of the program that members tell one another: no member is lost.
const TOLD: [u32; 2] = [ompi::MPI_ERR_TRUNCATE, ompi::MPI_ERR_NO_MEM];

/// Bytes of the smallest page.
const PAGE: usize = 4096;

/// How long a member lets others publish before it looks, nanoseconds: less than a line takes between two processors.
/// Measured as in docs/analysis.md; twice as long is still better than not at all, where members come together.
const SETTLE: u128 = 36;

/// So many of the processor's pauses are about [`SETTLE`]: from 3 to 45 ns each, by its make.
static SETTLE_PAUSES: LazyLock<u32> = LazyLock::new(|| {
    const MANY: u32 = 64;
    let measure = || {
        let began = Instant::now();
        (0..MANY).for_each(|_| spin_loop());
        began.elapsed().as_nanos()
    };
    // The fastest: others may have been interrupted.
    let all = (0..8).map(|_| measure()).min().unwrap_or(0).max(1);
    ((SETTLE * u128::from(MANY) + all / 2) / all).clamp(1, 16) as u32
});

/// A communicator's module, on our side.
pub struct State {
    me: usize,
    procs: Vec<*mut opal_proc_t>,
    names: Vec<EndpointName>,
    /// Of a section of our region.
    endpoints: u32,
    stage: Stage,
    hierarchy: Hierarchy,
}

enum Hierarchy {
    /// There is one level.
    Flat,
    /// There will be two when the first operation is called, of members parted by this.
    Due(By),
    /// There are two.
    There(Box<Levels>),
}

// SAFETY: the raw pointers in it are Open MPI's processes, which any thread may use; a communicator is used by one thread
// at a time.
unsafe impl Send for State {}

enum Stage {
    /// Nobody has called an operation yet.
    New,
    /// The members have met.
    Met(Box<Met>),
    /// They could not; the component below does it all.
    Declined,
    /// An operation has failed with this code: the members are not at the same step any more.
    Broken(c_int),
}

/// The members, and what is ours of their memory.
pub struct Met {
    /// The group.
    pub group: Group<Arc<Mapping>>,
    /// How to wait for its members.
    pub waiting: Waiting,
    fragments: Vec<Fragment>,
    chunks: Chunks,
    chunk: usize,
    /// Operations with parts of unequal lengths so far.
    unequal: u32,
    /// Whether a part of ours that a chunk has room for went as a message in one of them.
    pub lacked_room: bool,
}

enum Chunks {
    Unasked,
    There,
    Declined,
}

/// Waits for members, while Open MPI makes progress.
pub struct Waiting {
    yields: bool,
    settle: u32,
    evictor: Arc<Evictor>,
}

impl Pause for Waiting {
    #[cold]
    fn pause(&mut self, _: usize) -> Result<(), CollError> {
        // SAFETY: we hold no lock, and are called by Open MPI outside of its own.
        unsafe { ompi::opal_progress() };
        if self.yields {
            std::thread::yield_now();
        }
        Ok(())
    }

    #[inline]
    fn back_off(&self) {
        (0..self.settle).for_each(|_| spin_loop());
    }

    fn exposed(&self, len: usize) {
        self.evictor.evict(len);
    }

    fn spins(&self, usual: u32) -> u32 {
        // Others may wait for what only our progress does to a window.
        if crate::osc::is_used() { usual.min(SPINS_SHARED) } else { usual }
    }
}

/// What members do step by step. Another number whenever that changes: virtual machines may have plugins of different days.
const PROTOCOL: u64 = 1;

/// What each member tells the others at first.
#[derive(Clone, Copy, IntoBytes, FromZeros, zerocopy::KnownLayout, zerocopy::Immutable)]
#[repr(C)]
struct Hello {
    /// Offset of its block, or 0 where it has none.
    block: u64,
    tag: u64,
    chunk: u64,
    protocol: u64,
}

/// All states that may have a group.
static STATES: Mutex<Vec<Kept>> = Mutex::new(Vec::new());

#[derive(PartialEq)]
struct Kept(*mut State);

// SAFETY: as State.
unsafe impl Send for Kept {}

/// Gives back memory of groups that nobody reads any more.
fn tidy() {
    if let Some(Instance { engine, left, .. }) = INSTANCE.lock().as_mut() {
        left.tidy(engine.endpoint_mut());
    }
}

/// Called before the region is left: nothing of ours uses it afterwards.
pub fn close() {
    for state in STATES.lock().iter() {
        // SAFETY: kept states live until `destruct` takes them from the list; no operation runs while MPI is finalized.
        unsafe { (*state.0).stage = Stage::Declined };
    }
    forget_names();
}

/// Called when Open MPI has no use for a module any more.
pub unsafe extern "C" fn destruct(state: *mut c_void) {
    let state = state.cast::<State>();
    STATES.lock().retain(|kept| kept.0 != state);
    // SAFETY: it came from `State::keep`, and the module that had it is going.
    let mut state = unsafe { Box::from_raw(state) };
    // Its communicators' modules come here too.
    state.hierarchy = Hierarchy::Flat;
    if let Stage::Met(met) = state.stage {
        let Met { group, fragments, .. } = *met;
        if let Some(Instance { engine, left, .. }) = INSTANCE.lock().as_mut() {
            left.add(group.leave(), fragments);
            left.tidy(engine.endpoint_mut());
        }
    }
}

impl State {
    /// The state for a communicator with these members, of which we are number `me`, and who work in two levels if they are
    /// parted by something.
    pub fn new(
        me: usize,
        procs: Vec<*mut opal_proc_t>,
        names: Vec<EndpointName>,
        endpoints: u32,
        levels: Option<By>,
    ) -> Self {
        let stage = if is_one_region(&names) { Stage::New } else { Stage::Declined };
        let hierarchy = levels.map_or(Hierarchy::Flat, Hierarchy::Due);
        Self { me, procs, names, endpoints, stage, hierarchy }
    }

    /// The levels in which to do an operation, if there are some.
    #[inline]
    pub fn levels(&self) -> Option<&Levels> {
        match &self.hierarchy {
            Hierarchy::There(levels) => Some(levels),
            Hierarchy::Flat | Hierarchy::Due(_) => None,
        }
    }

    /// What parts the levels that are still to be made.
    #[inline]
    pub fn levels_due(&self) -> Option<By> {
        match self.hierarchy {
            Hierarchy::Due(by) => Some(by),
            Hierarchy::Flat | Hierarchy::There(_) => None,
        }
    }

    /// Makes the levels, if all members can; `Err` is Open MPI's code.
    ///
    /// # Safety
    /// As [`State::met`].
    #[cold]
    pub unsafe fn make_levels(
        module: *mut vmshm_coll_module_t,
        comm: *mut ompi_communicator_t,
        by: By,
    ) -> Result<(), c_int> {
        // SAFETY: as in `met`; the state is not borrowed while Open MPI may call us again.
        unsafe {
            let state = (*module).state.cast::<State>();
            // Making them takes operations on this communicator, which are to be done without.
            (*state).hierarchy = Hierarchy::Flat;
            let (names, me) = ((*state).names.clone(), (*state).me);
            // Other threads might make communicators at the same time. Not all processes need have such.
            let mine = u8::from(ompi::vmshm_coll_is_multiple());
            let mut all = vec![0u8; names.len()];
            let rc =
                ompi::vmshm_coll_exchange(module, comm, (&raw const mine).cast(), all.as_mut_ptr().cast(), 1);
            if rc != 0 {
                return Err(rc);
            }
            if all.contains(&1) {
                help::verbose("a communicator has no levels for collective operations: threads share MPI");
                return Ok(());
            }
            let levels = Levels::new(comm, &names, by, me)?;
            help::verbose(&format!(
                "a communicator of {} has two levels for collective operations, parted by {by}",
                names.len()
            ));
            (*state).hierarchy = Hierarchy::There(Box::new(levels));
            Ok(())
        }
    }

    /// Gives it to a module.
    pub fn keep(state: Self) -> *mut Self {
        let state = Box::into_raw(Box::new(state));
        STATES.lock().push(Kept(state));
        state
    }

    /// The members, if they can work together; `Err` is Open MPI's code.
    ///
    /// # Safety
    /// The state is that of `module`, which is ours and enabled, `comm` its communicator, whose members all call the same
    /// operation.
    #[inline]
    pub unsafe fn met(
        &mut self,
        module: *mut vmshm_coll_module_t,
        comm: *mut ompi_communicator_t,
    ) -> Result<Option<&mut Met>, c_int> {
        if let Stage::New = self.stage {
            // SAFETY: the caller vouches for both.
            self.stage = unsafe { self.meet(module, comm)? };
        }
        match &mut self.stage {
            Stage::Met(met) => Ok(Some(met)),
            Stage::Broken(rc) => Err(*rc),
            _ => Ok(None),
        }
    }

    /// Lets the members meet.
    ///
    /// # Safety
    /// As [`State::met`].
    #[cold]
    unsafe fn meet(
        &mut self,
        module: *mut vmshm_coll_module_t,
        comm: *mut ompi_communicator_t,
    ) -> Result<Stage, c_int> {
        tidy();
        let prepared = self.prepare();
        let mine = match &prepared {
            Ok((fragment, tag)) => {
                let chunk = params::coll_chunk() as u64;
                Hello { block: fragment.offset(), tag: *tag, chunk, protocol: PROTOCOL }
            }
            Err(_) => Hello::new_zeroed(),
        };
        let mut hellos = vec![Hello::new_zeroed(); self.names.len()];
        // SAFETY: the buffers have the lengths that are given.
        let rc = unsafe {
            let to = hellos.as_mut_ptr().cast();
            ompi::vmshm_coll_exchange(module, comm, (&raw const mine).cast(), to, size_of::<Hello>() as c_int)
        };
        let met = match (&prepared, rc) {
            (Ok((fragment, _)), 0) => self.group(&hellos, fragment),
            (Err(why), 0) => Err(why.clone()),
            (_, rc) => return Err(rc),
        };
        match (met, prepared) {
            (Ok((group, waiting)), Ok((fragment, _))) => Ok(Stage::Met(Box::new(Met {
                group,
                waiting,
                fragments: vec![fragment],
                chunks: Chunks::Unasked,
                chunk: hellos.iter().map(|hello| hello.chunk as usize).min().unwrap_or(0),
                unequal: 0,
                lacked_room: false,
            }))),
            (met, prepared) => {
                if let (Ok((fragment, _)), Some(instance)) = (prepared, INSTANCE.lock().as_mut()) {
                    instance.engine.free(fragment);
                }
                let why = met.err().unwrap_or_default();
                help::verbose(&format!("collective operations of a communicator are left to others: {why}"));
                Ok(Stage::Declined)
            }
        }
    }

    /// Meets the members' endpoints, and prepares our block.
    fn prepare(&self) -> Result<(Fragment, u64), String> {
        let mut instance = INSTANCE.lock();
        let instance = instance.as_mut().ok_or("this process has left the region")?;
        if instance.engine.params().sleep_after.is_some() {
            return Err("processes sleep (btl_vmshm_sleep_after)".into());
        }
        for (member, (name, proc)) in self.names.iter().zip(&self.procs).enumerate() {
            if member != self.me {
                instance.connect(name, *proc).map_err(|error| format!("member {member}: {error}"))?;
            }
        }
        let endpoint = instance.engine.endpoint_mut();
        let fragment =
            endpoint.fragment_for(BLOCK, Purpose::Small).ok_or("the section has no memory left")?;
        let tag = random_tag();
        Group::prepare(endpoint.memory(), fragment.offset(), tag);
        Ok((fragment, tag))
    }

    /// Whether this process shares its processor with other members: Open MPI knows that there are more processes than
    /// processors, or there are more members in our section.
    fn is_crowded(&self) -> bool {
        // SAFETY: plain questions.
        let (processors, yields) =
            unsafe { (libc::sysconf(libc::_SC_NPROCESSORS_ONLN), ompi::vmshm_coll_yields()) };
        let section = |name: &EndpointName| name.id / self.endpoints.max(1);
        let siblings =
            self.names.iter().filter(|name| section(name) == section(&self.names[self.me])).count();
        yields || usize::try_from(processors).is_ok_and(|processors| siblings > processors)
    }

    /// The group of members that said this.
    fn group(&self, hellos: &[Hello], mine: &Fragment) -> Result<(Group<Arc<Mapping>>, Waiting), String> {
        let instance = INSTANCE.lock();
        let instance = instance.as_ref().ok_or("this process has left the region")?;
        let endpoint = instance.engine.endpoint();
        let memory = Arc::clone(endpoint.memory());
        let mut members = Vec::new();
        for (member, (hello, name)) in hellos.iter().zip(&self.names).enumerate() {
            let place = endpoint.region().place(EndpointId(name.id));
            let (section, slot) = place.ok_or_else(|| format!("member {member} has no section"))?;
            if hello.block == 0 || hello.tag == 0 || !usize::try_from(hello.chunk).is_ok_and(is_chunk) {
                return Err(format!("member {member} cannot take part"));
            }
            if hello.protocol != PROTOCOL {
                let theirs = hello.protocol;
                return Err(format!(
                    "member {member} has a plugin of another version (protocol {theirs}, here {PROTOCOL})"
                ));
            }
            members.push(Rank {
                section: *section,
                block: hello.block,
                tag: hello.tag,
                slot: section.slot(slot),
                incarnation: name.incarnation,
            });
        }
        debug_assert_eq!(members[self.me].block, mine.offset());
        // SAFETY: a plain question.
        let yields = unsafe { ompi::vmshm_coll_yields() };
        let shared = self.is_crowded();
        let spins = if shared { SPINS_SHARED } else { SPINS };
        let waiting = Waiting {
            yields: shared && !yields,
            settle: *SETTLE_PAUSES,
            evictor: Arc::clone(instance.engine.evictor()),
        };
        let mut group = Group::new(memory, self.me, members, spins)
            .ok_or("a member's block lies outside of its section")?;
        group.expose_to_root(Tuning::of_this_machine().coll_zero_copy_limit);
        Ok((group, waiting))
    }

    /// Notes that an operation has failed, tells the other members and the user why, and returns Open MPI's code.
    #[cold]
    pub fn fail(&mut self, broken: CollError) -> c_int {
        let (member, rc) = match broken {
            CollError::LengthMismatch { .. } => (None, ompi::MPI_ERR_TRUNCATE as c_int),
            CollError::NoMemory => (None, ompi::MPI_ERR_NO_MEM as c_int),
            // The program's own error, as told by who made it or met it.
            CollError::Aborted { why, .. } if TOLD.contains(&u32::from(why)) => (None, c_int::from(why)),
            CollError::PeerLost(rank)
            | CollError::Disagreement(rank)
            | CollError::Aborted { rank, .. }
            | CollError::OutsideSection { rank, .. }
            | CollError::OutOfStep { rank, .. } => (Some(rank), ompi::OPAL_ERR_UNREACH),
        };
        if let Stage::Met(met) = mem::replace(&mut self.stage, Stage::Broken(rc)) {
            // Its memory stays as it is: others may still read it.
            met.group.abort(u16::try_from(rc).unwrap_or(0));
        }
        let text = format!("a collective operation failed: {broken}");
        match member {
            None => help::verbose(&text),
            // SAFETY: Open MPI's processes live until MPI is finalized.
            Some(member) => unsafe { loss::tell(self.procs.get(member).copied(), &text) },
        }
        rc
    }
}

/// A number that no other group has had; not zero.
fn random_tag() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish() | 1
}

impl Met {
    /// Bytes of so many chunks. It is the same for all members.
    pub fn chunks_of(&self, count: usize) -> usize {
        count * self.chunk
    }

    /// Whether payloads of `len` bytes a step can go through the group; asks for memory when that is first needed. All
    /// members come to the same conclusion.
    #[inline]
    pub fn takes(&mut self, len: usize) -> Result<bool, CollError> {
        if len <= self.group.short() {
            return Ok(true);
        }
        if let Chunks::Unasked = self.chunks {
            self.chunks = self.get_chunks()?;
        }
        Ok(matches!(self.chunks, Chunks::There))
    }

    /// To be called at each operation with parts of unequal lengths. Nobody knows then what others have no room for: so they
    /// tell one another now and then, until there are chunks.
    #[inline]
    pub fn ask_for_room(&mut self) -> Result<(), CollError> {
        self.unequal = self.unequal.wrapping_add(1);
        let is_time = self.unequal.is_multiple_of(UNEQUAL) && matches!(self.chunks, Chunks::Unasked);
        if is_time { self.compare_room() } else { Ok(()) }
    }

    #[cold]
    fn compare_room(&mut self) -> Result<(), CollError> {
        let mine = u8::from(self.lacked_room);
        let mut all = vec![0u8; self.group.size()];
        let first = all.as_mut_ptr();
        let part = |member: usize| (first.wrapping_add(member), 1);
        // SAFETY: each has a byte.
        unsafe { self.group.all_gather(&raw const mine, 1, part, &mut self.waiting)? };
        if all.contains(&1) {
            self.chunks = self.get_chunks()?;
        }
        Ok(())
    }

    #[cold]
    fn get_chunks(&mut self) -> Result<Chunks, CollError> {
        tidy();
        // A small section has room for fewer.
        let section = self.group.rank(self.group.me()).section.entry.len;
        let mut count = params::coll_chunks(self.chunk, self.group.size(), section);
        let get = |count| {
            let len = chunks_len(self.chunk, count);
            let mut instance = INSTANCE.lock();
            instance.as_mut()?.engine.endpoint_mut().fragment_for(len, Purpose::Large)
        };
        let mut fragment = get(count);
        while fragment.is_none() && count > MIN_CHUNKS {
            count /= 2;
            fragment = get(count);
        }
        if let Some(fragment) = &fragment {
            // Memory that nobody has touched yet costs the first who do a fault for each page.
            let pages = (0..chunks_len(self.chunk, count) as u64).step_by(PAGE);
            pages.for_each(|at| self.group.memory().store(fragment.offset() + at, 0, Ordering::Relaxed));
        }
        let offset = fragment.as_ref().map_or(0, Fragment::offset);
        let are_there = self.group.add_chunks(offset, self.chunk, count, &mut self.waiting);
        if let Ok(true) = are_there {
            self.fragments.extend(fragment);
            self.group.touch_chunks();
            return Ok(Chunks::There);
        }
        if let (Some(fragment), Some(instance)) = (fragment, INSTANCE.lock().as_mut()) {
            instance.engine.free(fragment);
        }
        are_there?;
        help::verbose(
            "long collective operations of a communicator are left to others: a section has no memory left",
        );
        Ok(Chunks::Declined)
    }
}
