//! The directory in which regions have names.

use std::fs::{self, DirBuilder, File, Permissions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::sys::statfs::{HUGETLBFS_MAGIC, statfs};
use nix::unistd::geteuid;

use crate::error::Error;
use crate::name::RegionName;
use crate::region::Region;

/// Where regions live unless `VMSHM_DIR` says otherwise.
pub const DEFAULT_DIR: &str = "/dev/shm/vmshm";

/// Folder on hugetlbfs for what the links in registries lead to.
pub(crate) const HUGE_DIR: &str = "vmshm-pages";

/// Mode bit of a directory in which only a file's owner may remove it.
const STICKY: u32 = libc::S_ISVTX;

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

/// Where the memory behind a name lies: the file on hugetlbfs for one of our links to there, else the name itself.
///
/// Such links are read, not followed: in a directory that all may write to, the kernel lets not even root follow
/// another user's. Links to anywhere else are left to the kernel's judgement.
pub(crate) fn behind(path: &Path) -> PathBuf {
    let Ok(target) = fs::read_link(path) else { return path.to_owned() };
    let ours = target.parent().is_some_and(|dir| {
        dir.file_name() == Some(HUGE_DIR.as_ref())
            && statfs(dir).is_ok_and(|fs| fs.filesystem_type() == HUGETLBFS_MAGIC)
    });
    if ours { target } else { path.to_owned() }
}

/// Makes a directory where it is missing, and opens it.
///
/// # Errors
/// It cannot be made, or other users could exchange what lies there.
pub fn prepare_dir(dir: &Path, mode: u32) -> Result<File, Error> {
    let doing = || format!("use the directory {}", dir.display());
    if !dir.exists() {
        if let Some(parent) = dir.parent() {
            fs::create_dir_all(parent).map_err(Error::io(doing()))?;
        }
        match DirBuilder::new().mode(mode).create(dir) {
            // The umask has taken bits away.
            Ok(()) => fs::set_permissions(dir, Permissions::from_mode(mode)).map_err(Error::io(doing()))?,
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(Error::io(doing())(error)),
        }
    }
    let flags = libc::O_DIRECTORY | libc::O_NONBLOCK;
    let opened = File::options().read(true).custom_flags(flags).open(dir).map_err(Error::io(doing()))?;
    let meta = opened.metadata().map_err(Error::io(doing()))?;
    let refuse = |why| Err(Error::Invalid { what: "the directory", value: dir.display().to_string(), why });
    let me = geteuid().as_raw();
    if ![0, me].contains(&meta.uid()) {
        return refuse(format!(
            "belongs to the user with id {}, who could exchange what lies there: have it owned by root, or name another",
            meta.uid()
        ));
    }
    if meta.mode() & 0o022 != 0 && meta.mode() & STICKY == 0 {
        return refuse(format!(
            "lets other users remove what lies there (mode {:o}): `chmod +t` it, or name another",
            meta.mode() & 0o7777
        ));
    }
    Ok(opened)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_in_which_others_could_exchange_files_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("dir");
        prepare_dir(&dir, 0o1777).unwrap();
        let with = |mode| {
            fs::set_permissions(&dir, Permissions::from_mode(mode)).unwrap();
            prepare_dir(&dir, 0o1777).map_err(|error| error.to_string())
        };
        for mode in [0o1777, 0o1770, 0o750, 0o700] {
            with(mode).unwrap();
        }
        for mode in [0o777, 0o770, 0o702] {
            let error = with(mode).unwrap_err();
            assert!(error.contains(&format!("mode {mode:o}")) && error.contains("chmod +t"), "{error}");
        }
        with(0o700).unwrap();
        if geteuid().is_root() {
            std::os::unix::fs::chown(&dir, Some(65534), None).unwrap();
            let error = prepare_dir(&dir, 0o1777).unwrap_err().to_string();
            assert!(error.contains("65534"), "{error}");
        }
        let file = root.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(prepare_dir(&file, 0o1777).is_err());
    }
}
