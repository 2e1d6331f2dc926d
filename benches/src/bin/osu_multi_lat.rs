//! Time of one message, several pairs at once: the first half of the ranks with the second.

use std::process::ExitCode;

use clap::Parser;
use vmshm_benches::osu::{Buffer, Measure, Mpi, Options, Report, seed};

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
        let check = |turn| {
            // SAFETY: blocking calls only: MPI does not use the buffer now.
            let checked = unsafe { landing.check(plan.size, seed(peer, turn)) };
            mpi.expect(checked, || format!("message of {} bytes in turn {turn}", plan.size));
        };
        let round = |turn, vary: bool| {
            if !first {
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
            if first {
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
                mpi.barrier();
                began = mpi.now();
            }
            round(turn, options.vary());
        }
        let one_way = (mpi.now() - began) * 1e6 / (2.0 * f64::from(plan.iterations));
        check(if options.vary() { plan.all() - 1 } else { u32::MAX });
        report.row(plan.size, &[mpi.sum(one_way) / mpi.size() as f64]);
    }
    mpi.barrier();
    ExitCode::SUCCESS
}
