//! A Debian root directory with the tools that Debian's kernels are built with, and a way to run them there.

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

/// Packages that build a kernel and a module in Rust; each by itself changes the kernel's configuration if missing.
const PACKAGES: &[&str] = &[
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
];

const LEFT_OUT: &[&str] = &["/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*"];
const LIMIT: Duration = Duration::from_secs(1200);

/// The root directory; nothing in it is changed once it is made.
#[derive(Debug, Clone)]
pub struct Chroot {
    root: PathBuf,
    /// A name for the tools and their versions.
    pub key: String,
}

impl Chroot {
    /// Returns the root directory with the newest tools of the index, making it first if the cache has none.
    pub fn ensure(workspace: &Workspace, index: &Index, log_dir: &Path) -> Result<Self> {
        let tools = index.candidates(PACKAGES)?;
        let key = cache::key(tools.iter().map(String::as_str).chain(LEFT_OUT.iter().copied()));
        let dir = cache::ensure(
            &workspace.cache,
            &format!("kernel-tools-{}-{key}", index.suite),
            &["root/usr/bin/rustc", "root/usr/bin/bindgen", "root/usr/bin/make"],
            &format!("tools of Debian {} for its kernels", index.suite),
            |dir, bar| {
                let mut command = packages::as_root("mmdebstrap");
                command
                    .args(["--variant=apt", "--dpkgopt=force-unsafe-io"])
                    .arg(format!("--include={}", PACKAGES.join(",")))
                    .args(LEFT_OUT.iter().map(|p| format!("--dpkgopt=path-exclude={p}")))
                    .arg("--aptopt=Acquire::Languages \"none\"")
                    .args(apt::settings().iter().map(|setting| format!("--aptopt={setting}")))
                    .arg(index.suite)
                    .arg(dir.join("root"))
                    .args(&index.sources);
                process::run_shown(command, "mmdebstrap", &log_dir.join("kernel-tools.log"), LIMIT, bar)?;
                Ok(())
            },
        )?;
        Ok(Self { root: dir.join("root"), key })
    }

    /// A command that runs in the chroot and sees `mounts`: a directory of this machine, and its place there.
    ///
    /// It runs as the user of this program, so that what it makes belongs to that user; only its start needs root.
    pub fn command(&self, mounts: &[(&Path, &str)], program: &str) -> Command {
        let mut command = packages::as_root("unshare");
        command.args(["--mount", "sh", "-c", ENTER, "enter"]).arg(&self.root);
        command.arg(format!("{}:{}", nix::unistd::getuid(), nix::unistd::getgid()));
        for (from, to) in mounts {
            command.arg(from).arg(to);
        }
        command.args(["--", program]);
        command
    }
}
