//! A UCX that the transport is built for.

use std::env;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Begins the folders of the UCX transport: each series of UCX has one.
pub const TRANSPORTS: &str = "lib/ucx-";

/// A UCX with its headers.
#[derive(Debug)]
pub struct Ucx {
    /// The directory that has its `include` and `lib`.
    pub prefix: PathBuf,
    /// As `1.13`: what the transport is built for.
    pub series: String,
}

impl Ucx {
    /// The UCX that a build finds by itself.
    ///
    /// # Errors
    /// There are no headers.
    pub fn found() -> Result<Self> {
        Self::at(env::var_os("UCX_DIR").map_or("/usr".into(), PathBuf::from))
    }

    /// The UCX of another root directory: `prefix` becomes a directory of links to what is UCX's there, since a build must see
    /// nothing else of it.
    ///
    /// # Errors
    /// There are no headers.
    pub fn in_root(root: &Path, prefix: PathBuf) -> Result<Self> {
        let libraries = format!("usr/lib/{}-linux-gnu", env::consts::ARCH);
        let headers = ["ucm", "ucp", "ucs", "uct"]
            .map(|name| (format!("usr/include/{name}"), format!("include/{name}")));
        let names = ["libucp.so", "libucs.so", "libuct.so"];
        let libraries = names.map(|name| (format!("{libraries}/{name}"), format!("lib/{name}")));
        for folder in ["include", "lib"] {
            fs::create_dir_all(prefix.join(folder))?;
        }
        for (there, here) in headers.into_iter().chain(libraries) {
            let link = prefix.join(here);
            // Of an earlier run, for another root directory.
            let _ = fs::remove_file(&link);
            symlink(root.join(there), &link)
                .with_context(|| format!("cannot make the link {}", link.display()))?;
        }
        Self::at(prefix)
    }

    /// Reads which series is installed below a prefix.
    ///
    /// # Errors
    /// There are no headers.
    pub fn at(prefix: PathBuf) -> Result<Self> {
        let file = prefix.join("include/uct/api/version.h");
        let text = fs::read_to_string(&file)
            .with_context(|| format!("cannot read {}: on Debian install libucx-dev", file.display()))?;
        let series =
            series_of(&text).with_context(|| format!("{} names no release of UCX", file.display()))?;
        Ok(Self { prefix, series })
    }

    /// The transport's file below the prefix of an installation. Each series has a folder, from which the running one is taken.
    pub fn transport(&self) -> String {
        format!("{TRANSPORTS}{}/libuct_vmshm.so.0", self.series)
    }
}

fn series_of(text: &str) -> Option<String> {
    let number = |part: &str| {
        let start = format!("#define UCT_VERNO_{part}");
        text.lines().find_map(|line| line.strip_prefix(&start)?.trim().parse::<u32>().ok())
    };
    Some(format!("{}.{}", number("MAJOR")?, number("MINOR")?))
}

#[cfg(test)]
mod tests {
    use super::series_of;

    #[test]
    fn a_series_is_read_from_its_header() {
        let text = "#define UCT_VERNO_MAJOR      1\n#define UCT_VERNO_MINOR      13\n";
        assert_eq!(series_of(text).as_deref(), Some("1.13"));
        assert_eq!(series_of("#define UCT_VERNO_MAJOR 1\n"), None);
    }
}
