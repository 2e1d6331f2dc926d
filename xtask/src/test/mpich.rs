//! Steps that run MPI programs under MPICH over the UCX transport, as processes of this host.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::host::checked;
use super::tally::{Count, Tally};
use super::ucx::{self, REGION, SEED};
use crate::base::process::{self, Finished, Running, last_lines};
use crate::base::workspace::Workspace;
use crate::install::build_tree;
use crate::install::ucx::Ucx;
use crate::lab::region::Region;
use crate::mpi::mpi4py::{self, EXCEPT, Suite};
use crate::mpi::mpich::{self, MPICC};

const LIMIT: Duration = Duration::from_secs(300);

/// Parts of the message checker that MPICH passes.
const PARTS: &[&str] = &[
    "sizes",
    "modes",
    "wildcards",
    "order",
    "datatypes",
    "communicators",
    "patterns",
    "probing",
    "collectives/barrier",
    "collectives/bcast",
    "collectives/reduce",
    "collectives/allreduce",
    "collectives/scan",
    "collectives/allgather",
    "collectives/gather-scatter",
    "collectives/alltoall",
    "any-collective/ahead",
    "any-collective/reductions",
    "pressure",
];

/// The same, of which none takes long where there are more processes than cores: those that wait do not yield to others.
const SHORT: &[&str] = &[
    "sizes/random",
    "wildcards",
    "order",
    "communicators",
    "patterns",
    "collectives/bcast",
    "collectives/allreduce",
    "collectives/allgather",
    "collectives/alltoall",
    "any-collective/ahead",
    "pressure",
];

/// Besides, with two processes. Of these, MPICH fails truncation (it tells of more bytes than were sent) and any-collective/moves
/// (`MPI_Allgatherv` of one process ignores the place) over each transport.
const MORE: &[&str] =
    &["truncation", "any-collective/moves", "any-collective/short-lived", "one-sided", "any-change/together"];

/// Of mpi4py's tests not these.
const MPICH_EXCEPT: &[&str] = &[
    // MPICH does not survive this, over each transport.
    "-x",
    "testSplitTypeShared",
    // Files go over no transport.
    "-e",
    "io",
];

/// Runs all of them; `stage` is the built tree, or why there is none.
pub fn steps(workspace: &Workspace, stage: &Result<PathBuf, String>, tally: &mut Tally) -> Result<()> {
    let stage = || stage.as_deref().map_err(|why| anyhow::anyhow!("nothing to test was built: {why}"));
    tally.step("ucx-mpich-check-2", |logs| compare(workspace, stage()?, logs))?;
    for ranks in [3, 5] {
        tally.step(&format!("ucx-mpich-check-{ranks}"), |logs| all_pass(workspace, stage()?, ranks, logs))?;
    }
    tally.step("ucx-mpich-mpi4py-2", |logs| suite(workspace, stage()?, logs))
}

/// Prepares a job over one of UCX's transports, by its name.
fn mpirun(ranks: usize, name: &str, region: &Region) -> Result<Command> {
    let environment = match name {
        "vmshm" => region.environment_with(&["--ucx", &Ucx::found()?.series])?,
        _ => Vec::new(),
    };
    Ok(mpich::mpirun(ranks, &format!("{name},self"), &environment))
}

/// Has the checker check `parts` over one of UCX's transports.
fn check(
    (workspace, logs): (&Workspace, &Path),
    (ranks, name): (usize, &str),
    region: &Region,
    parts: &[&[&str]],
) -> Result<Finished> {
    let program = build_tree::checker_for_mpich(workspace, MPICC, logs)?.join("vmshm-mpi-check");
    let mut command = mpirun(ranks, name, region)?;
    command.arg(program).args(["--quick", "--seed", SEED, "--timeout", "100"]);
    command.args(parts.iter().copied().flatten().flat_map(|part| ["--only", *part]));
    let done = Running::start(command, name, &logs.join(format!("{name}.log")))?.wait(LIMIT)?;
    if done.text.matches(&format!("tag({name}/")).count() < ranks {
        bail!("not each process has an endpoint over {name}:\n{}", last_lines(&done.text, 25));
    }
    Ok(done)
}

/// Each part must end as it does over UCX's own shared memory.
fn compare(workspace: &Workspace, stage: &Path, logs: &Path) -> Result<Count> {
    let region = Region::create(stage, REGION, 2, true)?;
    ucx::compare(|name, _| check((workspace, logs), (2, name), &region, &[PARTS, MORE]))
}

/// All parts must pass.
fn all_pass(workspace: &Workspace, stage: &Path, ranks: usize, logs: &Path) -> Result<Count> {
    let region = Region::create(stage, REGION, 2, true)?;
    checked(check((workspace, logs), (ranks, "vmshm"), &region, &[SHORT])?)
}

/// The suite of mpi4py must end as it does over UCX's own shared memory.
fn suite(workspace: &Workspace, stage: &Path, logs: &Path) -> Result<Count> {
    const RANKS: usize = 2;
    let kit = match mpi4py::prepare(workspace, logs)? {
        Suite::Ready(kit) => kit,
        Suite::Unavailable(why) => return Ok(Count::skip(why)),
    };
    let settings = match mpich::mpi4py(workspace, &kit, logs)? {
        Ok(settings) => settings,
        Err(why) => return Ok(Count::skip(why)),
    };
    let region = Region::create(stage, REGION, RANKS, true)?;
    let job = |name: &str| {
        let mut command = mpirun(RANKS, name, &region)?;
        command.args(settings.iter().flat_map(|(name, value)| ["-genv", name, value]));
        Ok::<_, anyhow::Error>(command)
    };
    let mut command = job("vmshm")?;
    let shared = "from mpi4py import MPI as m; print(m.COMM_WORLD.Split_type(m.COMM_TYPE_SHARED).size)";
    command.arg(&kit.python).args(["-c", shared]);
    let alone = process::run(command, "mpi4py", &logs.join("shared.log"), LIMIT)?.text;
    if alone.lines().filter(|line| line.trim() == "1").count() != RANKS {
        bail!("MPICH has shared memory of its own:\n{}", last_lines(&alone, 10));
    }
    let run = |name: &str| {
        let dir = logs.join(format!("{name}-ranks"));
        fs::create_dir_all(&dir)?;
        let mut command = job(name)?;
        // A file for each rank: their lines would mix otherwise.
        let script = format!("exec \"$0\" \"$@\" 2> '{}'/$PMI_RANK", dir.display());
        command.args(["sh", "-c", &script]).arg(&kit.python).arg(&kit.main);
        command.args(EXCEPT).args(MPICH_EXCEPT);
        let done =
            Running::start(command, "mpi4py's tests", &logs.join(format!("{name}.log")))?.wait(LIMIT)?;
        let report = |rank: usize| {
            let text = fs::read_to_string(dir.join(rank.to_string()))?;
            mpi4py::report(&text).with_context(|| {
                let lines = [last_lines(&text, 10), last_lines(&done.text, 5)].concat();
                format!("over {name} rank {rank} gave no verdict:\n{lines}")
            })
        };
        (0..RANKS).map(report).collect::<Result<Vec<_>>>()
    };
    let (wanted, got) = (run("posix")?, run("vmshm")?);
    if got != wanted {
        bail!("over posix the ranks said {wanted:?}, over vmshm {got:?}");
    }
    let tests = got.iter().map(|report| report.tests).min().unwrap_or(0);
    let note = format!("each rank: {}, the same as over posix", got[0].verdict);
    Ok(Count { passed: tests, note, ..Count::default() })
}
