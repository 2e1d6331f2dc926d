//! Time of one message, several pairs at once: the first half of the ranks with the second.

use std::process::ExitCode;

use clap::Parser;
use vmshm_benches::osu::{Buffer, Measure, Mpi, Options, PingPong, Report, measure};

fn main() -> ExitCode {
    let options = Options::parse();
    let mpi = match Mpi::start() {
        Ok(mpi) if mpi.size() >= 2 && mpi.size().is_multiple_of(2) => mpi,
        Ok(mpi) => {
            if mpi.rank() == 0 {
                eprintln!("osu_multi_lat needs an even number of processes, there are {}", mpi.size());
            }
            return ExitCode::FAILURE;
        }
        Err(error) => {
            eprintln!("osu_multi_lat: {error}");
            return ExitCode::FAILURE;
        }
    };
    let report = Report::begin(mpi.rank(), "MPI Multi Latency Test", &[], &["Latency (us)"]);
    let largest = options.largest(Measure::Latency);
    let (out, landing) = (Buffer::new(largest, options.origin()), Buffer::new(largest, options.origin()));
    let (me, pairs) = (mpi.rank(), mpi.size() / 2);
    let first = me < pairs;
    let peer = if first { me + pairs } else { me - pairs };
    for plan in options.plans(Measure::Latency) {
        let size = plan.size;
        let turns = PingPong { mpi: &mpi, peer, first, out: &out, landing: &landing, size };
        let seconds = measure(&mpi, &plan, options.vary(), Some(turns));
        let one_way = seconds * 1e6 / (2.0 * f64::from(plan.iterations));
        report.row(size, &[mpi.sum(one_way) / mpi.size() as f64]);
    }
    mpi.barrier();
    ExitCode::SUCCESS
}
