//! `cargo xtask bench`: vmshm side by side with Open MPI's own layers, as processes on this host.
//!
//! The layers take turns within each round, so that what else the machine does meets them all alike.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Serialize;

use crate::host_mpi::{HostMpi, Layer};
use crate::osu::{self, Points};
use crate::packages;
use crate::plot::{self, Panel, Series};
use crate::progress;
use crate::region::Region;
use crate::stage;
use crate::statistics::{Spread, spread};
use crate::table::{self, Table};
use crate::workspace::Workspace;

/// The order of the columns; vmshm is compared with each of the others.
const LAYERS: [Layer; 4] = [Layer::Vmshm, Layer::VaderTwoCopies, Layer::VaderCma, Layer::Tcp];
const PROGRAMS: &[&str] = &["osu_latency", "osu_bw", "osu_bibw", "osu_multi_lat", "osu_mbw_mr"];
const REGION: &str = "1G";
const LIMIT: Duration = Duration::from_secs(300);

/// What vmshm must reach beside vader with two copies: program, size, bound of the ratio.
const GOALS: &[(&str, u64, f64)] =
    &[("osu_latency", 8, 1.5), ("osu_bw", 65_536, 0.7), ("osu_bw", 1_048_576, 0.7)];

/// What to measure.
#[derive(Debug, Args)]
pub struct Options {
    /// How often each layer is measured
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,
    /// Only this program, as osu_latency; may be given several times
    #[arg(long = "program", value_name = "NAME", value_parser = clap::builder::PossibleValuesParser::new(PROGRAMS))]
    programs: Vec<String>,
    /// Largest message, bytes
    #[arg(long, default_value_t = 1 << 22, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1..=1 << 30))]
    max_size: u64,
}

/// All rounds of one program.
#[derive(Debug, Serialize)]
struct Measured {
    program: String,
    /// For each layer, for each round, size and figure.
    layers: Vec<(String, Vec<Points>)>,
}

impl Measured {
    fn is_latency(&self) -> bool {
        self.program.ends_with("lat") || self.program.ends_with("latency")
    }

    fn unit(&self) -> &'static str {
        if self.is_latency() { "µs" } else { "MB/s" }
    }

    fn sizes(&self) -> BTreeSet<u64> {
        self.layers.iter().flat_map(|l| l.1.iter().flatten()).map(|p| p.0).collect()
    }

    fn figures(&self, layer: usize, size: u64) -> Vec<f64> {
        self.layers[layer].1.iter().filter_map(|points| osu::at(points, size)).collect()
    }

    fn median(&self, layer: usize, size: u64) -> Option<f64> {
        spread(&self.figures(layer, size)).map(|s| s.median)
    }

    /// vmshm's figure divided by another layer's, round by round.
    fn ratio(&self, layer: usize, size: u64) -> Option<Spread> {
        let ours = self.figures(0, size);
        let theirs = self.figures(layer, size);
        let ratios: Vec<f64> = ours.iter().zip(&theirs).map(|(a, b)| a / b).collect();
        spread(&ratios)
    }
}

/// Measures, prints tables and writes plots.
pub fn run(workspace: &Workspace, options: &Options) -> Result<bool> {
    let out = workspace.target.join("bench");
    packages::ensure(&[packages::BUILD, packages::RUN, packages::PLOT], &out)?;
    let stage = stage::prepare(workspace, &out)?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if cores < 2 {
        bail!("this machine has one core; a comparison needs two, one for each process");
    }
    let programs: Vec<&str> = PROGRAMS
        .iter()
        .copied()
        .filter(|name| options.programs.is_empty() || options.programs.iter().any(|p| p == name))
        .collect();
    let mut all = Vec::new();
    for program in programs {
        // As many pairs as there are cores for; more would measure the scheduler.
        let ranks = if matches!(program, "osu_multi_lat" | "osu_mbw_mr") { cores.min(16) / 2 * 2 } else { 2 };
        all.push(measure(program, ranks, options, &stage, &out)?);
    }
    let mut text = String::new();
    for measured in &all {
        text += &format!("\n{}\n", report(measured, options.rounds));
    }
    text += &goals(&all);
    text += &format!(
        "\nMeasured on {}, {cores} cores, load {} at the end.\n",
        processor(),
        fs::read_to_string("/proc/loadavg").unwrap_or_default().split(' ').next().unwrap_or("unknown"),
    );
    print!("{text}");
    fs::write(out.join("bench.txt"), &text)?;
    fs::write(out.join("bench.json"), serde_json::to_string_pretty(&all)?)?;
    for path in draw(&all, &out)? {
        println!("Plot: {}", path.display());
    }
    println!("All rounds: {}", out.join("bench.json").display());
    Ok(true)
}

fn measure(program: &str, ranks: usize, options: &Options, stage: &Path, out: &Path) -> Result<Measured> {
    let region = Region::create(stage, REGION, 2, false)?;
    let mpi = HostMpi::new(region.environment()?)?;
    let path = osu::find(program, &stage.join("bin"))?;
    let mut rounds: Vec<Vec<Points>> = LAYERS.iter().map(|_| Vec::new()).collect();
    progress::during(&format!("{program}, {} rounds of {} layers", options.rounds, LAYERS.len()), |bar| {
        for round in 0..usize::from(options.rounds) {
            for turn in 0..LAYERS.len() {
                // Another layer begins each round.
                let index = (round + turn) % LAYERS.len();
                let layer = LAYERS[index];
                bar.set_message(format!("round {}: {}", round + 1, layer.name()));
                let what = format!("{program} over {}", layer.name());
                let name = format!("{program}-{}-{}.log", layer.name().replace(' ', "-"), round + 1);
                let mut command = mpi.mpirun(ranks, layer);
                let smallest = u8::from(!program.contains("lat"));
                command.arg(&path).arg("-m").arg(format!("{smallest}:{}", options.max_size));
                let done = mpi.run(command, &what, &out.join(name), LIMIT)?.expect_success(&what)?;
                rounds[index].push(osu::parse(&done.text).context(what)?);
            }
        }
        Ok(())
    })?;
    Ok(Measured {
        program: program.to_owned(),
        layers: LAYERS.iter().map(|l| l.name().to_owned()).zip(rounds).collect(),
    })
}

fn report(measured: &Measured, rounds: u16) -> String {
    let mut table = Table::default();
    let mut heading = vec!["size".to_owned()];
    heading.extend(LAYERS.iter().map(|layer| layer.name().to_owned()));
    heading.extend(LAYERS[1..].iter().map(|layer| format!("vmshm / {}", layer.name())));
    table.row(heading);
    for size in measured.sizes() {
        let mut cells = vec![table::size(size)];
        cells.extend((0..LAYERS.len()).map(|layer| table::figure(measured.median(layer, size))));
        cells.extend((1..LAYERS.len()).map(|layer| match measured.ratio(layer, size) {
            Some(r) => format!("{:.2} ({:.2}..{:.2})", r.median, r.min, r.max),
            None => "-".into(),
        }));
        table.row(cells);
    }
    let better = if measured.is_latency() { "less" } else { "more" };
    format!(
        "{}, {}, medians of {rounds} rounds, and ratios with their smallest and largest ({better} is better)\n{}",
        measured.program,
        measured.unit(),
        table.render()
    )
}

fn goals(all: &[Measured]) -> String {
    let mut text = String::new();
    for &(program, size, bound) in GOALS {
        let Some(measured) = all.iter().find(|m| m.program == program) else { continue };
        let Some(ratio) = measured.ratio(1, size) else { continue };
        let (relation, met) = if measured.is_latency() {
            ("at most", ratio.median <= bound)
        } else {
            ("at least", ratio.median >= bound)
        };
        text += &format!(
            "Goal: {program} at {} {relation} {bound} of vader with two copies: {:.2}, {}\n",
            table::size(size),
            ratio.median,
            if met { "met" } else { "MISSED" }
        );
    }
    text
}

fn processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or_else(|| "an unknown processor".into(), |(_, name)| name.trim().to_owned())
}

fn draw(all: &[Measured], out: &Path) -> Result<Vec<std::path::PathBuf>> {
    let series: Vec<Vec<Series>> = all
        .iter()
        .map(|measured| {
            (0..LAYERS.len())
                .map(|layer| Series {
                    name: LAYERS[layer].name().to_owned(),
                    emulated: false,
                    points: measured
                        .sizes()
                        .into_iter()
                        .filter_map(|size| Some((size, measured.median(layer, size)?)))
                        .collect(),
                })
                .collect()
        })
        .collect();
    let mut paths = Vec::new();
    // Two beside one another, so that each stays readable.
    for (number, pair) in all.iter().zip(&series).collect::<Vec<_>>().chunks(2).enumerate() {
        let units: Vec<String> = pair.iter().map(|(m, _)| format!("{}, median", m.unit())).collect();
        let panels: Vec<Panel<'_>> = pair
            .iter()
            .zip(&units)
            .map(|((measured, series), unit)| Panel { title: &measured.program, unit, series })
            .collect();
        let stem = out.join(format!("bench-{}", number + 1));
        paths.extend(plot::draw(&stem, "vmshm and Open MPI's layers, processes on one host", &panels)?);
    }
    Ok(paths)
}
