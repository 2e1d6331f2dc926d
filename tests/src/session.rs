//! Sessions of MPI 4, which programs use beside, or in place of, `MPI_Init`.

use std::ffi::{CStr, CString, c_char, c_int, c_void};

use mpi::ffi;

use crate::comm::Comm;
use crate::newer::find;
use crate::universe::succeed;

/// Open MPI's handle.
type Raw = *mut c_void;
type Init = unsafe extern "C" fn(ffi::MPI_Info, ffi::MPI_Errhandler, *mut Raw) -> c_int;
type GroupOf = unsafe extern "C" fn(Raw, *const c_char, *mut ffi::MPI_Group) -> c_int;
type CommOf = unsafe extern "C" fn(
    ffi::MPI_Group,
    *const c_char,
    ffi::MPI_Info,
    ffi::MPI_Errhandler,
    *mut ffi::MPI_Comm,
) -> c_int;
type Finalize = unsafe extern "C" fn(*mut Raw) -> c_int;

/// A session; finalized on drop, after its communicators.
#[derive(Debug)]
pub struct Session {
    raw: Raw,
}

impl Session {
    /// Opens one.
    pub fn open() -> Self {
        let mut raw = std::ptr::null_mut();
        // SAFETY: this is its type; the handles are constants of the MPI library, which writes the session's.
        succeed(unsafe {
            find::<Init>(c"MPI_Session_init")(ffi::RSMPI_INFO_NULL, ffi::RSMPI_ERRORS_RETURN, &raw mut raw)
        });
        Self { raw }
    }

    /// A communicator of the processes of a set, as `mpi://WORLD`. All of them call this, with the same name for it.
    pub fn comm(&self, set: &CStr, name: &str) -> Comm {
        let name = CString::new(name).expect("names have no zero byte");
        // SAFETY: these are their types; the session is open, the names end with zero, MPI writes the group and frees it.
        unsafe {
            let mut group = ffi::RSMPI_GROUP_NULL;
            succeed(find::<GroupOf>(c"MPI_Group_from_session_pset")(self.raw, set.as_ptr(), &raw mut group));
            let (info, errors) = (ffi::RSMPI_INFO_NULL, ffi::RSMPI_ERRORS_RETURN);
            let make = find::<CommOf>(c"MPI_Comm_create_from_group");
            let comm = Comm::made(|new| make(group, name.as_ptr(), info, errors, new));
            succeed(ffi::MPI_Group_free(&raw mut group));
            comm
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // SAFETY: this is its type; the session is open, and finalized once.
        succeed(unsafe { find::<Finalize>(c"MPI_Session_finalize")(&raw mut self.raw) });
    }
}
