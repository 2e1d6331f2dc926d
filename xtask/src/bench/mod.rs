//! `cargo xtask bench`: vmshm side by side with Open MPI's own layers and UCX, as processes on this host.
//!
//! The layers take turns within each round, so that what else the machine does meets them all alike.

mod case;
mod count;
mod machine;
mod measured;
mod other_mpi;
mod perftest;
mod raw;
mod report;
mod target;
pub mod vm;
mod way;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::{Deserialize, Serialize};

use crate::base::process::last_lines;
use crate::base::progress;
use crate::base::workspace::Workspace;
use crate::debian::packages;
use crate::figures::plot::{self, Panel, Series};
use crate::figures::table::{self, Table};
use crate::install::stage;
use crate::install::ucx::Ucx;
use crate::lab::region::Region;
use crate::mpi::host_mpi::HostMpi;
use crate::mpi::osu::{self, Points};
use crate::mpi::two_hosts;
use case::{Case, EACH, PERFTEST, Part};
use machine::Machine;
use measured::Measured;
use raw::Raw;
use report::{Report, describe};
use way::{OSC_OURS, Way};

const REGION: &str = "1G";
const LIMIT: Duration = Duration::from_secs(300);
const RAW: &str = "vmshm_raw";

const PROGRAMS: &[&str] = &[
    "osu_latency",
    "osu_bw",
    "osu_mbw_mr",
    "osu_barrier",
    "osu_bcast",
    "osu_reduce",
    "osu_allreduce",
    "osu_allgather",
    "osu_put_latency",
    "osu_get_latency",
    "osu_acc_latency",
    RAW,
    "osu_bibw",
    "osu_multi_lat",
    "osu_gather",
    "osu_scatter",
    "osu_alltoall",
    "osu_gatherv",
    "osu_scatterv",
    "osu_alltoallv",
    PERFTEST,
];

/// Choice of measurements.
#[derive(Debug, Args)]
pub struct Options {
    /// How often each layer is measured [default: 7, or 3 with --quick]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: Option<u16>,
    /// Only this program, as osu_latency; may be given several times. Without it: all that have a target
    #[arg(long = "program", value_name = "NAME", value_parser = clap::builder::PossibleValuesParser::new(PROGRAMS))]
    programs: Vec<String>,
    /// Largest message, bytes
    #[arg(long, default_value_t = 1 << 22, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1..=1 << 30))]
    max_size: u64,
    /// Few rounds and a quarter of the iterations: to see that all works, not for figures to show
    #[arg(long)]
    quick: bool,
    /// The transport between two VMs under our VMM beside two processes, and nothing else; at least 7 rounds
    #[arg(long, conflicts_with_all = ["programs", "keep", "max_size"])]
    vm: bool,
    /// The instructions of a message, beside vader and UCX, and nothing else: they are the same on a busy machine
    #[arg(long, conflicts_with_all = ["programs", "keep", "max_size", "vm", "rounds", "quick"])]
    count: bool,
    /// The transport for UCX beside UCX's own, by UCX's benchmark and by programs over pml/ucx, and nothing else
    #[arg(long, conflicts_with_all = ["vm", "count"])]
    ucx: bool,
    /// Beside the shared memory and the collective components of this series of Open MPI, as another Debian has it, and nothing else
    #[arg(long, value_name = "SERIES", conflicts_with_all = ["vm", "count", "ucx"])]
    mpi: Option<other_mpi::Series>,
    /// Keep the tables in docs/measured, in the file of this kind of processor
    #[arg(long, conflicts_with_all = ["vm", "count", "quick"])]
    record: bool,
    /// Take what this run does not measure from the last run's results, so that all can be measured in pieces
    #[arg(long)]
    keep: bool,
}

impl Options {
    fn rounds(&self) -> u16 {
        self.rounds.unwrap_or(if self.quick { 3 } else { 7 })
    }

    /// The option by which this is not the bench of this machine's Open MPI, as a word and as the beginning of names of files.
    fn kind(&self) -> (String, String) {
        match (self.mpi, self.ucx) {
            (Some(series), _) => (format!(" --mpi {}", series.name()), format!("openmpi-{}-", series.name())),
            (None, true) => (" --ucx".into(), "ucx-".into()),
            (None, false) => (String::new(), String::new()),
        }
    }

    fn wants(&self, program: &str) -> bool {
        match self.programs.is_empty() {
            true => !case::is_extra(program),
            false => self.programs.iter().any(|wanted| wanted == program),
        }
    }
}

/// Content of `bench.json`.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Results {
    cases: Vec<Measured>,
    raw: Option<Raw>,
}

/// Where jobs run.
struct Setup<'a> {
    closed: HostMpi,
    open: HostMpi,
    /// Without vmshm: a peer is what is there then.
    without: HostMpi,
    /// Environment by which UCX's own programs find ours.
    ucx: Vec<String>,
    programs: PathBuf,
    /// The program that times a bare cache line.
    raw: PathBuf,
    out: &'a Path,
    cores: usize,
    _regions: [Region; 2],
}

/// Measures, prints tables and writes plots.
pub fn run(workspace: &Workspace, options: &Options) -> Result<bool> {
    if options.vm {
        return vm::run(workspace, options.rounds(), options.quick);
    }
    let (option, kind) = options.kind();
    let out = workspace.target.join(format!("bench-{kind}").trim_end_matches('-'));
    let others = if options.mpi.is_some() { packages::OTHER_MPI } else { &[] };
    let programs = if options.ucx { packages::UCX } else { &[] };
    packages::ensure(&[packages::BUILD, packages::RUN, packages::PLOT, others, programs], &out)?;
    let stage = stage::prepare(workspace, &out)?;
    if options.count {
        return count::run(&stage, &out);
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if cores < 2 {
        bail!("this machine has one core; a comparison needs two, one for each process");
    }
    let regions = [Region::create(&stage, REGION, 2, false)?, Region::create_open(&stage, REGION, 2)?];
    let ucx = regions[0].environment_with(&["--ucx", &Ucx::found()?.series])?;
    let other = options.mpi.map(|series| series.prepare(workspace, &stage, &out)).transpose()?;
    let release = other.as_ref().map(|other| ["--mpi", &other.release]);
    let place = |region: Option<&Region>| {
        let release = release.as_ref().map_or(&[][..], |release| release);
        let settings = region.map(|region| region.environment_with(release)).transpose()?;
        let mpi = HostMpi::new(settings.unwrap_or_default())?;
        Ok::<_, anyhow::Error>(match &other {
            Some(other) => mpi.inside(other.inside.clone()),
            None => mpi,
        })
    };
    let setup = Setup {
        closed: place(Some(&regions[0]))?,
        open: place(Some(&regions[1]))?,
        without: place(None)?,
        ucx: ucx.iter().map(|(name, value)| format!("{name}={value}")).collect(),
        programs: other.as_ref().map_or_else(|| stage.join("bin"), |other| other.programs.clone()),
        raw: stage.join("bin").join(RAW),
        out: &out,
        cores,
        _regions: regions,
    };
    let file = out.join("bench.json");
    let mut results = if options.keep { read(&file)? } else { Results::default() };
    let osc = if !option.is_empty() {
        None
    } else if options.programs.is_empty() || case::ONE_SIDED_PROGRAMS.iter().any(|p| options.wants(p)) {
        Some(setup.choose_osc()?)
    } else {
        None
    };
    let mut missing: Vec<(Way, String)> = Vec::new();
    let mut failed = Vec::new();
    let cases = match options.mpi {
        Some(series) => series.cases(),
        None if options.ucx => case::under_ucx(),
        None => case::all(osc),
    };
    for mut case in cases {
        if !options.wants(case.program) {
            continue;
        }
        if !case.ours.is_empty() && std::env::var_os("OSU_DIR").is_some() {
            println!("{} is not measured: only vmshm's own programs know these options", case.name);
            continue;
        }
        if case.between_hosts && !nix::unistd::getuid().is_root() {
            println!("{} is not measured: only root can give processes another host's name", case.name);
            continue;
        }
        setup.drop_missing(&mut case, &mut missing)?;
        let mut measured = setup.measure(&case, options, &mut failed)?;
        if measured.is_noisy() && !options.quick {
            println!(
                "{} is measured once more, since a bare cache line varied by more than a fifth",
                case.name
            );
            measured = measured.quieter(setup.measure(&case, options, &mut failed)?);
        }
        results.cases.retain(|earlier| earlier.case != measured.case);
        results.cases.push(measured);
        // After each, so that an interrupted run has not been for nothing.
        fs::write(&file, serde_json::to_string_pretty(&results)?)?;
    }
    if options.wants(RAW) && option.is_empty() {
        results.raw = Some(Raw::measure(&setup.raw, options.rounds(), &out)?);
        fs::write(&file, serde_json::to_string_pretty(&results)?)?;
    }
    let mut report = Report::default();
    for measured in &results.cases {
        let (heading, table) = describe(measured);
        report.table(&heading, &table, Table::render);
    }
    if let Some(raw) = &results.raw {
        let (heading, table, once) = raw.report();
        report.table(&heading, &table, Table::render);
        report.say(&once);
        if let Some((heading, table)) = raw.copies(&results.cases) {
            report.table(&heading, &table, Table::render);
        }
    }
    if let Some(table) = target::summary(&results.cases, results.raw.as_ref()) {
        report.table(target::HEADING, &table, Table::render_left);
    }
    if options.mpi.is_some() {
        report.table(other_mpi::HEADING, &other_mpi::summary(&results.cases), Table::render_left);
    }
    report.say(&target::one_sided(&results.cases).unwrap_or_default());
    for (way, why) in &missing {
        report.say(&format!("{} does not run here:\n{why}", way.name));
    }
    for (what, why) in &failed {
        report.say(&format!("{what} fails:\n{why}"));
    }
    let machine = Machine::here();
    let with = other.as_ref().map_or(String::new(), |other| format!(" with Open MPI {}", other.release));
    report.say(&format!(
        "Measured{with} on {}, {cores} cores, load {} at the end.",
        machine.describe(),
        machine::load(),
    ));
    print!("{}", report.text);
    fs::write(out.join("bench.txt"), &report.text)?;
    fs::write(out.join("bench.md"), &report.markdown)?;
    if options.record {
        let path = workspace.root.join("docs/measured").join(kind + &machine.file());
        fs::write(&path, format!("{}{}", heading(workspace, &option, &machine)?, report.markdown))?;
        println!("Kept in {}", path.display());
    }
    for path in draw(&results.cases, &out)? {
        println!("Plot: {}", path.display());
    }
    println!("The same tables in Markdown: {}", out.join("bench.md").display());
    println!("All rounds: {}", file.display());
    Ok(true)
}

/// The beginning of a file with the tables of a kind of machine.
fn heading(workspace: &Workspace, option: &str, machine: &Machine) -> Result<String> {
    let mut git = std::process::Command::new("git");
    git.args(["describe", "--always", "--dirty"]).current_dir(&workspace.root);
    let commit = git.output().context("cannot start git")?.stdout;
    Ok(format!(
        "# Measured on {}\n\nWhat `cargo xtask bench{option}` printed at commit {}: processes on one host. Look at the spread: what \
         else the machine did shows in it.\n",
        machine.describe(),
        String::from_utf8_lossy(&commit).trim(),
    ))
}

fn read(file: &Path) -> Result<Results> {
    let text = fs::read_to_string(file).with_context(|| {
        format!("--keep needs an earlier run's results, and cannot read {}", file.display())
    })?;
    serde_json::from_str(&text).with_context(|| {
        format!("{} is not of this version of the command: run it without --keep", file.display())
    })
}

impl Setup<'_> {
    /// Runs a program once over a way; what it printed, or the end of that if it failed.
    fn try_job(&self, case: &Case, way: Way, arguments: &[String]) -> Result<Result<String, String>> {
        let what = format!("{} over {}", case.name, way.name);
        let path = osu::find(case.program, &self.programs)?;
        let mpi = match (way.is_ours(), case.is_open) {
            (false, _) => &self.without,
            (true, true) => &self.open,
            (true, false) => &self.closed,
        };
        let mut command = mpi.mpirun(case.ranks(self.cores), way.layer);
        if case.between_hosts {
            command.args(two_hosts::mpirun_args(EACH, self.out)?);
        }
        command.args(way.args).arg(&path).args(arguments).args(case.ours);
        let log = format!("{}-{}.log", case.name, way.name).replace([' ', '/', '(', ')'], "-");
        let done = mpi.run(command, &what, &self.out.join(log), LIMIT)?;
        Ok(if done.status.success() { Ok(done.text) } else { Err(last_lines(&done.text, 12)) })
    }

    /// Which component Open MPI has for windows of processes that are not on one host, over ours.
    fn choose_osc(&self) -> Result<Way> {
        let mut why = String::new();
        for way in OSC_OURS {
            let case = probe("osu_put_latency", way);
            match self.try_job(&case, way, &short(case.program))? {
                Ok(_) => return Ok(way),
                Err(text) => why = text,
            }
        }
        bail!("one-sided operations run over vmshm with none of osc/vmshm, osc/rdma and osc/pt2pt:\n{why}")
    }

    /// Takes ways out of a case that do not run on this machine. Ours must.
    fn drop_missing(&self, case: &mut Case, missing: &mut Vec<(Way, String)>) -> Result<()> {
        for way in case.ways.clone() {
            if case.program == PERFTEST || way.is_ours() || missing.iter().any(|(known, _)| *known == way) {
                continue;
            }
            let probed = Case { between_hosts: case.between_hosts, ..probe(case.program, way) };
            if let Err(why) = self.try_job(&probed, way, &short(case.program))? {
                println!("{} does not run {} here; it is left out", way.name, case.program);
                missing.push((way, why));
            }
        }
        case.ways.retain(|way| !missing.iter().any(|(known, _)| known == way));
        Ok(())
    }

    fn perftest(&self, case: &Case, way: Way, options: &Options) -> Result<Points> {
        let parts = case.parts.iter().map(|part| (part, iterations(part, way, options)));
        let sizes = parts.flat_map(|(part, iterations)| {
            let sizes = std::iter::successors(Some(part.least), |size| Some(size * 2));
            let most = part.most.min(options.max_size);
            sizes.take_while(move |size| *size <= most).map(move |size| (size, iterations, part.warmup))
        });
        let sizes = sizes.collect();
        let settings: &[String] = if way.is_ours() { &self.ucx } else { &[] };
        perftest::run(case, way, &sizes, settings, self.out)
    }

    /// Measures a case. What of a peer's fails is left out, and put to `failed`, with the reason; ours must not.
    fn measure(
        &self,
        case: &Case,
        options: &Options,
        failed: &mut Vec<(String, String)>,
    ) -> Result<Measured> {
        let count = usize::from(options.rounds());
        let mut rounds: Vec<Vec<Points>> = case.ways.iter().map(|_| Vec::new()).collect();
        let mut lines = Vec::new();
        let heading = format!("{}, {count} rounds of {} ways", case.name, case.ways.len());
        progress::during(&heading, |bar| {
            for round in 0..count {
                lines.push(Raw::line(&self.raw, self.out)?);
                for turn in 0..case.ways.len() {
                    // Another way begins each round.
                    let index = (round + turn) % case.ways.len();
                    let way = case.ways[index];
                    bar.set_message(format!("round {}: {}", round + 1, way.name));
                    let mut points = Points::new();
                    if case.program == PERFTEST {
                        rounds[index].push(self.perftest(case, way, options)?);
                        continue;
                    }
                    for part in case.parts {
                        let Some(arguments) = arguments(case, part, way, options) else { continue };
                        let least = table::size(part.least);
                        let what = format!("{} over {} from {least} on", case.name, way.name);
                        if failed.iter().any(|(known, _)| *known == what) {
                            continue;
                        }
                        match self.try_job(case, way, &arguments)? {
                            Ok(text) => points.extend(osu::parse(&text).context(what)?),
                            Err(why) if way.is_ours() => bail!("{what} failed:\n{why}"),
                            Err(why) => failed.push((what, why)),
                        }
                    }
                    rounds[index].push(points);
                }
            }
            Ok(())
        })?;
        Ok(Measured {
            case: case.name.clone(),
            unit: case.unit.to_owned(),
            less_is_better: case.less_is_better(),
            ways: case.ways.iter().map(|way| way.name.to_owned()).zip(rounds).collect(),
            lines,
            is_repeated: false,
        })
    }
}

/// A case that only shows whether a program runs over a way.
fn probe(program: &'static str, way: Way) -> Case {
    Case { ways: vec![way], ..Case::new(format!("{program} probe"), program, &[], &[], "") }
}

fn short(program: &str) -> Vec<String> {
    let words: &[&str] = if program == "osu_barrier" { &[] } else { &["-m", "8:8"] };
    [&["-i", "10", "-x", "1"], words].concat().into_iter().map(str::to_owned).collect()
}

/// Arguments of a program for a part; none if there is nothing to measure.
fn arguments(case: &Case, part: &Part, way: Way, options: &Options) -> Option<Vec<String>> {
    if part.least > options.max_size {
        return None;
    }
    let mut arguments =
        vec!["-i".into(), iterations(part, way, options).to_string(), "-x".into(), part.warmup.to_string()];
    if case.program != "osu_barrier" {
        arguments.extend(["-m".into(), format!("{}:{}", part.least, part.most.min(options.max_size))]);
    }
    Some(arguments)
}

fn iterations(part: &Part, way: Way, options: &Options) -> u32 {
    let is_slow = [way::TCP, way::UCX_TCP].contains(&way);
    let share = if options.quick { 4 } else { 1 } * if is_slow { 5 } else { 1 };
    (part.iterations / share).max(2)
}

/// Draws what has several sizes, two cases beside one another, so that each stays readable.
fn draw(all: &[Measured], out: &Path) -> Result<Vec<PathBuf>> {
    let drawn: Vec<&Measured> = all.iter().filter(|measured| measured.sizes().len() > 1).collect();
    let series: Vec<Vec<Series>> = drawn
        .iter()
        .map(|measured| {
            let points = |way| {
                let sizes = measured.sizes();
                sizes.into_iter().filter_map(|size| Some((size, measured.median(way, size)?))).collect()
            };
            let ways = measured.ways.iter().enumerate();
            ways.map(|(way, (name, _))| Series { name: name.clone(), emulated: false, points: points(way) })
                .collect()
        })
        .collect();
    let mut paths = Vec::new();
    for (number, pair) in drawn.iter().zip(&series).collect::<Vec<_>>().chunks(2).enumerate() {
        let units: Vec<String> = pair.iter().map(|(m, _)| format!("{}, median", m.unit)).collect();
        let panels: Vec<Panel<'_>> = pair
            .iter()
            .zip(&units)
            .map(|((measured, series), unit)| Panel { title: &measured.case, unit, series })
            .collect();
        let stem = out.join(format!("bench-{}", number + 1));
        paths.extend(plot::draw(
            &stem,
            "vmshm beside Open MPI's layers and UCX, processes on one host",
            &panels,
        )?);
    }
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::way::VMSHM;
    use super::*;

    #[test]
    fn every_program_has_a_case_and_is_built() {
        let others = [other_mpi::Series::V5, other_mpi::Series::V6].map(other_mpi::Series::cases).concat();
        let cases = [case::all(Some(VMSHM)), case::under_ucx(), others].concat();
        for program in PROGRAMS.iter().filter(|name| **name != RAW) {
            assert!(cases.iter().any(|case| case.program == *program), "{program}");
            assert!(
                *program == PERFTEST || crate::install::build_tree::MPI_PROGRAMS.contains(program),
                "{program}"
            );
        }
        assert!(cases.iter().all(|case| PROGRAMS.contains(&case.program) && case.ways[0].is_ours()));
    }

    #[test]
    fn sizes_end_where_they_are_told_to() {
        let options = Options {
            rounds: None,
            programs: Vec::new(),
            max_size: 8192,
            quick: true,
            vm: false,
            count: false,
            ucx: false,
            mpi: None,
            record: false,
            keep: false,
        };
        let case = &case::all(None)[0];
        let small = arguments(case, &case.parts[0], VMSHM, &options).unwrap();
        assert_eq!(small[4..], ["-m", "0:8192"]);
        assert!(arguments(case, &case.parts[1], VMSHM, &options).is_none());
    }
}
