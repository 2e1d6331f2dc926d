//! The guests' kernel, initramfs and file system: made by mmdebstrap, kept under a hash of the recipe.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::packages;
use crate::process::{self, Running};
use crate::progress;
use crate::workspace::Workspace;

const RECIPE: &str = include_str!("../guest/recipe.sh");
const INIT: &str = include_str!("../guest/init");
const INITRAMFS_INIT: &str = include_str!("../guest/initramfs-init");

/// Debian packages inside the guests, besides the essential ones.
const PACKAGES: &[&str] = &[
    "busybox-static",
    "hpcc",
    "iproute2",
    "iputils-ping",
    "kmod",
    "mount",
    "netpipe-openmpi",
    "numactl",
    "openmpi-bin",
    "openssh-client",
    "openssh-server",
    "pciutils",
    "procps",
];

/// What no guest needs; leaving it out makes the image smaller.
const LEFT_OUT: &[&str] =
    &["/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*"];

const MANIFEST: &str = "manifest.json";
const LIMIT: Duration = Duration::from_secs(900);
const UNUSED_DAYS: u64 = 30;

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

/// What was stored, so that a damaged image is noticed.
#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    suite: String,
    packages: Vec<String>,
    /// Bytes of each file.
    files: Vec<(String, u64)>,
}

impl Image {
    fn at(dir: &Path) -> Self {
        Self { kernel: dir.join("vmlinuz"), initramfs: dir.join("initramfs"), root: dir.join("root.ext4") }
    }

    fn files(&self) -> [&Path; 3] {
        [&self.kernel, &self.initramfs, &self.root]
    }
}

/// Returns the image for this recipe, making it first if the cache has none.
pub fn ensure(workspace: &Workspace, log_dir: &Path) -> Result<Image> {
    let suite = suite()?;
    let key = key(&suite);
    let dir = workspace.cache.join(format!("image-{suite}-{key}"));
    if is_complete(&dir) {
        // The time of use; images that nobody used for long are removed below.
        let _ = fs::write(dir.join("used"), "");
        return Ok(Image::at(&dir));
    }
    fs::create_dir_all(&workspace.cache)
        .with_context(|| format!("cannot create {}", workspace.cache.display()))?;
    remove_unused(&workspace.cache);
    let work = tempfile::Builder::new()
        .prefix("making-")
        .tempdir_in(&workspace.cache)
        .with_context(|| format!("cannot write to {}", workspace.cache.display()))?;
    progress::during(
        &format!("guest image {key} ({suite}), once, kept in {}", workspace.cache.display()),
        |bar| make(&suite, work.path(), log_dir, bar),
    )?;
    let made = work.keep();
    if dir.exists() {
        // Damaged, or another run was faster; a running guest keeps its open files.
        let _ = fs::remove_dir_all(&dir);
    }
    fs::rename(&made, &dir).with_context(|| format!("cannot move the image to {}", dir.display()))?;
    Ok(Image::at(&dir))
}

/// Debian's name of the release that this machine runs; the guests run the same, so that built programs fit.
fn suite() -> Result<String> {
    let text = fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
    let value = |key: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
            .map(|value| value.trim_matches('"').to_owned())
    };
    match (value("ID").as_deref(), value("VERSION_CODENAME")) {
        (Some("debian"), Some(suite)) => Ok(suite),
        (id, _) => bail!(
            "the guest image is made from the packages of the running Debian, but this machine runs {:?}; \
             use Debian 12 or later",
            id.unwrap_or("an unknown system")
        ),
    }
}

fn key(suite: &str) -> String {
    let mut hash = Sha256::new();
    for part in
        [RECIPE, INIT, INITRAMFS_INIT, suite, std::env::consts::ARCH].iter().chain(PACKAGES).chain(LEFT_OUT)
    {
        // The length keeps neighbouring parts apart.
        hash.update(part.len().to_le_bytes());
        hash.update(part);
    }
    hash.finalize()[..6].iter().map(|byte| format!("{byte:02x}")).collect()
}

fn is_complete(dir: &Path) -> bool {
    let Ok(text) = fs::read_to_string(dir.join(MANIFEST)) else {
        return false;
    };
    serde_json::from_str::<Manifest>(&text).is_ok_and(|manifest| {
        manifest.files.iter().all(|(name, size)| fs::metadata(dir.join(name)).is_ok_and(|m| m.len() == *size))
    })
}

/// The package sources of this machine that belong to its Debian release, as lines for mmdebstrap.
fn sources(suite: &str) -> Result<Vec<String>> {
    let text = process::capture(std::process::Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(ORIGIN)|$(CODENAME)|$(REPO_URI)|$(COMPONENT)",
        "Created-By: Packages",
    ]))?;
    let mut lines: Vec<String> = text
        .lines()
        .filter_map(|line| {
            let mut parts = line.split('|');
            let (origin, codename) = (parts.next()?, parts.next()?);
            let (address, component) = (parts.next()?, parts.next()?);
            let ours = codename == suite
                || codename == format!("{suite}-updates")
                || codename == format!("{suite}-security");
            (origin == "Debian" && ours).then(|| format!("deb {address} {codename} {component}"))
        })
        .collect();
    lines.sort();
    lines.dedup();
    if lines.is_empty() {
        bail!(
            "apt on this machine knows no Debian source for {suite}; run 'apt-get update' as root and look at \
             /etc/apt/sources.list.d"
        );
    }
    Ok(lines)
}

/// How this machine's apt reaches and trusts its sources, for the apt that fills the image.
fn apt_settings() -> Vec<String> {
    const WANTED: [&str; 4] = ["::proxy", "::https::", "::check-valid-until", "::check-date"];
    process::capture(std::process::Command::new("apt-config").args(["dump", "Acquire"]))
        .unwrap_or_default()
        .lines()
        .filter(|line| {
            let line = line.to_lowercase();
            WANTED.iter().any(|key| line.contains(key)) && !line.ends_with("\"\";")
        })
        .map(|line| format!("--aptopt={}", line.trim_end_matches(';')))
        .collect()
}

fn make(suite: &str, work: &Path, log_dir: &Path, bar: &indicatif::ProgressBar) -> Result<()> {
    if !sources(suite).is_ok_and(|found| !found.is_empty()) {
        let mut update = packages::as_root("apt-get");
        update.args(["--quiet", "update"]);
        process::run(update, "apt-get update", &log_dir.join("apt-update.log"), LIMIT)?;
    }
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
        .args(apt_settings())
        .arg(format!("--customize-hook=sh '{0}/parts/recipe.sh' \"$1\" '{0}/parts' '{0}'", work.display()))
        .args([suite, "-"])
        .args(sources(suite)?);
    command.env("TMPDIR", std::env::temp_dir());
    let mut running = Running::start(command, "mmdebstrap", &log_dir.join("image.log"))?;
    while running.poll()?.is_none() {
        crate::cleanup::check()?;
        if let Some(line) = running.text().lines().last() {
            bar.set_message(line.chars().take(60).collect::<String>());
        }
        std::thread::sleep(Duration::from_millis(300));
    }
    running.wait(LIMIT)?.expect_success("mmdebstrap")?;
    fs::remove_dir_all(&parts)?;
    let image = Image::at(work);
    let mut files = Vec::new();
    for file in image.files() {
        let size = fs::metadata(file)
            .with_context(|| format!("the image recipe did not make {}", file.display()))?
            .len();
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        files.push((name.into_owned(), size));
    }
    let manifest = Manifest {
        suite: suite.to_owned(),
        packages: PACKAGES.iter().map(|&p| p.to_owned()).collect(),
        files,
    };
    fs::write(work.join(MANIFEST), serde_json::to_string_pretty(&manifest)?)?;
    fs::write(work.join("used"), "")?;
    Ok(())
}

/// Removes images, finished or not, that no run has used for [`UNUSED_DAYS`].
fn remove_unused(cache: &Path) {
    let limit = Duration::from_secs(UNUSED_DAYS * 24 * 3600);
    for entry in fs::read_dir(cache).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with("image-") && !name.starts_with("making-") {
            continue;
        }
        let used =
            fs::metadata(entry.path().join("used")).or_else(|_| entry.metadata()).and_then(|m| m.modified());
        let old = used.is_ok_and(|t| SystemTime::now().duration_since(t).is_ok_and(|age| age > limit));
        if old {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
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

    #[test]
    fn a_damaged_image_is_not_used() -> Result<()> {
        let dir = tempfile::tempdir()?;
        assert!(!is_complete(dir.path()));
        let manifest =
            Manifest { suite: "bookworm".into(), packages: Vec::new(), files: vec![("vmlinuz".into(), 3)] };
        fs::write(dir.path().join(MANIFEST), serde_json::to_string(&manifest)?)?;
        assert!(!is_complete(dir.path()));
        fs::write(dir.path().join("vmlinuz"), "abc")?;
        assert!(is_complete(dir.path()));
        fs::write(dir.path().join("vmlinuz"), "ab")?;
        assert!(!is_complete(dir.path()));
        Ok(())
    }
}
