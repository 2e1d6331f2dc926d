//! Time of one message between two processes (ping-pong, half of the round trip).

use std::process::ExitCode;

use clap::Parser;
use vmshm_benches::osu::{Buffer, Measure, Mpi, Options, PingPong, Report, measure};

fn main() -> ExitCode {
    let options = Options::parse();
    let mpi = match Mpi::pair("osu_latency") {
        Ok(mpi) => mpi,
        Err(code) => return code,
    };
    let report = Report::begin(mpi.rank(), "MPI Latency Test", &[], &["Latency (us)"]);
    let largest = options.largest(Measure::Latency);
    let (out, landing) = (Buffer::new(largest, options.origin()), Buffer::new(largest, options.origin()));
    let (me, peer) = (mpi.rank(), 1 - mpi.rank());
    for plan in options.plans(Measure::Latency) {
        let (first, size) = (me == 0, plan.size);
        let turns = PingPong { mpi: &mpi, peer, first, out: &out, landing: &landing, size };
        let seconds = measure(&mpi, &plan, options.vary(), Some(turns));
        report.row(size, &[seconds * 1e6 / (2.0 * f64::from(plan.iterations))]);
    }
    mpi.barrier();
    ExitCode::SUCCESS
}
