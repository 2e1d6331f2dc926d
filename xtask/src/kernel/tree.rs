//! The build tree of one of Debian's kernels, with the metadata that modules in Rust need.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::Result;

use super::release::KernelRelease;
use crate::base::process;
use crate::base::workspace::Workspace;
use crate::debian::apt::Index;
use crate::debian::cache;
use crate::debian::chroot::Chroot;

const METADATA: &str = include_str!("../../kernel/metadata.sh");
const LIMIT: Duration = Duration::from_secs(3600);

/// A build tree, and the tools for it.
#[derive(Debug)]
pub struct KernelTree {
    chroot: Chroot,
    dir: PathBuf,
    release: KernelRelease,
}

impl KernelTree {
    /// Returns the build tree of `release`, making it first if the cache has none.
    ///
    /// Debian's headers lack the metadata of the kernel's Rust crates. It is made again from the same source with
    /// the same tools; that they are the same is seen from the kernel's configuration and its Rust symbols.
    pub fn ensure(
        workspace: &Workspace,
        index: &Index,
        chroot: &Chroot,
        release: &KernelRelease,
        log_dir: &Path,
    ) -> Result<Self> {
        let name = release.name();
        let key = cache::key([METADATA, &chroot.key, &release.version]);
        let headers = format!("usr/src/linux-headers-{name}");
        let dir = cache::ensure(
            &workspace.cache,
            &format!("kernel-tree-{name}-{key}"),
            &[
                &format!("{headers}/Module.symvers"),
                &format!("{headers}/rust/libkernel.rmeta"),
                &format!("{headers}/scripts/target.json"),
            ],
            &format!("build tree of Linux {name} with Rust metadata"),
            |dir, bar| {
                bar.set_message("download");
                let wanted = release.tree_packages();
                index.unpack(
                    &wanted,
                    &release.version,
                    dir,
                    &log_dir.join(format!("download-{name}.log")),
                )?;
                let mut command = chroot.command(&[(dir, "/kernel")], "sh");
                let jobs = thread::available_parallelism().map_or(1, usize::from);
                command.args(["-c", METADATA, "metadata", &name, &jobs.to_string()]);
                let log = log_dir.join(format!("metadata-{name}.log"));
                process::run_shown(command, "making the Rust metadata", &log, LIMIT, bar)?;
                Ok(())
            },
        )?;
        Ok(Self { chroot: chroot.clone(), dir, release: release.clone() })
    }

    /// The directory that has the kernel's `.rustfmt.toml`, as [`KernelTree::command`] sees it.
    pub fn common(&self) -> String {
        format!("/usr/src/linux-headers-{}-common", self.release.stem)
    }

    /// A command in the chroot that sees the build tree at its place and further directories at theirs.
    pub fn command(&self, mounts: &[(&Path, &str)], program: &str) -> Command {
        let places = [
            format!("/usr/src/linux-headers-{}", self.release.name()),
            self.common(),
            format!("/usr/lib/linux-kbuild-{}", self.release.stem),
        ];
        let dirs = places.each_ref().map(|place| self.dir.join(place.trim_start_matches('/')));
        let mut all: Vec<(&Path, &str)> =
            dirs.iter().zip(&places).map(|(dir, place)| (dir.as_path(), place.as_str())).collect();
        all.extend(mounts);
        self.chroot.command(&all, program)
    }

    /// The kernel's own make for a module below the directory that `mounts` has as `/source`, results in `/out`.
    pub fn make(&self, mounts: &[(&Path, &str)], module: &str) -> Command {
        let mut command = self.command(mounts, "make");
        command
            .arg("-C")
            .arg(format!("/usr/src/linux-headers-{}", self.release.name()))
            .arg(format!("M=/source/{module}"))
            .arg("MO=/out");
        command
    }
}
