//! Bytes a second from one process to another, a window of messages under way.

use std::process::ExitCode;

use clap::Parser;
use vmshm_benches::osu::{Buffer, End, Measure, Mpi, Options, Report, Stream, measure};

fn main() -> ExitCode {
    let options = Options::parse();
    let mpi = match Mpi::pair("osu_bw") {
        Ok(mpi) => mpi,
        Err(code) => return code,
    };
    let report = Report::begin(mpi.rank(), "MPI Bandwidth Test", &[], &["Bandwidth (MB/s)"]);
    let buffer = Buffer::new(options.largest(Measure::Bandwidth), options.origin());
    let mut pending = mpi.pending(options.window());
    let end = if mpi.rank() == 0 { End::To(1) } else { End::From(0) };
    for plan in options.plans(Measure::Bandwidth) {
        let (size, window) = (plan.size, options.window());
        let turns = Stream { mpi: &mpi, end, buffer: &buffer, size, window, pending: &mut pending };
        let seconds = measure(&mpi, &plan, options.vary(), Some(turns));
        let messages = f64::from(plan.iterations) * window as f64;
        report.row(size, &[size as f64 * messages / 1e6 / seconds]);
    }
    mpi.barrier();
    ExitCode::SUCCESS
}
