//! The time of an operation on another process's memory: on a window of `MPI_Win_allocate`, under a shared lock, each
//! operation ended by `MPI_Win_flush`, as OSU does where it is not told otherwise.

use std::process::ExitCode;
use std::ptr::NonNull;

use clap::Parser;
use mpi::ffi;

use super::buffer::{Buffer, seed};
use super::mpi::{Mpi, int};
use super::options::{Measure, Options, Plan};
use super::report::Report;

/// An operation of process 0 on the memory of process 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OneSided {
    /// `MPI_Put`.
    Put,
    /// `MPI_Get`.
    Get,
    /// `MPI_Accumulate` with `MPI_SUM`.
    Accumulate,
}

/// Memory of `MPI_Win_allocate`.
struct Window<'m> {
    raw: ffi::MPI_Win,
    memory: Buffer,
    mpi: &'m Mpi,
}

impl<'m> Window<'m> {
    fn allocate(mpi: &'m Mpi, length: usize) -> Window<'m> {
        let mut base: *mut u8 = std::ptr::null_mut();
        let size = ffi::MPI_Aint::try_from(length.max(8)).expect("a size below 1 GiB");
        // SAFETY: a constant of the MPI library; MPI writes base and window through the pointers.
        let raw = unsafe {
            let mut raw = ffi::RSMPI_WIN_NULL;
            let out = (&raw mut base).cast();
            ffi::MPI_Win_allocate(size, 1, ffi::RSMPI_INFO_NULL, ffi::RSMPI_COMM_WORLD, out, &raw mut raw);
            raw
        };
        let base = NonNull::new(base).expect("MPI ends the job where it has no memory");
        // SAFETY: MPI gave so many bytes for the life of the window.
        let memory = unsafe { Buffer::over(base, length.max(8)) };
        Window { raw, memory, mpi }
    }

    /// Runs `work` while process 0 holds a lock on `target`'s memory; the others wait until it is done.
    fn locked<R>(&self, target: usize, work: impl FnOnce() -> R) -> Option<R> {
        self.mpi.barrier();
        let result = (self.mpi.rank() == 0).then(|| {
            let kind = i32::try_from(ffi::MPI_LOCK_SHARED).expect("a small constant");
            // SAFETY: the window is valid and no epoch is open.
            unsafe { ffi::MPI_Win_lock(kind, int(target), 0, self.raw) };
            let result = work();
            // SAFETY: the lock is held.
            unsafe { ffi::MPI_Win_unlock(int(target), self.raw) };
            result
        });
        self.mpi.barrier();
        result
    }

    /// Runs `work` on the own memory, while nobody else works on it.
    fn own<R>(&self, work: impl FnOnce(&Buffer) -> R) -> R {
        self.mpi.barrier();
        let (kind, me) = (i32::try_from(ffi::MPI_LOCK_EXCLUSIVE).expect("a small constant"), self.mpi.rank());
        // SAFETY: the window is valid and no epoch is open; MPI asks for one around accesses of the own memory.
        unsafe { ffi::MPI_Win_lock(kind, int(me), 0, self.raw) };
        let result = work(&self.memory);
        // SAFETY: the lock is held.
        unsafe { ffi::MPI_Win_unlock(int(me), self.raw) };
        self.mpi.barrier();
        result
    }
}

impl Drop for Window<'_> {
    fn drop(&mut self) {
        // SAFETY: the window is ours, no epoch is open, and nobody uses the memory any more.
        unsafe { ffi::MPI_Win_free(&raw mut self.raw) };
    }
}

struct Bench<'a> {
    what: OneSided,
    words: bool,
    size: usize,
    local: &'a Buffer,
    window: &'a Window<'a>,
}

impl Bench<'_> {
    /// One operation on process 1 and its flush; the lock is held.
    fn call(&self) {
        let (local, raw) = (self.local.as_ptr().cast(), self.window.raw);
        let bytes = int(self.size);
        // SAFETY: both memories have `size` bytes; an operation has ended when the flush has.
        unsafe {
            let byte = ffi::RSMPI_UINT8_T;
            match self.what {
                OneSided::Put => ffi::MPI_Put(local, bytes, byte, 1, 0, bytes, byte, raw),
                OneSided::Get => ffi::MPI_Get(local, bytes, byte, 1, 0, bytes, byte, raw),
                OneSided::Accumulate => {
                    let (count, kind) =
                        if self.words { (bytes / 8, ffi::RSMPI_UINT64_T) } else { (bytes, byte) };
                    ffi::MPI_Accumulate(local, count, kind, 1, 0, count, kind, ffi::RSMPI_SUM, raw)
                }
            };
            ffi::MPI_Win_flush(1, raw);
        }
    }

    /// Does one operation on fresh data and ends the job if it arrives otherwise.
    fn check(&self, mpi: &Mpi) {
        let wanted = seed(0, u32::MAX);
        // SAFETY: no operation is under way, and nobody else works on the memory.
        self.window.own(|memory| unsafe {
            memory.clear(self.size);
            self.local.clear(self.size);
            match (self.what, mpi.rank()) {
                (OneSided::Get, 1) => memory.write(self.size, wanted),
                (OneSided::Put | OneSided::Accumulate, 0) => self.local.write(self.size, wanted),
                _ => {}
            }
        });
        self.window.locked(1, || self.call());
        // SAFETY: all operations have ended, and nobody else works on the memory.
        let checked = self.window.own(|memory| unsafe {
            match (self.what, mpi.rank()) {
                (OneSided::Get, 0) => self.local.check(self.size, wanted),
                (OneSided::Put | OneSided::Accumulate, 1) => memory.check(self.size, wanted),
                _ => Ok(()),
            }
        });
        mpi.expect(checked, || format!("{:?} of {} bytes", self.what, self.size));
    }

    /// Mean seconds of an operation, on process 0.
    fn measure(&self, mpi: &Mpi, plan: &Plan, vary: bool) -> f64 {
        let timed = self.window.locked(1, || {
            let mut began = 0.0;
            for turn in 0..plan.all() {
                if turn == plan.warmup {
                    began = mpi.now();
                }
                if vary && self.what != OneSided::Get {
                    // SAFETY: the last operation has ended: MPI does not use the buffer.
                    unsafe { self.local.write(self.size, seed(0, turn)) };
                }
                self.call();
                if vary && self.what == OneSided::Get {
                    // SAFETY: the operation has ended: MPI does not use the buffer.
                    unsafe { self.local.look(self.size) };
                }
            }
            (mpi.now() - began) / f64::from(plan.iterations)
        });
        if vary && self.what == OneSided::Put {
            let last = seed(0, plan.all() - 1);
            // SAFETY: nobody else works on the memory.
            let checked = self.window.own(|memory| unsafe {
                if mpi.rank() == 1 { memory.check(self.size, last) } else { Ok(()) }
            });
            mpi.expect(checked, || format!("the last Put of {} bytes", self.size));
        }
        timed.unwrap_or(0.0)
    }
}

/// Measures an operation for all sizes; the whole of a program.
pub fn run(program: &str, what: OneSided) -> ExitCode {
    let options = Options::parse();
    let mpi = match Mpi::pair(program) {
        Ok(mpi) => mpi,
        Err(code) => return code,
    };
    let notes = ["Window creation: MPI_Win_allocate".to_owned(), "Synchronization: MPI_Win_flush".to_owned()];
    let report = Report::begin(mpi.rank(), &format!("MPI_{what:?} latency Test"), &notes, &["Latency (us)"]);
    let words = what == OneSided::Accumulate && options.words();
    for plan in options.plans(Measure::OneSided) {
        let size = if words { plan.size.next_multiple_of(8) } else { plan.size };
        // A window for each size, as OSU.
        let window = Window::allocate(&mpi, size);
        let local = Buffer::new(size, options.origin());
        let bench = Bench { what, words, size, local: &local, window: &window };
        bench.check(&mpi);
        let seconds = bench.measure(&mpi, &plan, options.vary());
        report.row(plan.size, &[seconds * 1e6]);
    }
    mpi.barrier();
    ExitCode::SUCCESS
}
