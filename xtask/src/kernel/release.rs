//! Which of Debian's kernels there are, and what their packages are called.

use anyhow::{Result, bail};

use crate::debian::apt::Index;

/// The Debian release whose backports have the kernels, and whose tools they are built with.
pub const SUITE: &str = "trixie";

/// The kernel series that the driver is written for, the one of the test guests first.
pub const SERIES: &[&str] = &["7.2", "7.3"];

/// One of Debian's kernels for amd64.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelRelease {
    /// The first two parts of its number, as in `7.2`.
    pub series: String,
    /// The name that its packages share, as in `7.2.1+deb13`.
    pub stem: String,
    /// The version of these packages.
    pub version: String,
}

impl KernelRelease {
    /// Release, as `uname -r` says it.
    pub fn name(&self) -> String {
        format!("{}-amd64", self.stem)
    }

    /// The packages of its build tree and of its source.
    pub fn tree_packages(&self) -> Vec<String> {
        let (stem, name) = (&self.stem, self.name());
        vec![
            format!("linux-headers-{name}"),
            format!("linux-headers-{stem}-common"),
            format!("linux-kbuild-{stem}"),
            format!("linux-source-{}", self.series),
        ]
    }

    /// The packages of the kernel itself and its modules.
    pub fn boot_packages(&self) -> Vec<String> {
        let name = self.name();
        // The package of the signed kernel follows some days later.
        vec![
            format!("linux-binary-unsigned-{name}"),
            format!("linux-base-{name}"),
            format!("linux-modules-{name}"),
        ]
    }

    /// The newest kernel of a series that the index has completely, if there is one.
    pub fn newest(index: &Index, series: &str) -> Result<Option<Self>> {
        if std::env::consts::ARCH != "x86_64" {
            bail!(
                "the driver is built for Debian's amd64 kernels, but this machine is {}",
                std::env::consts::ARCH
            );
        }
        let names = index.names(&format!("linux-headers-{series}."))?;
        for stem in newest_first(&names, series) {
            let mut found = Self { series: series.to_owned(), stem, version: String::new() };
            let wanted: Vec<String> =
                found.tree_packages().into_iter().chain(found.boot_packages()).collect();
            let offered = index.versions(&wanted)?;
            let Some((_, version)) = offered.iter().find(|(name, _)| *name == wanted[0]) else {
                continue;
            };
            found.version.clone_from(version);
            // A mirror that is being updated may have the headers of a kernel but not its source yet.
            let complete =
                wanted.iter().all(|name| offered.iter().any(|(n, v)| n == name && *v == found.version));
            if complete {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// The newest kernel of a series; fails where the index has none.
    pub fn of(index: &Index, series: &str) -> Result<Self> {
        match Self::newest(index, series)? {
            Some(found) => Ok(found),
            None => bail!(
                "the package index of {SUITE}-backports has no complete kernel {series} for amd64; \
                 the driver is written for {}",
                SERIES.join(" and ")
            ),
        }
    }

    /// The newest kernel of each of [`SERIES`] that there is.
    pub fn all(index: &Index) -> Result<Vec<Self>> {
        let mut found = Vec::new();
        for series in SERIES {
            found.extend(Self::newest(index, series)?);
        }
        if found.is_empty() {
            Self::of(index, SERIES[0])?;
        }
        Ok(found)
    }

    /// The kernel of the test guests: the first of [`KernelRelease::all`].
    pub fn stock(index: &Index) -> Result<Self> {
        Ok(Self::all(index)?.swap_remove(0))
    }
}

/// The stems of the plain amd64 kernels among these packages of headers, by falling number.
fn newest_first(names: &[String], series: &str) -> Vec<String> {
    let mut found: Vec<(u32, String)> = names
        .iter()
        .filter_map(|name| {
            let stem = name.strip_prefix("linux-headers-")?.strip_suffix("-amd64")?;
            let last = stem.strip_prefix(series)?.strip_prefix('.')?;
            let digits: String = last.chars().take_while(char::is_ascii_digit).collect();
            // A further dash begins the name of a flavour, as in `-cloud` and `-rt`.
            (!stem.contains('-')).then_some((digits.parse().ok()?, stem.to_owned()))
        })
        .collect();
    found.sort_by(|a, b| b.cmp(a));
    found.into_iter().map(|(_, stem)| stem).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_number_comes_first_and_flavours_not_at_all() {
        let names = [
            "linux-headers-7.2.9+deb13-amd64",
            "linux-headers-7.2.12+deb13-amd64",
            "linux-headers-7.2.12+deb13-common",
            "linux-headers-7.2.13+deb13-cloud-amd64",
            "linux-headers-7.2.13+deb13-rt-amd64",
            "linux-headers-7.20.1+deb13-amd64",
        ]
        .map(String::from);
        assert_eq!(newest_first(&names, "7.2"), ["7.2.12+deb13", "7.2.9+deb13"]);
        assert!(newest_first(&names, "7.3").is_empty());
    }
}
