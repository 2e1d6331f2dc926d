//! The few MPI calls of the programs, with no cost of their own.
//!
//! The safe interface of the `mpi` crate would put a scope around each window of requests; the raw
//! calls are what OSU's C programs do.

use std::ffi::c_int;
use std::marker::PhantomData;
use std::process::ExitCode;

use mpi::environment::Universe;
use mpi::ffi;
use mpi::traits::Communicator;

use super::buffer::{Buffer, Wrong};

const DATA: c_int = 100;
const ACKNOWLEDGEMENT: c_int = 101;

/// MPI on `MPI_COMM_WORLD`. Errors end the job: that is MPI's default.
#[derive(Debug)]
pub struct Mpi {
    rank: usize,
    size: usize,
    // Finalizes MPI on drop.
    _universe: UniverseHolder,
}

struct UniverseHolder(#[expect(dead_code, reason = "kept for its drop")] Universe);

impl std::fmt::Debug for UniverseHolder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Universe")
    }
}

/// Requests under way on buffers that live for `'b`.
#[derive(Debug)]
pub struct Pending<'b> {
    requests: Vec<ffi::MPI_Request>,
    buffers: PhantomData<&'b Buffer>,
}

impl Mpi {
    /// Starts MPI.
    ///
    /// # Errors
    /// MPI has been started before.
    pub fn start() -> Result<Mpi, String> {
        let universe = mpi::initialize().ok_or("MPI has been started already")?;
        let world = universe.world();
        let count = |n: c_int| usize::try_from(n).map_err(|_| "MPI gave a negative number");
        let (rank, size) = (count(world.rank())?, count(world.size())?);
        Ok(Mpi { rank, size, _universe: UniverseHolder(universe) })
    }

    /// Starts MPI for a `program` of two processes.
    ///
    /// # Errors
    /// Another number of processes, or MPI has been started before; the program has been told and is to end with this code.
    pub fn pair(program: &str) -> Result<Mpi, ExitCode> {
        let mpi = Self::start().map_err(|error| {
            eprintln!("{program}: {error}");
            ExitCode::FAILURE
        })?;
        if mpi.size() != 2 {
            if mpi.rank() == 0 {
                eprintln!("{program} needs 2 processes, there are {}: mpirun -np 2", mpi.size());
            }
            return Err(ExitCode::FAILURE);
        }
        Ok(mpi)
    }

    /// This process's rank.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Number of processes.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Ends the job where data is not what was sent.
    ///
    /// `what` says what was looked at, as "message of 8 bytes".
    pub fn expect(&self, checked: Result<(), Wrong>, what: impl FnOnce() -> String) {
        if let Err(wrong) = checked {
            let Wrong { at, got, wanted } = wrong;
            self.abort(&format!("{}: byte {at} is {got:#04x} where {wanted:#04x} was sent", what()));
        }
    }

    /// Ends the job, which has failed.
    pub fn abort(&self, why: &str) -> ! {
        eprintln!("rank {}: {why}", self.rank);
        // SAFETY: MPI runs.
        unsafe { ffi::MPI_Abort(ffi::RSMPI_COMM_WORLD, 1) };
        std::process::exit(1);
    }

    /// Waits for all processes.
    pub fn barrier(&self) {
        // SAFETY: MPI runs.
        unsafe { ffi::MPI_Barrier(ffi::RSMPI_COMM_WORLD) };
    }

    /// Seconds on MPI's clock.
    pub fn now(&self) -> f64 {
        // SAFETY: MPI runs.
        unsafe { ffi::MPI_Wtime() }
    }

    /// The sum of `value` over all processes.
    pub fn sum(&self, value: f64) -> f64 {
        let mut sum = 0.0_f64;
        let (from, to) = ((&raw const value).cast(), (&raw mut sum).cast());
        // SAFETY: both numbers live until the call has ended.
        unsafe {
            let (kind, op) = (ffi::RSMPI_DOUBLE, ffi::RSMPI_SUM);
            ffi::MPI_Allreduce(from, to, 1, kind, op, ffi::RSMPI_COMM_WORLD);
        }
        sum
    }

    /// Sends the first `size` bytes.
    pub fn send(&self, buffer: &Buffer, size: usize, to: usize) {
        let (data, count) = (buffer.as_ptr(), int(size.min(buffer.len())));
        // SAFETY: the bytes lie in the buffer.
        unsafe {
            let (byte, world) = (ffi::RSMPI_UINT8_T, ffi::RSMPI_COMM_WORLD);
            ffi::MPI_Send(data.cast(), count, byte, int(to), DATA, world);
        }
    }

    /// Receives into the first `size` bytes.
    pub fn receive(&self, buffer: &Buffer, size: usize, from: usize) {
        let (data, count) = (buffer.as_ptr(), int(size.min(buffer.len())));
        // SAFETY: the bytes lie in the buffer, which is only reached through raw pointers.
        unsafe {
            let (byte, world) = (ffi::RSMPI_UINT8_T, ffi::RSMPI_COMM_WORLD);
            let ignore = ffi::RSMPI_STATUS_IGNORE;
            ffi::MPI_Recv(data.cast(), count, byte, int(from), DATA, world, ignore);
        }
    }

    /// Looks once whether a message is there that nobody has asked for.
    pub fn probe(&self) -> bool {
        let mut found = 0;
        // SAFETY: the flag lives until the call has ended.
        unsafe {
            let (any, world, ignore) =
                (ffi::RSMPI_ANY_SOURCE, ffi::RSMPI_COMM_WORLD, ffi::RSMPI_STATUS_IGNORE);
            ffi::MPI_Iprobe(any, DATA, world, &raw mut found, ignore);
        }
        found != 0
    }

    /// Tells `to` that a window has arrived.
    pub fn acknowledge(&self, to: usize) {
        let token = [0_u8; 4];
        // SAFETY: `token` lives until the call has ended.
        unsafe {
            let (byte, world) = (ffi::RSMPI_UINT8_T, ffi::RSMPI_COMM_WORLD);
            ffi::MPI_Send(token.as_ptr().cast(), 4, byte, int(to), ACKNOWLEDGEMENT, world);
        }
    }

    /// Waits for `from` to acknowledge a window.
    pub fn await_acknowledgement(&self, from: usize) {
        let mut token = [0_u8; 4];
        // SAFETY: `token` lives until the call has ended.
        unsafe {
            let (byte, world) = (ffi::RSMPI_UINT8_T, ffi::RSMPI_COMM_WORLD);
            let (to, ignore) = (token.as_mut_ptr().cast(), ffi::RSMPI_STATUS_IGNORE);
            ffi::MPI_Recv(to, 4, byte, int(from), ACKNOWLEDGEMENT, world, ignore);
        }
    }

    /// Makes room for `window` requests.
    pub fn pending<'b>(&self, window: usize) -> Pending<'b> {
        Pending { requests: Vec::with_capacity(window), buffers: PhantomData }
    }
}

impl<'b> Pending<'b> {
    fn add(&mut self) -> *mut ffi::MPI_Request {
        // SAFETY: a constant of the MPI library.
        self.requests.push(unsafe { ffi::RSMPI_REQUEST_NULL });
        let last = self.requests.len() - 1;
        &raw mut self.requests[last]
    }

    /// Starts to send the first `size` bytes.
    pub fn send(&mut self, buffer: &'b Buffer, size: usize, to: usize) {
        let (data, count) = (buffer.as_ptr(), int(size.min(buffer.len())));
        let request = self.add();
        // SAFETY: the bytes lie in the buffer, which lives until the request has ended: `wait` or
        // the drop of this value sees to that.
        unsafe {
            let (byte, world) = (ffi::RSMPI_UINT8_T, ffi::RSMPI_COMM_WORLD);
            ffi::MPI_Isend(data.cast(), count, byte, int(to), DATA, world, request);
        }
    }

    /// Starts to receive into the first `size` bytes.
    pub fn receive(&mut self, buffer: &'b Buffer, size: usize, from: usize) {
        let (data, count) = (buffer.as_ptr(), int(size.min(buffer.len())));
        let request = self.add();
        // SAFETY: as in `send`; the buffer is only reached through raw pointers.
        unsafe {
            let (byte, world) = (ffi::RSMPI_UINT8_T, ffi::RSMPI_COMM_WORLD);
            ffi::MPI_Irecv(data.cast(), count, byte, int(from), DATA, world, request);
        }
    }

    /// Waits for all requests.
    pub fn wait(&mut self) {
        let (count, requests) = (int(self.requests.len()), self.requests.as_mut_ptr());
        // SAFETY: the requests are ours.
        unsafe { ffi::MPI_Waitall(count, requests, ffi::RSMPI_STATUSES_IGNORE) };
        self.requests.clear();
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.wait();
    }
}

/// A count or rank as MPI wants it.
pub(super) fn int(value: usize) -> c_int {
    c_int::try_from(value).expect("counts and ranks are below 2^31")
}
