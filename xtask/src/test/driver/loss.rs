//! Processes, devices and guests that end while others go on.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::access::exchange;
use super::guest::{LIMIT, SHORT, check, check_in, complaints_of, must, seed};
use super::jobs::{background_end, doorbell, in_background, wait_for};
use crate::base::process::last_lines;
use crate::lab::{Lab, PAYLOAD};
use crate::mpi::guest_mpi::{self, Job};
use crate::test::tally::Count;

/// Processes that are killed.
pub const DEATHS: u32 = 100;

/// Endpoints that the region still holds, as the host sees them.
pub fn endpoints(lab: &Lab) -> Result<Vec<String>> {
    let seen = lab.region().inspect()?;
    let sections = seen["sections"].as_array().context("no sections")?;
    let endpoints = sections.iter().filter_map(|section| section["endpoints"].as_array()).flatten();
    Ok(endpoints.filter(|endpoint| endpoint["state"] != "gone").map(Value::to_string).collect())
}

pub fn no_endpoints(lab: &Lab, count: &mut Count) -> Result<()> {
    let left = endpoints(lab)?;
    check(count, left.is_empty(), || format!("endpoints that nobody has are left: {}", left.join(", ")));
    Ok(())
}

pub fn death(lab: &mut Lab, logs: &Path) -> Result<Count> {
    let arguments = |guest| match guest {
        0 => format!("death connect --rounds {DEATHS}"),
        _ => "death serve".to_owned(),
    };
    let (mut count, text) = check_in(lab, &[0, 1], arguments, logs, LIMIT * 2)?;
    let reports: Vec<&str> =
        text.lines().filter_map(|line| line.split("the slowest report took ").nth(1)).collect();
    count.note = format!("{DEATHS} killed, slowest reports {}", reports.join(" and "));
    no_endpoints(lab, &mut count)?;

    // A rank of a running job, and the next job.
    let program = format!("{PAYLOAD}/bin/vmshm-mpi-wait --seconds 0 --rounds 1000000 --pause 0");
    in_background(lab, "killed", &Job::new(4, &program))?;
    wait_for(lab, 0, "grep -q waited /tmp/killed.log", LIMIT, "the job did not begin")?;
    must(lab, 1, "kill -9 $(pgrep -n -x vmshm-mpi-wait)", SHORT)?;
    let (code, text) = background_end(lab, "killed", logs)?;
    check(&mut count, code != 0, || format!("a job with a killed rank ended with exit code {code}: {text}"));
    for guest in 0..2 {
        wait_for(lab, guest, "! pgrep -x vmshm-mpi-wait > /dev/null", LIMIT, "a rank was left")?;
    }
    no_endpoints(lab, &mut count)?;
    next_job(lab, &mut count, logs)?;
    Ok(count)
}

/// A job that must find everything clean.
pub fn next_job(lab: &mut Lab, count: &mut Count, logs: &Path) -> Result<()> {
    let program = format!("{PAYLOAD}/bin/vmshm-mpi-wait --seconds 0 --rounds 50");
    let job = Job { as_user: true, ..Job::new(2, &program) };
    let text = guest_mpi::run_job(lab, &job, &logs.join("next-job.log"), LIMIT).context("the next job")?;
    check(count, text.contains("exchanged 50 messages"), || text);
    Ok(())
}

pub fn suspend(lab: &mut Lab, logs: &Path) -> Result<Count> {
    let seed = seed();
    let mut count = exchange(lab, true, seed, logs)?;
    must(
        lab,
        0,
        "cd /sys/power\n\
         echo devices > pm_test || exit 1\n\
         for state in $(cat state); do [ $state = disk ] || echo $state > state || exit 1; done\n\
         echo none > pm_test\n",
        LIMIT,
    )?;
    count.add(&exchange(lab, false, seed, logs)?);
    count.add(&doorbell(lab, 200, logs)?);
    // To memory in earnest: the machine is off, all but its memory, until somebody wakes it.
    lab.send(0, "cd /sys/power && echo deep > mem_sleep && echo mem > state")?;
    let monitor = lab.monitor(0)?;
    monitor.wait_event("SUSPEND", None, LIMIT)?;
    monitor.execute("system_wakeup", json!({}))?;
    let answer = lab.receive(0, LIMIT)?;
    ensure!(answer.code == 0, "suspend to memory: exit code {}, {}", answer.code, answer.text);
    count.add(&exchange(lab, false, seed, logs)?);
    count.add(&doorbell(lab, 200, logs)?);
    Ok(count)
}

pub fn unplug(lab: &mut Lab, logs: &Path) -> Result<Count> {
    let mut count = Count::default();
    let program = format!("{PAYLOAD}/bin/vmshm-mpi-wait --seconds 0 --rounds 100000000 --pause 0");
    in_background(lab, "unplugged", &Job::new(2, &program))?;
    wait_for(lab, 0, "grep -q waited /tmp/unplugged.log", LIMIT, "the job did not begin")?;
    lab.unplug(1)?;
    let (code, text) = background_end(lab, "unplugged", logs)?;
    check(&mut count, code != 0, || "a job whose device was unplugged ended as if nothing was".into());
    check(&mut count, text.contains("The device /dev/vmshm0 is gone."), || {
        format!("the job does not say what happened:\n{}", last_lines(&text, 20))
    });
    let gone = lab.run(1, "[ ! -e /dev/vmshm0 ]", SHORT)?;
    check(&mut count, gone.code == 0, || "/dev/vmshm0 is still there".into());
    for guest in 0..2 {
        wait_for(lab, guest, "! pgrep -x vmshm-mpi-wait > /dev/null", LIMIT, "a rank was left")?;
    }
    lab.plug(1)?;
    wait_for(lab, 1, "[ -c /dev/vmshm0 ]", LIMIT, "/dev/vmshm0 did not come back")?;
    must(lab, 1, "udevadm settle --timeout=30", LIMIT)?;
    next_job(lab, &mut count, logs)?;
    Ok(count)
}

/// A guest ends; the processes of the other are told.
pub fn vm_end(lab: &mut Lab, logs: &Path) -> Result<Count> {
    let check = format!("{PAYLOAD}/bin/vmshm-driver-check");
    must(lab, 1, &format!("(setsid {check} death serve > /tmp/serve.log 2>&1 &) < /dev/null"), SHORT)?;
    wait_for(lab, 1, "grep -q serving /tmp/serve.log", LIMIT, "it did not begin")?;
    must(
        lab,
        0,
        &format!("(setsid {check} death connect --until-gone > /tmp/connect.log 2>&1 &) < /dev/null"),
        SHORT,
    )?;
    wait_for(lab, 0, "grep -q talking /tmp/connect.log", LIMIT, "they did not talk")?;
    lab.kill(1);
    let waited = wait_for(lab, 0, "grep -q ^checks /tmp/connect.log", LIMIT, "nothing was reported");
    let text = must(lab, 0, "cat /tmp/connect.log", SHORT)?;
    fs::create_dir_all(logs)?;
    fs::write(logs.join("vm-end.log"), &text)?;
    let waited = waited.with_context(|| last_lines(&text, 10))?;
    let mut count = Count::of_checker(&text).with_context(|| last_lines(&text, 10))?;
    let complaints = complaints_of(lab, 0, logs)?;
    ensure!(complaints.is_empty(), "the kernel complains:\n{complaints}");
    count.note = format!("reported {:.1} s after the other guest was killed", waited.as_secs_f64());
    Ok(count)
}
