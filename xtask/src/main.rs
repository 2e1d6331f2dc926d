//! The developer's one command: `cargo xtask demo | test | bench | install | image`.

mod accel;
mod cleanup;
mod guest;
mod image;
mod lab;
mod packages;
mod process;
mod progress;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use workspace::Workspace;

/// Builds, shows, tests and measures vmshm.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Make the guest image, or find it in the cache
    Image,
    /// Try
    Try,
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
        Task::Image => {
            let logs = workspace.target.join("image");
            packages::ensure(&[packages::GUESTS], &logs)?;
            let image = image::ensure(&workspace, &logs)?;
            println!("{}", image.root.display());
            Ok(true)
        }
        Task::Try => {
            let logs = workspace.target.join("try");
            let image = image::ensure(&workspace, &logs)?;
            let accel = accel::choose(accel::Wish::Auto, &image, &logs)?;
            let pay = tempfile::tempdir()?;
            let mut lab = lab::Lab::start(&lab::Plan {
                image: &image,
                payload: pay.path(),
                accel,
                region: vec![vec![], vec![], vec![]],
                log_dir: &logs,
            })?;
            let a = lab.run(0, "export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1; ping -c 2 vm1; ping -c 2 vm2; mpirun -np 3 --host vm0,vm1,vm2 --mca oob_tcp_if_include eth0 hostname; mpirun -np 2 --host vm0,vm1 --mca pml ob1 --mca btl tcp,self --mca btl_tcp_if_include eth0 --mca oob_tcp_if_include eth0 NPopenmpi -u 65536 -n 5 -o /dev/null", std::time::Duration::from_secs(60))?;
            println!("{} {}", a.code, a.text);
            Ok(true)
        }
    }
}
