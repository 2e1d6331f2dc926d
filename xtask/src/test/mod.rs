//! `cargo xtask test`: the tests, in order, each with its line; logs below `target/test-logs`.

mod checkers;
mod driver;
mod guests;
mod host;
mod mpich;
mod network;
mod other_guests;
mod other_mpi;
mod other_release;
mod other_ucx;
mod place;
mod slurm;
mod tally;
mod two_ucx;
mod ucx;

pub use tally::Choice;

use anyhow::Result;

use crate::base::cleanup;
use crate::base::workspace::Workspace;
use crate::debian::packages;
use crate::install::stage;
use crate::lab::accel::{self, Wish};
use crate::lab::image;
use crate::vmm_lab;
use tally::{Count, Tally};

/// Runs the chosen steps; true if none failed.
pub fn run(workspace: &Workspace, wish: Wish, choice: &Choice) -> Result<bool> {
    let logs = workspace.target.join("test-logs");
    packages::ensure(
        &[
            packages::BUILD,
            packages::RUN,
            packages::GUESTS,
            packages::PLOT,
            packages::PROGRAMS,
            packages::UCX,
            packages::OTHER_MPI,
        ],
        &logs,
    )?;
    let mut tally = Tally::new(&logs, choice);
    checkers::steps(workspace, &mut tally)?;

    let stage =
        if ["host", "guests", "parameters", "ompi", "slurm", "ucx"].iter().any(|steps| choice.has(steps)) {
            stage::prepare(workspace, &logs.join("build")).map_err(|error| format!("{error:#}"))
        } else {
            Err("no step needed it".into())
        };
    cleanup::check()?;
    host::steps(workspace, &stage, &mut tally)?;
    other_release::steps(&stage, &mut tally)?;
    slurm::steps(&stage, &mut tally)?;
    other_mpi::steps(workspace, &stage, &mut tally)?;
    ucx::steps(&stage, &mut tally)?;
    two_ucx::steps(&stage, &mut tally)?;
    other_ucx::steps(workspace, &stage, &mut tally)?;
    mpich::steps(workspace, &stage, &mut tally)?;

    let prepared = if choice.has("guests") {
        stage.and_then(|stage| {
            let prepare = || {
                if choice.has("guests-2-mpich") {
                    mpich::prepare_guests(workspace, &stage, &logs)?;
                }
                if choice.has(network::SUITE) || choice.has(network::UCX_SUITE) {
                    network::prepare(workspace, &stage, &logs)?;
                }
                let image = image::ensure(workspace, &logs)?;
                let accel = accel::choose(wish, &image, &logs)?;
                Ok((stage, image, accel))
            };
            prepare().map_err(|error: anyhow::Error| format!("{error:#}"))
        })
    } else {
        Err("no step needed them".into())
    };
    cleanup::check()?;
    let mut repeated = guests::steps(&prepared, &mut tally)?;
    repeated += network::steps(&prepared, &mut tally)?;

    let prepared = if choice.has("guests-driver") || choice.has(other_guests::NAME) {
        prepared.and_then(|(stage, image, accel)| {
            driver::prepare(workspace, &stage, &image, accel, &logs).map_err(|error| format!("{error:#}"))
        })
    } else {
        Err("no step needed them".into())
    };
    cleanup::check()?;
    repeated += driver::steps(&prepared, &mut tally)?;
    let prepared = if choice.has(other_guests::NAME) {
        prepared.and_then(|parts| {
            other_guests::prepare(workspace, parts, &logs).map_err(|error| format!("{error:#}"))
        })
    } else {
        Err("no step needed them".into())
    };
    cleanup::check()?;
    repeated += other_guests::steps(&prepared, &mut tally)?;
    tally.step("vmm-lab", |logs| {
        let seen = vmm_lab::run(workspace, &[], logs)?;
        for missing in &seen.missing {
            println!("FAILED  {missing}");
        }
        let note = match seen.repeated.is_empty() {
            true => String::new(),
            false => format!("run once more: {}", seen.repeated.join(", ")),
        };
        let failed = seen.missing.len();
        Ok(Count { passed: seen.wanted - failed, failed, note, ..Count::default() })
    })?;
    if repeated > 0 {
        println!("Boots that failed and were tried once more: {repeated}.");
    }
    Ok(tally.close())
}
