//! What the plugin gives to the shim. The file is compiled into both.

use std::ffi::{c_int, c_void};

/// The version of [`Table`].
pub const VERSION: u32 = 1;

/// The name of the shim's one function of its own, a [`Register`].
#[allow(dead_code, reason = "the shim has the function itself")]
pub const REGISTER: &std::ffi::CStr = c"vmshm_heap_register";

/// Takes a table, which must stay as it is for ever; its range may be empty, where none of its memory is in use. NULL:
/// nothing more is to be placed, what is there stays. Returns 0, or -1 for a table that cannot be used.
#[allow(dead_code, reason = "the shim has the function itself")]
pub type Register = unsafe extern "C" fn(*const Table) -> c_int;

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
}
