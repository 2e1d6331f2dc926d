//! Where this program was installed, and Open MPI's plugin with it.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// The plugin's file.
pub const PLUGIN: &str = "mca_btl_vmshm.so";

/// The file of the UCX transport, in a folder for each series of UCX.
const TRANSPORT: &str = "libuct_vmshm.so.0";

/// The file that is preloaded for `vmshm env --heap`, beside the plugin's directory.
pub const HEAP: &str = "libvmshm_heap.so";

/// The prefix that this program lies in: `PREFIX/bin/vmshm`.
pub fn own_prefix() -> Option<PathBuf> {
    let program = std::env::current_exe().ok()?;
    let bin = program.parent()?;
    (bin.file_name()? == "bin").then(|| bin.parent().map(Path::to_owned))?
}

/// The directory of the plugin under a prefix, if it is there: of the one for a release of Open MPI (as `5.0.7`), or of the one
/// that has no release in its name.
pub fn plugin_dir(prefix: &Path, release: Option<&str>) -> Option<PathBuf> {
    let name = release.map_or("openmpi".to_owned(), |release| format!("openmpi-{release}"));
    ["lib", "lib64"]
        .map(|dir| prefix.join(dir).join(&name))
        .into_iter()
        .find(|dir| dir.join(PLUGIN).is_file())
}

/// A series of UCX, as 1.13.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Series(pub u32, pub u32);

impl Series {
    /// Reads `1.13`, or the beginning of `1.13.1`.
    pub fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split('.').map(|number| number.parse().ok());
        Some(Self(numbers.next()??, numbers.next()??))
    }
}

impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// The transports for UCX under a prefix, in order: the series that each is for, and its file.
pub fn transports(prefix: &Path) -> Vec<(Series, PathBuf)> {
    let folders =
        ["lib", "lib64"].into_iter().flat_map(|dir| fs::read_dir(prefix.join(dir))).flatten().flatten();
    let mut found: Vec<_> = folders
        .filter_map(|folder| {
            let series = Series::parse(folder.file_name().to_str()?.strip_prefix("ucx-")?)?;
            let file = folder.path().join(TRANSPORT);
            file.is_file().then_some((series, file))
        })
        .collect();
    found.sort();
    found
}

/// As [`plugin_dir`], of the plugin for the Open MPI that runs: the one for that release, else the one without.
pub fn plugin_dir_for(prefix: &Path, running: Option<&str>) -> Option<PathBuf> {
    running.and_then(|release| plugin_dir(prefix, Some(release))).or_else(|| plugin_dir(prefix, None))
}

/// The value of Open MPI's parameter `mca_base_component_path` that adds a directory to those searched already.
///
/// `SYSTEM_DEFAULT` and `USER_DEFAULT` are Open MPI's own words for its directory and the user's. Ours comes first:
/// Open MPI (seen with 4.1.4) stops at the first directory that does not exist, which the user's mostly does not.
pub fn component_path(before: Option<&str>, dir: &str) -> String {
    let before = before.filter(|path| !path.is_empty()).unwrap_or("SYSTEM_DEFAULT:USER_DEFAULT");
    if before.split(':').any(|part| part == dir) {
        return before.to_owned();
    }
    format!("{dir}:{before}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_is_added_once() {
        let first = component_path(None, "/opt/vmshm/lib/openmpi");
        assert_eq!(first, "/opt/vmshm/lib/openmpi:SYSTEM_DEFAULT:USER_DEFAULT");
        assert_eq!(component_path(Some(&first), "/opt/vmshm/lib/openmpi"), first);
        assert_eq!(component_path(Some("/a"), "/b"), "/b:/a");
        assert_eq!(component_path(Some(""), "/b"), "/b:SYSTEM_DEFAULT:USER_DEFAULT");
    }

    #[test]
    fn transports_are_found_by_their_series() {
        let prefix = tempfile::tempdir().unwrap();
        for folder in ["lib/ucx-1.18", "lib/ucx-1.9", "lib/ucx", "lib/ucx-x"] {
            fs::create_dir_all(prefix.path().join(folder)).unwrap();
            fs::write(prefix.path().join(folder).join(TRANSPORT), "").unwrap();
        }
        let series: Vec<Series> = transports(prefix.path()).into_iter().map(|(series, _)| series).collect();
        assert_eq!(series, [Series(1, 9), Series(1, 18)]);
        assert_eq!(Series::parse("1.13.1"), Some(Series(1, 13)));
    }
}
