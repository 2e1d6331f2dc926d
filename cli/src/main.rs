//! `vmshm`: regions of shared memory for MPI programs in virtual machines.

mod completions;
mod device;
mod doctor;
mod env;
mod installed;
mod libvirt_xml;
mod log;
mod man;
mod qemu_args;
mod region;
mod serve;
mod set;
mod shell;
mod signals;
mod size;
mod tune;
mod vm;

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Shared-memory regions for MPI between virtual machines of one host.
///
/// A region is host memory that a group of VMs shares through ivshmem PCI devices. Each VM owns one section of it.
/// Open MPI's plugin `btl vmshm` sends messages through it, from VM to VM, without the network.
///
/// Regions live in /dev/shm/vmshm, or where the environment variable VMSHM_DIR says. One of huge pages is a link there, to
/// its memory on hugetlbfs.
#[derive(Debug, Parser)]
#[command(
    name = "vmshm",
    version,
    max_term_width = 100,
    after_help = "\
A first region, for two VMs:
  vmshm region create job --size 8G --sections 2
  qemu-system-x86_64 ... $(vmshm qemu-args job --section 0)
  qemu-system-x86_64 ... $(vmshm qemu-args job --section 1)

What does not work, `vmshm doctor` names on the host and in the VMs.

Environment:
  VMSHM_DIR       folder of the regions
  VMSHM_RUN_DIR   folder of the server's sockets, and of what `up` starts (/run/vmshm)
  VMSHM_DEVICE    region of MPI programs: name, file, /dev/vmshmN or PCI address
  VMSHM_SECTION   section of processes on a host; a VM's is the host's choice
  VMSHM_HEAP, VMSHM_HEAP_MIN   see `vmshm env --help`
  VMSHM_LOG       what `vmshm serve` and `vmshm vm run` log"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create, list, inspect and destroy regions
    #[command(subcommand)]
    Region(region::Command),
    /// Print the QEMU arguments that give a VM one section of a region, and keep the section for that VM
    QemuArgs(qemu_args::Args),
    /// Print the libvirt XML that gives a domain one section of a region, and keep the section for it
    LibvirtXml(libvirt_xml::Args),
    /// Serve a region to QEMU's ivshmem-doorbell devices, so that VMs can ring each other
    Serve(serve::Args),
    /// Print what makes mpirun find the plugin and the region
    Env(env::Args),
    /// Run virtual machines without QEMU
    #[command(subcommand)]
    Vm(vm::Command),
    /// Start one VM for each NUMA node, around a new region, ready for mpirun
    Up(set::up::Args),
    /// End a set of VMs that `up` has started, with its region
    Down(set::down::Args),
    /// Show the VMs that `up` has started
    Ps(set::ps::Args),
    /// Check this host or VM, and say how to mend what is missing
    Doctor(doctor::Args),
    /// Show how messages are cut on this machine, and how fast it copies
    Tune(tune::Args),
    /// Print a completion script for a shell
    Completions(completions::Args),
    /// Write the man pages into a directory
    Man(man::Args),
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.command {
        Command::Region(command) => command.run()?,
        Command::QemuArgs(args) => args.run()?,
        Command::LibvirtXml(args) => args.run()?,
        Command::Serve(args) => args.run()?,
        Command::Env(args) => args.run()?,
        Command::Vm(command) => return command.run(),
        Command::Up(args) => args.run()?,
        Command::Down(args) => args.run()?,
        Command::Ps(args) => args.run()?,
        Command::Doctor(args) => return args.run(),
        Command::Tune(args) => args.run()?,
        Command::Completions(args) => args.run::<Cli>()?,
        Command::Man(args) => args.run::<Cli>()?,
    }
    Ok(ExitCode::SUCCESS)
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(code) => code,
        // A reader that closes the pipe, as `head` does, has seen enough.
        Err(error) if broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "vmshm: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_line_is_well_formed() {
        <super::Cli as clap::CommandFactory>::command().debug_assert();
    }
}
