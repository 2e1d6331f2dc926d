//! Bytes a second in both directions at once, a window of messages under way in each.

use std::process::ExitCode;

use clap::Parser;
use vmshm_benches::osu::{Buffer, Measure, Mpi, Options, Report};

fn main() -> ExitCode {
    let options = Options::parse();
    let mpi = match Mpi::pair("osu_bibw") {
        Ok(mpi) => mpi,
        Err(code) => return code,
    };
    let report = Report::begin(mpi.rank(), "Bi-Directional Bandwidth Test", &[], &["Bandwidth (MB/s)"]);
    let largest = options.largest(Measure::Bandwidth);
    let (out, landing) = (Buffer::filled(largest, b'a'), Buffer::filled(largest, b'b'));
    let peer = 1 - mpi.rank();
    let (mut sends, mut receives) = (mpi.pending(options.window()), mpi.pending(options.window()));
    for plan in options.plans(Measure::Bandwidth) {
        mpi.barrier();
        let mut began = 0.0;
        for turn in 0..plan.all() {
            if turn == plan.warmup {
                began = mpi.now();
            }
            if options.vary() {
                // SAFETY: the last windows have ended: MPI uses neither buffer.
                unsafe {
                    landing.look(plan.size);
                    out.change(plan.size, turn);
                }
            }
            for _ in 0..options.window() {
                receives.receive(&landing, plan.size, peer);
            }
            for _ in 0..options.window() {
                sends.send(&out, plan.size, peer);
            }
            sends.wait();
            receives.wait();
            match mpi.rank() {
                0 => mpi.await_acknowledgement(1),
                _ => mpi.acknowledge(0),
            }
        }
        let seconds = mpi.now() - began;
        let messages = 2.0 * f64::from(plan.iterations) * options.window() as f64;
        report.row(plan.size, &[plan.size as f64 * messages / 1e6 / seconds]);
    }
    mpi.barrier();
    ExitCode::SUCCESS
}
