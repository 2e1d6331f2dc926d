//! Nothing that xtask starts outlives it: signals end the run in order, and what is left is killed.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Sweeps away every process below this one when it is dropped.
#[derive(Debug)]
pub struct Guard(());

/// Starts to listen for SIGINT, SIGTERM and SIGHUP, and adopts processes whose own parent dies.
pub fn install() -> Result<Guard> {
    // An mpirun that is killed leaves its ranks behind; as their new parent we can still find them.
    nix::sys::prctl::set_child_subreaper(true).context("cannot become the reaper of orphans")?;
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("cannot listen for signals")?;
    thread::spawn(move || {
        for _ in signals.forever() {
            // Only a flag: the main thread sees it within one poll and unwinds through its guards.
            INTERRUPTED.store(true, Ordering::SeqCst);
        }
    });
    Ok(Guard(()))
}

/// Whether a signal asked this run to end.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}

/// Fails once a signal has asked this run to end.
pub fn check() -> Result<()> {
    if interrupted() {
        bail!("interrupted; what was started is being stopped");
    }
    Ok(())
}

/// All processes below `root`, children before grandchildren.
pub fn descendants(root: Pid) -> Vec<Pid> {
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|s| s.parse().ok()) else {
            continue;
        };
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else {
            continue;
        };
        // The command in parentheses may hold anything, so count from the last parenthesis.
        let parent = stat
            .rsplit_once(')')
            .and_then(|(_, rest)| rest.split_whitespace().nth(1))
            .and_then(|s| s.parse().ok());
        if let Some(parent) = parent {
            parents.push((Pid::from_raw(pid), Pid::from_raw(parent)));
        }
    }
    let mut found = vec![root];
    let mut next = 0;
    while next < found.len() {
        let parent = found[next];
        found.extend(parents.iter().filter(|p| p.1 == parent).map(|p| p.0));
        next += 1;
    }
    found.remove(0);
    found
}

impl Drop for Guard {
    fn drop(&mut self) {
        let own = Pid::this();
        for (signal, rounds) in [(Signal::SIGTERM, 20), (Signal::SIGKILL, 100)] {
            for pid in descendants(own) {
                let _ = kill(pid, signal);
            }
            for _ in 0..rounds {
                while waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)).is_ok_and(|s| s.pid().is_some()) {}
                if descendants(own).is_empty() {
                    return;
                }
                thread::sleep(Duration::from_millis(50));
            }
        }
    }
}
