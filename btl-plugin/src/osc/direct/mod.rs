//! Direct windows: everyone may write everyone's memory, and does all by itself. So it is in an open region, and among
//! processes of one section.

mod sync_words;

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::ptr;

use vmshm_transport::abi::{EndpointId, EndpointName};

use self::sync_words::SyncWords;
use super::access::{Access, Local, Remote, read};
use super::accumulate::Numbers;
use super::epochs::{Epochs, Groups, Locked, order, pause, rest};
use super::functions;
use super::meet::{Wanted, meet};
use super::members::{Member, Members};
use super::window::{SUCCESS, checked, of};
use crate::ompi::{self, Count, Unit, ompi_op_t, ompi_osc_base_module_t, ompi_win_t};
use crate::process::INSTANCE;

/// Most bytes of operands at a time, so that they can be counted.
const MOST: usize = 1 << 30;

/// A direct window.
#[repr(C)]
struct Direct {
    /// Functions that Open MPI calls, the first field: Open MPI takes a pointer to the window for one to these.
    functions: ompi_osc_base_module_t,
    /// Its processes.
    members: Members,
    /// The window's processes as targets, by rank.
    targets: Vec<Target>,
    /// The user asks for the others' memory, to use it as its own.
    is_shared: bool,
    /// Its epochs of groups.
    groups: Groups,
}

/// A process of the window.
struct Target {
    member: Member,
    /// Its words.
    sync: SyncWords,
    /// How this process has locked it.
    lock: Cell<Option<Locked>>,
}

/// The window's own functions.
const FUNCTIONS: ompi_osc_base_module_t =
    ompi_osc_base_module_t { osc_win_shared_query: Some(shared_query), ..functions::functions::<Direct>() };

/// Whether all processes with these names may write each other's sections.
pub fn is_possible(names: &[EndpointName]) -> bool {
    INSTANCE.lock().as_ref().is_some_and(|instance| {
        let endpoint = instance.engine.endpoint();
        let region = endpoint.region();
        let section = |name: &EndpointName| {
            let (section, _) = region.place(EndpointId(name.id))?;
            Some(section.entry.offset)
        };
        let mine = section(&endpoint.name());
        mine.is_some() && (region.is_open() || names.iter().all(|name| section(name) == mine))
    })
}

/// Makes a direct window, or returns false if some process's memory is not in its section.
///
/// # Errors
/// Open MPI's code.
///
/// # Safety
/// All of it is Open MPI's, for a new window. All processes call this with names of all of them.
pub unsafe fn create(win: *mut ompi_win_t, wanted: &Wanted, names: &[EndpointName]) -> Result<bool, c_int> {
    // SAFETY: the caller vouches for all.
    let Some(members) = (unsafe { meet(wanted, names, SyncWords::len(names.len()), true, false)? }) else {
        return Ok(false);
    };
    let target = |member: &Member| Target {
        member: *member,
        // SAFETY: its process has cleared so many bytes there; they are in the region, which stays mapped, and may be
        // written, as `is_possible` said.
        sync: unsafe { SyncWords::new(member.words) },
        lock: Cell::new(None),
    };
    let window = Box::new(Direct {
        functions: FUNCTIONS,
        targets: members.all.iter().map(target).collect(),
        members,
        is_shared: wanted.flavor == ompi::MPI_WIN_FLAVOR_SHARED,
        groups: Groups::default(),
    });
    // SAFETY: the caller vouches for `win`, a new window; the box begins with the functions that Open MPI looks for there.
    unsafe { ompi::vmshm_osc_set_module(win, Box::into_raw(window).cast()) };
    Ok(true)
}

impl Direct {
    /// A process by its rank.
    ///
    /// # Errors
    /// There is none.
    #[inline]
    fn target(&self, rank: c_int) -> Result<&Target, c_int> {
        Ok(&self.targets[self.members.index(rank)?])
    }
}

impl Access for Direct {
    #[inline]
    unsafe fn get(&self, origin: Local, target: Remote) -> Result<(), c_int> {
        // SAFETY: the caller vouches for both.
        unsafe { read(&self.target(target.rank)?.member, origin, target) }
    }

    #[inline]
    unsafe fn put(&self, origin: Local, target: Remote) -> Result<(), c_int> {
        // SAFETY: the caller vouches for both.
        unsafe { origin.copy_to(&target.within(&self.target(target.rank)?.member)?) }
    }

    #[inline]
    unsafe fn accumulate(&self, origin: Local, target: Remote, op: *mut ompi_op_t) -> Result<(), c_int> {
        // SAFETY: the caller vouches for all.
        unsafe {
            let process = self.target(target.rank)?;
            let to = target.within(&process.member)?;
            process.sync.guarded(pause, || combine(&origin, &to, op))
        }
    }

    #[inline]
    unsafe fn get_accumulate(
        &self,
        origin: Local,
        result: Local,
        target: Remote,
        op: *mut ompi_op_t,
    ) -> Result<(), c_int> {
        // SAFETY: the caller vouches for all.
        unsafe {
            let process = self.target(target.rank)?;
            let to = target.within(&process.member)?;
            process.sync.guarded(pause, || {
                to.copy_to(&result)?;
                combine(&origin, &to, op)
            })
        }
    }

    #[inline]
    unsafe fn compare_and_swap(
        &self,
        origin: *const c_void,
        compare: *const c_void,
        result: *mut c_void,
        target: Remote,
    ) -> Result<(), c_int> {
        // SAFETY: the caller vouches for all.
        unsafe {
            let process = self.target(target.rank)?;
            let at = target.within(&process.member)?.at;
            checked(
                process
                    .sync
                    .guarded(pause, || ompi::vmshm_osc_swap(origin, compare, result, target.datatype, at)),
            )
        }
    }
}

/// Does an operation on a process's elements, which nobody else works on.
///
/// # Errors
/// There are more operands than elements, or the operation is not defined for them; or Open MPI's code.
///
/// # Safety
/// As [`Access`].
unsafe fn combine(origin: &Local, to: &Local, op: *mut ompi_op_t) -> Result<(), c_int> {
    // SAFETY: the caller vouches for it, and that the elements are where the numbers are found.
    unsafe {
        let (count, datatype) = (to.count, to.datatype);
        let code =
            ompi::vmshm_osc_combine(origin.at, origin.count, origin.datatype, to.at, count, datatype, op);
        if code != ompi::OPAL_ERR_NOT_SUPPORTED {
            return checked(code);
        }
        let numbers = Numbers::new(to.at.expose_provenance(), count, datatype, op)?;
        let operands = numbers.operands(*origin)?;
        let op = ompi::vmshm_osc_op(op);
        numbers.runs.each(MOST, 0..operands.len(), |at, part| {
            let count = (part.len() / numbers.number.size) as Count;
            numbers.number.apply(op, &operands[part], ptr::with_exposed_provenance_mut(at), count);
            Ok(())
        })
    }
}

impl Epochs for Direct {
    fn members(&self) -> &Members {
        &self.members
    }

    fn groups(&self) -> &Groups {
        &self.groups
    }

    #[inline]
    fn locked(&self, rank: usize) -> &Cell<Option<Locked>> {
        &self.targets[rank].lock
    }

    fn fence(&self) -> Result<(), c_int> {
        order();
        Ok(())
    }

    fn await_post(&self, rank: usize) {
        self.targets[self.members.me].sync.take_post(rank, pause);
    }

    fn complete(&self, rank: usize) -> Result<(), c_int> {
        self.targets[rank].sync.complete();
        Ok(())
    }

    fn post(&self, rank: usize) {
        self.targets[rank].sync.post(self.members.me);
    }

    fn take_completed(&self, ranks: &[usize]) -> bool {
        let have_all = self.targets[self.members.me].sync.take_completed(ranks.len() as u64);
        if have_all {
            order();
        }
        have_all
    }

    #[inline]
    fn request_lock(&self, rank: usize, kind: Locked) -> Result<(), c_int> {
        let sync = &self.targets[rank].sync;
        match kind {
            Locked::Alone => sync.lock_alone(pause),
            Locked::Shared => sync.lock_shared(pause),
            Locked::Unchecked => {}
        }
        Ok(())
    }

    /// Orders only: `request_lock` has waited for the lock.
    #[inline]
    fn await_lock(&self, _: usize) {
        order();
    }

    #[inline]
    fn unlock(&self, rank: usize, kind: Locked) -> Result<(), c_int> {
        let sync = &self.targets[rank].sync;
        match kind {
            Locked::Alone => sync.unlock_alone(),
            Locked::Shared => sync.unlock_shared(),
            Locked::Unchecked => {}
        }
        rest();
        Ok(())
    }

    fn sync(&self) {
        rest();
    }

    /// All is over when its function returns.
    #[inline]
    fn flush(&self, _: c_int) -> Result<(), c_int> {
        rest();
        Ok(())
    }

    #[inline]
    fn flush_all(&self) -> Result<(), c_int> {
        rest();
        Ok(())
    }

    /// After the barrier nobody uses our memory any more.
    fn close(&self) -> c_int {
        // SAFETY: the communicator is the window's.
        unsafe { ompi::vmshm_osc_barrier(self.members.comm) }
    }
}

unsafe extern "C" fn shared_query(
    win: *mut ompi_win_t,
    rank: c_int,
    size: *mut usize,
    unit: *mut Unit,
    base: *mut c_void,
) -> c_int {
    // SAFETY: Open MPI gives a window.
    let window = unsafe { of::<Direct>(win) };
    if !window.is_shared {
        return ompi::MPI_ERR_WIN as c_int;
    }
    // Without a rank, the first one that has memory is meant.
    let found = if rank == ompi::MPI_PROC_NULL {
        window.members.all.iter().find(|member| member.len > 0)
    } else {
        match window.target(rank) {
            Ok(target) => Some(&target.member),
            Err(code) => return code,
        }
    };
    let (at, len, scale) =
        found.map_or((ptr::null_mut(), 0, 0), |member| (member.base, member.len, member.unit));
    // SAFETY: there is room for all three; the base is a pointer to one.
    unsafe {
        *size = len;
        *unit = scale;
        *base.cast::<*mut u8>() = at;
    }
    SUCCESS
}
