//! Life after the loss of processes, as Open MPI has it from 5.0 on (ULFM), in jobs of `mpirun --with-ft ulfm`.

use std::ffi::c_int;

use mpi::ffi;

use crate::comm::Comm;
use crate::newer::find;
use crate::universe::{SUCCESS, class, succeed};

type OfComm = unsafe extern "C" fn(ffi::MPI_Comm) -> c_int;
type Agree = unsafe extern "C" fn(ffi::MPI_Comm, *mut c_int) -> c_int;
type ToComm = unsafe extern "C" fn(ffi::MPI_Comm, *mut ffi::MPI_Comm) -> c_int;

/// Open MPI's `MPI_ERR_PROC_FAILED`.
const PROC_FAILED: u32 = 75;
/// Open MPI's `MPI_ERR_REVOKED`.
const REVOKED: u32 = 77;

/// A way for an operation to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// As if nothing had happened.
    Done,
    /// A process that takes part is lost.
    ProcFailed,
    /// Somebody has revoked the communicator.
    Revoked,
    /// Another error, of this class.
    Other(u32),
}

impl End {
    /// The end that an error code means.
    pub fn of(code: c_int) -> Self {
        if code == SUCCESS {
            return Self::Done;
        }
        match class(code) {
            PROC_FAILED => Self::ProcFailed,
            REVOKED => Self::Revoked,
            other => Self::Other(other),
        }
    }
}

impl Comm {
    /// Lets all operations on this communicator fail, in all members (`MPIX_Comm_revoke`).
    pub fn revoke(&self) {
        // SAFETY: this is its type; the communicator is valid.
        succeed(unsafe { find::<OfComm>(c"MPIX_Comm_revoke")(self.raw()) });
    }

    /// Waits until all members that live have come here (`MPIX_Comm_agree`).
    pub fn agree(&self) {
        let mut flag = 1;
        // SAFETY: this is its type; the communicator is valid, MPI writes the flag. It fails where a loss has not been acknowledged,
        // after the same wait.
        let end = End::of(unsafe { find::<Agree>(c"MPIX_Comm_agree")(self.raw(), &raw mut flag) });
        assert!(matches!(end, End::Done | End::ProcFailed), "MPIX_Comm_agree ended with {end:?}");
    }

    /// A communicator of those members that are left (`MPIX_Comm_shrink`).
    pub fn shrink(&self) -> Comm {
        // SAFETY: this is its type; the communicator is valid, MPI writes `new`.
        Comm::made(|new| unsafe { find::<ToComm>(c"MPIX_Comm_shrink")(self.raw(), new) })
    }
}
