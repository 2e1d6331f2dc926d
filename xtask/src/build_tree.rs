//! Builds everything that a user of vmshm gets, and the MPI programs that try it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;

use crate::process;
use crate::progress;
use crate::workspace::{Workspace, cargo};

/// Packages of the workspace that are built for `demo`, `test`, `bench` and `install`.
const PRODUCT: &[&str] = &["vmshm-btl", "vmshm-heap", "vmshm"];
const PROGRAMS: &[&str] = &["vmshm-tests", "vmshm-benches"];

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
    build(workspace, PRODUCT, "plugin and tool", log_dir)
}

/// Builds the MPI programs with optimisation, and returns the directory of the results.
pub fn programs(workspace: &Workspace, log_dir: &Path) -> Result<PathBuf> {
    build(workspace, PROGRAMS, "MPI programs", log_dir)
}

fn build(workspace: &Workspace, list: &[&str], what: &str, log_dir: &Path) -> Result<PathBuf> {
    progress::during(&format!("building {what}"), |bar| {
        let mut command = cargo();
        command.current_dir(&workspace.root).args(["build", "--release", "--color=never"]);
        for package in list {
            command.args(["--package", package]);
        }
        let log = log_dir.join(format!("build-{}.log", list[0]));
        process::run_shown(command, "cargo build", &log, LIMIT, bar)?;
        Ok(workspace.target.join("release"))
    })
}
