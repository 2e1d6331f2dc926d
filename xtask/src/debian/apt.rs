//! Where this machine's apt gets its packages, and the package index of another Debian release from there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::packages;
use crate::base::process;
use crate::base::progress;
use crate::base::workspace::Workspace;

const LIMIT: Duration = Duration::from_secs(900);

/// Debian's keys; apt would find them by itself only where they are among those that it trusts for every source.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Debian's name of what will be a release: it has no backports.
pub const UNSTABLE: &str = "sid";

/// Debian's name of the release that this machine runs.
pub fn suite() -> Result<String> {
    let text = fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
    let value = |key: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
            .map(|value| value.trim_matches('"').to_owned())
    };
    match (value("ID").as_deref(), value("VERSION_CODENAME")) {
        (Some("debian"), Some(suite)) => Ok(suite),
        (id, _) => bail!(
            "the guests are made from the packages of the running Debian, but this machine runs {:?}; \
             use Debian 12 or later",
            id.unwrap_or("an unknown system")
        ),
    }
}

/// One place that packages come from.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Source {
    address: String,
    codename: String,
    component: String,
}

/// The package sources of this machine that belong to its Debian release.
fn known(suite: &str) -> Result<Vec<Source>> {
    let text = process::capture(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(ORIGIN)|$(CODENAME)|$(REPO_URI)|$(COMPONENT)",
        "Created-By: Packages",
    ]))?;
    let mut found: Vec<Source> = text
        .lines()
        .filter_map(|line| {
            let mut parts = line.split('|');
            let (origin, codename) = (parts.next()?, parts.next()?);
            let (address, component) = (parts.next()?, parts.next()?);
            let ours = codename == suite
                || codename == format!("{suite}-updates")
                || codename == format!("{suite}-security");
            (origin == "Debian" && ours).then(|| Source {
                address: address.to_owned(),
                codename: codename.to_owned(),
                component: component.to_owned(),
            })
        })
        .collect();
    found.sort();
    found.dedup();
    Ok(found)
}

/// Those sources, after an update of the package index where apt knew none.
fn sources_of(suite: &str, log_dir: &Path) -> Result<Vec<Source>> {
    if known(suite).map_or(true, |found| found.is_empty()) {
        let mut update = packages::as_root("apt-get");
        update.args(["--quiet", "update"]);
        process::run(update, "apt-get update", &log_dir.join("apt-update.log"), LIMIT)?;
    }
    let found = known(suite)?;
    if found.is_empty() {
        bail!(
            "apt on this machine knows no Debian source for {suite}; run 'apt-get update' as root and look at \
             /etc/apt/sources.list.d"
        );
    }
    Ok(found)
}

/// The package sources of this machine that belong to its Debian release, as lines for mmdebstrap.
pub fn sources(suite: &str, log_dir: &Path) -> Result<Vec<String>> {
    let line = |s: Source| format!("deb {} {} {}", s.address, s.codename, s.component);
    Ok(sources_of(suite, log_dir)?.into_iter().map(line).collect())
}

/// How this machine's apt reaches and trusts its sources, as options of another apt: `KEY "VALUE"`.
pub fn settings() -> Vec<String> {
    const WANTED: [&str; 4] = ["::proxy", "::https::", "::check-valid-until", "::check-date"];
    process::capture(Command::new("apt-config").args(["dump", "Acquire"]))
        .unwrap_or_default()
        .lines()
        .filter(|line| {
            let line = line.to_lowercase();
            WANTED.iter().any(|key| line.contains(key)) && !line.ends_with("\"\";")
        })
        .map(|line| line.trim_end_matches(';').to_owned())
        .collect()
}

/// The package index of a Debian release, with its backports, read apart from this machine's own.
#[derive(Debug)]
pub struct Index {
    /// Debian's name of the release.
    pub suite: &'static str,
    /// The sources, as lines for mmdebstrap.
    pub sources: Vec<String>,
    dir: PathBuf,
}

impl Index {
    /// The index of `suite`, brought up to date once in a run, so that all parts of the run see the same versions.
    pub fn shared(workspace: &Workspace, suite: &'static str, log_dir: &Path) -> Result<&'static Self> {
        static INDEXES: Mutex<Vec<&'static Index>> = Mutex::new(Vec::new());
        let mut indexes = INDEXES.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(index) = indexes.iter().find(|index| index.suite == suite) {
            return Ok(index);
        }
        let index: &'static Self = Box::leak(Box::new(Self::update(workspace, suite, log_dir)?));
        indexes.push(index);
        Ok(index)
    }

    /// Brings the index of `suite`, and of its backports if it is a release, up to date, from the mirror that this machine's apt
    /// uses.
    ///
    /// Without a network, the index of an earlier run will do.
    fn update(workspace: &Workspace, suite: &'static str, log_dir: &Path) -> Result<Self> {
        let host = self::suite()?;
        let address = sources_of(&host, log_dir)?
            .into_iter()
            .find(|s| s.codename == host && s.component == "main")
            .map(|s| s.address)
            .with_context(|| format!("apt on this machine has no source for {host} main"))?;
        let options =
            if Path::new(KEYRING).exists() { format!(" [signed-by={KEYRING}]") } else { String::new() };
        let backports = (suite != UNSTABLE).then(|| format!("{suite}-backports"));
        let sources: Vec<String> = [suite.to_owned()]
            .into_iter()
            .chain(backports)
            .map(|codename| format!("deb{options} {address} {codename} main"))
            .collect();
        let dir = workspace.cache.join(format!("apt-{suite}"));
        for part in ["state/lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(dir.join(part))
                .with_context(|| format!("cannot write to {}", dir.display()))?;
        }
        fs::write(dir.join("status"), "")?;
        fs::write(dir.join("sources.list"), sources.join("\n") + "\n")?;
        let index = Self { suite, sources, dir };
        let log = log_dir.join(format!("apt-{suite}.log"));
        let mut update = index.apt("apt-get");
        update.args(["--quiet", "--error-on=any", "update"]);
        let updated = progress::during(&format!("package index of Debian {suite}"), |_| {
            process::run(update, "apt-get update", &log, LIMIT)
        });
        if let Err(error) = updated {
            crate::base::cleanup::check()?;
            if index.names("linux-source-").map_or(true, |found| found.is_empty()) {
                return Err(error);
            }
            eprintln!("the package index cannot be updated, so the one from an earlier run is used");
        }
        Ok(index)
    }

    /// An apt program that knows this index only.
    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let dir = self.dir.display();
        for option in [
            format!("Dir::Etc::SourceList={dir}/sources.list"),
            "Dir::Etc::SourceParts=/dev/null".to_owned(),
            "Dir::Etc::Preferences=/dev/null".to_owned(),
            "Dir::Etc::PreferencesParts=/dev/null".to_owned(),
            format!("Dir::State={dir}/state"),
            format!("Dir::State::status={dir}/status"),
            format!("Dir::Cache={dir}/cache"),
            "Acquire::Languages=none".to_owned(),
            // Another user than ours could not write below the cache.
            "APT::Sandbox::User=".to_owned(),
        ] {
            command.arg("-o").arg(option);
        }
        command
    }

    /// The names of all packages that begin with `start`.
    pub fn names(&self, start: &str) -> Result<Vec<String>> {
        let text = process::capture(self.apt("apt-cache").args(["pkgnames", start]))?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// All versions that the index offers of each of `packages`, as pairs of name and version.
    pub fn versions(&self, packages: &[String]) -> Result<Vec<(String, String)>> {
        let text = process::capture(self.apt("apt-cache").arg("madison").args(packages))?;
        let pair = |line: &str| {
            let mut parts = line.split('|').map(str::trim);
            Some((parts.next()?.to_owned(), parts.next()?.to_owned()))
        };
        Ok(text.lines().filter_map(pair).collect())
    }

    /// The version of each of `packages` that apt would install, as `NAME=VERSION`.
    pub fn candidates(&self, packages: &[&str]) -> Result<Vec<String>> {
        let text = process::capture(self.apt("apt-cache").arg("policy").args(packages))?;
        let mut found = Vec::new();
        let mut name = "";
        for line in text.lines() {
            if let Some(start) = line.strip_suffix(':').filter(|start| !start.starts_with(' ')) {
                name = start;
            } else if let Some(version) = line.trim().strip_prefix("Candidate: ")
                && version != "(none)"
            {
                found.push(format!("{name}={version}"));
            }
        }
        if let Some(missing) =
            packages.iter().find(|package| !found.iter().any(|f| f.split('=').next() == Some(package)))
        {
            bail!("the package index of Debian {} has no package {missing}", self.suite);
        }
        Ok(found)
    }

    /// Downloads packages of this version, checks them against the index, and unpacks them below `root`.
    pub fn unpack(&self, wanted: &[String], version: &str, root: &Path, log: &Path) -> Result<()> {
        let debs = tempfile::Builder::new().prefix("debs-").tempdir_in(root)?;
        let mut download = self.apt("apt-get");
        download.args(["--quiet", "download"]).current_dir(debs.path());
        download.args(wanted.iter().map(|name| format!("{name}={version}")));
        process::run(download, "apt-get download", log, LIMIT)?;
        for entry in fs::read_dir(debs.path())? {
            crate::base::cleanup::check()?;
            let mut extract = Command::new("dpkg-deb");
            extract.arg("--extract").arg(entry?.path()).arg(root);
            process::capture(&mut extract)?;
        }
        Ok(())
    }
}
