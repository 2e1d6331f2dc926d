//! The guests' kernel, initramfs and file system: made by mmdebstrap, kept under a hash of the recipe.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;

use crate::base::process;
use crate::base::workspace::Workspace;
use crate::debian::apt::{self, Index};
use crate::debian::cache;
use crate::debian::packages;

const KERNEL: &str = include_str!("../../guest/kernel.sh");
const ROOT: &str = include_str!("../../guest/root.sh");
const INIT: &str = include_str!("../../guest/init");
/// The first program of a guest.
pub const INITRAMFS_INIT: &str = include_str!("../../guest/initramfs-init");

/// Debian packages inside all guests, besides the essential ones.
const SYSTEM: &[&str] = &[
    "busybox-static",
    "iproute2",
    "iputils-ping",
    "kmod",
    "mount",
    "numactl",
    "openmpi-bin",
    "openssh-client",
    "openssh-server",
    "pciutils",
    "procps",
    "udev",
];
/// Those that guests with this machine's release have besides.
const PROGRAMS: &[&str] = &["hpcc", "ibverbs-providers", "mpich", "netpipe-openmpi", "python3"];

/// Files that no guest needs; leaving them out makes the image smaller.
const LEFT_OUT: &[&str] =
    &["/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*"];

const DRIVE: &str = "root.ext4";
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

/// Returns the image for this recipe, making it first if the cache has none.
pub fn ensure(workspace: &Workspace, log_dir: &Path) -> Result<Image> {
    // The guests run what this machine runs, so that programs built here fit.
    let suite = apt::suite()?;
    let contents =
        Contents { suite: &suite, packages: [SYSTEM, PROGRAMS].concat(), versions: Vec::new(), kernel: true };
    let dir = contents
        .ensure(workspace, &["vmlinuz", "initramfs", DRIVE], log_dir, || apt::sources(&suite, log_dir))?;
    let file = |name| dir.join(name);
    Ok(Image { kernel: file("vmlinuz"), initramfs: file("initramfs"), root: file(DRIVE) })
}

/// Returns the root file system of an image with the release that the index is of, with further `packages`, making it first if the
/// cache has none in these versions.
pub fn root_of(workspace: &Workspace, index: &Index, packages: &[&str], log_dir: &Path) -> Result<PathBuf> {
    let packages = [SYSTEM, packages].concat();
    let versions = index.candidates(&packages)?;
    let contents = Contents { suite: index.suite, packages, versions, kernel: false };
    let dir = contents.ensure(workspace, &[DRIVE], log_dir, || Ok(index.sources.clone()))?;
    Ok(dir.join(DRIVE))
}

/// What an image has.
struct Contents<'a> {
    suite: &'a str,
    packages: Vec<&'a str>,
    /// The packages' versions, where a new one makes another image.
    versions: Vec<String>,
    /// Whether with the release's own kernel.
    kernel: bool,
}

impl Contents<'_> {
    fn ensure(
        &self,
        workspace: &Workspace,
        files: &[&str],
        log_dir: &Path,
        sources: impl FnOnce() -> Result<Vec<String>>,
    ) -> Result<PathBuf> {
        let (suite, key) = (self.suite, self.key());
        cache::ensure(
            &workspace.cache,
            &format!("image-{suite}-{key}"),
            files,
            &format!("guest image {key} ({suite})"),
            |dir, bar| self.make(&sources()?, dir, log_dir, bar),
        )
    }

    fn key(&self) -> String {
        let kernel = if self.kernel { KERNEL } else { "" };
        let recipe = [kernel, ROOT, INIT, INITRAMFS_INIT, self.suite, std::env::consts::ARCH];
        let versions = self.versions.iter().map(String::as_str);
        cache::key(recipe.iter().chain(&self.packages).chain(LEFT_OUT).copied().chain(versions))
    }

    fn make(
        &self,
        sources: &[String],
        work: &Path,
        log_dir: &Path,
        bar: &indicatif::ProgressBar,
    ) -> Result<()> {
        let parts = work.join("parts");
        fs::create_dir(&parts)?;
        let scripts = if self.kernel { &["kernel.sh", "root.sh"][..] } else { &["root.sh"] };
        for (name, text) in
            [("kernel.sh", KERNEL), ("root.sh", ROOT), ("init", INIT), ("initramfs-init", INITRAMFS_INIT)]
        {
            fs::write(parts.join(name), text)?;
        }
        // Root, because the files of the image belong to root and other users.
        let mut command = packages::as_root("mmdebstrap");
        command
            .args(["--variant=apt", "--format=null"])
            .arg(format!("--include={}", self.packages.join(",")))
            .arg("--dpkgopt=force-unsafe-io")
            .args(LEFT_OUT.iter().map(|p| format!("--dpkgopt=path-exclude={p}")))
            .args(apt::settings().iter().map(|setting| format!("--aptopt={setting}")))
            .args(scripts.iter().map(|script| {
                format!("--customize-hook=sh '{0}/parts/{script}' \"$1\" '{0}/parts' '{0}'", work.display())
            }))
            .args([self.suite, "-"])
            .args(sources);
        command.env("TMPDIR", std::env::temp_dir());
        let log = log_dir.join(format!("image-{}.log", self.suite));
        process::run_shown(command, "mmdebstrap", &log, LIMIT, bar)?;
        fs::remove_dir_all(&parts)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_depends_on_the_release_and_on_versions() {
        let key = |suite, versions: &[&str]| {
            let versions = versions.iter().map(|&version| version.to_owned()).collect();
            Contents { suite, packages: SYSTEM.to_vec(), versions, kernel: true }.key()
        };
        assert_ne!(key("bookworm", &[]), key("trixie", &[]));
        assert_ne!(key("trixie", &["a=1"]), key("trixie", &["a=2"]));
        assert_eq!(key("bookworm", &[]), key("bookworm", &[]));
        assert_eq!(key("bookworm", &[]).len(), 12);
    }
}
