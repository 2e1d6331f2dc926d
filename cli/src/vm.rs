//! `vmshm vm`: virtual machines of our own.

mod config;
mod monitor;
mod run;
mod stats;
mod status;
mod stop;
mod terminal;
mod view;

/// Virtual machines that this program runs itself, on this host's KVM.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Boot a kernel in a VM that is confined to a NUMA node and has sections of regions
    Run(Box<config::Run>),
    /// Show where threads and memory of running VMs really are
    Status(status::Args),
    /// Show what takes vCPUs of running VMs out of the guest, and how often
    Stats(stats::Args),
}

impl Command {
    /// Runs the command.
    pub fn run(&self) -> anyhow::Result<std::process::ExitCode> {
        match self {
            Self::Run(args) => args.0.run(),
            Self::Status(args) => args.run().map(|()| std::process::ExitCode::SUCCESS),
            Self::Stats(args) => args.run().map(|()| std::process::ExitCode::SUCCESS),
        }
    }
}
