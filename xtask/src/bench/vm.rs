//! The transport between two VMs under our VMM, and under QEMU, beside two processes: what the benchmark `vm` of `vmshm-vmm`
//! prints.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::machine::{self, Machine};
use super::report::Report;
use crate::base::process::{self, last_lines};
use crate::base::progress;
use crate::base::workspace::{Workspace, cargo};
use crate::debian::packages;
use crate::figures::plot::{self, Panel, Series};
use crate::figures::statistics::{Spread, spread};
use crate::figures::table::{self, Table};

/// Fewer rounds say too little.
const LEAST_ROUNDS: u16 = 7;
const QUICK_TURNS: u32 = 2000;
/// The bare line's median may be so many times as long at one time of a round as at another. Beyond that somebody has moved
/// the CPUs away from each other or together, and the round is dropped, whichever way that has hurt.
const JUMP: f64 = 1.25;
/// Ways as the benchmark calls them and as they are shown; the first is what the others are compared with.
const WAYS: [(&str, &str); 3] = [("process", "processes"), ("vm", "VMs"), ("qemu", "QEMU's VMs")];

/// Figures of a round by way and name.
type Round = BTreeMap<String, f64>;

/// Measures and prints; fails where the benchmark does, not where it can't be measured here.
pub fn run(workspace: &Workspace, rounds: u16, quick: bool) -> Result<bool> {
    let rounds = rounds.max(LEAST_ROUNDS);
    packages::ensure(&[packages::GUESTS], &workspace.target.join("bench"))?;
    let out = workspace.target.join("bench");
    let mut command = cargo();
    command.args(["bench", "-p", "vmshm-vmm", "--bench", "vm", "--", "--rounds"]).arg(rounds.to_string());
    if quick {
        command.arg("--turns").arg(QUICK_TURNS.to_string());
    }
    command.current_dir(&workspace.root);
    let log = out.join("vm.log");
    let heading = format!("Two VMs beside two processes, {rounds} rounds");
    let limit = Duration::from_secs(300 + 30 * u64::from(rounds));
    let done = progress::during(&heading, |_| process::run(command, &heading, &log, limit))?;
    let text = done.expect_success("the benchmark of VMs")?.text;
    if let Some(why) = text.lines().find_map(|line| line.strip_prefix("skipped: ")) {
        println!("skipped: {why}");
        return Ok(true);
    }
    let all = parse(&text)?;
    let count = all.len();
    let kept: Vec<Round> =
        all.into_iter().filter(|round| jump(round).is_some_and(|jump| jump <= JUMP)).collect();
    let mut report = Report::default();
    report.say(&format!(
        "Two VMs under our VMM and two under QEMU (microvm, ivshmem-plain) beside two processes of this host: the same image on \
         the same two CPUs, in turns. {} of {count} rounds count; in the other {} the bare line's median differed by more than \
         {JUMP} times within the round.",
        kept.len(),
        count - kept.len(),
    ));
    if let Some(why) = text.lines().find_map(|line| line.strip_prefix("without QEMU: ")) {
        report.say(&format!("QEMU's VMs are not measured: {why}"));
    }
    if kept.is_empty() {
        report.say("No figure is shown: the CPUs never stayed where they were for a whole round.");
    } else {
        let (latency, stream) = tables(&kept);
        report.table(
            "One way, ns, and ratios to the processes: medians of the rounds (smallest..largest)",
            &latency,
            Table::render,
        );
        report.table(
            "In streams, the median one of each round, and ratios to the processes: medians of the rounds (smallest..largest)",
            &stream,
            Table::render,
        );
    }
    let pages = text.lines().find_map(|line| line.strip_prefix("pages ")).unwrap_or("unknown");
    report.say(&format!(
        "Measured on {}, {}; the region on pages of {pages}, load {} at the end.",
        Machine::here().describe(),
        kvm(Path::new("/sys/module"), &fs::read_to_string("/proc/cpuinfo").unwrap_or_default()),
        machine::load(),
    ));
    print!("{}", report.text);
    fs::write(out.join("vm.md"), &report.markdown)?;
    if !kept.is_empty() {
        packages::ensure(&[packages::PLOT], &out)?;
        println!("Plot: {}", draw(&kept, &out)?.display());
    }
    println!("All rounds: {}", log.display());
    Ok(true)
}

fn parse(text: &str) -> Result<Vec<Round>> {
    let mut rounds: BTreeMap<u32, Round> = BTreeMap::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let ["round", number, way, name, figure] = words[..] {
            let round = rounds.entry(number.parse().context("a round's number")?).or_default();
            round.insert(format!("{way} {name}"), figure.parse().context("a figure")?);
        }
    }
    if rounds.is_empty() {
        bail!("the benchmark of VMs printed no round:\n{}", last_lines(text, 10));
    }
    Ok(rounds.into_values().collect())
}

/// How many times as long the bare line's median was as at another time of the round.
fn jump(round: &Round) -> Option<f64> {
    let at = |way, name| round.get(&format!("{way} {name}-p50")).copied();
    let there = ways(std::slice::from_ref(round));
    let lines = there.iter().flat_map(|(way, _)| [at(way, "line"), at(way, "line-after")]);
    let spread = spread(&lines.collect::<Option<Vec<_>>>()?)?;
    Some(spread.max / spread.min)
}

fn median(rounds: &[Round], way: &str, name: &str) -> Option<f64> {
    let key = format!("{way} {name}");
    Some(spread(&rounds.iter().filter_map(|round| round.get(&key).copied()).collect::<Vec<_>>())?.median)
}

/// The ways that were measured.
fn ways(rounds: &[Round]) -> Vec<(&'static str, &'static str)> {
    let names = rounds.first().into_iter().flat_map(Round::keys);
    let names: Vec<_> = names.filter_map(|name| name.split(' ').next()).collect();
    WAYS.into_iter().filter(|(way, _)| names.contains(way)).collect()
}

/// A way by the processes, round by round.
fn ratio(rounds: &[Round], way: &str, name: &str) -> String {
    let [way, process] = [way, WAYS[0].0].map(|way| format!("{way} {name}"));
    let ratios = rounds.iter().filter_map(|round| Some(round.get(&way)? / round.get(&process)?));
    match spread(&ratios.collect::<Vec<_>>()) {
        Some(Spread { min, median, max }) => format!("{median:.2} ({min:.2}..{max:.2})"),
        None => "-".into(),
    }
}

fn sizes(rounds: &[Round]) -> Vec<u64> {
    let names = rounds.first().into_iter().flat_map(Round::keys);
    let mut sizes: Vec<u64> =
        names.filter_map(|name| name.strip_prefix("vm stream-")?.parse().ok()).collect();
    sizes.sort_unstable();
    sizes
}

/// Times of messages alone, and of streams.
fn tables(rounds: &[Round]) -> (Table, Table) {
    let (mut latency, mut stream) = (Table::default(), Table::default());
    let ways = ways(rounds);
    let others: Vec<_> = ways.iter().filter(|way| **way != WAYS[0]).collect();
    let first = |unit: &str| {
        let heads = ways.iter().map(|(_, shown)| format!("{shown}, {unit}"));
        [vec!["size".to_owned()], heads.collect()].concat()
    };
    let ratios = others.iter().flat_map(|(_, shown)| ["p50", "p90", "p99"].map(|p| format!("{shown}: {p}")));
    latency.row(first("p50").into_iter().chain(ratios));
    let rest = others.iter().map(|(_, shown)| format!("{shown}: ratio"));
    stream.row(first("MB/s").into_iter().chain(["VMs, messages/s".into()]).chain(rest));
    let lines = [("bare line", "line"), ("bare line, after all", "line-after")];
    let lines = lines.map(|(label, name)| (label.to_owned(), name.to_owned()));
    for (label, name) in
        lines.into_iter().chain(sizes(rounds).into_iter().map(|size| (table::size(size), size.to_string())))
    {
        let p50 = format!("{name}-p50");
        let mut cells = vec![label];
        cells.extend(ways.iter().map(|(way, _)| table::figure(median(rounds, way, &p50))));
        for (way, _) in &others {
            cells.extend([50, 90, 99].map(|percent| ratio(rounds, way, &format!("{name}-p{percent}"))));
        }
        latency.row(cells);
    }
    for size in sizes(rounds) {
        let name = format!("stream-{size}");
        let rate = |way| median(rounds, way, &name);
        let bandwidth = |way| Some(rate(way)? * size as f64 / 1e6);
        let mut cells = vec![table::size(size)];
        cells.extend(ways.iter().map(|(way, _)| table::figure(bandwidth(way))));
        cells.push(table::figure(rate("vm")));
        cells.extend(others.iter().map(|(way, _)| ratio(rounds, way, &name)));
        stream.row(cells);
    }
    (latency, stream)
}

fn draw(rounds: &[Round], out: &Path) -> Result<std::path::PathBuf> {
    let series = |figure: &dyn Fn(&str, u64) -> Option<f64>| -> Vec<Series> {
        let one = |(way, name): (&str, &str)| {
            let points = sizes(rounds).into_iter().filter_map(|size| Some((size, figure(way, size)?)));
            Series { name: name.to_owned(), emulated: false, points: points.collect() }
        };
        ways(rounds).into_iter().map(one).collect()
    };
    let latency = series(&|way, size| Some(median(rounds, way, &format!("{size}-p50"))? / 1e3));
    let stream =
        series(&|way, size| Some(median(rounds, way, &format!("stream-{size}"))? * size as f64 / 1e6));
    let panels = [
        Panel { title: "Latency, p50", unit: "µs one way", series: &latency },
        Panel { title: "Bandwidth", unit: "MB/s", series: &stream },
    ];
    let [svg, _] =
        plot::draw(&out.join("vm"), "The transport between two VMs and between two processes", &panels)?;
    Ok(svg)
}

/// This host's KVM, as its modules and its processor tell.
fn kvm(modules: &Path, cpuinfo: &str) -> String {
    let names = fs::read_dir(modules).into_iter().flatten().flatten();
    let mut names: Vec<_> = names.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.retain(|name| name.starts_with("kvm_"));
    names.sort();
    let flags = cpuinfo.lines().find_map(|line| line.strip_prefix("flags")).unwrap_or_default();
    let has = |flag| flags.split_whitespace().any(|word| word == flag);
    let name = if names.is_empty() { "KVM built into the kernel".to_owned() } else { names.join(" and ") };
    match (has("vmx") || has("svm"), has("hypervisor")) {
        (false, _) => format!("{name}, a KVM in software (the processor shows neither VMX nor SVM)"),
        (true, true) => format!("{name}, in a virtual machine itself"),
        (true, false) => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(round: u32, way: &str, lines: [f64; 2], p50: f64, stream: f64) -> String {
        let [before, after] = lines;
        format!(
            "round {round} {way} line-p50 {before}\nround {round} {way} line-after-p50 {after}\n\
             round {round} {way} 8-p50 {p50}\nround {round} {way} stream-8 {stream}\n"
        )
    }

    #[test]
    fn ratios_are_of_one_round_and_jumps_are_seen() -> Result<()> {
        let all = [
            text(1, "vm", [60.0, 61.0], 100.0, 1e6),
            text(1, "process", [60.0, 66.0], 80.0, 2e6),
            text(2, "vm", [60.0, 441.0], 100.0, 1e6),
            text(2, "process", [60.0, 60.0], 100.0, 1e6),
        ];
        let rounds = parse(&all.concat())?;
        assert!(jump(&rounds[0]).context("lines")? < JUMP && jump(&rounds[1]).context("lines")? > JUMP);
        assert_eq!(ratio(&rounds[..1], "vm", "8-p50"), "1.25 (1.25..1.25)");
        assert_eq!(ratio(&rounds, "vm", "stream-8"), "0.75 (0.50..1.00)");
        assert_eq!(sizes(&rounds), [8]);
        assert!(parse("nothing").is_err());
        Ok(())
    }

    #[test]
    fn a_kvm_in_software_is_called_that() -> Result<()> {
        let dir = tempfile::tempdir()?;
        for name in ["kvm", "kvm_pvm", "ext4"] {
            fs::create_dir(dir.path().join(name))?;
        }
        let soft = kvm(dir.path(), "flags\t\t: fpu hypervisor\n");
        assert!(soft.starts_with("kvm_pvm, a KVM in software"), "{soft}");
        assert_eq!(kvm(dir.path(), "flags\t\t: fpu svm\n"), "kvm_pvm");
        Ok(())
    }
}
