//! Tries the guest driver from user space: everything that a program, however wrong or hostile, can ask of
//! `/dev/vmshmN`. It runs in a guest; what needs two guests runs in both.

mod bell;
mod checks;
mod death;
mod device;
mod faults;
mod fuzz;
mod layout;
mod lives;
mod map;
mod mapping;
mod paint;
mod report;
mod sigbus;
mod unbind;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use report::Report;

/// Tries the guest driver.
#[derive(Debug, Parser)]
struct Arguments {
    /// The device
    #[arg(long, default_value = "/dev/vmshm0", global = true)]
    device: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The device as it describes itself
    Info,
    /// Mappings: what is offered and what is refused
    Mmap,
    /// Page faults: what they wait for
    Faults,
    /// A device whose region has no section for this VM
    ReadOnly,
    /// Ioctls, reads and polls: what is offered and what is refused
    Calls {
        /// A section that no VM has
        #[arg(long)]
        vacant: Option<u32>,
    },
    /// Endpoint slots of processes that end in various ways
    Lives,
    /// Writes a pattern into this VM's own section
    Paint {
        /// Determines the pattern
        #[arg(long)]
        seed: u64,
    },
    /// Checks the pattern that another VM wrote
    Compare {
        /// The other VM's section
        #[arg(long)]
        section: u32,
        /// The seed that it was given
        #[arg(long)]
        seed: u64,
    },
    /// Random calls from several threads
    Fuzz(fuzz::Options),
    /// Uses the device from several threads while it is unbound and bound again
    Unbind(unbind::Options),
    /// Rings another VM and waits for its rings, in turn
    Bell(bell::Options),
    /// Kills processes that talk, and waits until they are reported; in two VMs
    #[command(subcommand)]
    Death(death::Command),
}

fn run(arguments: &Arguments) -> Result<bool> {
    let path = &arguments.device;
    let mut report = Report::default();
    match &arguments.command {
        Command::Info => {
            println!("{:?}", device::Device::open(path)?.info()?);
            return Ok(true);
        }
        Command::Mmap => map::checks(path, &mut report)?,
        Command::Faults => faults::checks(path, &mut report)?,
        Command::ReadOnly => map::read_only(path, &mut report)?,
        Command::Calls { vacant } => checks::calls(path, *vacant, &mut report)?,
        Command::Lives => lives::checks(path, &mut report)?,
        Command::Paint { seed } => {
            paint::paint(path, *seed)?;
            return Ok(true);
        }
        Command::Compare { section, seed } => {
            report.check("contents are those that the other VM wrote", || {
                paint::compare(path, *section, *seed)
            });
        }
        Command::Fuzz(options) => fuzz::run(path, options, &mut report)?,
        Command::Unbind(options) => unbind::run(path, options, &mut report)?,
        Command::Bell(options) => bell::run(path, options, &mut report)?,
        Command::Death(command) => death::run(path, command, &mut report)?,
    }
    Ok(report.close())
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("vmshm-driver-check: {error:#}");
            ExitCode::from(2)
        }
    }
}
