//! MPI jobs of processes on this host, with every file they make in a directory that goes away.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::base::process::{self, Finished, Running};
use crate::debian::chroot::Chroot;

/// Which byte transfer layer a job is told to use, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layer {
    /// Ours.
    Vmshm,
    /// Ours between guests, Open MPI's shared memory within each.
    VmshmAndVader,
    /// Ours between guests that share a region, TCP to others.
    VmshmAndTcp,
    /// Open MPI's shared memory within a guest, TCP between guests.
    VaderAndTcp,
    /// Ours under UCX between guests that share a region, TCP to others.
    UcxVmshmAndTcp,
    /// Ours under UCX between guests that share a region, SoftRoCE to others.
    UcxVmshmAndRdma,
    /// Open MPI's shared memory with a copy in and a copy out.
    VaderTwoCopies,
    /// Open MPI's shared memory, the receiver reading the sender's memory (cross memory attach).
    VaderCma,
    /// Ours under UCX.
    UcxVmshm,
    /// UCX's shared memory with a copy in and a copy out, instead of Open MPI's own message layer.
    UcxPosix,
    /// UCX's shared memory, the receiver reading the sender's memory.
    UcxCma,
    /// UCX over the loopback device.
    UcxTcp,
    /// TCP over the loopback device, or between guests over their network.
    Tcp,
}

impl Layer {
    /// A short name for tables and plots.
    pub const fn name(self) -> &'static str {
        match self {
            Layer::Vmshm => "vmshm",
            Layer::VmshmAndVader => "vmshm and vader",
            Layer::VmshmAndTcp => "vmshm and tcp",
            Layer::VaderAndTcp => "vader and tcp",
            Layer::UcxVmshmAndTcp => "ucx vmshm and tcp",
            Layer::UcxVmshmAndRdma => "ucx vmshm and rc_verbs",
            Layer::VaderTwoCopies => "vader 2-copy",
            Layer::VaderCma => "vader CMA",
            Layer::UcxVmshm => "ucx vmshm",
            Layer::UcxPosix => "ucx posix",
            Layer::UcxCma => "ucx posix+cma",
            Layer::UcxTcp => "ucx tcp",
            Layer::Tcp => "tcp",
        }
    }

    /// Whether jobs over it need what `vmshm env` prints.
    pub fn is_ours(self) -> bool {
        matches!(
            self,
            Layer::Vmshm
                | Layer::VmshmAndVader
                | Layer::VmshmAndTcp
                | Layer::UcxVmshmAndTcp
                | Layer::UcxVmshmAndRdma
        )
    }

    /// The setting by which UCX uses this layer and no other, if it is UCX's.
    pub fn ucx_setting(self) -> Option<&'static str> {
        Some(match self {
            Layer::UcxVmshm => "UCX_TLS=vmshm,self",
            Layer::UcxPosix => "UCX_TLS=posix,self",
            Layer::UcxCma => "UCX_TLS=posix,cma,self",
            Layer::UcxTcp => "UCX_TLS=tcp,self",
            Layer::UcxVmshmAndTcp => "UCX_TLS=vmshm,tcp,self",
            Layer::UcxVmshmAndRdma => "UCX_TLS=vmshm,rc_verbs,ud_verbs,self",
            _ => return None,
        })
    }

    /// Options by which mpirun uses this layer and no other.
    pub fn mpirun_args(self) -> Vec<&'static str> {
        if let Some(setting) = self.ucx_setting() {
            // Open MPI only takes UCX by itself where it finds a network card that it likes.
            let mut args = vec!["--mca", "pml", "ucx", "--mca", "pml_ucx_tls", "any"];
            args.extend(["--mca", "pml_ucx_devices", "any", "-x", setting]);
            if self == Layer::UcxVmshmAndRdma {
                args.extend(SOFT_ROCE);
            }
            return args;
        }
        let mut args = vec!["--mca", "pml", "ob1", "--mca", "btl"];
        match self {
            Layer::UcxVmshm
            | Layer::UcxVmshmAndTcp
            | Layer::UcxVmshmAndRdma
            | Layer::UcxPosix
            | Layer::UcxCma
            | Layer::UcxTcp => {}
            Layer::Vmshm => args.push("vmshm,self"),
            Layer::VmshmAndVader => args.push("vmshm,vader,self"),
            Layer::VmshmAndTcp => args.push("vmshm,tcp,self"),
            Layer::VaderAndTcp => args.push("vader,tcp,self"),
            Layer::Tcp => args.push("tcp,self"),
            Layer::VaderTwoCopies | Layer::VaderCma => {
                args.push("vader,self");
                args.extend(["--mca", "btl_vader_single_copy_mechanism"]);
                args.push(if self == Layer::VaderCma { "cma" } else { "none" });
            }
        }
        args
    }
}

/// Options of UCX over SoftRoCE. An address of IPv6: for one of IPv4, UCX believes a word of a Mellanox adapter's completions,
/// which SoftRoCE has not, and throws all datagrams away.
const SOFT_ROCE: [&str; 2] = ["-x", "UCX_IB_GID_INDEX=0"];

/// Lets mpirun run as root, which it must in a guest and in many containers.
pub const AS_ROOT: [(&str, &str); 2] =
    [("OMPI_ALLOW_RUN_AS_ROOT", "1"), ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")];

/// A root directory with an Open MPI of the series 5 or later, and what its programs see of this machine beside devices.
#[derive(Debug, Clone)]
pub struct Inside {
    /// The root directory.
    pub chroot: Chroot,
    seen: Vec<String>,
}

impl Inside {
    /// Its programs see these directories, by the names that they have here.
    ///
    /// # Errors
    /// A name is not UTF-8.
    pub fn new(chroot: Chroot, seen: &[&Path]) -> Result<Self> {
        let name = |dir: &&Path| Some(dir.to_str()?.to_owned());
        let seen: Option<Vec<String>> = seen.iter().map(name).collect();
        Ok(Self { chroot, seen: seen.context("the path of this checkout or of the cache is not UTF-8")? })
    }

    /// A command that runs a program there.
    pub fn command(&self, program: &str) -> Command {
        let seen: Vec<_> = self.seen.iter().map(|name| (Path::new(name), name.as_str())).collect();
        self.chroot.command(&seen, program)
    }
}

/// A place for MPI jobs on this host.
#[derive(Debug)]
pub struct HostMpi {
    scratch: TempDir,
    environment: Vec<(String, String)>,
    inside: Option<Inside>,
}

impl HostMpi {
    /// `environment` is added to that of every job, as from [`crate::lab::region::Region::environment`].
    pub fn new(environment: Vec<(String, String)>) -> Result<Self> {
        // Memory-backed, because vader's segments go here too.
        let scratch = tempfile::Builder::new()
            .prefix("vmshm-mpi-")
            .tempdir_in("/dev/shm")
            .context("cannot create a directory in /dev/shm")?;
        Ok(Self { scratch, environment, inside: None })
    }

    /// The same place, with jobs under the Open MPI of another root directory.
    pub fn inside(self, inside: Inside) -> Self {
        Self { inside: Some(inside), ..self }
    }

    /// Environment of the jobs besides the user's own.
    pub fn environment(&self) -> impl Iterator<Item = (&str, &str)> {
        self.environment.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Prepares `mpirun -np ranks` over a layer; the caller adds the program and its arguments.
    pub fn mpirun(&self, ranks: usize, layer: Layer) -> Command {
        let mut command = match &self.inside {
            Some(inside) => self.mpirun_inside(inside, ranks, layer),
            None => self.mpirun_here(ranks, layer),
        };
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        if ranks <= cores {
            command.args(["--bind-to", "core:if-supported"]);
        } else {
            command.args(["--bind-to", "none", "--mca", "mpi_yield_when_idle", "1"]);
        }
        command
    }

    fn mpirun_inside(&self, inside: &Inside, ranks: usize, layer: Layer) -> Command {
        let mut command = inside.command("env");
        for (name, value) in AS_ROOT {
            // Its launcher is a program of its own.
            command.args([format!("{name}={value}"), format!("{}={value}", name.replace("OMPI", "PRTE"))]);
        }
        command.args(self.environment().map(|(name, value)| format!("{name}={value}")));
        command.args(["mpirun", "-np", &ranks.to_string(), "--map-by", ":OVERSUBSCRIBE"]);
        command.args(["--mca", "btl_sm_backing_directory"]).arg(self.scratch.path());
        command.args(["--mca", "btl_tcp_if_include", "lo"]);
        // Its shared memory has another name, and single copies components of their own.
        command.args(layer.mpirun_args().into_iter().map(|argument| match argument {
            "btl_vader_single_copy_mechanism" => "smsc".to_owned(),
            "none" => "^cma".to_owned(),
            other => other.replace("vader", "sm"),
        }));
        command
    }

    fn mpirun_here(&self, ranks: usize, layer: Layer) -> Command {
        let mut command = process::mortal("mpirun");
        for (name, _) in std::env::vars() {
            // A user's own settings for other jobs have no place in a comparison.
            if name.starts_with("OMPI_MCA_") {
                command.env_remove(name);
            }
        }
        command
            .envs(AS_ROOT)
            .envs(self.environment())
            .env("TMPDIR", self.scratch.path())
            .args(["-np", &ranks.to_string(), "--oversubscribe"])
            .args(["--mca", "btl_vader_backing_directory"])
            .arg(self.scratch.path())
            .args(["--mca", "btl_tcp_if_include", "lo"])
            .args(layer.mpirun_args());
        command
    }

    /// Runs a prepared job to its end, whatever that is.
    pub fn run(&self, command: Command, what: &str, log: &Path, limit: Duration) -> Result<Finished> {
        Running::start(command, what, log)?.wait(limit)
    }
}
