//! The step that has Slurm start the processes, by PMIx and without mpirun: with daemons of its own, on this machine alone.

use std::fs::{self, File};
use std::io::Read;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use super::host::checked;
use super::place::Writers;
use super::tally::{Count, Tally};
use crate::base::cleanup;
use crate::base::process::{self, Running, last_lines, mortal};
use crate::install::stage;
use crate::lab::region::Region;

const REGION: &str = "512M";
const START: Duration = Duration::from_secs(30);
const LIMIT: Duration = Duration::from_secs(300);

/// Runs it; `stage` is the built tree, or why there is none.
pub fn steps(stage: &Result<PathBuf, String>, tally: &mut Tally) -> Result<()> {
    tally.step("slurm-check-3", |logs| {
        let stage = stage::built(stage)?;
        check(stage, logs)
    })
}

/// The message checker with three processes.
fn check(stage: &Path, logs: &Path) -> Result<Count> {
    let slurm = Slurm::start(logs)?;
    let region = Region::create(stage, REGION, 2, true)?;
    let mut command = slurm.command("srun");
    command.args(["--mpi=pmix", "--ntasks=3", "--overcommit"]);
    // Open MPI's settings, which mpirun is not there to be told.
    command.envs(region.environment()?);
    command.env("OMPI_MCA_pml", "ob1").env("OMPI_MCA_btl", "vmshm,self");
    command.env("OMPI_MCA_mpi_yield_when_idle", "1");
    command.arg(stage.join("bin/vmshm-mpi-check")).arg("--quick");
    let done = Running::start(command, "srun", &logs.join("check.log"))?.wait(LIMIT)?;
    Writers::Owner.check(&done.text)?;
    checked(done)
}

/// Text of a `slurm.conf`: nodes by name and address, of which the first has the controller, the users of controller and daemons,
/// and the folder where these have the folders `state` and `spool`.
pub fn configuration(nodes: &[(String, String)], controller: &str, daemon: &str, folder: &Path) -> String {
    let place = folder.display();
    let mut text = format!(
        "ClusterName=vmshm\n\
         SlurmUser={controller}\n\
         SlurmdUser={daemon}\n\
         AuthType=auth/munge\n\
         CredType=cred/munge\n\
         StateSaveLocation={place}/state\n\
         SlurmdSpoolDir={place}/spool\n\
         SlurmctldPidFile={place}/state/slurmctld.pid\n\
         SlurmdPidFile={place}/spool/slurmd.pid\n\
         ProctrackType=proctrack/pgid\n\
         TaskPlugin=task/none\n\
         ReturnToService=2\n"
    );
    if let Some((name, address)) = nodes.first() {
        text += &format!("SlurmctldHost={name}({address})\n");
    }
    for (name, address) in nodes {
        text += &format!("NodeName={name} NodeAddr={address}\n");
    }
    text + "PartitionName=all Nodes=ALL Default=YES State=UP\n"
}

/// A Slurm of this machine alone, which ends with this value.
struct Slurm {
    /// In the order in which they are ended.
    daemons: [Running; 3],
    dir: TempDir,
}

impl Slurm {
    fn start(logs: &Path) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("vmshm-slurm-").tempdir_in("/dev/shm")?;
        for name in ["state", "spool"] {
            fs::create_dir(dir.path().join(name))?;
        }
        let key = dir.path().join("key");
        let mut secret = [0; 128];
        File::open("/dev/urandom")?.read_exact(&mut secret)?;
        fs::write(&key, secret)?;
        fs::set_permissions(&key, fs::Permissions::from_mode(0o400))?;
        let host = fs::read_to_string("/proc/sys/kernel/hostname")?;
        let host = host.trim().split('.').next().unwrap_or_default();
        // Taken until both are known, so that they differ.
        let ports = [TcpListener::bind(("127.0.0.1", 0))?, TcpListener::bind(("127.0.0.1", 0))?];
        let [controller, daemon] = [ports[0].local_addr()?.port(), ports[1].local_addr()?.port()];
        drop(ports);
        let user = nix::unistd::User::from_uid(nix::unistd::getuid())?.context("this user has no name")?.name;
        let place = dir.path().display();
        let text = configuration(&[(host.into(), "127.0.0.1".into())], &user, &user, dir.path())
            + &format!("SlurmctldPort={controller}\nSlurmdPort={daemon}\nAuthInfo=socket={place}/munge\n");
        fs::write(dir.path().join("slurm.conf"), text)?;
        let file = |option: &str, name: &str| format!("--{option}={place}/{name}");
        let mut munged = administrator("munged");
        // Others could write above its files, in /dev/shm.
        munged.args(["--foreground", "--force", &file("key-file", "key"), &file("socket", "munge")]);
        munged.args([
            file("pid-file", "munged.pid"),
            file("log-file", "munged.log"),
            file("seed-file", "seed"),
        ]);
        let munged = Running::start(munged, "munged", &logs.join("munged.log"))?;
        let daemon = |name: &str| {
            let mut command = administrator(name);
            command.arg("-D").arg("-f").arg(dir.path().join("slurm.conf"));
            Running::start(command, name, &logs.join(format!("{name}.log")))
        };
        let mut slurm = Self { daemons: [daemon("slurmd")?, daemon("slurmctld")?, munged], dir };
        slurm.wait_until_idle()?;
        Ok(slurm)
    }

    /// A command of Slurm's for users.
    fn command(&self, program: &str) -> Command {
        let mut command = mortal(program);
        command.env("SLURM_CONF", self.dir.path().join("slurm.conf"));
        command
    }

    fn wait_until_idle(&mut self) -> Result<()> {
        let begin = Instant::now();
        loop {
            cleanup::check()?;
            let mut command = self.command("sinfo");
            let state = process::capture(command.args(["--noheader", "--format=%T"]));
            if state.as_ref().is_ok_and(|state| state.trim() == "idle") {
                return Ok(());
            }
            let texts = || self.daemons.iter().map(|daemon| last_lines(&daemon.text(), 5));
            if begin.elapsed() > START {
                bail!("Slurm has no idle node: {state:?}\n{}", texts().collect::<Vec<_>>().join("\n"));
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

/// A daemon, which Debian keeps where only root's PATH looks.
fn administrator(name: &str) -> Command {
    let mut command = mortal(name);
    command.env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()));
    command
}
