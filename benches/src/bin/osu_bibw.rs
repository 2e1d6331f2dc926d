//! Bytes a second in both directions at once, a window of messages under way in each.

use std::process::ExitCode;

use clap::Parser;
use vmshm_benches::osu::{Buffer, Measure, Mpi, Options, Report, seed};

fn main() -> ExitCode {
    let options = Options::parse();
    let mpi = match Mpi::pair("osu_bibw") {
        Ok(mpi) => mpi,
        Err(code) => return code,
    };
    let report = Report::begin(mpi.rank(), "MPI Bi-Directional Bandwidth Test", &[], &["Bandwidth (MB/s)"]);
    let largest = options.largest(Measure::Bandwidth);
    let (out, landing) = (Buffer::new(largest, options.origin()), Buffer::new(largest, options.origin()));
    let (me, peer) = (mpi.rank(), 1 - mpi.rank());
    let (mut sends, mut receives) = (mpi.pending(options.window()), mpi.pending(options.window()));
    for plan in options.plans(Measure::Bandwidth) {
        let check = |turn| {
            // SAFETY: the last windows have ended: MPI uses neither buffer.
            let checked = unsafe { landing.check(plan.size, seed(peer, turn)) };
            mpi.expect(checked, || format!("message of {} bytes in turn {turn}", plan.size));
        };
        let mut pass = |turn, vary: bool| {
            if vary {
                // SAFETY: as above.
                unsafe { out.write(plan.size, seed(me, turn)) };
            }
            for _ in 0..options.window() {
                receives.receive(&landing, plan.size, peer);
            }
            for _ in 0..options.window() {
                sends.send(&out, plan.size, peer);
            }
            sends.wait();
            receives.wait();
            if vary {
                check(turn);
            }
            match me {
                0 => mpi.await_acknowledgement(1),
                _ => mpi.acknowledge(0),
            }
        };
        // SAFETY: as above.
        unsafe { landing.clear(plan.size) };
        mpi.barrier();
        pass(u32::MAX, true);
        mpi.barrier();
        let mut began = 0.0;
        for turn in 0..plan.all() {
            if turn == plan.warmup {
                began = mpi.now();
            }
            pass(turn, options.vary());
        }
        let seconds = mpi.now() - began;
        check(if options.vary() { plan.all() - 1 } else { u32::MAX });
        let messages = 2.0 * f64::from(plan.iterations) * options.window() as f64;
        report.row(plan.size, &[plan.size as f64 * messages / 1e6 / seconds]);
    }
    mpi.barrier();
    ExitCode::SUCCESS
}
