//! The developer's one command: `cargo xtask demo | test | layers | bench | vmm-lab | lab | install | uninstall | image | kmod`.

mod base;
mod bench;
mod debian;
mod demo;
mod figures;
mod install;
mod kernel;
mod lab;
mod layers;
mod mpi;
mod test;
mod vmm_lab;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use base::cleanup;
use base::workspace::Workspace;
use debian::packages;
use install::build_tree;
use install::other_mpi::OtherMpi;
use install::ucx::Ucx;
use kernel::kmod;
use lab::accel::Wish;
use lab::image;
use test::Choice;

/// Builds, shows, tests and measures vmshm.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Show an MPI program talking between two virtual machines, beside TCP, and on this host
    Demo {
        /// How the virtual machines run
        #[arg(long, value_enum, default_value = "auto")]
        accel: Wish,
    },
    /// Run the tests; prints what it skips and why
    Test {
        /// How the virtual machines run
        #[arg(long, value_enum, default_value = "auto")]
        accel: Wish,
        /// Run only this step, by the name that its line shows; may be given several times
        #[arg(long, value_name = "NAME")]
        only: Vec<String>,
        /// Run what a release needs besides: the driver for all its kernels, and the peers whose results are kept as data
        #[arg(long)]
        all: bool,
    },
    /// Check that imports within each crate run one way, as xtask/layers.txt orders its folders
    Layers,
    /// Measure vmshm beside Open MPI's shared memory and TCP; OSU_DIR names an OSU build to use instead of ours
    Bench(bench::Options),
    /// Boot stock kernels in VMs under our VMM, on an emulated host with two NUMA nodes
    VmmLab {
        /// Only these parts
        #[arg(value_name = "PART", value_parser = clap::builder::PossibleValuesParser::new(vmm_lab::names()))]
        parts: Vec<String>,
    },
    /// Give a shell on that host, with the VMM, kernels and disk images there
    Lab,
    /// Build with optimisation and install plugin, tool, driver sources, completions and man pages
    Install {
        /// Directory below which bin, lib and share are filled, as /usr/local
        #[arg(long, value_name = "DIR")]
        prefix: PathBuf,
        /// The Open MPI to build the plugin for, as /opt/openmpi-5.0.7, which then goes to lib/openmpi-5.0.7 below the
        /// prefix, beside those for others. Default: the one whose headers are found, and lib/openmpi
        #[arg(long, value_name = "DIR")]
        with_mpi: Option<PathBuf>,
    },
    /// Remove what install put below a prefix
    Uninstall {
        /// The directory that was given to install
        #[arg(long, value_name = "DIR")]
        prefix: PathBuf,
    },
    /// Make the guest image, or find it in the cache, and print where it is
    Image,
    /// Build and check the guest driver for Debian's unmodified kernels, and print where it is
    Kmod(kmod::Options),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let guard = match cleanup::install() {
        Ok(guard) => guard,
        Err(error) => {
            eprintln!("error: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let result = run(cli.command);
    drop(guard);
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(if cleanup::interrupted() { 130 } else { 1 })
        }
    }
}

fn run(task: Task) -> Result<bool> {
    let workspace = Workspace::find()?;
    match task {
        Task::Demo { accel } => demo::run(&workspace, accel),
        Task::Test { accel, only, all } => test::run(&workspace, accel, &Choice { only, all }),
        Task::Layers => {
            let report = layers::check(&workspace.root)?;
            print!("{}", report.text);
            Ok(report.broken == 0)
        }
        Task::Bench(options) => bench::run(&workspace, &options),
        Task::VmmLab { parts } => {
            let logs = workspace.target.join("vmm-lab");
            let seen = vmm_lab::run(&workspace, &parts, &logs)?;
            println!("{} checks, {} failed; consoles: {}", seen.wanted, seen.missing.len(), logs.display());
            for missing in &seen.missing {
                println!("  {missing}");
            }
            Ok(seen.missing.is_empty())
        }
        Task::Lab => vmm_lab::shell(&workspace),
        Task::Install { prefix, with_mpi } => {
            let logs = workspace.target.join("install");
            packages::ensure(&[packages::BUILD], &logs)?;
            let prefix = std::path::absolute(&prefix)?;
            let mpi = with_mpi.as_deref().map(OtherMpi::at).transpose()?;
            let built = build_tree::product(&workspace, mpi.as_ref(), &logs)?;
            let plugins = mpi.map_or_else(|| install::PLUGINS.to_owned(), |mpi| mpi.plugin_folder());
            let ucx = Ucx::found().and_then(|ucx| build_tree::ucx_transport(&workspace, &logs).map(|_| ucx));
            install::product(&workspace, &built, &prefix, &plugins, ucx.as_ref().ok())?;
            println!("Installed below {}.", prefix.display());
            if let Err(error) = ucx {
                // Of all that cargo says, the build script's own line.
                let text = format!("{error:#}");
                let why = text.lines().find_map(|line| line.trim_start().strip_prefix("error: "));
                println!("The UCX transport was left out: {}", why.unwrap_or(&text));
            }
            // Sizes that were not measured are as the table has them.
            let mut tune = std::process::Command::new(prefix.join("bin/vmshm"));
            match base::process::capture(tune.args(["tune", "--measure"])) {
                Ok(_) => {
                    println!("'vmshm tune' shows how copies are made here, and whether that was measured.")
                }
                Err(error) => println!("Copies were not measured ('vmshm tune --measure' does): {error:#}"),
            }
            println!(
                "In a guest whose kernel has Rust, 'dkms add {0}' and 'dkms install vmshm/{1}' build the driver.",
                prefix.join(install::driver_sources()).display(),
                env!("CARGO_PKG_VERSION")
            );
            Ok(true)
        }
        Task::Uninstall { prefix } => {
            let prefix = std::path::absolute(&prefix)?;
            let count = install::remove(&prefix)?;
            println!("Removed {count} files below {}.", prefix.display());
            println!(
                "A driver that DKMS built goes with 'dkms remove vmshm/{} --all'.",
                env!("CARGO_PKG_VERSION")
            );
            Ok(true)
        }
        Task::Image => {
            let logs = workspace.target.join("image");
            packages::ensure(&[packages::GUESTS], &logs)?;
            let image = image::ensure(&workspace, &logs)?;
            println!("{}", image.root.display());
            Ok(true)
        }
        Task::Kmod(options) => {
            let logs = workspace.target.join("kmod/logs");
            packages::ensure(&[packages::KERNEL], &logs)?;
            for module in kmod::check(&workspace, &options, &logs)? {
                println!("{}", module.file.display());
            }
            Ok(true)
        }
    }
}
