//! The guests' kernel, initramfs and file system: made by mmdebstrap, kept under a hash of the recipe.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;

use crate::base::process;
use crate::base::workspace::Workspace;
use crate::debian::apt;
use crate::debian::cache;
use crate::debian::packages;

const RECIPE: &str = include_str!("../../guest/recipe.sh");
const INIT: &str = include_str!("../../guest/init");
/// The first program of a guest.
pub const INITRAMFS_INIT: &str = include_str!("../../guest/initramfs-init");

/// Debian packages inside the guests, besides the essential ones.
const PACKAGES: &[&str] = &[
    "busybox-static",
    "hpcc",
    "iproute2",
    "iputils-ping",
    "kmod",
    "mount",
    "mpich",
    "netpipe-openmpi",
    "numactl",
    "openmpi-bin",
    "openssh-client",
    "openssh-server",
    "pciutils",
    "procps",
    "udev",
];

/// Files that no guest needs; leaving them out makes the image smaller.
const LEFT_OUT: &[&str] =
    &["/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*"];

const FILES: &[&str] = &["vmlinuz", "initramfs", "root.ext4"];
const LIMIT: Duration = Duration::from_secs(900);

/// A complete image on disk. Guests never write to it.
#[derive(Debug, Clone)]
pub struct Image {
    /// The Linux kernel.
    pub kernel: PathBuf,
    /// The initramfs, which loads the drivers of the root drive.
    pub initramfs: PathBuf,
    /// The root file system, ext4.
    pub root: PathBuf,
}

impl Image {
    fn at(dir: &Path) -> Self {
        Self { kernel: dir.join("vmlinuz"), initramfs: dir.join("initramfs"), root: dir.join("root.ext4") }
    }
}

/// Returns the image for this recipe, making it first if the cache has none.
pub fn ensure(workspace: &Workspace, log_dir: &Path) -> Result<Image> {
    // The guests run what this machine runs, so that programs built here fit.
    let suite = apt::suite()?;
    let key = key(&suite);
    let dir = cache::ensure(
        &workspace.cache,
        &format!("image-{suite}-{key}"),
        FILES,
        &format!("guest image {key} ({suite})"),
        |dir, bar| make(&suite, dir, log_dir, bar),
    )?;
    Ok(Image::at(&dir))
}

fn key(suite: &str) -> String {
    let recipe = [RECIPE, INIT, INITRAMFS_INIT, suite, std::env::consts::ARCH];
    cache::key(recipe.iter().chain(PACKAGES).chain(LEFT_OUT).copied())
}

fn make(suite: &str, work: &Path, log_dir: &Path, bar: &indicatif::ProgressBar) -> Result<()> {
    let sources = apt::sources(suite, log_dir)?;
    let parts = work.join("parts");
    fs::create_dir(&parts)?;
    for (name, text) in [("recipe.sh", RECIPE), ("init", INIT), ("initramfs-init", INITRAMFS_INIT)] {
        fs::File::create(parts.join(name))?.write_all(text.as_bytes())?;
    }
    // Root, because the files of the image belong to root and other users.
    let mut command = packages::as_root("mmdebstrap");
    command
        .args(["--variant=apt", "--format=null"])
        .arg(format!("--include={}", PACKAGES.join(",")))
        .arg("--dpkgopt=force-unsafe-io")
        .args(LEFT_OUT.iter().map(|p| format!("--dpkgopt=path-exclude={p}")))
        .args(apt::settings().iter().map(|setting| format!("--aptopt={setting}")))
        .arg(format!("--customize-hook=sh '{0}/parts/recipe.sh' \"$1\" '{0}/parts' '{0}'", work.display()))
        .args([suite, "-"])
        .args(sources);
    command.env("TMPDIR", std::env::temp_dir());
    process::run_shown(command, "mmdebstrap", &log_dir.join("image.log"), LIMIT, bar)?;
    fs::remove_dir_all(&parts)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_depends_on_the_release() {
        assert_ne!(key("bookworm"), key("trixie"));
        assert_eq!(key("bookworm"), key("bookworm"));
        assert_eq!(key("bookworm").len(), 12);
    }
}
