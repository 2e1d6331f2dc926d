//! `cargo xtask vmm-lab` and `lab`: our VMM under stock kernels, on the KVM of an emulated host with two NUMA nodes.
//!
//! The host is booted once and runs the parts one after another; see [`part`]. No time that it shows means anything.

mod machine;
mod part;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use crate::base::cleanup;
use crate::base::process::{self, Running, last_lines};
use crate::base::workspace::Workspace;
use machine::Machine;
use part::{PARTS, Part};

/// For a boot with all parts.
const LIMIT: Duration = Duration::from_secs(1200);

/// Findings of a run.
#[derive(Debug, Default)]
pub struct Seen {
    /// How many checks there are.
    pub wanted: usize,
    /// Those of them that are missing, with the reason.
    pub missing: Vec<String>,
    /// Parts that failed once, and were run once more.
    pub repeated: Vec<&'static str>,
}

/// The names of all parts.
pub fn names() -> Vec<&'static str> {
    PARTS.iter().map(|part| part.name).collect()
}

/// Runs these parts, all where none is named. Parts that fail run once more, since the emulated machine fails now and then.
pub fn run(workspace: &Workspace, names: &[String], logs: &Path) -> Result<Seen> {
    let is_chosen = |part: &&Part| names.is_empty() || names.iter().any(|name| name == part.name);
    let mut todo: Vec<&Part> = PARTS.iter().filter(is_chosen).collect();
    let machine = Machine::prepare(workspace, todo.iter().any(|part| part.mpi), logs)?;
    let mut seen = Seen { wanted: todo.iter().map(|part| part.wanted.len()).sum(), ..Seen::default() };
    for attempt in 1..=2 {
        let names: Vec<_> = todo.iter().map(|part| part.name).collect();
        let log = logs.join(format!("console-{attempt}.log"));
        let mut command = machine.command(&format!("lab.parts={}", names.join(",")));
        command.args(["-serial", "stdio"]);
        let text = match Running::start(command, "the emulated host", &log)?.wait(LIMIT) {
            Ok(finished) => finished.text,
            Err(error) if attempt == 2 => return Err(error),
            // Its words until then count.
            Err(_) => String::from_utf8_lossy(&fs::read(&log)?).into_owned(),
        };
        cleanup::check()?;
        todo.retain(|part| !part.missing(&text).is_empty());
        seen.missing = todo.iter().flat_map(|part| part.missing(&text)).collect();
        if seen.missing.is_empty() {
            break;
        }
        if attempt == 1 {
            println!(
                "The emulated host failed in these, which run once more:\n  {}",
                seen.missing.join("\n  ")
            );
            seen.repeated = todo.iter().map(|part| part.name).collect();
        } else {
            println!("{}\nconsole: {}", last_lines(&text, 10), log.display());
        }
    }
    Ok(seen)
}

/// Boots the host with everything on it, and leaves it to a person.
pub fn shell(workspace: &Workspace) -> Result<bool> {
    let logs = workspace.target.join("vmm-lab");
    let machine = Machine::prepare(workspace, true, &logs)?;
    println!("An emulated host with two NUMA nodes boots; Ctrl-A X ends it at once, `exit` in order.");
    let size = process::capture(Command::new("stty").args(["-F", "/dev/tty", "size"]));
    let mut words = "lab.shell".to_owned();
    if let Some((rows, columns)) = size.as_deref().unwrap_or_default().trim().split_once(' ') {
        words += &format!(" lab.size={rows}x{columns}");
    }
    // The kernel gives its first program what it does not know itself.
    if let Ok(term) = std::env::var("TERM") {
        words += &format!(" TERM={term}");
    }
    let mut command = machine.command(&words);
    command.args(["-serial", "mon:stdio"]);
    Ok(command.status()?.success())
}
