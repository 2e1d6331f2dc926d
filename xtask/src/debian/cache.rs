//! Things that take long to make, kept below the user's cache under a hash of what they are made from.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use indicatif::ProgressBar;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::packages;
use crate::base::process;
use crate::base::progress;

const MANIFEST: &str = "manifest.json";
/// A file whose time tells when an entry was last of use.
const USED: &str = "used";
/// An entry that is not finished.
const MAKING: &str = "making-";
const UNUSED_DAYS: u64 = 30;

/// List of the files stored, so that a damaged entry is noticed.
#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    /// Bytes of each file that an entry must have.
    files: Vec<(String, u64)>,
}

/// A short name for what something is made from.
pub fn key<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        // The length keeps neighbouring parts apart.
        hash.update(part.len().to_le_bytes());
        hash.update(part);
    }
    hash.finalize()[..6].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Returns the directory `cache/name`; if it is not there or damaged, `make` fills a new one first.
///
/// `files` are those that a complete entry must have. `heading` is what the user reads while it is made.
/// Entries of the same kind, the part of the name before the first dash, are removed when nobody used them for
/// [`UNUSED_DAYS`].
pub fn ensure(
    cache: &Path,
    name: &str,
    files: &[&str],
    heading: &str,
    make: impl FnOnce(&Path, &ProgressBar) -> Result<()>,
) -> Result<PathBuf> {
    let dir = cache.join(name);
    if is_complete(&dir) {
        let _ = fs::write(dir.join(USED), "");
        return Ok(dir);
    }
    fs::create_dir_all(cache).with_context(|| format!("cannot create {}", cache.display()))?;
    remove_unused(cache, name.split('-').next().unwrap_or(name));
    let work = tempfile::Builder::new()
        .prefix(MAKING)
        .tempdir_in(cache)
        .with_context(|| format!("cannot write to {}", cache.display()))?;
    let heading = format!("{heading}, once, kept in {}", cache.display());
    let made = progress::during(&heading, |bar| make(work.path(), bar));
    if let Err(error) = made {
        remove(work.path());
        return Err(error);
    }
    let sizes = files.iter().map(|name| {
        let file = work.path().join(name);
        let size =
            fs::metadata(&file).with_context(|| format!("the recipe did not make {}", file.display()))?.len();
        Ok((String::from(*name), size))
    });
    let manifest = Manifest { files: sizes.collect::<Result<_>>()? };
    fs::write(work.path().join(MANIFEST), serde_json::to_string_pretty(&manifest)?)?;
    fs::write(work.path().join(USED), "")?;
    if is_complete(&dir) {
        // Another run was faster, and may be using what it made.
        remove(work.path());
        return Ok(dir);
    }
    // Damaged, if it is there at all; whoever runs from it keeps its open files.
    remove(&dir);
    let made = work.keep();
    fs::rename(&made, &dir)
        .with_context(|| format!("cannot move {} to {}", made.display(), dir.display()))?;
    Ok(dir)
}

fn is_complete(dir: &Path) -> bool {
    let Ok(text) = fs::read_to_string(dir.join(MANIFEST)) else {
        return false;
    };
    serde_json::from_str::<Manifest>(&text).is_ok_and(|manifest| {
        manifest.files.iter().all(|(name, size)| fs::metadata(dir.join(name)).is_ok_and(|m| m.len() == *size))
    })
}

/// Removes entries of one kind, finished or not, that no run has used for [`UNUSED_DAYS`].
fn remove_unused(cache: &Path, kind: &str) {
    let limit = Duration::from_secs(UNUSED_DAYS * 24 * 3600);
    for entry in fs::read_dir(cache).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with(&format!("{kind}-")) && !name.starts_with(MAKING) {
            continue;
        }
        let used =
            fs::metadata(entry.path().join(USED)).or_else(|_| entry.metadata()).and_then(|m| m.modified());
        if used.is_ok_and(|t| SystemTime::now().duration_since(t).is_ok_and(|age| age > limit)) {
            remove(&entry.path());
        }
    }
}

/// Removes a directory, as root where it holds files of root.
fn remove(dir: &Path) {
    if fs::remove_dir_all(dir).is_err() && dir.exists() {
        let mut command = packages::as_root("rm");
        let _ = process::capture(command.args(["-rf", "--one-file-system", "--"]).arg(dir));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_keeps_its_parts_apart() {
        assert_ne!(key(["ab", "c"]), key(["a", "bc"]));
        assert_eq!(key(["ab", "c"]), key(["ab", "c"]));
        assert_eq!(key(["ab"]).len(), 12);
    }

    #[test]
    fn made_once_and_again_when_damaged() -> Result<()> {
        let cache = tempfile::tempdir()?;
        let mut made = 0;
        let mut ensure = || {
            ensure(cache.path(), "thing-1", &["file"], "thing", |dir, _| {
                made += 1;
                Ok(fs::write(dir.join("file"), "abc")?)
            })
        };
        let dir = ensure()?;
        assert_eq!(ensure()?, dir);
        fs::write(dir.join("file"), "ab")?;
        ensure()?;
        assert_eq!(fs::read(dir.join("file"))?, b"abc");
        fs::remove_file(dir.join(MANIFEST))?;
        ensure()?;
        assert_eq!(made, 3);
        assert_eq!(fs::read_dir(cache.path())?.count(), 1, "nothing half made stays behind");
        Ok(())
    }

    #[test]
    fn what_failed_is_not_kept() {
        let cache = tempfile::tempdir().expect("a directory for the test");
        let result = ensure(cache.path(), "thing-1", &["file"], "thing", |_, _| Ok(()));
        assert!(result.is_err_and(|e| e.to_string().contains("did not make")));
        assert_eq!(fs::read_dir(cache.path()).map(Iterator::count).ok(), Some(0));
    }
}
