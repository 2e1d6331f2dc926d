//! Bytes a second from one process to another, a window of messages under way.

use std::process::ExitCode;

use clap::Parser;
use vmshm_benches::osu::{Buffer, End, Measure, Mpi, Options, Report, Stream};

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
        let stream = Stream { mpi: &mpi, end, buffer: &buffer, size: plan.size, window: options.window() };
        stream.clear();
        mpi.barrier();
        stream.pass(&mut pending, u32::MAX, true);
        mpi.barrier();
        let mut began = 0.0;
        for turn in 0..plan.all() {
            if turn == plan.warmup {
                began = mpi.now();
            }
            stream.pass(&mut pending, turn, options.vary());
        }
        let seconds = mpi.now() - began;
        stream.check(if options.vary() { plan.all() - 1 } else { u32::MAX });
        let messages = f64::from(plan.iterations) * options.window() as f64;
        report.row(plan.size, &[plan.size as f64 * messages / 1e6 / seconds]);
    }
    mpi.barrier();
    ExitCode::SUCCESS
}
