//! The mean time of a collective operation, as OSU measures it: each call on its own clock, with a barrier between calls.

use std::ffi::c_int;
use std::process::ExitCode;

use clap::Parser;
use mpi::ffi;

use super::buffer::{Buffer, seed};
use super::mpi::{Mpi, int};
use super::options::{Measure, Options, Plan};
use super::report::Report;

/// A collective operation on all processes; process 0 is its root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Collective {
    /// `MPI_Barrier`.
    Barrier,
    /// `MPI_Bcast`.
    Bcast,
    /// `MPI_Reduce`: a sum of floats.
    Reduce,
    /// `MPI_Allreduce`: a sum of floats.
    Allreduce,
    /// `MPI_Gather`.
    Gather,
    /// `MPI_Allgather`.
    Allgather,
    /// `MPI_Scatter`.
    Scatter,
    /// `MPI_Alltoall`.
    Alltoall,
    /// `MPI_Gatherv`, all parts of the same length.
    Gatherv,
    /// `MPI_Scatterv`, all parts of the same length.
    Scatterv,
    /// `MPI_Alltoallv`, all parts of the same length.
    Alltoallv,
}

impl Collective {
    fn title(self) -> &'static str {
        match self {
            Collective::Barrier => "MPI Barrier Latency Test",
            Collective::Bcast => "MPI Broadcast Latency Test",
            Collective::Reduce => "MPI Reduce Latency Test",
            Collective::Allreduce => "MPI Allreduce Latency Test",
            Collective::Gather => "MPI Gather Latency Test",
            Collective::Allgather => "MPI Allgather Latency Test",
            Collective::Scatter => "MPI Scatter Latency Test",
            Collective::Alltoall => "MPI All-to-All Personalized Exchange Latency Test",
            Collective::Gatherv => "MPI Gatherv Latency Test",
            Collective::Scatterv => "MPI Scatterv Latency Test",
            Collective::Alltoallv => "MPI All-to-Allv Personalized Exchange Latency Test",
        }
    }

    fn sums(self) -> bool {
        matches!(self, Collective::Reduce | Collective::Allreduce)
    }
}

/// Buffers of one size of one operation.
struct Bench<'a> {
    mpi: &'a Mpi,
    what: Collective,
    size: usize,
    out: &'a Buffer,
    landing: &'a Buffer,
    /// Bytes of each process's part.
    counts: Vec<c_int>,
    /// Where each process's part begins.
    places: Vec<c_int>,
}

impl<'a> Bench<'a> {
    fn new(mpi: &'a Mpi, what: Collective, size: usize, out: &'a Buffer, landing: &'a Buffer) -> Self {
        let counts = vec![int(size); mpi.size()];
        let places = (0..mpi.size()).map(|number| int(number * size)).collect();
        Self { mpi, what, size, out, landing, counts, places }
    }

    fn call(&self) {
        let (out, landing) = (self.out.as_ptr(), self.landing.as_ptr());
        let bytes = int(self.size);
        // SAFETY: both buffers have room for the data of all processes and outlive the call.
        unsafe {
            let (byte, world) = (ffi::RSMPI_UINT8_T, ffi::RSMPI_COMM_WORLD);
            let (float, sum, count) = (ffi::RSMPI_FLOAT, ffi::RSMPI_SUM, bytes / 4);
            let (from, to) = (out.cast(), landing.cast());
            let (counts, places) = (self.counts.as_ptr(), self.places.as_ptr());
            match self.what {
                Collective::Barrier => ffi::MPI_Barrier(world),
                Collective::Bcast => ffi::MPI_Bcast(to, bytes, byte, 0, world),
                Collective::Reduce => ffi::MPI_Reduce(from, to, count, float, sum, 0, world),
                Collective::Allreduce => ffi::MPI_Allreduce(from, to, count, float, sum, world),
                Collective::Gather => ffi::MPI_Gather(from, bytes, byte, to, bytes, byte, 0, world),
                Collective::Allgather => ffi::MPI_Allgather(from, bytes, byte, to, bytes, byte, world),
                Collective::Scatter => ffi::MPI_Scatter(from, bytes, byte, to, bytes, byte, 0, world),
                Collective::Alltoall => ffi::MPI_Alltoall(from, bytes, byte, to, bytes, byte, world),
                Collective::Gatherv => {
                    ffi::MPI_Gatherv(from, bytes, byte, to, counts, places, byte, 0, world)
                }
                Collective::Scatterv => {
                    ffi::MPI_Scatterv(from, counts, places, byte, to, bytes, byte, 0, world)
                }
                Collective::Alltoallv => {
                    ffi::MPI_Alltoallv(from, counts, places, byte, to, counts, places, byte, world)
                }
            }
        };
    }

    /// Bytes that this process gets.
    fn result(&self) -> usize {
        let root = self.mpi.rank() == 0;
        match self.what {
            Collective::Barrier => 0,
            Collective::Bcast | Collective::Allreduce | Collective::Scatter | Collective::Scatterv => {
                self.size
            }
            Collective::Allgather | Collective::Alltoall | Collective::Alltoallv => {
                self.size * self.mpi.size()
            }
            Collective::Reduce if root => self.size,
            Collective::Gather | Collective::Gatherv if root => self.size * self.mpi.size(),
            Collective::Reduce | Collective::Gather | Collective::Gatherv => 0,
        }
    }

    /// Writes what this process gives in a turn, and takes away what it got before.
    ///
    /// # Safety
    /// MPI must not be using the buffers.
    unsafe fn prepare(&self, turn: u32) {
        let (me, ranks) = (self.mpi.rank(), self.mpi.size());
        // SAFETY: as the caller promises; the parts lie in the buffers.
        unsafe {
            self.landing.clear(self.result());
            match self.what {
                Collective::Barrier => {}
                Collective::Bcast if me == 0 => self.landing.write(self.size, seed(0, turn)),
                Collective::Bcast => {}
                Collective::Reduce | Collective::Allreduce => {
                    let floats = self.out.floats(self.size);
                    floats.iter_mut().enumerate().for_each(|(n, value)| *value = term(n, me, turn));
                }
                Collective::Gather | Collective::Gatherv | Collective::Allgather => {
                    self.out.write(self.size, seed(me, turn));
                }
                Collective::Scatter | Collective::Scatterv | Collective::Alltoall | Collective::Alltoallv => {
                    for to in 0..ranks {
                        self.part(self.out, to).write(self.size, seed(me * ranks + to, turn));
                    }
                }
            }
        }
    }

    /// Ends the job if this process got anything but what the others gave in a turn.
    ///
    /// # Safety
    /// MPI must not be using the buffers.
    unsafe fn check(&self, turn: u32) {
        let (me, ranks) = (self.mpi.rank(), self.mpi.size());
        let got = |from: usize, wanted: u64| {
            // SAFETY: as the caller promises; the part lies in the buffer.
            let checked = unsafe { self.part(self.landing, from).check(self.size, wanted) };
            self.mpi.expect(checked, || format!("{:?} of {} bytes, part {from}", self.what, self.size));
        };
        if self.result() == 0 {
            return;
        }
        match self.what {
            Collective::Barrier => {}
            Collective::Bcast => got(0, seed(0, turn)),
            Collective::Scatter | Collective::Scatterv => got(0, seed(me, turn)),
            Collective::Gather | Collective::Gatherv | Collective::Allgather => {
                (0..ranks).for_each(|from| got(from, seed(from, turn)))
            }
            Collective::Alltoall | Collective::Alltoallv => {
                (0..ranks).for_each(|from| got(from, seed(from * ranks + me, turn)))
            }
            Collective::Reduce | Collective::Allreduce => {
                // SAFETY: as the caller promises.
                let sums = unsafe { self.landing.floats(self.size) };
                for (n, sum) in sums.iter().enumerate() {
                    // Small whole numbers: exact in every order.
                    let wanted: f32 = (0..ranks).map(|rank| term(n, rank, turn)).sum();
                    if sum.to_bits() != wanted.to_bits() {
                        let (what, size) = (self.what, self.size);
                        self.mpi.abort(&format!("{what:?} of {size} bytes: sum {n} is {sum}, not {wanted}"));
                    }
                }
            }
        }
    }

    /// # Safety
    /// `number` must be a process's.
    unsafe fn part(&self, of: &Buffer, number: usize) -> Buffer {
        let start = of.as_ptr().wrapping_add(number * self.size);
        // SAFETY: the buffers have `size` bytes for each process; they are not null.
        unsafe { Buffer::over(std::ptr::NonNull::new_unchecked(start), self.size) }
    }

    /// Mean seconds of a call on this process.
    fn measure(&self, plan: &Plan, vary: bool) -> f64 {
        let mut seconds = 0.0;
        for turn in 0..plan.all() {
            if vary {
                // SAFETY: blocking calls only: MPI uses neither buffer now.
                unsafe { self.prepare(turn) };
                self.mpi.barrier();
            }
            let began = self.mpi.now();
            self.call();
            if vary {
                // SAFETY: the operation has ended: MPI uses neither buffer now.
                unsafe { self.landing.look(self.result()) };
            }
            if turn >= plan.warmup {
                seconds += self.mpi.now() - began;
            }
            if self.what != Collective::Barrier {
                self.mpi.barrier();
            }
            if vary {
                // SAFETY: the operation has ended: MPI uses neither buffer now.
                unsafe { self.check(turn) };
            }
        }
        seconds / f64::from(plan.iterations)
    }
}

/// Summand of `rank` in sum `n` of a turn.
fn term(n: usize, rank: usize, turn: u32) -> f32 {
    #[expect(clippy::cast_precision_loss, reason = "below 64")]
    let value = ((n + 5 * rank + turn as usize) & 63) as f32;
    value
}

/// Measures an operation for all sizes; the whole of a program.
pub fn run(what: Collective) -> ExitCode {
    let options = Options::parse();
    let mpi = match Mpi::start() {
        Ok(mpi) => mpi,
        Err(error) => {
            eprintln!("{what:?}: {error}");
            return ExitCode::FAILURE;
        }
    };
    let mean = |seconds: f64| mpi.sum(seconds * 1e6) / mpi.size() as f64;
    let measure = Measure::Collective(if what.sums() { size_of::<f32>() } else { 1 });
    let plans = options.plans(measure);
    if what == Collective::Barrier {
        let nothing = Buffer::new(1, options.origin());
        let bench = Bench::new(&mpi, what, 0, &nothing, &nothing);
        let plan = options.plan(measure, 0);
        mpi.barrier();
        let seconds = bench.measure(&plan, false);
        Report::single(mpi.rank(), what.title(), mean(seconds));
        return ExitCode::SUCCESS;
    }
    let report = Report::begin(mpi.rank(), what.title(), &[], &["Avg Latency(us)"]);
    let room = options.largest(measure) * mpi.size();
    let (out, landing) = (Buffer::new(room, options.origin()), Buffer::new(room, options.origin()));
    for plan in &plans {
        let bench = Bench::new(&mpi, what, plan.size, &out, &landing);
        // SAFETY: blocking calls only: MPI uses neither buffer now.
        unsafe {
            bench.prepare(u32::MAX);
            mpi.barrier();
            bench.call();
            bench.check(u32::MAX);
        }
        mpi.barrier();
        let seconds = bench.measure(plan, options.vary());
        if !options.vary() {
            // SAFETY: the operations have ended: MPI uses neither buffer now.
            unsafe { bench.check(u32::MAX) };
        }
        report.row(plan.size, &[mean(seconds)]);
        mpi.barrier();
    }
    ExitCode::SUCCESS
}
