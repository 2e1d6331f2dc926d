//! Nonblocking operations that own their buffer while MPI works on it.

use std::ffi::c_int;
use std::mem::MaybeUninit;

use mpi::ffi;

use crate::buffer::Buffer;
use crate::universe::{Rank, Tag, int, succeed};

/// MPI's status of a received message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// The sender.
    pub source: Rank,
    /// Its tag.
    pub tag: Tag,
    /// Its size in bytes.
    pub bytes: usize,
    /// Whether the operation was cancelled instead.
    pub cancelled: bool,
}

impl Status {
    pub(crate) fn from_raw(raw: &ffi::MPI_Status) -> Status {
        let mut bytes: ffi::MPI_Count = 0;
        let mut cancelled = 0;
        // SAFETY: `raw` was written by a completed MPI call.
        unsafe {
            succeed(ffi::MPI_Test_cancelled(raw, &raw mut cancelled));
            succeed(ffi::MPI_Get_elements_x(raw, ffi::RSMPI_UINT8_T, &raw mut bytes));
        }
        Status {
            source: raw.MPI_SOURCE,
            tag: raw.MPI_TAG,
            bytes: usize::try_from(bytes).unwrap_or(usize::MAX),
            cancelled: cancelled != 0,
        }
    }
}

/// A status for MPI to fill.
pub(crate) fn blank_status() -> ffi::MPI_Status {
    // SAFETY: the struct is plain integers, for which zero is a value.
    unsafe { MaybeUninit::zeroed().assume_init() }
}

fn null() -> ffi::MPI_Request {
    // SAFETY: a constant of the MPI library.
    unsafe { ffi::RSMPI_REQUEST_NULL }
}

/// A started operation and its buffer.
///
/// Dropped before it is complete it leaks the buffer, because MPI may still use it.
#[derive(Debug)]
pub struct Pending {
    raw: ffi::MPI_Request,
    buffer: Option<Buffer>,
    status: Option<Status>,
}

// SAFETY: with MPI_THREAD_MULTIPLE a request may be completed by another thread than started it.
unsafe impl Send for Pending {}

impl Pending {
    /// Starts an operation on `buffer` with `start`, which gets the buffer and the request to set.
    pub(crate) fn start(
        mut buffer: Buffer,
        start: impl FnOnce(&mut [u8], *mut ffi::MPI_Request) -> c_int,
    ) -> Pending {
        let mut raw = null();
        succeed(start(buffer.payload_mut(), &raw mut raw));
        Pending { raw, buffer: Some(buffer), status: None }
    }

    /// Waits for the end of the operation.
    pub fn wait(mut self) -> (Buffer, Status) {
        let mut status = blank_status();
        // SAFETY: the request is ours; a null request completes at once.
        succeed(unsafe { ffi::MPI_Wait(&raw mut self.raw, &raw mut status) });
        let status = *self.status.get_or_insert_with(|| Status::from_raw(&status));
        (self.into_buffer(), status)
    }

    /// Waits for the end of the operation, and gives MPI's error code instead of panicking if it failed.
    pub fn end(mut self) -> (Buffer, Status, c_int) {
        let mut status = blank_status();
        // SAFETY: the request is ours.
        let code = unsafe { ffi::MPI_Wait(&raw mut self.raw, &raw mut status) };
        (self.into_buffer(), Status::from_raw(&status), code)
    }

    /// Looks whether the operation has ended.
    pub fn test(&mut self) -> Option<Status> {
        if self.status.is_none() {
            let mut status = blank_status();
            let mut flag = 0;
            // SAFETY: the request is ours.
            succeed(unsafe { ffi::MPI_Test(&raw mut self.raw, &raw mut flag, &raw mut status) });
            self.status = (flag != 0).then(|| Status::from_raw(&status));
        }
        self.status
    }

    /// Asks MPI to cancel the operation; `wait` tells whether it was.
    pub fn cancel(&mut self) {
        // SAFETY: the request is ours and active.
        succeed(unsafe { ffi::MPI_Cancel(&raw mut self.raw) });
    }

    /// Whether the operation has been seen to end.
    pub fn is_done(&self) -> bool {
        self.raw == null()
    }

    /// The buffer of an operation that has ended.
    ///
    /// # Panics
    /// If the operation still runs.
    pub fn into_buffer(mut self) -> Buffer {
        assert!(self.is_done(), "the operation still runs");
        self.buffer.take().expect("only this function takes the buffer, and it takes self")
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.is_done() {
            std::mem::forget(self.buffer.take());
        }
    }
}

/// Waits for all operations with one `MPI_Waitall`.
pub fn wait_all(mut pending: Vec<Pending>) -> Vec<(Buffer, Status)> {
    let mut raw: Vec<_> = pending.iter().map(|p| p.raw).collect();
    let mut statuses = vec![blank_status(); raw.len()];
    // SAFETY: both arrays have one entry an operation.
    succeed(unsafe { ffi::MPI_Waitall(int(raw.len()), raw.as_mut_ptr(), statuses.as_mut_ptr()) });
    for ((pending, raw), status) in pending.iter_mut().zip(raw).zip(&statuses) {
        pending.raw = raw;
        pending.status.get_or_insert_with(|| Status::from_raw(status));
    }
    pending
        .into_iter()
        .map(|p| {
            let status = p.status.expect("set above");
            (p.into_buffer(), status)
        })
        .collect()
}

/// How to complete a few of several operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completion {
    /// `MPI_Waitany`.
    WaitAny,
    /// `MPI_Waitsome`.
    WaitSome,
    /// `MPI_Testany`.
    TestAny,
    /// `MPI_Testsome`.
    TestSome,
    /// `MPI_Testall`.
    TestAll,
}

/// Completes some operations in the given way and tells which ended; none may, if it only tests.
pub fn complete_some(way: Completion, pending: &mut [Pending]) -> Vec<usize> {
    let mut raw: Vec<_> = pending.iter().map(|p| p.raw).collect();
    let active: Vec<bool> = pending.iter().map(|p| !p.is_done()).collect();
    let mut statuses = vec![blank_status(); raw.len()];
    let mut indices = vec![0; raw.len()];
    let mut count: c_int = 0;
    let n = int(raw.len());
    let (requests, states) = (raw.as_mut_ptr(), statuses.as_mut_ptr());
    let places = indices.as_mut_ptr();
    let mut flag: c_int = 1;
    // SAFETY: all arrays have one entry an operation.
    succeed(unsafe {
        match way {
            Completion::WaitAny => ffi::MPI_Waitany(n, requests, places, states),
            Completion::TestAny => ffi::MPI_Testany(n, requests, places, &raw mut flag, states),
            Completion::WaitSome => ffi::MPI_Waitsome(n, requests, &raw mut count, places, states),
            Completion::TestSome => ffi::MPI_Testsome(n, requests, &raw mut count, places, states),
            Completion::TestAll => ffi::MPI_Testall(n, requests, &raw mut flag, states),
        }
    });
    let ended: Vec<usize> = match way {
        Completion::WaitAny | Completion::TestAny if flag == 0 || indices[0] < 0 => vec![],
        Completion::WaitAny | Completion::TestAny => vec![index(indices[0])],
        Completion::WaitSome | Completion::TestSome => {
            let count = usize::try_from(count).unwrap_or(0);
            indices[..count].iter().map(|&i| index(i)).collect()
        }
        Completion::TestAll if flag == 0 => vec![],
        Completion::TestAll => (0..pending.len()).filter(|&i| active[i]).collect(),
    };
    for (place, &i) in ended.iter().enumerate() {
        pending[i].raw = raw[i];
        let status = if way == Completion::TestAll { &statuses[i] } else { &statuses[place] };
        pending[i].status = Some(Status::from_raw(status));
    }
    ended
}

fn index(from_mpi: c_int) -> usize {
    usize::try_from(from_mpi).expect("MPI gave an index of the array")
}

/// A persistent operation and its buffer.
#[derive(Debug)]
pub struct Persistent {
    raw: ffi::MPI_Request,
    buffer: Option<Buffer>,
    active: bool,
}

impl Persistent {
    pub(crate) fn set_up(
        mut buffer: Buffer,
        set_up: impl FnOnce(&mut [u8], *mut ffi::MPI_Request) -> c_int,
    ) -> Persistent {
        let mut raw = null();
        succeed(set_up(buffer.payload_mut(), &raw mut raw));
        Persistent { raw, buffer: Some(buffer), active: false }
    }

    pub(crate) fn raw(&self) -> ffi::MPI_Request {
        self.raw
    }

    /// Starts the operation once more.
    pub fn start(&mut self) {
        assert!(!self.active, "the operation still runs");
        // SAFETY: the request is ours and inactive.
        succeed(unsafe { ffi::MPI_Start(&raw mut self.raw) });
        self.active = true;
    }

    /// Starts several operations with one `MPI_Startall`.
    pub fn start_all(operations: &mut [Persistent]) {
        assert!(operations.iter().all(|operation| !operation.active), "an operation still runs");
        let mut raw: Vec<_> = operations.iter().map(|operation| operation.raw).collect();
        // SAFETY: the requests are ours and inactive.
        succeed(unsafe { ffi::MPI_Startall(int(raw.len()), raw.as_mut_ptr()) });
        for (operation, raw) in operations.iter_mut().zip(raw) {
            // A buffered send whose data still is under way gets a new handle.
            operation.raw = raw;
            operation.active = true;
        }
    }

    /// Waits for the end of the started operation.
    pub fn wait(&mut self) -> Status {
        let mut status = blank_status();
        // SAFETY: the request is ours.
        succeed(unsafe { ffi::MPI_Wait(&raw mut self.raw, &raw mut status) });
        self.active = false;
        Status::from_raw(&status)
    }

    /// Waits for the end of the started operation, and gives MPI's error code instead of panicking if it failed.
    pub fn end(&mut self) -> (Status, c_int) {
        let mut status = blank_status();
        // SAFETY: the request is ours.
        let code = unsafe { ffi::MPI_Wait(&raw mut self.raw, &raw mut status) };
        self.active = false;
        (Status::from_raw(&status), code)
    }

    /// The buffer of an operation that does not run and is not started again.
    ///
    /// # Panics
    /// If the operation runs.
    pub fn into_buffer(mut self) -> Buffer {
        assert!(!self.active, "the operation still runs");
        self.buffer.take().expect("only this function takes the buffer, and it takes self")
    }

    /// The buffer, while the operation does not run.
    ///
    /// # Panics
    /// If the operation runs.
    pub fn buffer(&mut self) -> &mut Buffer {
        assert!(!self.active, "the operation still runs");
        self.buffer.as_mut().expect("taken only at the end")
    }
}

impl Drop for Persistent {
    fn drop(&mut self) {
        if self.active {
            std::mem::forget(self.buffer.take());
        } else if self.raw != null() {
            // SAFETY: the request is ours and inactive; Open MPI frees one that has failed by itself.
            succeed(unsafe { ffi::MPI_Request_free(&raw mut self.raw) });
        }
    }
}
