//! A communicator's module, on our side: what stage it is in, and all modules that may have a group.

use std::ffi::{c_int, c_void};
use std::mem;

use parking_lot::Mutex;
use vmshm_transport::collective::CollError;

use super::group::Met;
use super::hierarchy::{By, Levels, is_one_region};
use super::meet::Members;
use super::names::forget_names;
use crate::ompi::{self, help, ompi_communicator_t, vmshm_coll_module_t};
use crate::process::loss;

/// Errors of the program that members tell one another by [`CollError::Aborted`]: no member is lost.
const PROGRAM_ERRORS: [u32; 2] = [ompi::MPI_ERR_TRUNCATE, ompi::MPI_ERR_NO_MEM];

/// A communicator's module, on our side.
pub struct State {
    members: Members,
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
    /// The members could not meet: the component below does all operations.
    Declined,
    /// An operation has failed with this code: the members are not at the same step any more.
    Broken(c_int),
}

/// All states that may have a group.
static STATES: Mutex<Vec<Kept>> = Mutex::new(Vec::new());

#[derive(PartialEq)]
struct Kept(*mut State);

// SAFETY: a `State` may be used by any thread, see there.
unsafe impl Send for Kept {}

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
        met.leave();
    }
}

impl State {
    /// The state for a communicator with these members, which work in two levels if they are parted by something.
    pub fn new(members: Members, levels: Option<By>) -> Self {
        let stage = if is_one_region(&members.names) { Stage::New } else { Stage::Declined };
        Self { members, stage, hierarchy: levels.map_or(Hierarchy::Flat, Hierarchy::Due) }
    }

    /// The levels in which to do an operation, if there are some.
    #[inline]
    pub fn levels(&self) -> Option<&Levels> {
        match &self.hierarchy {
            Hierarchy::There(levels) => Some(levels),
            Hierarchy::Flat | Hierarchy::Due(_) => None,
        }
    }

    /// The parting of levels that are still to be made.
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
        // SAFETY: the caller vouches for the module, which has a state as long as it lives, and for its communicator. The state
        // is not borrowed while Open MPI may call us again.
        unsafe {
            let state = (*module).state.cast::<State>();
            // Making them takes operations on this communicator, which are to be done without.
            (*state).hierarchy = Hierarchy::Flat;
            let (names, me) = ((*state).members.names.clone(), (*state).members.me);
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

    /// Moves a state to the heap, for a module, and lists it.
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
            unsafe { self.meet(module, comm)? };
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
    ) -> Result<(), c_int> {
        // SAFETY: the caller vouches for both.
        let met = unsafe { self.members.meet(module, comm)? };
        self.stage = met.map_or(Stage::Declined, |met| Stage::Met(Box::new(met)));
        Ok(())
    }

    /// Notes that an operation has failed, tells the other members and the user why, and returns Open MPI's code.
    #[cold]
    pub fn fail(&mut self, broken: CollError) -> c_int {
        let (member, rc) = match broken {
            CollError::LengthMismatch { .. } => (None, ompi::MPI_ERR_TRUNCATE as c_int),
            CollError::NoMemory => (None, ompi::MPI_ERR_NO_MEM as c_int),
            // The program's own error, as another member tells it.
            CollError::Aborted { why, .. } if PROGRAM_ERRORS.contains(&u32::from(why)) => {
                (None, c_int::from(why))
            }
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
            Some(member) => unsafe { loss::tell(self.members.procs.get(member).copied(), &text) },
        }
        rc
    }
}
