//! Instructions that a message takes, by the library that executes them, as callgrind counts them.
//!
//! `message_steps` asks for a message only when it is there, so that none is spent on waiting. Two runs of different length
//! are subtracted, which takes away what an MPI job does besides. The counts are the same on every processor, as far as a
//! library chooses no other code for it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::way::{self, Way};
use crate::base::process::last_lines;
use crate::base::progress;
use crate::debian::packages;
use crate::figures::table::Table;
use crate::lab::region::Region;
use crate::mpi::host_mpi::HostMpi;

const LIMIT: Duration = Duration::from_secs(120);
const WAYS: [Way; 3] = [way::VMSHM, way::TWO_COPIES, way::UCX];
/// Repetitions of the two runs.
const FEW: u64 = 50;
const MANY: u64 = 250;
/// Processes, each of which does the same.
const PROCESSES: u64 = 2;

/// A function whose instructions are counted, and what calls it.
#[derive(Debug, Clone, Copy)]
struct Case {
    name: &'static str,
    function: &'static str,
    /// Bytes of a message; none for a look when there is no message.
    size: Option<u32>,
    /// Calls of the function in each repetition.
    burst: u64,
}

const fn send(name: &'static str, size: u32, burst: u64) -> Case {
    Case { name, function: "PMPI_Send", size: Some(size), burst }
}

const fn receive(name: &'static str, size: u32, burst: u64) -> Case {
    Case { name, function: "PMPI_Recv", size: Some(size), burst }
}

/// Longest message that is counted over peers, bytes: beyond it a send over vader waits for its receiver, which asks for
/// nothing before the send has ended.
const PEERS_MOST: u32 = 8;

/// Up to what goes as one message over ours.
const CASES: [Case; 9] = [
    send("8 B: send", 8, 1),
    receive("8 B: receive", 8, 1),
    send("8 B: send, each of 16", 8, 16),
    receive("8 B: receive, each of 16", 8, 16),
    send("1 KiB: send", 1024, 1),
    receive("1 KiB: receive", 1024, 1),
    send("4000 B: send", 4000, 1),
    receive("4000 B: receive", 4000, 1),
    Case { name: "nothing there: probe", function: "PMPI_Iprobe", size: None, burst: 1 },
];

/// Instructions of a call.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Count {
    all: f64,
    /// Those of the layer itself, without Open MPI's libraries above it and the C library.
    layer: f64,
}

/// Counts and prints.
pub fn run(stage: &Path, out: &Path) -> Result<bool> {
    packages::ensure(&[packages::COUNT], out)?;
    let region = Region::create(stage, "64M", 2, false)?;
    let mpi = HostMpi::new(region.environment()?)?;
    let mut table = Table::default();
    let heads = WAYS.iter().flat_map(|way| [way.name.to_owned(), format!("{}: its own", way.name)]);
    table.row(["a call of".to_owned()].into_iter().chain(heads));
    let program = stage.join("bin/message_steps");
    progress::during("instructions of a message", |bar| {
        for case in CASES {
            let mut row = vec![case.name.to_owned()];
            for way in WAYS {
                if case.size > Some(PEERS_MOST) && !way.is_ours() {
                    row.extend(["-", "-"].map(str::to_owned));
                    continue;
                }
                bar.set_message(format!("{} over {}", case.name, way.name));
                match count(&mpi, way, case, &program, out) {
                    Ok(Count { all, layer }) => row.extend([all, layer].map(|count| format!("{count:.0}"))),
                    Err(error) if way.is_ours() => return Err(error),
                    Err(error) => {
                        println!("{} over {} is left out: {error:#}", case.name, way.name);
                        row.extend(["-", "-"].map(str::to_owned));
                    }
                }
            }
            table.row(row);
        }
        Ok(())
    })?;
    println!(
        "Instructions of a call. \"Its own\" are those of the BTL, or of UCX's libraries; all besides are Open MPI's and the C \
         library's.\n\n{}",
        table.render()
    );
    fs::write(out.join("count.md"), table.render_markdown())?;
    println!("The same in Markdown: {}", out.join("count.md").display());
    Ok(true)
}

fn count(mpi: &HostMpi, way: Way, case: Case, program: &Path, out: &Path) -> Result<Count> {
    let run = |repetitions| instructions(mpi, way, case, program, out, repetitions);
    let (few, many) = (run(FEW)?, run(MANY)?);
    let calls = ((MANY - FEW) * PROCESSES * case.burst) as f64;
    let each = |of: &dyn Fn(&str) -> bool| -> f64 {
        let sum = |counts: &BTreeMap<String, u64>| -> i64 {
            counts.iter().filter(|(object, _)| of(object)).map(|(_, count)| *count as i64).sum()
        };
        (sum(&many) - sum(&few)) as f64 / calls
    };
    Ok(Count { all: each(&|_| true), layer: each(&is_layer) })
}

fn is_layer(object: &str) -> bool {
    let name = object.rsplit('/').next().unwrap_or(object);
    ["mca_btl_", "libucp", "libuct", "libucs"].iter().any(|beginning| name.starts_with(beginning))
}

/// Instructions inside the function by the library that they lie in, of both processes.
fn instructions(
    mpi: &HostMpi,
    way: Way,
    case: Case,
    program: &Path,
    out: &Path,
    repetitions: u64,
) -> Result<BTreeMap<String, u64>> {
    let dir = tempfile::tempdir()?;
    let mut command = mpi.mpirun(2, way.layer);
    command.args(way.args).arg("valgrind").arg("--tool=callgrind");
    command.arg(format!("--callgrind-out-file={}/%p", dir.path().display()));
    command.arg(format!("--toggle-collect={}", case.function)).arg(program);
    let repetitions = repetitions.to_string();
    match case.size {
        Some(size) => {
            command.args(["--size", &size.to_string(), "--burst", &case.burst.to_string()]);
            command.args(["--messages", &repetitions]);
        }
        None => {
            command.args(["--messages", "1", "--polls", &repetitions]);
        }
    }
    let log = out.join("count.log");
    let done = mpi.run(command, "message_steps under callgrind", &log, LIMIT)?;
    if !done.status.success() {
        bail!("message_steps failed:\n{}", last_lines(&done.text, 5));
    }
    let mut sum = BTreeMap::new();
    let mut files = 0;
    for entry in fs::read_dir(dir.path())? {
        for (object, count) in by_object(&fs::read_to_string(entry?.path())?)? {
            *sum.entry(object).or_default() += count;
        }
        files += 1;
    }
    if files != PROCESSES {
        bail!("callgrind left {files} files instead of {PROCESSES}");
    }
    Ok(sum)
}

/// Reads what callgrind wrote: instructions by object, those of a function's callees not counted twice.
fn by_object(text: &str) -> Result<BTreeMap<String, u64>> {
    let mut names: BTreeMap<&str, &str> = BTreeMap::new();
    let mut counts = BTreeMap::new();
    let mut object = "";
    let mut is_call = false;
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("ob=").or_else(|| line.strip_prefix("cob=")) {
            // "(7) /usr/lib/libmpi.so" the first time, "(7)" later.
            let (key, name) = name.split_once(' ').unwrap_or((name, ""));
            if !name.is_empty() {
                names.insert(key, name);
            }
            if line.starts_with("ob=") {
                object = names.get(key).copied().unwrap_or(key);
            }
        } else if line.starts_with("calls=") {
            // The next line holds what the callee took in all.
            is_call = true;
        } else if line.starts_with(|c: char| c.is_ascii_digit() || "+-*".contains(c)) {
            let count = line.split_whitespace().nth(1);
            if !std::mem::take(&mut is_call)
                && let Some(count) = count
            {
                let count: u64 =
                    count.parse().with_context(|| format!("callgrind wrote the line {line:?}"))?;
                *counts.entry(object.to_owned()).or_default() += count;
            }
        }
    }
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callees_count_for_their_own_object() -> Result<()> {
        let text = "events: Ir\nob=(1) /usr/lib/libmpi.so.40\nfn=(1) MPI_Send\n16 70\n+3 3\ncob=(2) /x/mca_btl_vmshm.so\ncfn=(2) \
                    send\ncalls=1 50\n* 500\n\nob=(2)\nfn=(2)\n50 480\n* 20\n\nob=(1)\nfn=(3) other\n9 1\ntotals: 574\n";
        let counts = by_object(text)?;
        assert_eq!(counts.values().sum::<u64>(), 574);
        assert_eq!(counts["/x/mca_btl_vmshm.so"], 500);
        assert!(is_layer("/x/mca_btl_vmshm.so") && is_layer("/usr/lib/libuct.so.0"));
        assert!(!is_layer("/usr/lib/libmpi.so.40") && !is_layer("/x/mca_pml_ob1.so"));
        assert!(by_object("ob=(1) a\nfn=(1) b\n1 x\n").is_err());
        Ok(())
    }
}
