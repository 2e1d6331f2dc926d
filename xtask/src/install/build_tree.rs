//! Builds everything that a user of vmshm gets, and the MPI programs that try it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use super::other_mpi::OtherMpi;
use super::ucx::Ucx;
use crate::base::process;
use crate::base::progress;
use crate::base::workspace::{Workspace, cargo};

/// Packages of the workspace that are always built for `install`.
const PRODUCT: &[&str] = &["vmshm-btl", "vmshm-heap", "vmshm"];

/// The selection of packages that is built with optimisation: all but this one, which cargo has built in its other profile. One
/// selection for tests and programs, since each has its own set of features, with which cargo would compile dependencies anew.
pub const OPTIMISED: &[&str] = &["--workspace", "--exclude", "xtask"];

/// The MPI programs among the results, and the one that tries the guest driver.
pub const MPI_PROGRAMS: &[&str] = &[
    "vmshm-mpi-check",
    "vmshm-mpi-spawn",
    "vmshm-mpi-traffic",
    "vmshm-mpi-wait",
    "vmshm-heap-check",
    "vmshm-driver-check",
    "osu_latency",
    "osu_bw",
    "osu_bibw",
    "osu_mbw_mr",
    "osu_multi_lat",
    "osu_barrier",
    "osu_bcast",
    "osu_reduce",
    "osu_allreduce",
    "osu_gather",
    "osu_allgather",
    "osu_scatter",
    "osu_alltoall",
    "osu_gatherv",
    "osu_scatterv",
    "osu_alltoallv",
    "osu_put_latency",
    "osu_get_latency",
    "osu_acc_latency",
    "message_steps",
    "vmshm_raw",
];

/// Programs that are built for another Open MPI.
#[derive(Debug, Clone, Copy)]
pub struct Programs {
    package: &'static str,
    names: &'static [&'static str],
}

/// Those that verify; the last three are for newer ones only.
pub const CHECKERS: Programs = Programs {
    package: "vmshm-tests",
    names: &[
        "vmshm-mpi-check",
        "vmshm-mpi-spawn",
        "vmshm-mpi-traffic",
        "vmshm-mpi-wait",
        "vmshm-heap-check",
        "vmshm-mpi-persistent",
        "vmshm-mpi-sessions",
        "vmshm-mpi-survive",
    ],
};

/// Those that measure.
pub const BENCHES: Programs = Programs {
    package: "vmshm-benches",
    names: &[
        "osu_latency",
        "osu_bw",
        "osu_barrier",
        "osu_bcast",
        "osu_reduce",
        "osu_allreduce",
        "osu_allgather",
    ],
};

const LIMIT: Duration = Duration::from_secs(1800);

/// Builds plugin and tool with optimisation, and returns the directory of the results. The plugin is for `mpi`, else for the Open
/// MPI that is found.
pub fn product(workspace: &Workspace, mpi: Option<&OtherMpi>, log_dir: &Path) -> Result<PathBuf> {
    let packages = PRODUCT.iter().flat_map(|name| ["--package", name]);
    let mut command = optimised(packages);
    if let Some(mpi) = mpi {
        command.env("OMPI_DIR", &mpi.prefix);
    }
    build(workspace, command, &workspace.target, "plugin and tool", log_dir)
}

/// Builds the UCX transport, beside what [`product`] builds.
///
/// # Errors
/// There is no UCX of a series that the transport knows.
pub fn ucx_transport(workspace: &Workspace, log_dir: &Path) -> Result<PathBuf> {
    build(workspace, optimised(["--package", "vmshm-ucx"]), &workspace.target, "UCX transport", log_dir)
}

/// As [`product`] and [`ucx_transport`], and the MPI programs.
pub fn everything(workspace: &Workspace, log_dir: &Path) -> Result<PathBuf> {
    let command = optimised(OPTIMISED.iter().copied());
    build(workspace, command, &workspace.target, "plugin, tool and MPI programs", log_dir)
}

/// Builds the plugin, and programs, for the Open MPI of another root directory.
pub fn for_other(
    workspace: &Workspace,
    mpi: &OtherMpi,
    root: &Path,
    programs: Programs,
    log_dir: &Path,
) -> Result<PathBuf> {
    // The binaries by their names, since other targets of the packages would be built with them.
    let mut command = optimised(["--package", "vmshm-btl", "--package", programs.package]);
    command.arg("--lib").args(programs.names.iter().flat_map(|name| ["--bin", name]));
    command.env("OMPI_DIR", &mpi.prefix);
    command.env("PKG_CONFIG_SYSROOT_DIR", root);
    command.env("MPI_PKG_CONFIG", mpi.prefix.join("lib/pkgconfig/ompi-c.pc"));
    build_for(workspace, mpi, command, &format!("plugin and programs for Open MPI {}", mpi.release), log_dir)
}

/// Builds the UCX transport for the UCX of another root directory, beside what [`for_other`] builds for the Open MPI there.
pub fn transport_beside(workspace: &Workspace, mpi: &OtherMpi, ucx: &Ucx, log_dir: &Path) -> Result<PathBuf> {
    let mut command = optimised(["--package", "vmshm-ucx"]);
    command.env("UCX_DIR", &ucx.prefix);
    build_for(workspace, mpi, command, &format!("UCX transport for UCX {}", ucx.series), log_dir)
}

/// Builds for another root directory.
fn build_for(
    workspace: &Workspace,
    mpi: &OtherMpi,
    mut command: Command,
    what: &str,
    log_dir: &Path,
) -> Result<PathBuf> {
    // Its libraries want more of the C library than this machine's has; what we build does not.
    command.env("RUSTFLAGS", "-Clink-arg=-Wl,--allow-shlib-undefined");
    // Of its own, or cargo would build anew for each of the two in turn.
    build(workspace, command, &workspace.target.join(format!("openmpi-{}", mpi.release)), what, log_dir)
}

/// Builds the program that checks messages with MPICH's compiler, which is `compiler`.
pub fn checker_for_mpich(workspace: &Workspace, compiler: &str, log_dir: &Path) -> Result<PathBuf> {
    let mut command = optimised(["--package", "vmshm-tests", "--bin", "vmshm-mpi-check"]);
    command.env("MPICC", compiler);
    // Of its own: cargo does not see that the compiler is another.
    build(workspace, command, &workspace.target.join("mpich"), "checker for MPICH", log_dir)
}

fn optimised<'a>(what: impl IntoIterator<Item = &'a str>) -> Command {
    let mut command = cargo();
    command.args(["build", "--release", "--color=never"]).args(what);
    command
}

fn build(
    workspace: &Workspace,
    mut command: Command,
    target: &Path,
    what: &str,
    log_dir: &Path,
) -> Result<PathBuf> {
    progress::during(&format!("building {what}"), |bar| {
        command.current_dir(&workspace.root).env("CARGO_TARGET_DIR", target);
        process::run_shown(command, "cargo build", &log_dir.join("build.log"), LIMIT, bar)?;
        Ok(target.join("release"))
    })
}
