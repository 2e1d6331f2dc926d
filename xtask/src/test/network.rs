//! A step with a network beside vmshm: two guests share a region, a third does not, as if it were on another host.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::guests::{Prepared, Shared};
use super::tally::{Count, Tally};
use crate::base::process::last_lines;
use crate::lab::{Lab, PAYLOAD, Plan, Sharing};
use crate::mpi::guest_mpi::{self, Job};
use crate::mpi::host_mpi::Layer;

const GUESTS: usize = 3;
const LIMIT: Duration = Duration::from_secs(150);
/// Messages, each answered by one, of the job that shows which way they take.
const MESSAGES: u64 = 8;
/// Bytes of each.
const MESSAGE: u64 = 1 << 20;

/// Runs it, in a lab of its own. Returns how many boots were repeated.
pub fn steps(prepared: &Prepared, tally: &mut Tally) -> Result<usize> {
    let mut guests = Shared::new(prepared, start);
    tally.step("guests-tcp-check-3", |logs| {
        let lab = guests.lab(logs)?;
        let ways = ways(lab, logs)?;
        let checked = check(lab, logs)?;
        Ok(Count { passed: ways.passed + checked.passed, note: ways.note, ..checked })
    })?;
    Ok(guests.repeated_boots())
}

fn start(prepared: &Prepared, logs: &Path) -> Result<Lab> {
    let (stage, image, accel) = prepared.as_ref().map_err(|why| anyhow::anyhow!("{why}"))?;
    let plan = Plan { image, payload: stage, accel: *accel, guests: GUESTS, log_dir: logs };
    Lab::sharing(&plan, &Sharing { outsiders: 1, ..Sharing::default() })
}

/// The checker, with collective operations of each region first.
fn check(lab: &mut Lab, logs: &Path) -> Result<Count> {
    let program = format!("{PAYLOAD}/bin/vmshm-mpi-check --quick");
    let job = Job {
        layer: Layer::VmshmAndTcp,
        arguments: "--mca coll_vmshm_levels 1",
        ..Job::new(GUESTS, &program)
    };
    let text = guest_mpi::run_job(lab, &job, &logs.join("check.log"), LIMIT)?;
    Count::of_checker(&text)
        .with_context(|| format!("vmshm-mpi-check printed no closing line:\n{}", last_lines(&text, 10)))
}

/// Which way messages between guest 0 and each other take: bytes that the other's network devices counted meanwhile, mpirun's
/// own among them.
fn ways(lab: &mut Lab, logs: &Path) -> Result<Count> {
    let program = format!("{PAYLOAD}/bin/osu_latency -m {MESSAGE}:{MESSAGE} -i {MESSAGES} -x 0");
    let sent = MESSAGES * MESSAGE;
    let mut told = Vec::new();
    for (other, shares) in [(1, true), (2, false)] {
        let guests = [0, other];
        let job = Job { layer: Layer::VmshmAndTcp, guests: &guests, ..Job::new(2, &program) };
        let before = received(lab, other)?;
        guest_mpi::run_job(lab, &job, &logs.join(format!("guest-{other}.log")), LIMIT)?;
        let carried = received(lab, other)? - before;
        ensure!(
            if shares { carried < MESSAGE } else { carried >= sent },
            "the network brought {carried} bytes to guest {other}, which does {}share guest 0's region, while {sent} bytes \
             of messages were sent to it",
            if shares { "" } else { "not " }
        );
        told.push(format!("{carried} to guest {other}"));
    }
    let note = format!("bytes by network for {sent} of messages: {}", told.join(", "));
    Ok(Count { passed: told.len(), note, ..Count::default() })
}

/// Bytes that a guest's network devices have received.
fn received(lab: &mut Lab, guest: usize) -> Result<u64> {
    let answer = lab.run(guest, "cat /sys/class/net/*/statistics/rx_bytes", LIMIT)?;
    let counts: Result<Vec<u64>, _> = answer.text.split_whitespace().map(str::parse).collect();
    Ok(counts.with_context(|| format!("guest {guest} counts no bytes: {}", answer.text.trim()))?.iter().sum())
}
