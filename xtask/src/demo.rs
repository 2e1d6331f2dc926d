//! `cargo xtask demo`: an MPI program talks between two guests through shared memory, beside the same over TCP.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;

use crate::base::workspace::Workspace;
use crate::base::{cleanup, progress};
use crate::bench;
use crate::debian::packages;
use crate::figures::plot::{self, Panel, Series};
use crate::figures::table::{self, Table};
use crate::install::stage;
use crate::lab::accel::{self, Accel, Wish};
use crate::lab::image::{self, Image};
use crate::lab::region::Region;
use crate::lab::set::Set;
use crate::lab::{Guests, Lab, PAYLOAD, Plan};
use crate::mpi::guest_mpi;
use crate::mpi::host_mpi::{HostMpi, Layer};
use crate::mpi::osu::{self, Points};

const HOST_REGION: &str = "256M";
const SIZES: [u64; 10] = [0, 8, 64, 512, 4096, 16384, 65536, 131_072, 262_144, 1_048_576];
const LIMIT: Duration = Duration::from_secs(120);

/// One column of the table: a place, a layer, and what was measured there.
#[derive(Debug)]
struct Column {
    place: &'static str,
    layer: Layer,
    latency: Points,
    bandwidth: Points,
}

/// The VMM of the guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Vmm {
    Ours,
    Qemu(Accel),
}

impl Vmm {
    /// Whether times mean nothing.
    fn is_emulated(self) -> bool {
        self == Vmm::Qemu(Accel::Tcg)
    }
}

/// Runs the demo and prints its table; fails if any of its jobs failed.
pub fn run(workspace: &Workspace, wish: Wish) -> Result<bool> {
    let out = workspace.target.join("demo");
    packages::ensure(&[packages::BUILD, packages::RUN, packages::GUESTS, packages::PLOT], &out)?;
    let stage = stage::prepare(workspace, &out)?;
    let image = image::ensure(workspace, &out)?;
    let mut failures = Vec::new();
    let mut columns = Vec::new();
    let vmm = choose(wish, &stage, &image, &out)?;
    let (vmm, mut lab) = boot(vmm, &stage, &image, &out)?;
    guests(lab.as_mut(), vmm, &out, &mut columns, &mut failures)?;
    drop(lab);
    host(&stage, &out, &mut columns, &mut failures)?;

    let text = report(&columns, vmm);
    print!("\n{text}");
    std::fs::write(out.join("demo.txt"), &text)?;
    for path in draw(&columns, vmm, &out)? {
        println!("Plot: {}", path.display());
    }
    for failure in &failures {
        eprintln!("\nFAILED: {failure}");
    }
    // Messages between VMs at their true speed, even where kernels can only be emulated.
    println!("\nThe transport alone, between VMs:");
    let measured = bench::vm::run(workspace, 0, true)?;
    Ok(failures.is_empty() && measured)
}

/// Our VMM where KVM boots stock kernels under it, else QEMU.
fn choose(wish: Wish, stage: &Path, image: &Image, out: &Path) -> Result<Vmm> {
    let why = match wish {
        Wish::Auto => accel::try_ours(image, &stage.join("bin/vmshm"), out)?,
        Wish::Kvm | Wish::Tcg => Some("QEMU was asked for".to_owned()),
    };
    match why {
        None => Ok(Vmm::Ours),
        Some(why) => {
            println!("Not our VMM: {why}.");
            Ok(Vmm::Qemu(accel::choose(wish, image, out)?))
        }
    }
}

/// Boots two guests, under QEMU where they do not start under our VMM.
fn boot(vmm: Vmm, stage: &Path, image: &Image, out: &Path) -> Result<(Vmm, Box<dyn Guests>)> {
    let accel = match vmm {
        Vmm::Qemu(accel) => accel,
        Vmm::Ours => {
            match progress::during("booting 2 guests by vmshm up", |_| Set::start(image, stage, 2, out)) {
                Ok(set) => {
                    println!("Guests run by KVM under our VMM: a trial boot worked.");
                    return Ok((vmm, Box::new(set)));
                }
                Err(error) => {
                    cleanup::check()?;
                    println!("Not our VMM: {error:#}");
                    accel::choose(Wish::Auto, image, out)?
                }
            }
        }
    };
    let lab = Lab::start(&Plan { image, payload: stage, accel, guests: 2, log_dir: out })?;
    if lab.repeated_boots > 0 {
        println!("Boots that failed and were tried once more: {}.", lab.repeated_boots);
    }
    Ok((Vmm::Qemu(accel), Box::new(lab)))
}

/// Measures in two guests, adding columns.
fn guests(
    lab: &mut dyn Guests,
    vmm: Vmm,
    out: &Path,
    columns: &mut Vec<Column>,
    failures: &mut Vec<String>,
) -> Result<()> {
    let (repeats, window) = match vmm.is_emulated() {
        false => ("-i 1000 -x 100", "-i 50 -x 5"),
        true => ("-i 20 -x 5", "-i 3 -x 1 -W 16"),
    };
    for layer in [Layer::Vmshm, Layer::Tcp] {
        let mut measure = |program: &str, options: &str| {
            let heading = format!("{program} over {} across the guests", layer.name());
            let log = out.join(format!("guests-{}-{program}.log", layer.name()));
            // Always our own: a user's OSU build may need libraries that the guests do not have.
            let command = format!("{PAYLOAD}/bin/{program} -m 0:1048576 {options}");
            progress::during(&heading, |_| osu::parse(&guest_mpi::run(lab, 2, layer, &command, &log, LIMIT)?))
        };
        let latency = kept(measure("osu_latency", repeats), failures)?;
        let bandwidth = kept(measure("osu_bw", window), failures)?;
        columns.push(Column { place: "guests", layer, latency, bandwidth });
    }
    Ok(())
}

fn host(stage: &Path, out: &Path, columns: &mut Vec<Column>, failures: &mut Vec<String>) -> Result<()> {
    let region = Region::create(stage, HOST_REGION, 2, false)?;
    let mpi = HostMpi::new(region.environment()?)?;
    for layer in [Layer::Vmshm, Layer::VaderTwoCopies, Layer::Tcp] {
        let measure = |program: &str, options: &[&str]| {
            let heading = format!("{program} over {} on this host", layer.name());
            let log = out.join(format!("host-{}-{program}.log", layer.name().replace(' ', "-")));
            let mut command = mpi.mpirun(2, layer);
            command.arg(osu::find(program, &stage.join("bin"))?).args(["-m", "0:1048576"]).args(options);
            progress::during(&heading, |_| {
                let done = mpi.run(command, &heading, &log, LIMIT)?;
                osu::parse(&done.expect_success(&heading)?.text)
            })
        };
        let latency = kept(measure("osu_latency", &["-i", "2000", "-x", "200"]), failures)?;
        let bandwidth = kept(measure("osu_bw", &["-i", "100", "-x", "10"]), failures)?;
        columns.push(Column { place: "host", layer, latency, bandwidth });
    }
    Ok(())
}

/// A failed job leaves a gap in the table and is told at the end; only an interrupt ends the demo at once.
fn kept(result: Result<Points>, failures: &mut Vec<String>) -> Result<Points> {
    cleanup::check()?;
    Ok(result.unwrap_or_else(|error| {
        failures.push(format!("{error:#}"));
        Points::new()
    }))
}

fn report(columns: &[Column], vmm: Vmm) -> String {
    let mut table = Table::default();
    let name = |c: &Column| format!("{}: {}", c.place, c.layer.name());
    let mut heading = vec!["latency, µs".to_owned()];
    heading.extend(columns.iter().map(name));
    table.row(heading);
    let rows = |table: &mut Table, points: fn(&Column) -> &Points| {
        for size in SIZES {
            let mut cells = vec![table::size(size)];
            cells.extend(columns.iter().map(|c| table::figure(osu::at(points(c), size))));
            if cells[1..].iter().any(|cell| cell != "-") {
                table.row(cells);
            }
        }
    };
    rows(&mut table, |c| &c.latency);
    table.row(["", ""]);
    let mut heading = vec!["bandwidth, MB/s".to_owned()];
    heading.extend(columns.iter().map(name));
    table.row(heading);
    rows(&mut table, |c| &c.bandwidth);
    let mut text = table.render();
    text += match vmm {
        Vmm::Qemu(Accel::Tcg) => {
            "\n'guests' are two virtual machines emulated by QEMU (TCG): these columns show that it \
             works. They are NO MEASUREMENT and say nothing about speed.\n"
        }
        Vmm::Qemu(Accel::Kvm) => "\n'guests' are two virtual machines run by KVM under QEMU.\n",
        Vmm::Ours => "\n'guests' are two virtual machines run by KVM under our VMM.\n",
    };
    text += "'host' is two processes on this machine, measured once and beside whatever else runs here.\n";
    text
}

fn draw(columns: &[Column], vmm: Vmm, out: &Path) -> Result<[PathBuf; 2]> {
    let emulated = |c: &Column| c.place == "guests" && vmm.is_emulated();
    let series = |points: fn(&Column) -> &Points| -> Vec<Series> {
        columns
            .iter()
            .filter(|c| !points(c).is_empty())
            .map(|c| Series {
                name: format!(
                    "{}: {}{}",
                    c.place,
                    c.layer.name(),
                    if emulated(c) { " (emulated)" } else { "" }
                ),
                emulated: emulated(c),
                points: points(c).clone(),
            })
            .collect()
    };
    let caption = match vmm.is_emulated() {
        true => "MPI through vmshm (thin lines: emulated guests, no measurement)",
        false => "MPI through vmshm",
    };
    plot::draw(
        &out.join("demo"),
        caption,
        &[
            Panel { title: "Latency", unit: "µs, less is better", series: &series(|c| &c.latency) },
            Panel { title: "Bandwidth", unit: "MB/s, more is better", series: &series(|c| &c.bandwidth) },
        ],
    )
}
