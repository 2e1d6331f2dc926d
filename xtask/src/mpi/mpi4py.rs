//! The test suite of mpi4py: built once, kept in the cache, run over two layers and compared.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::host_mpi::{HostMpi, Inside, Layer};
use crate::base::process;
use crate::base::workspace::Workspace;

/// The release whose tests are run.
pub const VERSION: &str = "4.1.2";
const PYTHON: &str = "/usr/bin/python3";
const BUILD_LIMIT: Duration = Duration::from_secs(600);

/// The suite without two things.
pub const EXCEPT: &[&str] = &[
    // These do not end under Open MPI's own transports either.
    "-e",
    "spawn",
    // Python threads that sleep against the clock: no call of MPI in it, and on a busy machine it fails at random.
    "-x",
    "test_util_pool.TestThreadPool.test_terminate",
];

/// Why the suite cannot be had, as opposed to a failure of ours.
#[derive(Debug)]
pub enum Suite {
    /// Ready to run.
    Ready(Kit),
    /// The package index did not give us the source.
    Unavailable(String),
}

/// An installed mpi4py and its source.
#[derive(Debug)]
pub struct Kit {
    /// The interpreter.
    pub python: PathBuf,
    /// Runs the tests.
    pub main: PathBuf,
    versions: Versions,
}

/// Versions on which the number of tests, and of those that skip themselves, depends.
#[derive(Debug, PartialEq, Eq, Deserialize)]
struct Versions {
    mpi4py: String,
    python: String,
    mpi: String,
}

impl Versions {
    /// The versions in what Python and mpirun say about theirs.
    fn new(mpi4py: &str, python: &str, mpi: &str) -> Self {
        let first = |text: &str| text.lines().next().unwrap_or_default().trim().to_owned();
        Self { mpi4py: mpi4py.to_owned(), python: first(python), mpi: first(mpi) }
    }
}

/// Reports of the ranks over Open MPI's own shared memory, with these versions.
#[derive(Debug, Deserialize)]
struct Kept {
    versions: Versions,
    /// For each number of ranks.
    ranks: BTreeMap<usize, Vec<(usize, String)>>,
}

const KEPT: &str = include_str!("../../mpi4py-native.json");

/// Finds the suite in the cache, or downloads and builds it.
pub fn prepare(workspace: &Workspace, logs: &Path) -> Result<Suite> {
    let python = process::capture(Command::new(PYTHON).arg("--version"))?;
    let mpi = process::capture(Command::new("mpirun").arg("--version"))?;
    let hash = Sha256::digest(format!("{VERSION} {python} {mpi}"));
    let versions = Versions::new(VERSION, &python, &mpi);
    let key: String = hash[..6].iter().map(|byte| format!("{byte:02x}")).collect();
    let dir = workspace.cache.join(format!("mpi4py-{VERSION}-{key}"));
    let main = dir.join(format!("mpi4py-{VERSION}/test/main.py"));
    let kit = Kit { python: dir.join("venv/bin/python"), main, versions };
    let done = dir.join("done");
    if done.exists() {
        return Ok(Suite::Ready(kit));
    }
    if dir.exists() {
        fs::remove_dir_all(&dir)?;
    }
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let mut venv = Command::new(PYTHON);
    venv.args(["-m", "venv"]).arg(dir.join("venv"));
    process::run(venv, "python3 -m venv", &logs.join("venv.log"), BUILD_LIMIT)?;

    let pip = dir.join("venv/bin/pip");
    if let Err(why) = source(&pip, VERSION, &dir, logs)? {
        return Ok(Suite::Unavailable(why));
    }
    let mut install = Command::new(&pip);
    install
        .args(["install", "--no-cache-dir", "--disable-pip-version-check"])
        .arg(dir.join(format!("mpi4py-{VERSION}.tar.gz")))
        // The MPI below is tested, not the speed of the binding.
        .env("CFLAGS", "-O0 -g0");
    process::run(install, "pip install", &logs.join("install.log"), BUILD_LIMIT)?;
    fs::write(&done, "")?;
    Ok(Suite::Ready(kit))
}

/// Finds the suite for the mpi4py of another root directory in the cache, or downloads it; this machine's pip does.
pub fn prepare_inside(workspace: &Workspace, inside: &Inside, logs: &Path) -> Result<Suite> {
    let version = "import mpi4py; print(mpi4py.__version__)";
    let version = process::capture(inside.command("python3").args(["-c", version]))?;
    let version = version.trim();
    let python = process::capture(inside.command("python3").arg("--version"))?;
    let mpi = process::capture(inside.command("mpirun").arg("--version"))?;
    let dir = suite_dir(workspace).join(version);
    let main = dir.join(format!("mpi4py-{version}/test/main.py"));
    if !main.exists() {
        let own = match prepare(workspace, logs)? {
            Suite::Ready(own) => own,
            unavailable => return Ok(unavailable),
        };
        let beside = dir.with_file_name("new");
        fs::create_dir_all(&beside).with_context(|| format!("cannot create {}", beside.display()))?;
        if let Err(why) = source(&own.python.with_file_name("pip"), version, &beside, logs)? {
            return Ok(Suite::Unavailable(why));
        }
        fs::rename(&beside, &dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    Ok(Suite::Ready(Kit { python: "python3".into(), main, versions: Versions::new(version, &python, &mpi) }))
}

/// The directory of the suites for other root directories.
pub fn suite_dir(workspace: &Workspace) -> PathBuf {
    workspace.cache.join("mpi4py-suites")
}

/// Downloads and unpacks the source of a version; the inner error says why it can't be had.
fn source(pip: &Path, version: &str, dir: &Path, logs: &Path) -> Result<Result<(), String>> {
    let mut download = Command::new(pip);
    download
        .args(["download", "--no-deps", "--no-binary=mpi4py", "--disable-pip-version-check"])
        .arg(format!("mpi4py=={version}"))
        .arg("--dest")
        .arg(dir);
    if let Err(error) = process::run(download, "pip download", &logs.join("download.log"), BUILD_LIMIT) {
        crate::base::cleanup::check()?;
        return Ok(Err(format!("pip could not download mpi4py {version}: {error:#}")));
    }
    let mut unpack = Command::new("tar");
    unpack.arg("-xzf").arg(dir.join(format!("mpi4py-{version}.tar.gz"))).arg("-C").arg(dir);
    process::run(unpack, "tar", &logs.join("unpack.log"), BUILD_LIMIT)?;
    Ok(Ok(()))
}

/// Folder of the suite in a built tree.
pub const FOLDER: &str = "mpi4py";

/// Lays the package and its tests into a built tree, for guests with this machine's Python and Open MPI.
pub fn place(kit: &Kit, stage: &Path) -> Result<()> {
    let place = stage.join(FOLDER);
    fs::create_dir_all(&place)?;
    let package = "import mpi4py; print(mpi4py.__path__[0])";
    let package = process::capture(Command::new(&kit.python).args(["-c", package]))?;
    let tests = kit.main.parent().context("the tests are in no folder")?;
    process::capture(Command::new("cp").arg("-r").args([Path::new(package.trim()), tests, &place]))?;
    // The guests can write nothing there, and emulated ones would take long to compile it for each rank.
    let mut compile = Command::new(PYTHON);
    compile.args(["-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash"]).arg(&place);
    process::capture(&mut compile)?;
    Ok(())
}

/// Report of one rank.
#[derive(Debug, PartialEq, Eq)]
pub struct Report {
    /// How many it ran.
    pub tests: usize,
    /// As `OK (skipped=473)`.
    pub verdict: String,
}

/// Report of each rank over Open MPI's own shared memory: kept as data for the versions named there, which saves minutes;
/// measured with others, or on request, when it must agree with what is kept.
pub fn baseline(
    kit: &Kit,
    mpi: &HostMpi,
    ranks: usize,
    measure: bool,
    logs: &Path,
    limit: Duration,
) -> Result<Vec<(usize, String)>> {
    let kept = kept()?.into_iter().find(|kept| kept.versions == kit.versions);
    match kept.and_then(|mut kept| kept.ranks.remove(&ranks)) {
        Some(kept) if !measure => Ok(kept),
        kept => {
            let measured = run(kit, mpi, ranks, Layer::VaderCma, logs, limit)?;
            if let Some(kept) = kept
                && kept != measured
            {
                bail!(
                    "over Open MPI's own shared memory the ranks said {measured:?}, but xtask/mpi4py-native.json has {kept:?}"
                );
            }
            Ok(measured)
        }
    }
}

fn kept() -> Result<Vec<Kept>> {
    serde_json::from_str(KEPT).context("cannot read xtask/mpi4py-native.json")
}

/// Runs the suite over one layer and returns each rank's number of tests and verdict.
pub fn run(
    kit: &Kit,
    mpi: &HostMpi,
    ranks: usize,
    layer: Layer,
    logs: &Path,
    limit: Duration,
) -> Result<Vec<(usize, String)>> {
    run_part(kit, mpi, ranks, layer, EXCEPT, logs, limit)
}

/// Runs the tests of one-sided communication alone, over ours.
pub fn run_windows(
    kit: &Kit,
    mpi: &HostMpi,
    ranks: usize,
    logs: &Path,
    limit: Duration,
) -> Result<Vec<(usize, String)>> {
    run_part(kit, mpi, ranks, Layer::Vmshm, &["-i", "rma", "-i", "win"], logs, limit)
}

fn run_part(
    kit: &Kit,
    mpi: &HostMpi,
    ranks: usize,
    layer: Layer,
    which: &[&str],
    logs: &Path,
    limit: Duration,
) -> Result<Vec<(usize, String)>> {
    let what = format!("mpi4py's tests over {} with {ranks} ranks", layer.name());
    let stem = format!("{}-{ranks}", layer.name().replace(' ', "-"));
    let output = logs.join(&stem);
    if output.exists() {
        fs::remove_dir_all(&output)?;
    }
    fs::create_dir_all(&output)?;
    let mut command = mpi.mpirun(ranks, layer);
    // A file for each rank: their lines would mix otherwise.
    let script = format!("exec \"$0\" \"$@\" 2> '{}'/$OMPI_COMM_WORLD_RANK", output.display());
    command.args(["sh", "-c", &script]);
    command.arg(&kit.python).arg(&kit.main).args(which);
    let done = mpi.run(command, &what, &logs.join(format!("{stem}.log")), limit)?;
    let mut reports = Vec::new();
    for rank in 0..ranks {
        let text = fs::read_to_string(output.join(rank.to_string())).unwrap_or_default();
        match report(&text) {
            Some(report) => reports.push((report.tests, report.verdict)),
            None => bail!(
                "{what}: rank {rank} gave no verdict ({}); output: {}\n{}",
                done.status,
                output.display(),
                process::last_lines(&done.text, 10)
            ),
        }
    }
    Ok(reports)
}

/// Reads the end of a unittest run.
pub fn report(text: &str) -> Option<Report> {
    let tests = text.lines().rev().find_map(|line| line.split_once("Ran ")?.1.split_once(" tests in"))?.0;
    let verdict = text.lines().rev().find(|line| line.starts_with("OK") || line.starts_with("FAILED"))?;
    Some(Report { tests: tests.parse().ok()?, verdict: verdict.trim().to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_unittest_run_is_read() {
        let got = report("...s\n-----\nRan 2083 tests in 61.220s\n\nOK (skipped=473)\n");
        assert_eq!(got, Some(Report { tests: 2083, verdict: "OK (skipped=473)".into() }));
        assert_eq!(report("...s\nTraceback"), None);
    }

    #[test]
    fn what_is_kept_has_a_report_of_each_rank() {
        let kept = kept().expect("the file is JSON of this shape");
        assert_eq!(kept[0].versions.mpi4py, VERSION);
        for (ranks, reports) in kept.into_iter().flat_map(|kept| kept.ranks) {
            assert_eq!(reports.len(), ranks);
            assert!(reports.iter().all(|(tests, verdict)| *tests > 0 && verdict.starts_with("OK")));
        }
    }
}
