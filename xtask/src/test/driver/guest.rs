//! Scripts and checkers in guests, and what their kernels say meanwhile.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Result, bail};

use crate::base::process::last_lines;
use crate::lab::{Lab, PAYLOAD};
use crate::test::tally::Count;

pub const LIMIT: Duration = Duration::from_secs(60);

pub const SHORT: Duration = Duration::from_secs(15);

/// Runs a script that must succeed; returns what it printed.
pub fn must(lab: &mut Lab, guest: usize, script: &str, limit: Duration) -> Result<String> {
    let answer = lab.run(guest, script, limit)?;
    if answer.code != 0 {
        bail!(
            "in guest {guest} this ended with exit code {}: {}\n{}",
            answer.code,
            script.trim(),
            last_lines(&answer.text, 15)
        );
    }
    Ok(answer.text)
}

/// Runs the checker in some guests at once, its arguments depending on the guest, and adds up what it counts.
pub fn check_in(
    lab: &mut Lab,
    guests: &[usize],
    arguments: impl Fn(usize) -> String,
    logs: &Path,
    limit: Duration,
) -> Result<(Count, String)> {
    fs::create_dir_all(logs)?;
    for &guest in guests {
        lab.send(guest, &format!("{PAYLOAD}/bin/vmshm-driver-check {}", arguments(guest)))?;
    }
    let mut sum = Count::default();
    let mut texts = String::new();
    let mut trouble = None;
    for &guest in guests {
        let arguments = arguments(guest);
        // All are waited for, so that the guests obey afterwards.
        match lab.receive(guest, limit) {
            Err(error) => trouble = trouble.or(Some(error)),
            Ok(answer) => {
                texts += &format!("guest {guest}: vmshm-driver-check {arguments}\n{}\n", answer.text);
                match Count::of_checker(&answer.text) {
                    Some(count) => sum.add(&count),
                    None => {
                        let text = last_lines(&answer.text, 15);
                        let error = anyhow::anyhow!("{arguments} in guest {guest} did not close:\n{text}");
                        trouble = trouble.or(Some(error));
                    }
                }
            }
        }
    }
    let name = arguments(guests[0]).split_whitespace().next().unwrap_or("check").to_owned();
    fs::write(logs.join(format!("{name}.log")), &texts)?;
    if let Some(error) = trouble {
        return Err(error);
    }
    for line in texts.lines().filter(|line| line.starts_with("FAILED")) {
        println!("{line}");
    }
    Ok((sum, texts))
}

/// Words by which a kernel says that something is wrong with it.
pub const COMPLAINTS: &[&str] = &[
    "Oops",
    "WARNING:",
    "BUG:",
    "Call Trace",
    "unable to handle",
    "refcount_t",
    "general protection",
    "Kernel panic",
    "possible recursive locking",
    "circular locking",
    "inconsistent lock state",
    "held lock",
    "blocked for more than",
    "soft lockup",
    "x86/PAT: vmshm",
    "rust_kernel: panicked",
    "nobody cared",
];

/// Does something in the guests, then looks for complaints of their kernels, which make it a failure.
pub fn checked(lab: &mut Lab, logs: &Path, work: impl FnOnce(&mut Lab) -> Result<Count>) -> Result<Count> {
    let result = work(lab);
    let mut complaints = String::new();
    for guest in 0..lab.size() {
        complaints += &complaints_of(lab, guest, logs)?;
    }
    match (result, complaints.is_empty()) {
        (Ok(mut count), true) => {
            count.passed += 1;
            Ok(count)
        }
        (Ok(_), false) => bail!("the kernel complains:\n{complaints}"),
        (Err(error), true) => Err(error),
        (Err(error), false) => Err(error.context(format!("the kernel complains:\n{complaints}"))),
    }
}

/// The lines in which a guest's kernel complains, since the last time. Everything that it says goes to the logs.
pub fn complaints_of(lab: &mut Lab, guest: usize, logs: &Path) -> Result<String> {
    let text = must(lab, guest, "dmesg --read-clear", SHORT)?;
    fs::create_dir_all(logs)?;
    fs::write(logs.join(format!("vm{guest}-dmesg.log")), &text)?;
    let bad = |line: &&str| COMPLAINTS.iter().any(|complaint| line.contains(complaint));
    let lines: Vec<&str> = text.lines().filter(bad).take(5).collect();
    Ok(lines.iter().map(|line| format!("vm{guest}: {line}\n")).collect())
}

/// Counts checks that are made here.
pub fn check(count: &mut Count, holds: bool, what: impl FnOnce() -> String) {
    if holds {
        count.passed += 1;
    } else {
        count.failed += 1;
        println!("FAILED  {}", what());
    }
}

/// An attribute of a device.
pub fn attribute(lab: &mut Lab, guest: usize, device: &str, name: &str) -> Result<String> {
    Ok(must(lab, guest, &format!("cat /sys/class/misc/{device}/{name}"), SHORT)?.trim().to_owned())
}

pub fn seed() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(1, |time| time.as_secs())
}
