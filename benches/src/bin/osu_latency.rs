//! Time of one message between two processes (ping-pong, half of the round trip).

use std::process::ExitCode;

use clap::Parser;
use vmshm_benches::osu::{Buffer, Measure, Mpi, Options, Report, seed};

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
        let check = |turn| {
            // SAFETY: blocking calls only: MPI does not use the buffer now.
            let checked = unsafe { landing.check(plan.size, seed(peer, turn)) };
            mpi.expect(checked, || format!("message of {} bytes in turn {turn}", plan.size));
        };
        let round = |turn, vary: bool| {
            if me == 1 {
                mpi.receive(&landing, plan.size, peer);
                if vary {
                    check(turn);
                }
            }
            if vary {
                // SAFETY: as above.
                unsafe { out.write(plan.size, seed(me, turn)) };
            }
            mpi.send(&out, plan.size, peer);
            if me == 0 {
                mpi.receive(&landing, plan.size, peer);
                if vary {
                    check(turn);
                }
            }
        };
        // SAFETY: as above.
        unsafe { landing.clear(plan.size) };
        mpi.barrier();
        round(u32::MAX, true);
        mpi.barrier();
        let mut began = 0.0;
        for turn in 0..plan.all() {
            if turn == plan.warmup {
                began = mpi.now();
            }
            round(turn, options.vary());
        }
        let seconds = mpi.now() - began;
        check(if options.vary() { plan.all() - 1 } else { u32::MAX });
        report.row(plan.size, &[seconds * 1e6 / (2.0 * f64::from(plan.iterations))]);
    }
    mpi.barrier();
    ExitCode::SUCCESS
}
