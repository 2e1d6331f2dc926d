//! Directories of regions and of sockets: made and checked, and links from there to hugetlbfs.

use std::fs::{self, DirBuilder, File, Permissions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::sys::statfs::{HUGETLBFS_MAGIC, statfs};
use nix::unistd::geteuid;

use crate::error::Error;

/// Folder on hugetlbfs for what the links in registries lead to.
pub(crate) const HUGE_DIR: &str = "vmshm-pages";

/// Mode bit of a directory in which only a file's owner may remove it.
const STICKY: u32 = libc::S_ISVTX;

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
