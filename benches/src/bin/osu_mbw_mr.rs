//! Bytes and messages a second of several pairs at once: the first half of the ranks sends to the
//! second.

use std::process::ExitCode;

use clap::Parser;
use vmshm_benches::osu::{Buffer, End, Measure, Mpi, Options, Report, Stream, measure};

fn main() -> ExitCode {
    let options = Options::parse();
    let mpi = match Mpi::start() {
        Ok(mpi) => mpi,
        Err(error) => {
            eprintln!("osu_mbw_mr: {error}");
            return ExitCode::FAILURE;
        }
    };
    let pairs = options.pairs().unwrap_or(mpi.size() / 2);
    if pairs == 0 || pairs * 2 > mpi.size() {
        if mpi.rank() == 0 {
            let ranks = mpi.size();
            eprintln!("osu_mbw_mr: {pairs} pairs need {} processes, there are {ranks}", pairs.max(1) * 2);
        }
        return ExitCode::FAILURE;
    }
    let notes = [format!("[ pairs: {pairs} ] [ window size: {} ]", options.window())];
    let title = "MPI Multiple Bandwidth / Message Rate Test";
    let report = Report::begin(mpi.rank(), title, &notes, &["MB/s", "Messages/s"]);
    let buffer = Buffer::new(options.largest(Measure::Bandwidth), options.origin());
    let mut pending = mpi.pending(options.window());
    let me = mpi.rank();
    let end = if me < pairs { End::To(me + pairs) } else { End::From(me.wrapping_sub(pairs)) };
    for plan in options.plans(Measure::Bandwidth) {
        let (size, window) = (plan.size, options.window());
        let turns = Stream { mpi: &mpi, end, buffer: &buffer, size, window, pending: &mut pending };
        let seconds = measure(&mpi, &plan, options.vary(), (me < 2 * pairs).then_some(turns));
        // The senders' mean time, as OSU.
        let mean = mpi.sum(if me < pairs { seconds } else { 0.0 }) / pairs as f64;
        let rate = pairs as f64 * f64::from(plan.iterations) * window as f64 / mean;
        report.row(size, &[size as f64 * rate / 1e6, rate]);
    }
    mpi.barrier();
    ExitCode::SUCCESS
}
