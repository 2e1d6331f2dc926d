//! `cargo xtask test`: the tests, in order, each with its line; logs below `target/test-logs`.

use anyhow::Result;

use crate::accel::{self, Wish};
use crate::checkers;
use crate::cleanup;
use crate::driver_tests;
use crate::guest_tests;
use crate::host_tests;
use crate::image;
use crate::packages;
use crate::stage;
use crate::tally::{Choice, Tally};
use crate::workspace::Workspace;

/// Runs the chosen steps; true if none failed.
pub fn run(workspace: &Workspace, wish: Wish, choice: &Choice) -> Result<bool> {
    let logs = workspace.target.join("test-logs");
    packages::ensure(
        &[packages::BUILD, packages::RUN, packages::GUESTS, packages::PLOT, packages::PROGRAMS],
        &logs,
    )?;
    let mut tally = Tally::new(&logs, choice);
    checkers::steps(workspace, &mut tally)?;

    let stage = if choice.has("host") || choice.has("guests") || choice.has("parameters") {
        stage::prepare(workspace, &logs.join("build")).map_err(|error| format!("{error:#}"))
    } else {
        Err("no step needed it".into())
    };
    cleanup::check()?;
    host_tests::steps(workspace, &stage, &mut tally)?;

    let ground = if choice.has("guests") {
        stage.and_then(|stage| {
            let prepare = || {
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
    let mut repeated = guest_tests::steps(&ground, &mut tally)?;

    let ground = if choice.has("guests-driver") {
        ground.and_then(|(stage, image, accel)| {
            driver_tests::prepare(workspace, &stage, &image, accel, &logs)
                .map_err(|error| format!("{error:#}"))
        })
    } else {
        Err("no step needed them".into())
    };
    cleanup::check()?;
    repeated += driver_tests::steps(&ground, &mut tally)?;
    if repeated > 0 {
        println!("Boots that failed and were tried once more: {repeated}.");
    }
    Ok(tally.close())
}
