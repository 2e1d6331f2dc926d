//! Steps that run MPI programs under MPICH over the UCX transport, as processes of this host and in guests.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::host::checked;
use super::tally::{Count, Tally};
use super::ucx::{self, REGION, SEED};
use crate::base::process::{self, Running, last_lines};
use crate::base::workspace::Workspace;
use crate::install::stage;
use crate::install::ucx::Ucx;
use crate::install::{self, build_tree};
use crate::lab::region::Region;
use crate::lab::{Lab, PAYLOAD};
use crate::mpi::guest_mpi;
use crate::mpi::mpi4py::{self, EXCEPT, Suite};
use crate::mpi::mpich::{self, MPICC, MPIRUN};

/// The checker for MPICH in the built tree.
const CHECKER: &str = "bin/vmshm-mpi-check.mpich";

/// The program that tells nodes, in the built tree.
const NODES: &str = "bin/nodes.mpich";

const LIMIT: Duration = Duration::from_secs(300);
/// Of a job across guests, on real hardware.
const GUESTS_LIMIT: Duration = Duration::from_secs(150);

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
    let stage = || stage::built(stage);
    let check = |ranks: usize, logs: &Path| {
        let checker = checker(workspace, stage()?, logs)?;
        let region = Region::create(stage()?, REGION, 2, true)?;
        check(ranks, logs, |name| {
            let mut command = mpirun(ranks, name, &region)?;
            command.arg(&checker);
            Ok(command)
        })
    };
    for ranks in [2, 3, 5] {
        tally.step(&format!("ucx-mpich-check-{ranks}"), |logs| check(ranks, logs))?;
    }
    tally.step("ucx-mpich-mpi4py-2", |logs| suite(workspace, stage()?, logs))
}

/// Builds the message checker for MPICH, and puts it into the built tree. All releases since 3.1 have one binary interface.
pub fn checker(workspace: &Workspace, stage: &Path, logs: &Path) -> Result<PathBuf> {
    let built = build_tree::checker_for_mpich(workspace, MPICC, logs)?;
    let place = stage.join(CHECKER);
    install::place(&built.join("vmshm-mpi-check"), &place, 0o755)?;
    Ok(place)
}

/// Prepares a job over one of UCX's transports, by its name.
fn mpirun(ranks: usize, name: &str, region: &Region) -> Result<Command> {
    let environment = match name {
        "vmshm" => region.environment_with(&["--ucx", &Ucx::found()?.series])?,
        _ => Vec::new(),
    };
    Ok(mpich::mpirun(process::mortal(MPIRUN), ranks, &format!("{name},self"), &environment))
}

/// Checks messages between so many ranks. `job` prepares the checker over one of UCX's transports, by its name. With two ranks each
/// part must end as it does over UCX's own shared memory, with more all must pass.
pub fn check(ranks: usize, logs: &Path, job: impl Fn(&str) -> Result<Command>) -> Result<Count> {
    let run = |name: &str, parts: &[&[&str]]| {
        let mut command = job(name)?;
        command.args(arguments(parts));
        let done = Running::start(command, name, &logs.join(format!("{name}.log")))?.wait(LIMIT)?;
        carried(&done.text, name, ranks)?;
        Ok(done)
    };
    match ranks {
        2 => ucx::compare(|name, _| run(name, &[PARTS, MORE])),
        _ => checked(run("vmshm", &[SHORT])?),
    }
}

/// What the checker is told.
fn arguments<'a>(parts: &'a [&[&'a str]]) -> impl Iterator<Item = &'a str> {
    let parts = parts.iter().copied().flatten().flat_map(|part| ["--only", *part]);
    ["--quick", "--seed", SEED, "--timeout", "100"].into_iter().chain(parts)
}

/// Each rank must have said that one of UCX's transports has its messages.
fn carried(text: &str, name: &str, ranks: usize) -> Result<()> {
    match text.matches(&format!("tag({name}/")).count() {
        count if count < ranks => {
            bail!("{count} of {ranks} processes have an endpoint over {name}:\n{}", last_lines(text, 25))
        }
        _ => Ok(()),
    }
}

/// Builds what [`across`] runs, and puts it into the built tree.
pub fn prepare_guests(workspace: &Workspace, stage: &Path, logs: &Path) -> Result<()> {
    checker(workspace, stage, logs)?;
    let source = logs.join("mpich-nodes.c");
    fs::write(&source, include_str!("nodes.c"))?;
    let mut command = Command::new(MPICC);
    command.arg("-o").args([&stage.join(NODES), &source]);
    process::run(command, MPICC, &logs.join("mpich-nodes.log"), LIMIT)?;
    Ok(())
}

/// The message checker across guests with UCX of a series. Each guest must be a node of its own to MPICH.
pub fn across(lab: &mut Lab, series: &str, logs: &Path) -> Result<Count> {
    let guests = lab.size();
    let mut run = |ranks: usize, program: &str, log: &str| {
        let script = mpich::script(guests, ranks, series, &format!("{PAYLOAD}/{program}"));
        let text = guest_mpi::run_script(lab, program, &script, &logs.join(log), GUESTS_LIMIT)?;
        for guest in 0..guests {
            let of_guest = |line: &&str| line.contains(&format!("[vm{guest}:"));
            carried(&text.lines().filter(of_guest).collect::<Vec<_>>().join("\n"), "vmshm", ranks / guests)?;
        }
        Ok::<_, anyhow::Error>(text)
    };
    let text = run(2 * guests, NODES, "nodes.log")?;
    if text.matches("shares memory with 1 other").count() != 2 * guests {
        bail!("of {} processes in {guests} guests not each shares memory with one:\n{text}", 2 * guests);
    }
    let mut sum = Count::one();
    for (ranks, parts) in [(guests, PARTS), (2 * guests, SHORT)] {
        let program = format!("{CHECKER} {}", arguments(&[parts]).collect::<Vec<_>>().join(" "));
        let text = run(ranks, &program, &format!("check-{ranks}.log"))?;
        let count = Count::of_checker(&text)
            .with_context(|| format!("the checker printed no closing line:\n{}", last_lines(&text, 10)))?;
        sum.add(&count);
    }
    Ok(sum)
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
    // One process prints: lines of several are joined now and then.
    let shared = "from mpi4py import MPI as m; w = m.COMM_WORLD
n = w.allreduce(w.Split_type(m.COMM_TYPE_SHARED).size)
if w.rank == 0: print('together', n)";
    command.arg(&kit.python).args(["-c", shared]);
    let alone = process::run(command, "mpi4py", &logs.join("shared.log"), LIMIT)?.text;
    if !alone.contains(&format!("together {RANKS}\n")) {
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
