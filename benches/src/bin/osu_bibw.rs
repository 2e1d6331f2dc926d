//! Bytes a second in both directions at once, a window of messages under way in each.

use std::process::ExitCode;

use clap::Parser;
use vmshm_benches::osu::{Buffer, Measure, Mpi, Options, Pending, Report, Turns, measure, seed};

/// One of two processes, with windows of messages of one size under way in both directions.
struct BothWays<'a, 'p> {
    mpi: &'a Mpi,
    out: &'a Buffer,
    landing: &'a Buffer,
    size: usize,
    window: usize,
    sends: &'p mut Pending<'a>,
    receives: &'p mut Pending<'a>,
}

impl Turns for BothWays<'_, '_> {
    fn clear(&self) {
        // SAFETY: no window is under way: MPI uses neither buffer.
        unsafe { self.landing.clear(self.size) };
    }

    fn pass(&mut self, turn: u32, vary: bool) {
        let (me, peer) = (self.mpi.rank(), 1 - self.mpi.rank());
        if vary {
            // SAFETY: no window is under way: MPI uses neither buffer.
            unsafe { self.out.write(self.size, seed(me, turn)) };
        }
        for _ in 0..self.window {
            self.receives.receive(self.landing, self.size, peer);
        }
        for _ in 0..self.window {
            self.sends.send(self.out, self.size, peer);
        }
        self.sends.wait();
        self.receives.wait();
        if vary {
            self.check(turn);
        }
        match me {
            0 => self.mpi.await_acknowledgement(peer),
            _ => self.mpi.acknowledge(peer),
        }
    }

    fn check(&self, turn: u32) {
        // SAFETY: the window has ended: MPI uses neither buffer.
        let checked = unsafe { self.landing.check(self.size, seed(1 - self.mpi.rank(), turn)) };
        self.mpi.expect(checked, || format!("message of {} bytes in turn {turn}", self.size));
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    let mpi = match Mpi::pair("osu_bibw") {
        Ok(mpi) => mpi,
        Err(code) => return code,
    };
    let report = Report::begin(mpi.rank(), "MPI Bi-Directional Bandwidth Test", &[], &["Bandwidth (MB/s)"]);
    let largest = options.largest(Measure::Bandwidth);
    let (out, landing) = (Buffer::new(largest, options.origin()), Buffer::new(largest, options.origin()));
    let (mut sends, mut receives) = (mpi.pending(options.window()), mpi.pending(options.window()));
    for plan in options.plans(Measure::Bandwidth) {
        let (size, window) = (plan.size, options.window());
        let (out, landing) = (&out, &landing);
        let (sends, receives) = (&mut sends, &mut receives);
        let turns = BothWays { mpi: &mpi, out, landing, size, window, sends, receives };
        let seconds = measure(&mpi, &plan, options.vary(), Some(turns));
        let messages = 2.0 * f64::from(plan.iterations) * window as f64;
        report.row(size, &[size as f64 * messages / 1e6 / seconds]);
    }
    mpi.barrier();
    ExitCode::SUCCESS
}
