//! Checks the messages of the MPI library that it runs under, byte for byte.
//!
//! `mpirun -np 2 vmshm-mpi-check`, with whatever transport mpirun chooses or is told to use.

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::Parser;
use vmshm_tests::check::{self, Options};

/// Checks MPI messages byte for byte; run it under mpirun with 1 to 64 ranks.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Lists the checks and ends (needs no mpirun)
    #[arg(long)]
    list: bool,
    /// Runs only the checks whose names begin so; may be given several times
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Determines all payloads and random choices; printed at the start [default: from the clock]
    #[arg(long)]
    seed: Option<u64>,
    /// Short run, for slow (emulated) machines
    #[arg(long)]
    quick: bool,
    /// Threads a rank; 2 or more ask for MPI_THREAD_MULTIPLE
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    threads: u16,
    /// Also one message of more than 4 GiB (needs 9 GiB of memory)
    #[arg(long)]
    huge: bool,
    /// Longest time for one check, in seconds; 0 for none
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    timeout: u64,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.list {
        for case in check::cases() {
            println!("{:<32} {}", case.name, case.about);
        }
        return ExitCode::SUCCESS;
    }
    let clock = || {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        now.map_or(1, |since| since.as_secs())
    };
    let options = Options {
        only: arguments.only,
        seed: arguments.seed.unwrap_or_else(clock),
        quick: arguments.quick,
        threads: usize::from(arguments.threads),
        huge: arguments.huge,
        timeout: Duration::from_secs(arguments.timeout),
    };
    match check::run(&options) {
        Ok(summary) if summary.failed == 0 => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("vmshm-mpi-check: {error}");
            ExitCode::from(2)
        }
    }
}
