//! Bytes a second from one process to another, a window of messages under way.

use std::process::ExitCode;

use clap::Parser;
use vmshm_benches::osu::{Buffer, Measure, Mpi, Options, Report};

fn main() -> ExitCode {
    let options = Options::parse();
    let mpi = match Mpi::pair("osu_bw") {
        Ok(mpi) => mpi,
        Err(code) => return code,
    };
    let report = Report::begin(mpi.rank(), "Bandwidth Test", &[], &["Bandwidth (MB/s)"]);
    let largest = options.largest(Measure::Bandwidth);
    let buffer = Buffer::filled(largest, b'a');
    let mut pending = mpi.pending(options.window());
    for plan in options.plans(Measure::Bandwidth) {
        mpi.barrier();
        let mut began = 0.0;
        for turn in 0..plan.all() {
            if turn == plan.warmup {
                began = mpi.now();
            }
            if options.vary() {
                // SAFETY: the last window has ended: MPI does not use the buffer.
                unsafe {
                    match mpi.rank() {
                        0 => buffer.change(plan.size, turn),
                        _ => buffer.look(plan.size),
                    }
                }
            }
            for _ in 0..options.window() {
                match mpi.rank() {
                    0 => pending.send(&buffer, plan.size, 1),
                    _ => pending.receive(&buffer, plan.size, 0),
                }
            }
            pending.wait();
            match mpi.rank() {
                0 => mpi.await_acknowledgement(1),
                _ => mpi.acknowledge(0),
            }
        }
        let seconds = mpi.now() - began;
        let messages = f64::from(plan.iterations) * options.window() as f64;
        report.row(plan.size, &[plan.size as f64 * messages / 1e6 / seconds]);
    }
    mpi.barrier();
    ExitCode::SUCCESS
}
