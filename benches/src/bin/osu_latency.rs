//! Time of one message between two processes (ping-pong, half of the round trip).

use std::process::ExitCode;

use clap::Parser;
use vmshm_benches::osu::{Buffer, Measure, Mpi, Options, Report};

fn main() -> ExitCode {
    let options = Options::parse();
    let mpi = match Mpi::pair("osu_latency") {
        Ok(mpi) => mpi,
        Err(code) => return code,
    };
    let report = Report::begin(mpi.rank(), "Latency Test", &[], &["Latency (us)"]);
    let largest = options.largest(Measure::Latency);
    let (out, landing) = (Buffer::filled(largest, b'a'), Buffer::filled(largest, b'b'));
    let (me, peer) = (mpi.rank(), 1 - mpi.rank());
    for plan in options.plans(Measure::Latency) {
        mpi.barrier();
        let mut began = 0.0;
        for turn in 0..plan.all() {
            if turn == plan.warmup {
                began = mpi.now();
            }
            if me == 1 {
                mpi.receive(&landing, plan.size, peer);
            }
            if options.vary() {
                // SAFETY: blocking calls only: MPI uses neither buffer now.
                unsafe {
                    landing.look(plan.size);
                    out.change(plan.size, turn);
                }
            }
            mpi.send(&out, plan.size, peer);
            if me == 0 {
                mpi.receive(&landing, plan.size, peer);
            }
        }
        let seconds = mpi.now() - began;
        report.row(plan.size, &[seconds * 1e6 / (2.0 * f64::from(plan.iterations))]);
    }
    mpi.barrier();
    ExitCode::SUCCESS
}
