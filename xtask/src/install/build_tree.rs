//! Builds everything that a user of vmshm gets, and the MPI programs that try it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;

use crate::base::process;
use crate::base::progress;
use crate::base::workspace::{Workspace, cargo};

/// Packages of the workspace that are built for `install`.
const PRODUCT: &[&str] = &["vmshm-btl", "vmshm-heap", "vmshm"];

/// The selection of packages that is built with optimisation: all but this one, which cargo has built in its other profile. One
/// selection for tests and programs, since each has its own set of features, with which cargo would compile dependencies anew.
pub const OPTIMISED: &[&str] = &["--workspace", "--exclude", "xtask"];

/// The MPI programs among the results, and the one that tries the guest driver.
pub const MPI_PROGRAMS: &[&str] = &[
    "vmshm-mpi-check",
    "vmshm-mpi-spawn",
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

const LIMIT: Duration = Duration::from_secs(1800);

/// Builds plugin and tool with optimisation, and returns the directory of the results.
pub fn product(workspace: &Workspace, log_dir: &Path) -> Result<PathBuf> {
    let packages: Vec<&str> = PRODUCT.iter().flat_map(|name| ["--package", name]).collect();
    build(workspace, &packages, "plugin and tool", log_dir)
}

/// As [`product`], and the MPI programs.
pub fn everything(workspace: &Workspace, log_dir: &Path) -> Result<PathBuf> {
    build(workspace, OPTIMISED, "plugin, tool and MPI programs", log_dir)
}

fn build(workspace: &Workspace, packages: &[&str], what: &str, log_dir: &Path) -> Result<PathBuf> {
    progress::during(&format!("building {what}"), |bar| {
        let mut command = cargo();
        command.current_dir(&workspace.root).args(["build", "--release", "--color=never"]).args(packages);
        process::run_shown(command, "cargo build", &log_dir.join("build.log"), LIMIT, bar)?;
        Ok(workspace.target.join("release"))
    })
}
