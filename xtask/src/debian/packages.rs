//! Debian packages that the demo, the tests and the benches need: finds what is missing and installs it.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::base::process;
use crate::base::progress;

/// One Debian package and what it is needed for.
#[derive(Debug, Clone, Copy)]
pub struct Need {
    /// Its name in the package index.
    pub package: &'static str,
    /// Purpose, as a phrase that a user can read.
    pub why: &'static str,
}

const fn need(package: &'static str, why: &'static str) -> Need {
    Need { package, why }
}

/// Packages that build the plugin, the tool and the MPI programs.
pub const BUILD: &[Need] = &[
    need("libopenmpi-dev", "headers that the plugin is built for"),
    need("libucx-dev", "headers that the UCX transport is built for"),
    need("libclang-dev", "reads those headers for Rust"),
    need("clang", "headers of the C compiler for libclang"),
];

/// Packages that run MPI programs on this machine.
pub const RUN: &[Need] = &[need("openmpi-bin", "mpirun")];

/// Packages that make and run the guests.
pub const GUESTS: &[Need] = &[
    need("qemu-system-x86", "runs the virtual machines"),
    need("mmdebstrap", "makes the file system of the guests"),
    need("e2fsprogs", "puts that file system into an image"),
    need("openssh-client", "talks to guests under our VMM"),
];

/// Packages that make the chroot in which the guest driver is built.
pub const KERNEL: &[Need] = &[need("mmdebstrap", "makes the chroot with the tools of Debian's kernels")];

/// Packages that build for the Open MPI of another Debian.
pub const OTHER_MPI: &[Need] =
    &[need("mmdebstrap", "makes the chroot with that Open MPI"), need("pkg-config", "finds that Open MPI")];

/// Package that counts instructions.
pub const COUNT: &[Need] = &[need("valgrind", "counts the instructions of a message")];

/// Packages that draw the text of the PNG plots.
pub const PLOT: &[Need] = &[need("fonts-dejavu-core", "text in the PNG plots")];

/// Package of UCX's own programs.
pub const UCX: &[Need] = &[need("ucx-utils", "ucx_perftest: UCX's own messages over our transport")];

/// Packages of the real MPI programs that the tests run.
pub const PROGRAMS: &[Need] = &[
    need("netpipe-openmpi", "NetPIPE: message sizes and their integrity"),
    need("mpich", "another MPI over UCX"),
    need("libmpich-dev", "builds the message checker for that"),
    need("hpcc", "HPC Challenge with its own checks"),
    need("acpica-tools", "iasl reads the tables of the VMM back"),
    need("munge", "tells Slurm's daemons who asks"),
    need("slurm-client", "srun, which starts processes without mpirun"),
    need("slurmctld", "Slurm's controller"),
    need("slurmd", "Slurm's daemon that starts them"),
    need("python3", "runs the mpi4py test suite"),
    need("python3-dev", "builds mpi4py"),
    need("python3-venv", "keeps mpi4py apart from the system"),
];

fn installed(package: &str) -> bool {
    Command::new("dpkg-query")
        .args(["--show", "--showformat=${db:Status-Status}", package])
        .output()
        .is_ok_and(|out| out.status.success() && out.stdout == b"installed")
}

/// Installs those of `wanted` that are missing, after saying what and why.
///
/// Root is only asked for (through sudo) when something is missing.
pub fn ensure(wanted: &[&[Need]], log_dir: &Path) -> Result<()> {
    let all: Vec<Need> = wanted.iter().flat_map(|list| list.iter().copied()).collect();
    if !process::exists("apt-get") {
        let names: Vec<&str> = all.iter().map(|n| n.package).collect();
        bail!(
            "this machine has no apt-get, so packages cannot be checked or installed here.\n\
             Needed is Debian 12 or later with: {}",
            names.join(" ")
        );
    }
    let missing: Vec<Need> = all.into_iter().filter(|n| !installed(n.package)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let root = nix::unistd::geteuid().is_root();
    println!(
        "Missing Debian packages, to be installed with apt-get{}:",
        if root { "" } else { " through sudo" }
    );
    for need in &missing {
        println!("  {:18} {}", need.package, need.why);
    }
    if !root {
        // In the foreground, so that sudo can ask for the password.
        let status = Command::new("sudo")
            .arg("--validate")
            .status()
            .context("cannot start sudo: install these packages as root yourself, then run this again")?;
        if !status.success() {
            bail!("sudo refused: install these packages as root yourself, then run this again");
        }
    }
    let names: Vec<&str> = missing.iter().map(|n| n.package).collect();
    progress::during("package index", |_| {
        let mut update = as_root("apt-get");
        update.args(["--quiet", "update"]);
        apt(update, "apt-get update", &log_dir.join("apt-update.log"))
    })?;
    progress::during(&format!("installing {} packages", names.len()), |_| {
        let mut install = as_root("apt-get");
        install.args(["--quiet", "--yes", "--no-install-recommends", "install"]).args(&names);
        apt(install, "apt-get install", &log_dir.join("apt-install.log"))
    })
}

/// A command that runs as root: by itself if we are root, else through sudo without a question.
pub fn as_root(program: &str) -> Command {
    if nix::unistd::geteuid().is_root() {
        let mut command = Command::new(program);
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command
    } else {
        let mut command = Command::new("sudo");
        command.args(["--non-interactive", "DEBIAN_FRONTEND=noninteractive"]).arg(program);
        command
    }
}

fn apt(command: Command, what: &str, log: &Path) -> Result<()> {
    // Not under the guard's time limit and kill: an apt-get cut short leaves packages half configured.
    let mut running = process::Running::start(command, what, log)?;
    let mut told = false;
    let status = loop {
        if let Some(status) = running.poll()? {
            break status;
        }
        if crate::base::cleanup::interrupted() && !told {
            eprintln!("waiting for {what} to end, so that no package stays half installed");
            told = true;
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    crate::base::cleanup::check()?;
    if !status.success() {
        bail!(
            "{what} ended with {status}; log: {}\n{}",
            log.display(),
            process::last_lines(&running.text(), 15)
        );
    }
    Ok(())
}
