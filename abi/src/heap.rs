//! The plugin's offer to the library in front of a program's `malloc`: both lie in one process, and may be of different
//! versions.

use core::ffi::{CStr, c_int, c_void};

/// The version of [`Table`].
pub const VERSION: u32 = 2;

/// The name of the library's one function of its own, a [`Register`].
pub const REGISTER: &CStr = c"vmshm_heap_register";

/// Takes a table, which must stay as it is for ever; its range may be empty, where none of its memory is in use. NULL:
/// nothing more is to be placed, what is there stays. Returns 0, [`UNFIT`] or [`FOREIGN`].
pub type Register = unsafe extern "C" fn(*const Table) -> c_int;

/// The table cannot be used: it is of another version, or of another range than the one before.
pub const UNFIT: c_int = -1;

/// The program's allocator is neither this library's nor, behind it, glibc's: nothing is placed.
pub const FOREIGN: c_int = -2;

/// Where large allocations go. Its functions may be called by any thread at any time.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Table {
    /// [`VERSION`].
    pub version: u32,
    /// Bytes from which on an allocation is large.
    pub min: usize,
    /// Address of the first byte that `allocate` ever returns.
    pub start: usize,
    /// Address behind the last one.
    pub end: usize,
    /// Memory of a length and an alignment, of any content; NULL where there is none, and then ordinary memory does.
    pub allocate: unsafe extern "C" fn(usize, usize) -> *mut c_void,
    /// Frees what `allocate` gave.
    pub free: unsafe extern "C" fn(*mut c_void),
    /// How many bytes there are to use at an address that `allocate` gave.
    pub usable: unsafe extern "C" fn(*mut c_void) -> usize,
    /// To be called before a fork, after all other handlers of the program; false where no lock may be waited for. The
    /// result goes to one of the two below, called by the same thread, before all other handlers.
    pub before_fork: unsafe extern "C" fn(bool) -> *mut c_void,
    /// To be called after a fork, in the parent, also where the fork has failed.
    pub in_parent: unsafe extern "C" fn(*mut c_void),
    /// To be called after a fork, in the child.
    pub in_child: unsafe extern "C" fn(*mut c_void),
}
