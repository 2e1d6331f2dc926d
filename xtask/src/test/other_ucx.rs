//! The step that runs the UCX transport under the UCX of another Debian release than this machine's, in a root directory of that:
//! UCX's own program, and the message checker through Open MPI's pml/ucx and under MPICH.

use std::env::consts::ARCH;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::tally::{Count, Tally};
use super::ucx::{self, LIMIT, REGION, TESTS};
use super::{mpich, two_ucx};
use crate::base::process::{self, Running, last_lines};
use crate::base::workspace::Workspace;
use crate::debian::apt::Index;
use crate::debian::chroot::{Chroot, OPEN_MPI};
use crate::install::other_mpi::OtherMpi;
use crate::install::stage;
use crate::install::ucx::Ucx;
use crate::install::{self, build_tree};
use crate::lab::region::Region;
use crate::mpi::host_mpi::AS_ROOT;
use crate::mpi::mpich::{MPIRUN, mpirun};

/// The Debian release with UCX 1.18.
const SUITE: &str = "trixie";

/// Further tests of `ucx_perftest`: all that an interface announces, and what UCX makes of it.
const MORE: &[&[&str]] = &[
    &["-t", "am_bw", "-d", "lab", "-x", "vmshm", "-s", "64", "-D", "shortiov"],
    &["-t", "get_bw", "-d", "lab", "-x", "vmshm", "-s", "100000", "-D", "zcopy"],
    &["-t", "tag_sync_lat", "-s", "4096"],
    &["-t", "tag_bw", "-s", "300000", "-z"],
    &["-t", "stream_bw", "-s", "100000"],
    &["-t", "ucp_get", "-s", "100000"],
    &["-t", "ucp_put_bw", "-s", "4096"],
    &["-t", "ucp_fadd", "-s", "8"],
    &["-t", "tag_lat", "-s", "4096", "-e"],
];

/// Runs it; `stage` is the built tree, or why there is none.
pub fn steps(workspace: &Workspace, stage: &Result<PathBuf, String>, tally: &mut Tally) -> Result<()> {
    let there = |logs: &Path| {
        let stage = stage::built(stage)?;
        There::prepare(workspace, stage, logs)
    };
    tally.step("ucx118-check-3", |logs| {
        let there = there(logs)?;
        let tests = there.perftest(logs)?;
        let mut count = there.check(logs)?;
        count.passed += tests;
        count.note = format!("UCX {}, Open MPI {}: {}", there.ucx.series, there.mpi.release, count.note);
        Ok(count)
    })?;
    tally.step("ucx118-two", |logs| there(logs)?.two(logs))?;
    for ranks in [2, 3] {
        tally.step(&format!("ucx118-mpich-check-{ranks}"), |logs| {
            let there = there(logs)?;
            there.mpich(&mpich::checker(workspace, there.stage, logs)?, ranks, logs)
        })?;
    }
    Ok(())
}

/// Builds the transport for the UCX of that release, and puts it into the built tree.
pub fn transport(workspace: &Workspace, stage: &Path, logs: &Path) -> Result<(Chroot, OtherMpi, Ucx)> {
    let chroot = Chroot::ensure(workspace, Index::shared(workspace, SUITE, logs)?, &OPEN_MPI, logs)?;
    let mpi = OtherMpi::at(&chroot.root().join(format!("usr/lib/{ARCH}-linux-gnu/openmpi")))?;
    let ucx = Ucx::in_root(chroot.root(), workspace.target.join(format!("ucx-{SUITE}")))?;
    let built = build_tree::transport_beside(workspace, &mpi, &ucx, logs)?;
    install::transport(&built, stage, &ucx)?;
    Ok((chroot, mpi, ucx))
}

/// The other Debian, with what we have built for it.
struct There<'a> {
    chroot: Chroot,
    mpi: OtherMpi,
    ucx: Ucx,
    stage: &'a Path,
    built: PathBuf,
    region: Region,
}

impl<'a> There<'a> {
    fn prepare(workspace: &Workspace, stage: &'a Path, logs: &Path) -> Result<Self> {
        let (chroot, mpi, ucx) = transport(workspace, stage, logs)?;
        let built = build_tree::for_other(workspace, &mpi, chroot.root(), build_tree::CHECKERS, logs)?;
        install::plugin(&built, stage, &mpi.plugin_folder())?;
        let region = Region::create(stage, REGION, 2, true)?;
        Ok(Self { chroot, mpi, ucx, stage, built, region })
    }

    /// A program there, which sees what lies at `logs` and what `vmshm env` sets with these further arguments.
    fn program(&self, logs: &Path, arguments: &[&str], name: &str) -> Result<Command> {
        let mut command = self.bare(logs, "env")?;
        let environment = self.environment(arguments)?;
        command.args(environment.iter().map(|(name, value)| format!("{name}={value}"))).arg(name);
        Ok(command)
    }

    /// What `vmshm env` sets.
    fn environment(&self, arguments: &[&str]) -> Result<Vec<(String, String)>> {
        self.region.environment_with(&[&["--mpi", &self.mpi.release], arguments].concat())
    }

    /// A program there, which sees what lies at `logs`.
    fn bare(&self, logs: &Path, name: &str) -> Result<Command> {
        let mut places = Vec::new();
        for path in [self.stage, &self.built, logs] {
            places.push((path, path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))?));
        }
        Ok(self.chroot.command(&places, name))
    }

    /// `ucx_perftest` of each kind of message, all by one pair of processes. It does not look at the data: the checker does.
    fn perftest(&self, logs: &Path) -> Result<usize> {
        let all: Vec<_> = TESTS.iter().chain(MORE).filter(|test| !test.contains(&"-T")).collect();
        let lines = all.iter().enumerate().map(|(number, test)| format!("{number} {}\n", test.join(" ")));
        fs::create_dir_all(logs)?;
        let batch = logs.join("batch");
        fs::write(&batch, lines.collect::<String>())?;
        let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port().to_string();
        let start = |section: &str, side: &str, host: Option<&str>| {
            let mut command = self.program(logs, &["--ucx", &self.ucx.series], "stdbuf")?;
            // Lines at once: the server's say when it can be reached.
            command.args([
                "-oL",
                "env",
                "UCX_TLS=vmshm,self",
                &format!("VMSHM_SECTION={section}"),
                "ucx_perftest",
            ]);
            // Debian has built it for MPI, too.
            command
                .args(host)
                .args(["-P", "0", "-p", &port, "-n", "1000", "-w", "100", "-f", "-b"])
                .arg(&batch);
            Running::start(command, "ucx_perftest", &logs.join(format!("perftest-{side}.log")))
        };
        let mut server = start("0", "server", None)?;
        ucx::wait_for(&mut server, "Waiting for connection")?;
        let client = start("1", "client", Some("127.0.0.1"))?.wait(LIMIT)?.expect_success("ucx_perftest")?;
        server.wait(LIMIT)?.expect_success("ucx_perftest")?;
        // Of each test a line with its number, and what was measured.
        let is_result = |line: &&str| line.trim_start().starts_with(|c: char| c.is_ascii_digit());
        let done = client.text.lines().filter(is_result).count();
        if done != all.len() || client.text.contains(" ERROR ") || client.text.contains(" WARN ") {
            bail!("of {} tests {done} have ended:\n{}", all.len(), last_lines(&client.text, 10));
        }
        Ok(done)
    }

    /// The message checker over pml/ucx, by three processes, for which nothing is preloaded.
    fn check(&self, logs: &Path) -> Result<Count> {
        ucx::compare(|name, transports| {
            let mut command = self.program(logs, &[], "env")?;
            command.args(AS_ROOT.map(|(name, value)| format!("{name}={value}")));
            command.args(AS_ROOT.map(|(name, value)| format!("{}={value}", name.replace("OMPI", "PRTE"))));
            command.args(["mpirun", "-np", "3", "--map-by", ":OVERSUBSCRIBE", "--bind-to", "none"]);
            command.args(["--mca", "pml", "ucx", "--mca", "opal_common_ucx_tls", "any"]);
            command.args(["--mca", "opal_common_ucx_devices", "any", "--mca", "mpi_yield_when_idle", "1"]);
            command.arg("env").arg(transports).arg(self.built.join("vmshm-mpi-check")).args(ucx::arguments());
            Running::start(command, "vmshm-mpi-check", &logs.join(format!("{name}.log")))?.wait(LIMIT)
        })
    }
    /// The UCX there and this machine's in one process.
    fn two(&self, logs: &Path) -> Result<Count> {
        let own = Ucx::found()?;
        let (program, copy) = (two_ucx::program(&own, logs)?, two_ucx::copy(&own, logs)?);
        let mut command = self.program(logs, &[], "env")?;
        command.arg("UCX_TLS=vmshm").arg(program);
        command.arg(format!("/usr/lib/{ARCH}-linux-gnu")).arg(self.stage.join(self.ucx.transport()));
        command.arg(copy).arg(self.stage.join(own.transport()));
        two_ucx::verdict(&process::run(command, "two", &logs.join("two.log"), LIMIT)?.text)?;
        Ok(Count::one())
    }

    /// The message checker under MPICH.
    fn mpich(&self, checker: &Path, ranks: usize, logs: &Path) -> Result<Count> {
        fs::create_dir_all(logs)?;
        mpich::check(ranks, logs, |name| {
            let environment = match name {
                "vmshm" => self.environment(&["--ucx", &self.ucx.series])?,
                _ => Vec::new(),
            };
            let mut command = mpirun(self.bare(logs, MPIRUN)?, ranks, &format!("{name},self"), &environment);
            command.arg(checker);
            Ok(command)
        })
    }
}
