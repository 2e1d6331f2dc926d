//! Steps with a network beside vmshm: two guests share a region, a third does not, as if it were on another host. The network is
//! the guests' virtual one, by TCP or by SoftRoCE in the place of InfiniBand.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::guests::{Prepared, Shared};
use super::tally::{Count, Tally};
use crate::base::cleanup;
use crate::base::process::last_lines;
use crate::base::workspace::Workspace;
use crate::lab::{Lab, PAYLOAD, Plan, Sharing};
use crate::mpi::guest_mpi::{self, Job};
use crate::mpi::host_mpi::Layer;
use crate::mpi::mpi4py::{self, Report, Suite};
use crate::mpi::traffic::Traffic;

/// The step that runs parts of mpi4py's tests.
pub const SUITE: &str = "guests-tcp-mpi4py-6";
/// The same over UCX.
pub const UCX_SUITE: &str = "guests-ucx-tcp-mpi4py-6";

const GUESTS: usize = 3;
/// Two ranks in each guest.
const SIX: usize = 2 * GUESTS;
const LIMIT: Duration = Duration::from_secs(150);
/// Until the job that shows the ways has sent all.
const SENDING: Duration = Duration::from_secs(90);
/// Messages from guest 0 to each other one, each answered by one, of the job that shows which way they take.
const MESSAGES: u64 = 4;
/// Bytes of each: all of them are much more than mpirun sends over the network meanwhile, and the network is slow.
const MESSAGE: u64 = 256 << 10;
/// Bytes of all of them, one way.
const SENT: u64 = MESSAGES * MESSAGE;
/// Parts of the message checker for UCX, which polls TCP and SoftRoCE without rest: on an emulated processor all take minutes.
const SOME: &[&str] = &["sizes/expected", "sizes/unexpected", "order", "collectives/b", "collectives/all"];
/// Of them, those for two ranks in each guest, which share its processor.
const UCX_TWO_EACH: &[&str] = &["order", "collectives/b", "collectives/all"];
/// Parts for two ranks in each guest without UCX: what six may do and three may not.
const TWO_EACH: &[&str] = &[
    "communicators",
    "patterns/neighbours",
    "patterns/all-to-all",
    "patterns/one-to-all",
    "patterns/random-graph",
    "collectives/b",
    "collectives/all",
    "collectives/reduce-scatter",
    "collectives/scan",
    "one-sided/fence",
    "any-change/together",
];
/// Parts of mpi4py's tests, by the names of their files: others take minutes there, a single one.
const SUITE_PARTS: &[&str] = &["p2p_obj", "cco_obj.py", "win"];
/// The same for UCX.
const UCX_SUITE_PARTS: &[&str] = &["p2p_obj.py", "cco_obj.py"];
/// The guest that shares guest 0's region, and the one that does not.
const INSIDER: usize = 1;
const OUTSIDER: usize = 2;

/// A network, and how a guest counts what it carries.
#[derive(Debug)]
struct Network {
    /// Ours within the region, this network beyond.
    layer: Layer,
    /// Prints two numbers: what the guest has received, and what it has sent.
    count: &'static str,
    /// Bytes of which a number tells.
    unit: u64,
}

const ETHERNET: &str = "cat /sys/class/net/eth0/statistics/rx_bytes /sys/class/net/eth0/statistics/tx_bytes";
const BTL_TCP: Network = Network { layer: Layer::VmshmAndTcp, count: ETHERNET, unit: 1 };
const UCX_TCP: Network = Network { layer: Layer::UcxVmshmAndTcp, count: ETHERNET, unit: 1 };
const UCX_RDMA: Network = Network {
    layer: Layer::UcxVmshmAndRdma,
    count: "rdma statistic show link rxe0/1 | grep -oE '(rcvd|sent)_pkts [0-9]+' | sort | cut -d ' ' -f 2",
    // A packet's, as Ethernet has frames of 1500.
    unit: 1024,
};

/// The device appears only here: beside an adapter UCX chooses another way.
const LOAD_SOFT_ROCE: &str =
    "modprobe -a crc32_generic rdma_rxe && rdma link add rxe0 type rxe netdev eth0 && rdma link show rxe0/1";

/// Runs all of them, in one lab. Returns how many boots were repeated.
pub fn steps(prepared: &Prepared, tally: &mut Tally) -> Result<usize> {
    let mut guests = Shared::new(prepared, start);
    tally.step("guests-tcp-check-3", |logs| {
        let lab = guests.lab(logs)?;
        let (text, note) = ways(lab, &BTL_TCP, logs)?;
        ensure_counted(&Traffic::parse(&text), GUESTS)?;
        Ok(Count { note, ..check(lab, &BTL_TCP, GUESTS, &[], logs)? })
    })?;
    tally.step("guests-tcp-check-6", |logs| {
        let lab = guests.lab(logs)?;
        let program = traffic();
        let job = Job { layer: BTL_TCP.layer, ..Job::new(SIX, &program) };
        let text = guest_mpi::run_job(lab, &job, &logs.join("ways.log"), LIMIT)?;
        ensure_counted(&Traffic::parse(&text), SIX)?;
        check(lab, &BTL_TCP, SIX, TWO_EACH, logs)
    })?;
    tally.step(SUITE, |logs| suite(guests.lab(logs)?, &BTL_TCP, SIX, SUITE_PARTS, logs))?;
    tally.step("guests-ucx-tcp-check-3", |logs| {
        let lab = guests.lab(logs)?;
        let (_, note) = ways(lab, &UCX_TCP, logs)?;
        Ok(Count { note, ..check(lab, &UCX_TCP, GUESTS, SOME, logs)? })
    })?;
    tally
        .step("guests-ucx-tcp-check-6", |logs| check(guests.lab(logs)?, &UCX_TCP, SIX, UCX_TWO_EACH, logs))?;
    tally.step(UCX_SUITE, |logs| suite(guests.lab(logs)?, &UCX_TCP, SIX, UCX_SUITE_PARTS, logs))?;
    tally.step("guests-ucx-rdma-check-3", |logs| {
        let lab = guests.lab(logs)?;
        for guest in 0..GUESTS {
            let answer = lab.run(guest, LOAD_SOFT_ROCE, LIMIT)?;
            ensure!(answer.code == 0, "no SoftRoCE in guest {guest}: {}", answer.text.trim());
        }
        let (_, note) = ways(lab, &UCX_RDMA, logs)?;
        Ok(Count { note, ..check(lab, &UCX_RDMA, GUESTS, SOME, logs)? })
    })?;
    Ok(guests.repeated_boots())
}

/// The program that shows the ways: rank 0 and each other one send each other [`SENT`] bytes.
fn traffic() -> String {
    format!("{PAYLOAD}/bin/vmshm-mpi-traffic --messages {MESSAGES} --bytes {MESSAGE}")
}

/// Lays mpi4py's tests beside everything else, if they can be had.
pub fn prepare(workspace: &Workspace, stage: &Path, logs: &Path) -> Result<()> {
    match mpi4py::prepare(workspace, logs)? {
        Suite::Ready(kit) => mpi4py::place(&kit, stage),
        Suite::Unavailable(why) => {
            eprintln!("{SUITE}: {why}");
            Ok(())
        }
    }
}

fn start(prepared: &Prepared, logs: &Path) -> Result<Lab> {
    let (stage, image, accel) = prepared.as_ref().map_err(|why| anyhow::anyhow!("{why}"))?;
    let plan = Plan { image, payload: stage, accel: *accel, guests: GUESTS, log_dir: logs };
    Lab::sharing(&plan, &Sharing { outsiders: 1, ..Sharing::default() })
}

/// The message checker, all of it or some parts; where Open MPI uses ours for collective operations, with those of each region first.
fn check(lab: &mut Lab, network: &Network, ranks: usize, parts: &[&str], logs: &Path) -> Result<Count> {
    let parts: String = parts.iter().map(|part| format!(" --only {part}")).collect();
    let program = format!("{PAYLOAD}/bin/vmshm-mpi-check --quick{parts}");
    let job =
        Job { layer: network.layer, arguments: "--mca coll_vmshm_levels 1", ..Job::new(ranks, &program) };
    let text = guest_mpi::run_job(lab, &job, &logs.join("check.log"), LIMIT)?;
    Count::of_checker(&text)
        .with_context(|| format!("vmshm-mpi-check printed no closing line:\n{}", last_lines(&text, 10)))
}

/// Parts of mpi4py's tests: each rank must pass all.
fn suite(lab: &mut Lab, network: &Network, ranks: usize, parts: &[&str], logs: &Path) -> Result<Count> {
    let folder = format!("{PAYLOAD}/{}", mpi4py::FOLDER);
    if lab.run(0, &format!("test -d {folder}"), LIMIT)?.code != 0 {
        return Ok(Count::skip("mpi4py could not be downloaded"));
    }
    let parts: String = parts.iter().map(|part| format!(" -i {part}")).collect();
    // Without threads: with them, no window of Open MPI's goes between hosts.
    let tests = format!("python3 {folder}/test/main.py --no-builddir --path {folder} --no-threads{parts}");
    // A file for each rank: their lines would mix otherwise.
    let program = format!("sh -c 'exec {tests} 2> /tmp/mpi4py-$OMPI_COMM_WORLD_RANK'");
    let arguments = "--mca coll_vmshm_levels 1 --mca osc vmshm,pt2pt -x UCX_LOG_LEVEL=info";
    let job = Job { layer: network.layer, arguments, ..Job::new(ranks, &program) };
    let done = guest_mpi::run_job(lab, &job, &logs.join("mpi4py.log"), LIMIT);
    let mut reports = Vec::new();
    for rank in 0..ranks {
        let text = lab.run(rank % GUESTS, &format!("cat /tmp/mpi4py-{rank}"), LIMIT)?.text;
        fs::write(logs.join(format!("rank-{rank}.log")), &text)?;
        reports.extend(mpi4py::report(&text));
    }
    let text = done?;
    if network.layer.ucx_setting().is_some() {
        ensure_endpoints(&text)?;
    }
    let is_right = |report: &Report| report.verdict.starts_with("OK") && *report == reports[0];
    ensure!(reports.len() == ranks && reports.iter().all(is_right), "the ranks said {reports:?}");
    let note = format!("each rank: {}", reports[0].verdict);
    Ok(Count { passed: reports[0].tests, note, ..Count::default() })
}

/// Which way messages between guest 0 and each other take: what the host sees in the region, and what the guests' network counts
/// meanwhile, mpirun's own words among it. Returns what the job has printed, and a note.
fn ways(lab: &mut Lab, network: &Network, logs: &Path) -> Result<(String, String)> {
    let before = counts(lab, network)?;
    let program = traffic() + " --linger 4";
    let job = Job { layer: network.layer, ..Job::new(GUESTS, &program) };
    lab.send(0, &job.script(GUESTS))?;
    let seen = seen_by_host(lab);
    let answer = lab.receive(0, LIMIT)?;
    fs::create_dir_all(logs)?;
    fs::write(logs.join("ways.log"), &answer.text)?;
    ensure!(answer.code == 0, "vmshm-mpi-traffic: {}", last_lines(&answer.text, 15));
    let seen = seen?;
    let now = counts(lab, network)?;
    let carried = |guest: usize| [0, 1].map(|way| (now[guest][way] - before[guest][way]) * network.unit);
    let note = format!(
        "of {SENT} bytes each way, vmshm brought {seen:?} to guests 0 and {INSIDER}; the network {:?} to and from guest \
         {INSIDER}, {:?} to and from guest {OUTSIDER}",
        carried(INSIDER),
        carried(OUTSIDER)
    );
    let is_right = seen.iter().all(|bytes| *bytes >= SENT)
        && carried(INSIDER).iter().all(|bytes| *bytes < MESSAGE)
        && carried(OUTSIDER).iter().all(|bytes| *bytes >= SENT);
    ensure!(is_right, "{note}");
    Ok((answer.text, note))
}

/// Watches the region while messages go between the two guests. Returns their bytes, by section, when all are there, or after
/// some time.
fn seen_by_host(lab: &Lab) -> Result<[u64; 2]> {
    let end = Instant::now() + SENDING;
    let mut most = [0; 2];
    while Instant::now() < end && most.iter().any(|bytes| *bytes < SENT) {
        cleanup::check()?;
        let seen = lab.region().inspect()?;
        for (section, most) in most.iter_mut().enumerate() {
            let endpoints = seen["sections"][section]["endpoints"].as_array();
            let traffic =
                endpoints.into_iter().flatten().filter_map(|endpoint| endpoint["traffic"].as_array());
            let ways = ["inline_bytes", "fragment_bytes", "get_bytes"];
            let bytes = |traffic: &serde_json::Value| {
                ways.iter().filter_map(|way| traffic[way].as_u64()).sum::<u64>()
            };
            *most = traffic.flatten().map(bytes).sum::<u64>().max(*most);
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(most)
}

/// Whether the plugin's own counters of so many ranks, at each end, say that rank 0 and those in the two guests talk by vmshm, and
/// others not.
fn ensure_counted(traffic: &Traffic, ranks: usize) -> Result<()> {
    for other in 1..ranks {
        let bytes = [traffic.received(other, 0), traffic.received(0, other)];
        let is_right = match other % GUESTS {
            OUTSIDER => bytes == [0; 2],
            _ => bytes.iter().all(|bytes| *bytes >= SENT),
        };
        ensure!(is_right, "the ends count {bytes:?} bytes by vmshm between ranks 0 and {other}");
    }
    Ok(())
}

/// Whether UCX has said that processes of the two guests have endpoints over vmshm, and the other guest's none.
fn ensure_endpoints(text: &str) -> Result<()> {
    for guest in 0..GUESTS {
        let of_guest = format!("[vm{guest}:");
        let is_ours = |line: &str| line.contains(&of_guest) && line.contains("tag(vmshm/");
        ensure!(
            text.lines().any(is_ours) == (guest != OUTSIDER),
            "guest {guest}'s endpoints over vmshm:\n{}",
            last_lines(text, 15)
        );
    }
    Ok(())
}

/// Two numbers of each guest: what its network has received, and what it has sent.
fn counts(lab: &mut Lab, network: &Network) -> Result<Vec<[u64; 2]>> {
    let count = |guest| {
        let answer = lab.run(guest, network.count, LIMIT)?;
        let counts: Result<Vec<u64>, _> = answer.text.split_whitespace().map(str::parse).collect();
        let counts = counts.ok().and_then(|counts| counts.try_into().ok());
        counts.with_context(|| format!("guest {guest} counts nothing: {}", answer.text.trim()))
    };
    (0..GUESTS).map(count).collect()
}
