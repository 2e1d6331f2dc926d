//! Debian's own kernel of the series that the driver is for, ready to boot guests with.

pub mod kmod;
mod release;
mod tree;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;

use crate::base::process;
use crate::base::workspace::Workspace;
use crate::debian::apt::Index;
use crate::debian::cache;
use crate::debian::chroot::{Chroot, KERNEL_TOOLS};
use crate::lab::image::{INITRAMFS_INIT, Image};
use release::{KernelRelease, SUITE};

const INITRAMFS: &str = include_str!("../../kernel/initramfs.sh");
const LIMIT: Duration = Duration::from_secs(900);

/// An unmodified kernel, and what it needs to get to the root file system.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// Release, as `uname -r` says it.
    pub release: String,
    /// The kernel itself.
    pub vmlinuz: PathBuf,
    /// An initramfs that loads the drivers of the guest image's drives and goes over to it.
    pub initramfs: PathBuf,
}

impl Kernel {
    /// A root file system, booted by this kernel.
    pub fn under(&self, root: &Path) -> Image {
        Image { kernel: self.vmlinuz.clone(), initramfs: self.initramfs.clone(), root: root.to_owned() }
    }
}

/// Returns the kernel that the test guests run the driver on, fetching it first if the cache does not have it.
pub fn stock(workspace: &Workspace, log_dir: &Path) -> Result<Kernel> {
    let index = Index::shared(workspace, SUITE, log_dir)?;
    let release = KernelRelease::stock(index)?;
    let chroot = Chroot::ensure(workspace, index, &KERNEL_TOOLS, log_dir)?;
    let name = release.name();
    let wanted = release.boot_packages();
    let key =
        cache::key([INITRAMFS, INITRAMFS_INIT, &chroot.key, &release.version, wanted.join(" ").as_str()]);
    let dir = cache::ensure(
        &workspace.cache,
        &format!("kernel-boot-{name}-{key}"),
        &["vmlinuz", "initramfs"],
        &format!("Linux {name} for guests"),
        |dir, bar| {
            bar.set_message("download");
            index.unpack(
                &wanted,
                &release.version,
                dir,
                &log_dir.join(format!("download-boot-{name}.log")),
            )?;
            fs::write(dir.join("initramfs-init"), INITRAMFS_INIT)?;
            let mut command = chroot.command(&[(dir, "/kernel")], "sh");
            command.args(["-c", INITRAMFS, "initramfs", &name]);
            let log = log_dir.join(format!("initramfs-{name}.log"));
            process::run_shown(command, "making the initramfs", &log, LIMIT, bar)?;
            Ok(())
        },
    )?;
    Ok(Kernel { vmlinuz: dir.join("vmlinuz"), initramfs: dir.join("initramfs"), release: name })
}
