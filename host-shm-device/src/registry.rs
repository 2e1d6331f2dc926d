//! The directory in which regions have names.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::dir::{behind, prepare_dir};
use crate::error::Error;
use crate::name::RegionName;
use crate::region::Region;

/// Where regions live unless `VMSHM_DIR` says otherwise.
pub const DEFAULT_DIR: &str = "/dev/shm/vmshm";

/// A directory of regions. A region on huge pages is a symbolic link there, to its file on hugetlbfs.
#[derive(Debug, Clone)]
pub struct Registry {
    dir: PathBuf,
}

/// An entry of a registry: a region, or why it is none.
#[derive(Debug)]
pub struct Listed {
    /// The file's name.
    pub name: String,
    /// The region, if it is a sound one.
    pub region: Result<Region, Error>,
}

impl Registry {
    /// The registry in a directory, which need not exist yet.
    pub fn at(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// The registry that `VMSHM_DIR` names, or the default one.
    pub fn from_env() -> Self {
        Self::at(std::env::var_os("VMSHM_DIR").filter(|dir| !dir.is_empty()).unwrap_or(DEFAULT_DIR.into()))
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The path that a region of this name has.
    pub fn path(&self, name: &RegionName) -> PathBuf {
        self.dir.join(name.as_str())
    }

    /// The path of a region given by name, or by path if it contains a `/`.
    pub fn resolve(&self, name_or_path: &str) -> Result<PathBuf, Error> {
        if name_or_path.contains('/') {
            return Ok(PathBuf::from(name_or_path));
        }
        Ok(self.path(&RegionName::new(name_or_path)?))
    }

    /// Opens a region given by name, or by path if it contains a `/`.
    pub fn open(&self, name_or_path: &str) -> Result<Region, Error> {
        let path = self.resolve(name_or_path)?;
        if !behind(&path).exists() {
            let dir = path.parent().unwrap_or(&self.dir).to_owned();
            return Err(Error::NotFound { name: name_or_path.to_owned(), dir });
        }
        Region::open(&path)
    }

    /// All regions, sorted by name, and what lies between them though it is none.
    pub fn list(&self) -> Result<Vec<Listed>, Error> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::io(format!("list {}", self.dir.display()))(error)),
        };
        let mut listed = Vec::new();
        for entry in entries {
            let entry = entry.map_err(Error::io(format!("list {}", self.dir.display())))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            // A link that leads nowhere is what a creation or a destruction that was interrupted leaves.
            if name.starts_with('.') || !behind(&entry.path()).exists() {
                continue;
            }
            listed.push(Listed { name, region: Region::open(&entry.path()) });
        }
        listed.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(listed)
    }

    /// Makes the directory where it is missing. Like `/dev/shm` itself it lets every user have regions there,
    /// and nobody remove another's.
    pub(crate) fn prepare(&self) -> Result<File, Error> {
        prepare_dir(&self.dir, 0o1777)
    }
}
