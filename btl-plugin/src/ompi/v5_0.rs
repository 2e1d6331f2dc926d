//! The series 5.0.

use std::ffi::c_int;

pub use super::btl_3_3::*;
pub use super::int_counts::*;

/// The version of the interface for memory pools.
pub const MPOOL: [c_int; 3] = [3, 1, 0];

/// The version of the interface for collective operations.
pub const COLL: [c_int; 3] = [2, 4, 0];

/// The version of the interface for windows.
pub const OSC: [c_int; 3] = [3, 0, 0];
