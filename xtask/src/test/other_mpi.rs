//! Steps that run the plugin under the Open MPI of another Debian release than this machine's, in a root directory of that.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};

use super::host::{as_native, checked, heap, spawn, two_regions};
use super::place::{Bench, Place, REGION, Writers};
use super::tally::{Count, Tally};
use crate::base::process::last_lines;
use crate::base::workspace::Workspace;
use crate::debian::apt;
use crate::install::build_tree;
use crate::install::stage;
use crate::lab::region::Region;
use crate::mpi::host_mpi::Layer;
use crate::mpi::mpi4py::{self, Suite};
use crate::mpi::other_debian::OtherDebian;
use crate::mpi::two_hosts;

/// The Debian releases with Open MPI 5.0 and 6.0.
const SUITE: &str = "trixie";
const SUITE_6: &str = apt::UNSTABLE;
const LIMIT: Duration = Duration::from_secs(600);
/// Processes that are killed in one job.
const KILLS: usize = 20;

/// Runs all of them; `stage` is the built tree, or why there is none.
pub fn steps(workspace: &Workspace, stage: &Result<PathBuf, String>, tally: &mut Tally) -> Result<()> {
    let place_in = |suite, logs: &Path| {
        let stage = stage::built(stage)?;
        place(workspace, stage, suite, logs)
    };
    let place = |logs: &Path| place_in(SUITE, logs);
    let all = tally.all();
    tally.step("ompi5-check-3", |logs| check(&place(logs)?, logs))?;
    tally.step("ompi6-check-3", |logs| check(&place_in(SUITE_6, logs)?, logs))?;
    tally.step("ompi5-survival", |logs| survive(&place(logs)?, logs))?;
    tally.step("ompi5-sessions", |logs| sessions(&place(logs)?, logs))?;
    tally.step("ompi5-persistent", |logs| persistent(&place(logs)?, logs))?;
    tally.step("ompi5-collectives-two-regions", |logs| {
        two_regions(&place(logs)?, 4, "1", &["region"], logs)
    })?;
    tally.step("ompi5-hosts", |logs| hosts(&place(logs)?, logs))?;
    tally.step("ompi5-windows-3-open", |logs| windows(&place(logs)?, logs))?;
    tally.step("ompi5-heap", |logs| heap(&place(logs)?, Layer::Vmshm, logs))?;
    tally.step("ompi5-sleep", |logs| sleep(&place(logs)?, logs))?;
    tally.step("ompi5-spawn", |logs| spawn(&place(logs)?, logs))?;
    tally.step("ompi5-threads", |logs| threads(&place(logs)?, logs))?;
    tally.step("ompi5-mpi4py-3", |logs| {
        let place = place(logs)?;
        let Some((inside, _)) = &place.other else {
            bail!("this machine's Open MPI is tested by other steps")
        };
        match mpi4py::prepare_inside(workspace, inside, logs)? {
            Suite::Ready(kit) => as_native(&place, &kit, 3, all, logs),
            Suite::Unavailable(why) => Ok(Count::skip(why)),
        }
    })
}

/// Runs a program that prints `wanted` when all was well.
fn program(
    place: &Place,
    ranks: usize,
    options: &[&str],
    name: &str,
    wanted: &str,
    logs: &Path,
) -> Result<Count> {
    let bench = Bench::new(place)?;
    let mut command = bench.mpi.mpirun(ranks, Layer::Vmshm);
    command.args(options).arg(place.program(name));
    // How the job ends is not asked: a program may end without MPI_Finalize.
    let done = bench.mpi.run(command, name, &logs.join(format!("{name}.log")), LIMIT)?;
    if !done.text.contains(wanted) {
        bail!("{name} did not print {wanted:?}; log: {}\n{}", done.log.display(), last_lines(&done.text, 15));
    }
    Ok(Count::one())
}

/// Processes of a job that survives it are killed, one after the other.
fn survive(place: &Place, logs: &Path) -> Result<Count> {
    let wanted = format!("kills: {KILLS} survived");
    program(place, KILLS + 1, &["--with-ft", "ulfm"], "vmshm-mpi-survive", &wanted, logs)?;
    Ok(Count { passed: KILLS, note: "kills".into(), ..Count::default() })
}

fn sessions(place: &Place, logs: &Path) -> Result<Count> {
    program(place, 3, &["--mca", "osc", "vmshm"], "vmshm-mpi-sessions", "sessions: all is well", logs)
}

fn persistent(place: &Place, logs: &Path) -> Result<Count> {
    program(place, 3, &[], "vmshm-mpi-persistent", "persistent: all is well", logs)
}

/// Of all operations those that Open MPI 5.0.7's han does right; the others are wrong without us, too, for datatypes with gaps. `far`
/// ends in SIGSEGV, without us too: han's reduce has memory for its part of the result, but not where a datatype's data begin.
const BELOW: [&str; 4] = ["barrier", "bcast", "reduce", "allreduce"];

/// Two hosts with a region each: communicators of both are han's, and those of one host, which han makes, ours.
fn hosts(place: &Place, logs: &Path) -> Result<Count> {
    if !nix::unistd::getuid().is_root() {
        return Ok(Count::skip("only root can give processes another host's name"));
    }
    let (bench, other) = (Bench::new(place)?, Region::create(&place.stage, REGION, 2, true)?);
    let script = format!(
        "if [ \"$(hostname)\" = {} ]; then export OMPI_MCA_btl_vmshm_device={}; fi; exec \"$0\" \"$@\"",
        two_hosts::NAMES[1],
        other.file().display()
    );
    let mut command = bench.mpi.mpirun(6, Layer::VmshmAndTcp);
    command.args(two_hosts::mpirun_args(3, logs)?);
    command.args(["--mca", "coll_base_verbose", "10", "--mca", "btl_base_verbose", "10"]);
    command.args(["sh", "-c", &script]);
    command.arg(place.program("vmshm-mpi-check")).arg("--quick");
    command.args(BELOW.iter().flat_map(|name| ["--only".to_owned(), format!("collectives/{name}")]));
    let done = bench.mpi.run(command, "vmshm-mpi-check", &logs.join("check.log"), LIMIT)?;
    let best = best_components(&done.text);
    if !best.contains("han") || !best.contains("vmshm") {
        bail!("han was to have communicators of both hosts, vmshm those of one, but Open MPI took {best:?}");
    }
    // The checker has none of one host: these are han's.
    let ours = done.text.matches("a communicator of 3 does collective operations in the region").count();
    if ours < 3 * 6 {
        bail!(
            "three operations of 6 processes were {ours} times vmshm's below han:\n{}",
            last_lines(&done.text, 10)
        );
    }
    checked(done)
}

/// The components that were the last, and so the best, for some communicator, as Open MPI tells when it is asked to.
fn best_components(text: &str) -> BTreeSet<&str> {
    let mut lasts = HashMap::new();
    let mut best = BTreeSet::new();
    for (process, said) in text.lines().filter_map(|line| line.split_once("coll:base:comm_select: ")) {
        if said.starts_with("new communicator") {
            best.extend(lasts.remove(process));
        } else if let Some(taken) = said.strip_prefix("selecting").filter(|taken| taken.ends_with("Enabled"))
        {
            lasts.insert(process, taken.split(',').next().unwrap_or_default().trim());
        }
    }
    best
}

/// Windows where every process may write to the memory of all.
fn windows(place: &Place, logs: &Path) -> Result<Count> {
    let bench = Bench::with_windows(place, Writers::All)?;
    let mut command = bench.mpi.mpirun(3, Layer::Vmshm);
    command.arg(place.program("vmshm-mpi-check")).arg("--quick");
    command.args(["one-sided", "any-change", "dynamic"].iter().flat_map(|name| ["--only", name]));
    let done = bench.mpi.run(command, "vmshm-mpi-check", &logs.join("check.log"), LIMIT)?;
    Writers::All.check(&done.text)?;
    checked(done)
}

/// Without doorbells nobody sleeps, but all that is needed to do so is at work.
fn sleep(place: &Place, logs: &Path) -> Result<Count> {
    let bench = Bench::new(place)?;
    let mut count = Count::default();
    for (name, arguments) in
        [("vmshm-mpi-wait", &["--seconds", "1"][..]), ("vmshm-mpi-check", &["--quick"][..])]
    {
        let mut command = bench.mpi.mpirun(2, Layer::Vmshm);
        command.args(["--mca", "btl_vmshm_sleep_after", "1000", "--mca", "osc", "vmshm"]);
        command.arg(place.program(name)).args(arguments);
        let done = bench.mpi.run(command, name, &logs.join(format!("{name}.log")), LIMIT)?;
        let done = done.expect_success(name)?;
        count.add(&Count::of_checker(&done.text).unwrap_or(Count::one()));
    }
    Ok(count)
}

/// Several threads. Windows are Open MPI's own then: its osc/rdma in 5.0.7 fails at MPI_BOR of 64 bit numbers over `sm` too.
fn threads(place: &Place, logs: &Path) -> Result<Count> {
    let bench = Bench::new(place)?;
    let mut command = bench.mpi.mpirun(2, Layer::Vmshm);
    command.arg(place.program("vmshm-mpi-check")).args(["--quick", "--threads", "3"]);
    let parts = ["sizes", "order", "patterns", "communicators", "collectives", "any-collective", "threads"];
    command.args(parts.iter().flat_map(|name| ["--only", name]));
    checked(bench.mpi.run(command, "vmshm-mpi-check", &logs.join("check.log"), LIMIT)?)
}

/// The root directory of a Debian release with its Open MPI, and what is built for that.
fn place(workspace: &Workspace, stage: &Path, suite: &'static str, logs: &Path) -> Result<Place> {
    let suites = mpi4py::suite_dir(workspace);
    let all_logs = workspace.target.join("test-logs");
    fs::create_dir_all(&suites)?;
    fs::create_dir_all(&all_logs)?;
    let seen = [&*suites, &*all_logs];
    let there = OtherDebian::prepare(workspace, suite, stage, build_tree::CHECKERS, &seen, logs)?;
    let OtherDebian { inside, release, programs } = there;
    Ok(Place { stage: stage.to_owned(), programs, other: Some((inside, release)) })
}

/// Messages, collective operations, and windows, which are ours where no other component is wanted, by three processes.
fn check(place: &Place, logs: &Path) -> Result<Count> {
    let bench = Bench::with_windows(place, Writers::Owner)?;
    let run = |options: &[&str], only: &[&str], log: &str| {
        let mut command = bench.mpi.mpirun(3, Layer::Vmshm);
        command.args(options).arg(place.program("vmshm-mpi-check")).arg("--quick").args(only);
        let done = bench.mpi.run(command, "vmshm-mpi-check", &logs.join(log), LIMIT)?;
        Writers::Owner.check(&done.text)?;
        Ok::<_, anyhow::Error>(done)
    };
    let mut count = checked(run(&[], &[], "check.log")?)?;
    // By itself: 6.0's launcher loses lines of the checker's where Open MPI says very much.
    let told = run(&["--mca", "btl_base_verbose", "10"], &["--only", "collectives/bcast"], "coll.log")?.text;
    if !told.contains("a communicator of 3 does collective operations in the region") {
        bail!("Open MPI took other components for collective operations:\n{}", last_lines(&told, 10));
    }
    count.note = place.other.as_ref().map_or(String::new(), |(_, release)| format!("Open MPI {release}"));
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::best_components;

    #[test]
    fn the_last_component_of_a_communicator_is_the_best() {
        let text = "[a:1] coll:base:comm_select: new communicator: x (cid 0)\n\
                    [a:1] coll:base:comm_select: selecting       tuned, priority  30, Enabled\n\
                    [b:2] coll:base:comm_select: selecting       vmshm, priority  60, Enabled\n\
                    [a:1] coll:base:comm_select: selecting         han, priority  35, Enabled\n\
                    [a:1] coll:base:comm_select: selecting          sm, priority   0, Disabled\n\
                    [a:1] coll:base:comm_select: new communicator: x (cid 1)\n";
        assert_eq!(best_components(text).into_iter().collect::<Vec<_>>(), ["han"]);
    }
}
