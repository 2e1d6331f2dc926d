//! The step in which another release of Open MPI loads the plugin: one whose structs may differ though its interfaces have the
//! same versions, as those of 5.0.10 and 5.0.9.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};

use super::tally::{Count, Tally};
use crate::base::process::{self, last_lines, mortal};
use crate::install::stage;
use crate::lab::region::Region;
use crate::mpi::host_mpi::AS_ROOT;

const REGION: &str = "64M";
const LIMIT: Duration = Duration::from_secs(60);
/// A release that there is not.
const OTHER: &str = "4.1.9999";

/// Runs it; `stage` is the built tree, or why there is none.
pub fn steps(stage: &Result<PathBuf, String>, tally: &mut Tally) -> Result<()> {
    tally.step("host-other-release", |logs| {
        let stage = stage::built(stage)?;
        refused(stage, logs)
    })
}

/// The plugin says why it is not used, and the job runs without any of its components.
fn refused(stage: &Path, logs: &Path) -> Result<Count> {
    let library = tempfile::tempdir()?;
    let [source, built] = ["version.c", "version.so"].map(|name| library.path().join(name));
    fs::write(&source, format!("const char opal_version_string[] = \"{OTHER}\";\n"))?;
    process::capture(Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&built).arg(&source))?;
    let region = Region::create(stage, REGION, 2, true)?;
    // By the user's choice of layers, Open MPI would miss one.
    let mut command = mortal("mpirun");
    command.envs(AS_ROOT).envs(region.environment()?).args(["-np", "2", "--oversubscribe"]);
    command.arg("-x").arg(format!("LD_PRELOAD={}", built.display()));
    for framework in ["btl", "mpool", "coll", "osc"] {
        command.args(["--mca", &format!("{framework}_base_verbose"), "10"]);
    }
    command.arg(stage.join("bin/osu_put_latency")).args(["-i", "1", "-x", "1", "-m", "8:8"]);
    let text = process::run(command, "osu_put_latency", &logs.join("job.log"), LIMIT)?.text;
    let told = text.matches(&format!("but this is Open MPI {OTHER}.")).count();
    if told != 1 {
        bail!("said {told} times that the release is another one:\n{}", last_lines(&text, 15));
    }
    // Open MPI says which components it finds, registers and opens.
    let (found, used): (Vec<_>, Vec<_>) = text
        .lines()
        .filter(|line| line.contains("component vmshm"))
        .partition(|line| line.contains("found loaded component vmshm"));
    if found.len() != 8 || !used.is_empty() {
        bail!("{} of 8 components were found, and these used: {}", found.len(), used.join("\n"));
    }
    Ok(Count { passed: 1, ..Count::default() })
}
