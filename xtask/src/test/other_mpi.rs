//! Steps that run the plugin under the Open MPI of another Debian release than this machine's, in a root directory of that.

use std::env::consts::ARCH;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::host::{Writers, checked};
use super::tally::{Count, Tally};
use crate::base::process::{Running, last_lines};
use crate::base::workspace::Workspace;
use crate::debian::apt::{self, Index};
use crate::debian::chroot::{Chroot, OPEN_MPI};
use crate::install::other_mpi::OtherMpi;
use crate::install::{self, build_tree};
use crate::lab::region::Region;
use crate::mpi::host_mpi::AS_ROOT;

/// The Debian releases with Open MPI 5.0 and 6.0.
const STEPS: [(&str, &str); 2] = [("ompi5-check-3", "trixie"), ("ompi6-check-3", apt::UNSTABLE)];
const CHECKER: &str = "vmshm-mpi-check";
const REGION: &str = "1G";
const LIMIT: Duration = Duration::from_secs(600);

/// Runs all of them; `stage` is the built tree, or why there is none.
pub fn steps(workspace: &Workspace, stage: &Result<PathBuf, String>, tally: &mut Tally) -> Result<()> {
    for (step, suite) in STEPS {
        tally.step(step, |logs| {
            let stage =
                stage.as_deref().map_err(|why| anyhow::anyhow!("nothing to test was built: {why}"))?;
            check(workspace, stage, suite, logs)
        })?;
    }
    Ok(())
}

fn check(workspace: &Workspace, stage: &Path, suite: &'static str, logs: &Path) -> Result<Count> {
    let chroot = Chroot::ensure(workspace, Index::shared(workspace, suite, logs)?, &OPEN_MPI, logs)?;
    let prefix = format!("/usr/lib/{ARCH}-linux-gnu/openmpi");
    let mpi = OtherMpi::at(&chroot.root().join(&prefix[1..]))?;
    let built = build_tree::checker(workspace, &mpi, chroot.root(), logs)?;
    install::plugin(&built, stage, &mpi.plugin_folder())?;
    let region = Region::create(stage, REGION, 2, true)?;
    let environment = region.environment_with(&["--mpi", &mpi.release])?;
    let run = |options: &[&str], log: &str| {
        // Both where they are outside, so that the environment holds there, too.
        let mut command = chroot.command(&[(stage, text(stage)?), (&built, text(&built)?)], "env");
        command.args(AS_ROOT.map(|(name, value)| format!("{name}={value}")));
        command.args(AS_ROOT.map(|(name, value)| format!("{}={value}", name.replace("OMPI", "PRTE"))));
        command.args(environment.iter().map(|(name, value)| format!("{name}={value}")));
        command.args(["mpirun", "-np", "3", "--map-by", ":OVERSUBSCRIBE", "--bind-to", "none"]);
        // Windows, too, which are ours where no other component is wanted.
        command.args(["--mca", "pml", "ob1", "--mca", "btl", "vmshm,self", "--mca", "osc", "vmshm"]);
        command.args(["--mca", "mpi_yield_when_idle", "1"]).args(options);
        let done = Running::start(command, CHECKER, &logs.join(log))?.wait(LIMIT)?;
        Writers::Owner.check(&done.text)?;
        Ok::<_, anyhow::Error>(done)
    };
    let program = built.join(CHECKER);
    let program = text(&program)?;
    let mut count = checked(run(&[program, "--quick"], "check.log")?)?;
    count.note = format!("Open MPI {}", mpi.release);
    // By itself: 6.0's launcher loses lines of the checker's where Open MPI says very much.
    let told =
        run(&["--mca", "coll_base_verbose", "10", program, "--quick", "--only", "patterns"], "coll.log")?
            .text;
    if !told.contains("selecting       vmshm") {
        bail!("Open MPI took other components for collective operations:\n{}", last_lines(&told, 10));
    }
    Ok(count)
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("the path {} is not UTF-8", path.display()))
}
