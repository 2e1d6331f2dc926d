//! Steps that run MPI programs over vmshm as processes of this host.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};

use super::place::{Bench, Place, REGION, Writers};
use super::tally::{Count, Tally};
use crate::base::process::{self, Finished, last_lines, mortal};
use crate::base::workspace::Workspace;
use crate::install::stage;
use crate::lab::region::Region;
use crate::mpi::host_mpi::Layer;
use crate::mpi::hpcc;
use crate::mpi::mpi4py::{self, Kit, Suite};
use crate::mpi::traffic::Traffic;

const LIMIT: Duration = Duration::from_secs(600);
/// Options by which the plugin says what it does.
const VERBOSE: [&str; 3] = ["--mca", "btl_base_verbose", "10"];
/// Options by which the checker runs its collective operations only.
const COLLECTIVES: [&str; 5] = ["--quick", "--only", "collectives", "--only", "any-collective"];
/// Options that leave collective operations to Open MPI's simplest component: the others have nonblocking ones, and those of
/// communicators of one process and between two groups.
const BASIC: [&str; 3] = ["--mca", "coll", "basic,libnbc,self,inter"];

/// Every size in short: inline, eager, rendezvous.
const SIZES: &[&str] = &["-i", "3", "-x", "1"];
const VARIED: &[&str] = &["-i", "3", "-x", "1", "--vary"];
const ALLOCATED: &[&str] = &["-i", "3", "-x", "1", "--vary", "--alloc-mem"];

/// The benchmarks, so briefly that only what arrives matters.
const BENCHES: &[(&str, &[&str])] = &[
    ("osu_latency", SIZES),
    ("osu_latency", VARIED),
    ("osu_latency", ALLOCATED),
    ("osu_bw", VARIED),
    ("osu_bw", ALLOCATED),
    ("osu_bibw", VARIED),
    ("osu_mbw_mr", VARIED),
    ("osu_multi_lat", VARIED),
    ("osu_barrier", SIZES),
    ("osu_bcast", VARIED),
    ("osu_reduce", VARIED),
    ("osu_allreduce", VARIED),
    ("osu_gather", VARIED),
    ("osu_allgather", VARIED),
    ("osu_scatter", VARIED),
    ("osu_alltoall", VARIED),
    ("osu_gatherv", VARIED),
    ("osu_scatterv", VARIED),
    ("osu_alltoallv", VARIED),
    ("osu_bcast", ALLOCATED),
    ("osu_reduce", ALLOCATED),
    ("osu_allreduce", ALLOCATED),
    ("osu_gather", ALLOCATED),
    ("osu_allgather", ALLOCATED),
    ("osu_scatter", ALLOCATED),
    ("osu_alltoall", ALLOCATED),
    ("osu_gatherv", ALLOCATED),
    ("osu_scatterv", ALLOCATED),
    ("osu_alltoallv", ALLOCATED),
    ("osu_put_latency", VARIED),
    ("osu_get_latency", VARIED),
    ("osu_acc_latency", VARIED),
    ("osu_acc_latency", &["-i", "3", "-x", "1", "--words"]),
    ("message_steps", &["--messages", "5"]),
];

/// The heap beside allocators that the machine happens to have: in front of ours they are the program's, and nothing is
/// placed.
fn beside_allocators(stage: &Path, logs: &Path) -> Result<Count> {
    let bench = Bench::with_heap(&Place::own(stage))?;
    let own = bench.mpi.environment().find(|(name, _)| *name == "LD_PRELOAD").context("no LD_PRELOAD")?.1;
    let list = process::run(list_libraries(), "ldconfig", &logs.join("ldconfig.log"), LIMIT)?.text;
    let mut count = Count::one();
    let mut missing = Vec::new();
    for name in ["libasan.so", "libjemalloc.so", "libtcmalloc_minimal.so"] {
        let is_it = |line: &&str| line.trim_start().starts_with(name);
        let Some((_, path)) = list.lines().find(is_it).and_then(|line| line.rsplit_once(" => ")) else {
            missing.push(name);
            continue;
        };
        let mut command = bench.mpi.mpirun(1, Layer::Vmshm);
        // Not for mpirun itself, whose own leaks are of no interest.
        command.env_remove("LD_PRELOAD").args(["-x", &format!("LD_PRELOAD={path}:{own}")]);
        command.args(["-x", "VMSHM_HEAP", "-x", "ASAN_OPTIONS=detect_leaks=0"]);
        command.arg(stage.join("bin/vmshm-heap-check")).args(["--ordinary", "--rounds", "1000"]);
        let log = logs.join(format!("heap-{name}.log"));
        let done = bench.mpi.run(command, "vmshm-heap-check", &log, LIMIT)?;
        let done = done.expect_success(&format!("vmshm-heap-check beside {name}"))?;
        if !done.text.contains("an allocator of its own") {
            bail!("nobody was told that {name} is the allocator:\n{}", last_lines(&done.text, 10));
        }
        count.passed += 1;
    }
    if !missing.is_empty() {
        count.note = format!("not beside {}, which this machine does not have", missing.join(", "));
    }
    Ok(count)
}

fn list_libraries() -> Command {
    let mut command = mortal("ldconfig");
    command.arg("-p");
    command
}

/// Runs all of them; `stage` is the built tree, or why there is none.
pub fn steps(
    workspace: &Workspace,
    stage: &Result<std::path::PathBuf, String>,
    tally: &mut Tally,
) -> Result<()> {
    let stage = || stage::built(stage);
    let place = || stage().map(Place::own);
    tally.step("parameters", |logs| {
        let bench = Bench::new(&place()?)?;
        let mut command = mortal("ompi_info");
        command.args(["--param", "btl", "vmshm", "--level", "9"]).envs(bench.mpi.environment());
        let text = process::run(command, "ompi_info", &logs.join("ompi_info.log"), LIMIT)?.text;
        if !text.contains("btl_vmshm_device") {
            bail!("ompi_info does not know btl_vmshm_device:\n{}", last_lines(&text, 10));
        }
        let mut command = mortal("ompi_info");
        command.args(["--param", "coll", "vmshm", "--level", "9"]).envs(bench.mpi.environment());
        let text = process::run(command, "ompi_info", &logs.join("ompi_info-coll.log"), LIMIT)?.text;
        if !text.contains("coll_vmshm_priority") {
            bail!("ompi_info does not know coll_vmshm_priority:\n{}", last_lines(&text, 10));
        }
        Ok(Count::one())
    })?;
    for ranks in [2, 3, 5] {
        tally.step(&format!("host-check-{ranks}"), |logs| {
            let bench = Bench::new(&place()?)?;
            let mut command = bench.mpi.mpirun(ranks, Layer::Vmshm);
            command.arg(stage()?.join("bin/vmshm-mpi-check"));
            if ranks > 2 {
                command.arg("--quick");
            }
            checked(bench.mpi.run(command, "vmshm-mpi-check", &logs.join("check.log"), LIMIT)?)
        })?;
    }
    tally.step("host-collectives-many", |logs| {
        // More than look at each other's words one by one.
        let bench = Bench::new(&place()?)?;
        let mut command = bench.mpi.mpirun(12, Layer::Vmshm);
        command.arg(stage()?.join("bin/vmshm-mpi-check")).args(COLLECTIVES);
        checked(bench.mpi.run(command, "vmshm-mpi-check", &logs.join("check.log"), LIMIT)?)
    })?;
    tally.step("host-collectives-basic", |logs| beside_basic(stage()?, logs))?;
    // As on two hosts: a region on each, and TCP between them. On each there may be two virtual machines, too.
    for (name, ranks, levels, parted_by) in [
        ("host-collectives-two-regions", 4, "1", &["region"][..]),
        ("host-collectives-two-regions-of-two", 6, "2", &["region", "section"]),
    ] {
        tally.step(name, |logs| two_regions(&place()?, ranks, levels, parted_by, logs))?;
    }
    tally.step("host-collectives-two-sections", |logs| two_sections(&place()?, logs))?;
    tally.step("host-check-threads", |logs| {
        let bench = Bench::new(&place()?)?;
        let mut command = bench.mpi.mpirun(2, Layer::Vmshm);
        command.arg(stage()?.join("bin/vmshm-mpi-check")).args(["--quick", "--threads", "3"]);
        checked(bench.mpi.run(command, "vmshm-mpi-check", &logs.join("check.log"), LIMIT)?)
    })?;
    for (name, layer) in [("host-heap", Layer::Vmshm), ("host-heap-and-vader", Layer::VmshmAndVader)] {
        tally.step(name, |logs| heap(&place()?, layer, logs))?;
    }
    tally.step("host-heap-inert", |logs| {
        let bench = Bench::with_heap(&place()?)?;
        for (value, layer) in [("0", Layer::Vmshm), ("1", Layer::VaderCma)] {
            let mut command = bench.mpi.mpirun(2, layer);
            command.env("VMSHM_HEAP", value).arg(stage()?.join("bin/vmshm-heap-check")).arg("--ordinary");
            let done = bench.mpi.run(command, "vmshm-heap-check", &logs.join("heap.log"), LIMIT)?;
            done.expect_success("vmshm-heap-check")?;
        }
        beside_allocators(stage()?, logs)
    })?;
    for (ranks, writers) in [
        (2, Writers::Owner),
        (3, Writers::Owner),
        (3, Writers::OwnerAlone),
        (2, Writers::All),
        (3, Writers::All),
        (3, Writers::Section),
    ] {
        let name = format!("host-windows-{ranks}{}", writers.suffix());
        tally.step(&name, |logs| {
            let bench = Bench::with_windows(&place()?, writers)?;
            let mut command = bench.mpi.mpirun(ranks, Layer::Vmshm);
            command.args(VERBOSE).arg(stage()?.join("bin/vmshm-mpi-check")).arg("--quick");
            let done = bench.mpi.run(command, "vmshm-mpi-check", &logs.join("check.log"), LIMIT)?;
            writers.check(&done.text)?;
            let mut count = checked(done)?;
            if let Suite::Ready(kit) = mpi4py::prepare(workspace, logs)? {
                let got = mpi4py::run_windows(&kit, &bench.mpi, ranks, logs, LIMIT)?;
                if let Some((_, verdict)) = got.iter().find(|(_, verdict)| !verdict.starts_with("OK")) {
                    bail!("mpi4py's tests of windows: {verdict}");
                }
                count.passed += got.iter().map(|report| report.0).min().unwrap_or(0);
            }
            Ok(count)
        })?;
    }
    tally.step("host-windows-levels", |logs| {
        // Only one process has several threads: all must come to the same conclusion. Other windows are pt2pt's, which does not.
        let bench = Bench::with_windows(&place()?, Writers::All)?;
        let script = "exec \"$0\" \"$@\" --threads $((2 - OMPI_COMM_WORLD_RANK))";
        let mut command = bench.mpi.mpirun(2, Layer::Vmshm);
        command.args(["sh", "-c", script]).arg(stage()?.join("bin/vmshm-mpi-check"));
        command.args(["--quick", "--timeout", "60", "--only", "any-change/shared"]);
        checked(bench.mpi.run(command, "vmshm-mpi-check", &logs.join("check.log"), LIMIT)?)
    })?;
    tally.step("host-traffic", |logs| traffic(stage()?, logs))?;
    tally.step("host-spawn", |logs| spawn(&place()?, logs))?;
    tally.step("host-benches", |logs| {
        let bench = Bench::new(&place()?)?;
        let mut count = Count::default();
        for (program, arguments) in BENCHES {
            let mut command = bench.mpi.mpirun(2, Layer::Vmshm);
            command.arg(stage()?.join("bin").join(program)).args(*arguments);
            let done = bench.mpi.run(command, program, &logs.join(format!("{program}.log")), LIMIT)?;
            // They look at what arrives, and fail where it is wrong.
            done.expect_success(&format!("{program} {}", arguments.join(" ")))?;
            count.passed += 1;
        }
        let command = mortal(stage()?.join("bin/vmshm_raw"));
        let raw = ["--rounds", "1", "--turns", "200", "--silent", "3", "--endpoints", "8"];
        let text = run_if_two_cores(command, &raw, &logs.join("vmshm_raw.log"))?;
        count.add(&text);
        Ok(count)
    })?;
    tally.step("host-netpipe", |logs| {
        let bench = Bench::new(&place()?)?;
        let mut command = bench.mpi.mpirun(2, Layer::Vmshm);
        command.args(["NPopenmpi", "-i", "-n", "3", "-u", "4194304", "-o", "/dev/null"]);
        let done = bench.mpi.run(command, "NPopenmpi", &logs.join("netpipe.log"), LIMIT)?;
        netpipe(&done.expect_success("NPopenmpi")?.text)
    })?;
    for (name, heap) in [("host-hpcc", false), ("host-heap-hpcc", true)] {
        tally.step(name, |logs| {
            let bench = if heap { Bench::with_heap(&place()?)? } else { Bench::new(&place()?)? };
            Ok(Count { passed: hpcc::run(&bench.mpi, Layer::Vmshm, logs, LIMIT)?, ..Count::default() })
        })?;
    }
    let all = tally.all();
    for ranks in [2, 3, 5] {
        let name = format!("host-mpi4py-{ranks}");
        // An odd number that is more than the processors have cores, as 5 is.
        if ranks == 3 && !tally.for_release(&name) {
            continue;
        }
        tally.step(&name, |logs| {
            let kit = match mpi4py::prepare(workspace, logs)? {
                Suite::Ready(kit) => kit,
                Suite::Unavailable(why) => return Ok(Count::skip(why)),
            };
            as_native(&place()?, &kit, ranks, all, logs)
        })?;
    }
    Ok(())
}

/// Known traffic, which must be counted as the way says that it takes, on both sides.
fn traffic(stage: &Path, logs: &Path) -> Result<Count> {
    const MESSAGES: u64 = 20;
    let bench = Bench::new(&Place::own(stage))?;
    let mut count = Count::default();
    for (bytes, memory) in [(8, ""), (300, ""), (4000, ""), (1 << 20, ""), (1 << 20, "--alloc-mem")] {
        let mut command = bench.mpi.mpirun(2, Layer::Vmshm);
        command.arg(stage.join("bin/vmshm-mpi-traffic"));
        command.args(["--messages", &MESSAGES.to_string(), "--bytes", &bytes.to_string()]);
        command.args(memory.split_whitespace());
        let what = format!("vmshm-mpi-traffic, {bytes} bytes {memory}");
        let log = logs.join(format!("traffic-{bytes}{memory}.log"));
        let done = bench.mpi.run(command, &what, &log, LIMIT)?;
        let traffic = Traffic::parse(&done.expect_success(&what)?.text);
        let sum = MESSAGES * bytes;
        for (rank, peer) in [(0, 1), (1, 0)] {
            let of = |name: &str| traffic.of(rank, peer, name);
            let is_right = match (bytes, memory) {
                // With ob1's header and the stamp, in whole slots.
                (8 | 300, _) => {
                    let of = |way: &str| (of(way), of(&format!("{way}_bytes")));
                    let all = (MESSAGES, MESSAGES * (bytes + 14 + 8).next_multiple_of(32));
                    of("inline_sent") == all && of("inline_received") == all && of("fragments_sent") == (0, 0)
                }
                // The header comes with the message.
                (4000, _) => {
                    let all = sum..sum + MESSAGES * 64;
                    (of("fragments_sent"), of("fragments_received"), of("inline_sent"))
                        == (MESSAGES, MESSAGES, 0)
                        && all.contains(&of("fragments_sent_bytes"))
                        && all.contains(&of("fragments_received_bytes"))
                }
                // Pieces, a first part of each message that is read in place, and what ob1 says about them.
                (_, "") => {
                    let all = sum..sum + MESSAGES * 4096;
                    of("fragments_received") > 0 && all.contains(&traffic.received(rank, peer))
                }
                _ => of("get_bytes") == sum && of("gets") >= MESSAGES && of("fragments_received") == 0,
            };
            if !is_right {
                bail!("{what}: rank {rank} has counted {traffic:?}");
            }
            count.passed += 1;
        }
    }
    Ok(count)
}

/// Collective operations as on two hosts: a region on each, and TCP between them.
pub fn two_regions(
    place: &Place,
    ranks: usize,
    levels: &str,
    parted_by: &[&str],
    logs: &Path,
) -> Result<Count> {
    let (bench, other) = (Bench::new(place)?, Region::create(&place.stage, REGION, 2, true)?);
    let script = format!(
        "export OMPI_MCA_btl=vmshm,tcp,self OMPI_MCA_btl_tcp_if_include=lo; \
         if [ \"$OMPI_COMM_WORLD_RANK\" -ge {} ]; then export OMPI_MCA_btl_vmshm_device={}; fi; exec \"$0\" \"$@\"",
        ranks / 2,
        other.file().display()
    );
    let mut command = bench.mpi.mpirun(ranks, Layer::Vmshm);
    command.args(VERBOSE).args(["--mca", "coll_vmshm_levels", levels, "sh", "-c", &script]);
    command.arg(place.program("vmshm-mpi-check")).args(COLLECTIVES);
    let done = bench.mpi.run(command, "vmshm-mpi-check", &logs.join("check.log"), LIMIT)?;
    in_two_levels(done, parted_by)
}

/// Collective operations as in two virtual machines. There are some that the levels leave to the whole group.
pub fn two_sections(place: &Place, logs: &Path) -> Result<Count> {
    let bench = Bench::new(place)?;
    let mut command = bench.mpi.mpirun(5, Layer::Vmshm);
    command.args(VERBOSE).args(["--mca", "coll_vmshm_levels", "2"]);
    command.arg(place.program("vmshm-mpi-check")).args(COLLECTIVES);
    let done = bench.mpi.run(command, "vmshm-mpi-check", &logs.join("check.log"), LIMIT)?;
    in_two_levels(done, &["section"])
}

/// The heap by itself, and messages from it.
pub fn heap(place: &Place, layer: Layer, logs: &Path) -> Result<Count> {
    let bench = Bench::with_heap(place)?;
    let mut command = bench.mpi.mpirun(2, layer);
    command.arg(place.program("vmshm-heap-check"));
    let done = bench.mpi.run(command, "vmshm-heap-check", &logs.join("heap.log"), LIMIT)?;
    let text = &done.expect_success("vmshm-heap-check")?.text;
    // Once on this host, by whichever process is the first.
    for told in ["were not copied for the child", "made by clone"] {
        if text.matches(told).count() != 1 {
            bail!("{told:?} was to be told once:\n{}", last_lines(text, 10));
        }
    }
    let mut command = bench.mpi.mpirun(2, layer);
    if place.other.is_some() {
        // 5.0.7's osc/rdma fails at MPI_BOR of 64 bit numbers, over sm too.
        command.args(["--mca", "osc", "vmshm"]);
    }
    command.arg(place.program("vmshm-mpi-check")).arg("--quick");
    checked(bench.mpi.run(command, "vmshm-mpi-check", &logs.join("check.log"), LIMIT)?)
}

/// A job that starts another one.
pub fn spawn(place: &Place, logs: &Path) -> Result<Count> {
    let bench = Bench::new(place)?;
    let mut command = bench.mpi.mpirun(1, Layer::Vmshm);
    command.arg(place.program("vmshm-mpi-spawn")).args(["--children", "2", "--rounds", "2"]);
    let done = bench.mpi.run(command, "vmshm-mpi-spawn", &logs.join("spawn.log"), LIMIT)?;
    done.expect_success("vmshm-mpi-spawn")?;
    Ok(Count::one())
}

/// mpi4py's suite: each rank must say over ours what it says over Open MPI's own shared memory.
pub fn as_native(place: &Place, kit: &Kit, ranks: usize, measure: bool, logs: &Path) -> Result<Count> {
    let bench = Bench::new(place)?;
    let wanted = mpi4py::baseline(kit, &bench.mpi, ranks, measure, logs, LIMIT)?;
    let got = mpi4py::run(kit, &bench.mpi, ranks, Layer::Vmshm, logs, LIMIT)?;
    if got != wanted {
        bail!("over Open MPI's own shared memory the ranks said {wanted:?}, over vmshm {got:?}");
    }
    let tests = got.iter().map(|report| report.0).min().unwrap_or(0);
    let note = format!("each rank: {}, the same as over Open MPI's own shared memory", got[0].1);
    Ok(Count { passed: tests, note, ..Count::default() })
}

/// The raw benchmark pins two threads to two cores.
fn run_if_two_cores(mut command: std::process::Command, arguments: &[&str], log: &Path) -> Result<Count> {
    if std::thread::available_parallelism().map_or(1, usize::from) < 2 {
        return Ok(Count::skip("vmshm_raw needs two cores"));
    }
    command.args(arguments);
    process::run(command, "vmshm_raw", log, LIMIT)?;
    Ok(Count::one())
}

/// As [`checked`]; members parted by each of these must have taken two levels.
fn in_two_levels(done: Finished, parted_by: &[&str]) -> Result<Count> {
    for by in parted_by {
        if !done.text.contains(&format!("has two levels for collective operations, parted by {by}")) {
            bail!("no collective operation took two levels by {by}:\n{}", last_lines(&done.text, 10));
        }
    }
    checked(done)
}

/// The same random operations by our component and by coll/basic: what each rank expects must hold for both.
fn beside_basic(stage: &Path, logs: &Path) -> Result<Count> {
    let bench = Bench::new(&Place::own(stage))?;
    let seed = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs().to_string();
    let check = |name: &str, settings: &[&str], only: &str| {
        let mut command = bench.mpi.mpirun(3, Layer::Vmshm);
        command.args(settings).arg(stage.join("bin/vmshm-mpi-check"));
        command.args(["--seed", &seed, "--only", only]);
        bench.mpi.run(command, "vmshm-mpi-check", &logs.join(format!("{name}.log")), LIMIT)
    };
    let mut count = Count { note: format!("seed {seed}"), ..Count::default() };
    let mut amounts = Vec::new();
    for (component, settings) in [("vmshm", &[][..]), ("basic", &BASIC[..])] {
        let verbose = [settings, &["--mca", "coll_base_verbose", "10"]].concat();
        let chosen = check(&format!("{component}-chosen"), &verbose, "any-collective/short-lived")?;
        must_be_chosen(component, &chosen.text)?;
        let done = check(component, settings, "any-collective")?;
        amounts.push(compared(&done.text));
        count.add(&checked(done)?);
    }
    if count.failed == 0 && (amounts[0].is_empty() || amounts[0] != amounts[1]) {
        bail!("not the same was compared: over vmshm {:?}, over basic {:?}", amounts[0], amounts[1]);
    }
    Ok(count)
}

/// Fails unless Open MPI, which was told to talk, took a component for collective operations; in place of ours coll/basic must
/// have had all of them.
fn must_be_chosen(component: &str, text: &str) -> Result<()> {
    let taken: BTreeSet<&str> = text
        .lines()
        .filter_map(|line| line.split("comm_select: selecting").nth(1)?.split(',').next())
        .map(str::trim)
        .collect();
    let others = ["vmshm", "tuned"];
    if !taken.contains(component) || component == "basic" && others.iter().any(|name| taken.contains(name)) {
        bail!("collective operations were to be {component}'s, but Open MPI took {taken:?}");
    }
    Ok(())
}

/// How much the checker compared in each case that passed.
fn compared(text: &str) -> Vec<String> {
    let passed = text.lines().filter_map(|line| line.strip_prefix("ok "));
    let amount = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        Some(format!("{} {} MiB", words.first()?, words.get(3)?))
    };
    passed.filter_map(amount).collect()
}

/// Counts what the checker reported, which must agree with how it ended.
pub fn checked(done: Finished) -> Result<Count> {
    match Count::of_checker(&done.text) {
        Some(count) if done.status.success() || count.failed > 0 => Ok(count),
        _ => {
            done.expect_success("vmshm-mpi-check")?;
            bail!("vmshm-mpi-check printed no closing line");
        }
    }
}

/// Counts NetPIPE's integrity checks.
pub fn netpipe(text: &str) -> Result<Count> {
    if let Some(line) = text.lines().find(|line| line.to_lowercase().contains("integrity check failed")) {
        bail!("NetPIPE: {}", line.trim());
    }
    Ok(Count { passed: text.matches("Integrity check passed").count(), ..Count::default() })
}
