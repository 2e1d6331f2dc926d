//! An Open MPI that is not the one which a build finds by itself.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// An Open MPI with its devel headers.
#[derive(Debug)]
pub struct OtherMpi {
    /// The directory that has its `include` and `lib`.
    pub prefix: PathBuf,
    /// As `5.0.7` or `6.0.0rc2`.
    pub release: String,
}

impl OtherMpi {
    /// Reads which release is installed below a prefix.
    ///
    /// # Errors
    /// There are no devel headers.
    pub fn at(prefix: &Path) -> Result<Self> {
        let prefix = std::path::absolute(prefix)?;
        let Some(file) = ["include/openmpi/opal_config.h", "include/opal_config.h"]
            .map(|name| prefix.join(name))
            .into_iter()
            .find(|file| file.exists())
        else {
            bail!(
                "no Open MPI with devel headers in {}: name the directory whose include/openmpi/opal_config.h is that \
                 of an Open MPI built with `configure --with-devel-headers`, on Debian /usr/lib/{}-linux-gnu/openmpi",
                prefix.display(),
                std::env::consts::ARCH
            );
        };
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let release =
            release_of(&text).with_context(|| format!("{} names no release of Open MPI", file.display()))?;
        Ok(Self { prefix, release })
    }

    /// The folder of the plugin for this release, below the prefix of an installation.
    pub fn plugin_folder(&self) -> String {
        format!("lib/openmpi-{}", self.release)
    }
}

fn release_of(text: &str) -> Option<String> {
    let value = |part: &str| {
        let start = format!("#define OPAL_{part}_VERSION ");
        text.lines().find_map(|line| line.strip_prefix(&start).map(str::trim))
    };
    let number = |part: &str| value(part)?.parse::<u32>().ok();
    // Before a release, as "rc2".
    let stage = value("GREEK").map_or("", |stage| stage.trim_matches('"'));
    let is_name = stage.bytes().all(|byte| byte.is_ascii_alphanumeric());
    is_name.then_some(format!("{}.{}.{}{stage}", number("MAJOR")?, number("MINOR")?, number("RELEASE")?))
}

#[cfg(test)]
mod tests {
    use super::release_of;

    #[test]
    fn a_release_is_read_from_its_header() {
        let text =
            "#define OPAL_MAJOR_VERSION 5\n#define OPAL_MINOR_VERSION 0\n#define OPAL_RELEASE_VERSION 7\n";
        assert_eq!(release_of(text).as_deref(), Some("5.0.7"));
        let early = format!("{text}#define OPAL_GREEK_VERSION \"rc2\"\n");
        assert_eq!(release_of(&early).as_deref(), Some("5.0.7rc2"));
        assert_eq!(release_of("#define OPAL_MAJOR_VERSION 5\n"), None);
    }
}
