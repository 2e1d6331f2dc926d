//! A served window, and the list of those that requests may be for.

use std::cell::{Cell, RefCell};
use std::ffi::{c_int, c_void};
use std::ptr;

use vmshm_transport::Peer;

use super::attached::{Attached, NOT_ATTACHED};
use super::block::Block;
use super::locks::Locks;
use crate::ompi::{ompi_osc_base_module_t, ompi_win_t};
use crate::osc::epochs::{Groups, Locked};
use crate::osc::members::{Member, Members};
use crate::osc::window::{code, of};
use crate::osc::{functions, message_windows};
use crate::process::Lock;

/// A served window.
#[repr(C)]
pub struct Served {
    /// The functions that Open MPI calls: it takes the window for them.
    pub functions: ompi_osc_base_module_t,
    pub members: Members,
    pub sides: Vec<Side>,
    /// The name that all its processes have for it.
    pub name: u32,
    /// The lock of our memory.
    pub locks: RefCell<Locks>,
    /// Its epochs of groups.
    pub groups: Groups,
    /// Of a dynamic window, our memory.
    pub attached: Option<RefCell<Attached>>,
}

/// The window's own functions.
pub const FUNCTIONS: ompi_osc_base_module_t = ompi_osc_base_module_t {
    osc_win_attach: Some(attach),
    osc_win_detach: Some(detach),
    ..functions::functions::<Served>()
};

/// The two sides of this process and another one of the window, or itself: their blocks, and counts of what was asked for.
pub struct Side {
    pub member: Member,
    /// None for itself.
    pub peer: Option<Peer>,
    /// Our block for it.
    pub ours: Block,
    /// Its block for us.
    pub theirs: Block,
    /// Requests that we have sent, and refusals that we have heard of.
    pub sent: Cell<u64>,
    pub refused: Cell<u64>,
    /// Locks that we have requested.
    pub locks: Cell<u64>,
    /// Its posts and its completions that we have made use of.
    pub posts: Cell<u64>,
    pub completions: Cell<u64>,
    /// How we have locked it.
    pub lock: Cell<Option<Locked>>,
}

/// A window that requests may be for.
pub struct Listed(pub *const Served);

// SAFETY: windows are made and used by one thread at a time, see `component::query`.
unsafe impl Send for Listed {}

pub static WINDOWS: Lock<Vec<Listed>> = Lock::new(Vec::new());

impl Served {
    /// A process by its rank.
    ///
    /// # Errors
    /// There is none.
    pub fn side(&self, rank: c_int) -> Result<&Side, c_int> {
        Ok(&self.sides[self.members.index(rank)?])
    }
}

impl Side {
    /// Nothing was asked for yet.
    pub fn new(member: Member, peer: Option<Peer>, ours: Block, theirs: Block) -> Self {
        Self {
            member,
            peer,
            ours,
            theirs,
            sent: Cell::new(0),
            refused: Cell::new(0),
            locks: Cell::new(0),
            posts: Cell::new(0),
            completions: Cell::new(0),
            lock: Cell::new(None),
        }
    }
}

/// `MPI_Win_attach`.
unsafe extern "C" fn attach(win: *mut ompi_win_t, start: *mut c_void, len: usize) -> c_int {
    // SAFETY: Open MPI gives a window.
    let Some(attached) = &unsafe { of::<Served>(win) }.attached else { return NOT_ATTACHED };
    code(attached.borrow_mut().attach(start.expose_provenance(), len))
}

/// `MPI_Win_detach`.
unsafe extern "C" fn detach(win: *mut ompi_win_t, start: *const c_void) -> c_int {
    // SAFETY: Open MPI gives a window.
    let Some(attached) = &unsafe { of::<Served>(win) }.attached else { return NOT_ATTACHED };
    code(attached.borrow_mut().detach(start.addr()))
}

/// Takes requests for a window.
pub fn remember(window: *const Served) {
    WINDOWS.lock().push(Listed(window));
    message_windows::count(1);
}

/// Takes no more requests for a window.
pub fn forget(window: *const Served) {
    WINDOWS.lock().retain(|listed| !ptr::eq(listed.0, window));
    message_windows::count(-1);
}
