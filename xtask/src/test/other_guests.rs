//! Steps in guests with another Debian release than this machine's, with its Open MPI and Slurm, and the guest driver.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::driver::{self, Pair, checked, must, wait_for};
use super::place::Writers;
use super::tally::{Count, Tally};
use super::{mpich, other_ucx, slurm};
use crate::base::process::last_lines;
use crate::base::workspace::Workspace;
use crate::debian::apt::Index;
use crate::install::{self, build_tree};
use crate::lab::image;
use crate::lab::{Lab, PAYLOAD};
use crate::mpi::guest_mpi::{self, Job, Launcher};
use crate::mpi::other_debian::OtherDebian;
use crate::mpi::traffic::Traffic;

/// Begins the steps' names.
pub const NAME: &str = "guests13";

const SUITE: &str = "trixie";
/// Packages in these guests, besides what all guests have.
const PACKAGES: &[&str] = &["mpich", "munge", "slurm-client", "slurmctld", "slurmd"];
/// Programs that are built for their Open MPI, and the folder in the payload where they are.
const PROGRAMS: [&str; 2] = ["vmshm-mpi-check", "vmshm-mpi-traffic"];
const FOLDER: &str = "debian13";
/// Series of their UCX.
const UCX: &str = "1.18";
const LIMIT: Duration = Duration::from_secs(150);
/// Messages to be counted, and the bytes of each.
const MESSAGES: u64 = 8;
const MESSAGE: u64 = 1 << 20;

/// Makes their root file system, and lays what is built for their Open MPI beside everything else.
pub fn prepare(workspace: &Workspace, parts: driver::Parts, logs: &Path) -> Result<driver::Parts> {
    let root = image::root_of(workspace, Index::shared(workspace, SUITE, logs)?, PACKAGES, logs)?;
    let mpi = OtherDebian::prepare(workspace, SUITE, &parts.stage, build_tree::CHECKERS, &[], logs)?;
    for name in PROGRAMS {
        install::place(&mpi.programs.join(name), &parts.stage.join(FOLDER).join(name), 0o755)?;
    }
    other_ucx::transport(workspace, &parts.stage, logs)?;
    mpich::prepare_guests(workspace, &parts.stage, logs)?;
    Ok(parts.with_root(&root))
}

/// Runs all of them, in a lab of two guests. Returns how many boots were repeated.
pub fn steps(prepared: &driver::Prepared, tally: &mut Tally) -> Result<usize> {
    let mut pair = Pair::new(prepared);
    tally.step("guests13-check-4", |logs| {
        checked(pair.lab(logs)?, logs, |lab| check(lab, Launcher::Mpirun, logs))
    })?;
    tally.step("guests13-slurm-4", |logs| {
        checked(pair.lab(logs)?, logs, |lab| {
            start_slurm(lab)?;
            check(lab, Launcher::Srun, logs)
        })
    })?;
    tally
        .step("guests13-mpich", |logs| checked(pair.lab(logs)?, logs, |lab| mpich::across(lab, UCX, logs)))?;
    Ok(pair.repeated_boots())
}

/// Messages that must all have gone through the region, then the checker: messages, collective operations, and windows of ours.
fn check(lab: &mut Lab, launcher: Launcher, logs: &Path) -> Result<Count> {
    let program = |name: &str| format!("{PAYLOAD}/{FOLDER}/{name}");
    let job = |ranks, program| Job { launcher, as_user: true, ..Job::new(ranks, program) };
    let traffic = format!("{} --messages {MESSAGES} --bytes {MESSAGE}", program("vmshm-mpi-traffic"));
    let text = guest_mpi::run_job(lab, &job(2, &traffic), &logs.join("traffic.log"), LIMIT)?;
    let counted = Traffic::parse(&text);
    for (rank, peer) in [(0, 1), (1, 0)] {
        let received = counted.received(rank, peer);
        ensure!(
            received >= MESSAGES * MESSAGE,
            "rank {rank} has received {received} bytes through the region, but {MESSAGES} messages of {MESSAGE} bytes:\n{}",
            last_lines(&text, 15)
        );
    }
    let program = format!("{} --quick", program("vmshm-mpi-check"));
    let job = Job { arguments: "--mca osc vmshm", ..job(4, &program) };
    let text = guest_mpi::run_job(lab, &job, &logs.join("check.log"), LIMIT * 2)?;
    Writers::Owner.check(&text)?;
    let count = Count::of_checker(&text)
        .with_context(|| format!("vmshm-mpi-check printed no closing line:\n{}", last_lines(&text, 10)))?;
    let release = must(lab, 0, "ompi_info --version | head -n 1", LIMIT)?;
    Ok(Count { passed: count.passed + 1, note: release.trim().to_owned(), ..count })
}

/// Starts Slurm's daemons: the controller in guest 0, and in all guests that which starts processes.
fn start_slurm(lab: &mut Lab) -> Result<()> {
    let guests = lab.size();
    let nodes: Vec<_> = (0..guests).map(|k| (format!("vm{k}"), format!("10.77.0.{}", k + 1))).collect();
    let folder = PathBuf::from("/run/slurm");
    let configuration = slurm::configuration(&nodes, "slurm", "root", &folder);
    for guest in (0..guests).rev() {
        let controller = if guest == 0 { "slurmctld -L /run/slurm/state/log\n" } else { "" };
        // The guests share munge's key, since they are of one image.
        let script = format!(
            "set -e\n\
             install -d -o munge -g munge /run/munge /var/log/munge\n\
             setpriv --reuid=munge --regid=munge --clear-groups munged\n\
             install -d /run/slurm /run/slurm/spool\n\
             install -d -o slurm -g slurm /run/slurm/state\n\
             cat > /etc/slurm/slurm.conf <<'END'\n{configuration}END\n\
             echo CgroupPlugin=disabled > /etc/slurm/cgroup.conf\n\
             {controller}slurmd -L /run/slurm/spool/log\n"
        );
        must(lab, guest, &script, LIMIT).context("Slurm's daemons cannot be started")?;
    }
    let idle = format!("[ \"$(sinfo --noheader --format='%D %T')\" = '{guests} idle' ]");
    if let Err(error) = wait_for(lab, 0, &idle, LIMIT / 2, "Slurm's nodes are not idle") {
        let said = |lab: &mut Lab, guest| {
            must(lab, guest, "date; sinfo; tail -n 20 /run/slurm/*/log /var/log/munge/*; true", LIMIT)
        };
        let said: Result<Vec<String>> = (0..guests).map(|guest| said(lab, guest)).collect();
        return Err(error.context(said?.join("\n")));
    }
    Ok(())
}
