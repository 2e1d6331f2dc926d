//! A Debian root directory with packages of another release than this machine's, and a way to run programs there.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use super::apt::{self, Index};
use super::cache;
use super::packages;
use crate::base::process;
use crate::base::workspace::Workspace;

const ENTER: &str = include_str!("../../kernel/enter.sh");

/// Purpose of a root directory.
#[derive(Debug)]
pub struct Purpose {
    /// Begins the name of the entry in the cache.
    name: &'static str,
    /// Heading that the user reads while it is made.
    heading: &'static str,
    packages: &'static [&'static str],
    /// Files that it must have.
    files: &'static [&'static str],
}

/// Builds a kernel and a module in Rust; each package by itself changes the kernel's configuration if missing.
pub const KERNEL_TOOLS: Purpose = Purpose {
    name: "kernel-tools",
    heading: "tools for its kernels",
    packages: &[
        "bc",
        "bindgen",
        "bison",
        "busybox-static",
        "flex",
        "gcc",
        "gcc-14",
        "kmod",
        "libclang1-19",
        "libdw-dev",
        "libelf-dev",
        "libssl-dev",
        "make",
        "openssl",
        "pahole",
        "python3-minimal",
        "rust-clippy",
        "rust-src",
        "rustc",
        "rustfmt",
        "xz-utils",
        "zlib1g-dev",
    ],
    files: &["root/usr/bin/rustc", "root/usr/bin/bindgen", "root/usr/bin/make"],
};

/// Builds for its Open MPI and UCX, from this machine, and runs them, MPICH and mpi4py.
pub const OPEN_MPI: Purpose = Purpose {
    name: "openmpi",
    heading: "its Open MPI and MPICH",
    packages: &[
        "libopenmpi-dev",
        "libpmix-dev",
        "libucx-dev",
        "mpich",
        "openmpi-bin",
        "python3-mpi4py",
        "ucx-utils",
    ],
    files: &["root/usr/bin/mpirun.openmpi", "root/usr/bin/ucx_perftest"],
};

const LEFT_OUT: &[&str] = &["/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*"];
const LIMIT: Duration = Duration::from_secs(1200);

/// The root directory; nothing in it is changed once it is made.
#[derive(Debug, Clone)]
pub struct Chroot {
    root: PathBuf,
    /// A name for the packages and their versions.
    pub key: String,
}

impl Chroot {
    /// Returns the root directory with the newest packages of the index, making it first if the cache has none.
    pub fn ensure(workspace: &Workspace, index: &Index, purpose: &Purpose, log_dir: &Path) -> Result<Self> {
        let Purpose { name, heading, packages, files } = *purpose;
        let versions = index.candidates(packages)?;
        let key = cache::key(versions.iter().map(String::as_str).chain(LEFT_OUT.iter().copied()));
        let dir = cache::ensure(
            &workspace.cache,
            &format!("{name}-{}-{key}", index.suite),
            files,
            &format!("Debian {} with {heading}", index.suite),
            |dir, bar| {
                let mut command = packages::as_root("mmdebstrap");
                command
                    .args(["--variant=apt", "--dpkgopt=force-unsafe-io"])
                    .arg(format!("--include={}", packages.join(",")))
                    .args(LEFT_OUT.iter().map(|p| format!("--dpkgopt=path-exclude={p}")))
                    .arg("--aptopt=Acquire::Languages \"none\"")
                    .args(apt::settings().iter().map(|setting| format!("--aptopt={setting}")))
                    .arg(index.suite)
                    .arg(dir.join("root"))
                    .args(&index.sources);
                process::run_shown(command, "mmdebstrap", &log_dir.join(format!("{name}.log")), LIMIT, bar)?;
                Ok(())
            },
        )?;
        Ok(Self { root: dir.join("root"), key })
    }

    /// The root directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A command that runs in the chroot and sees `mounts`: a directory of this machine, and its place there.
    ///
    /// It runs as the user of this program, so that what it makes belongs to that user; only its start needs root.
    pub fn command(&self, mounts: &[(&Path, &str)], program: &str) -> Command {
        let mut command = packages::as_root("unshare");
        command.args(["--mount", "--uts", "sh", "-c", ENTER, "enter"]).arg(&self.root);
        command.arg(format!("{}:{}", nix::unistd::getuid(), nix::unistd::getgid()));
        for (from, to) in mounts {
            command.arg(from).arg(to);
        }
        command.args(["--", program]);
        command
    }
}
