//! logind's `RemoveIPC`: it takes away what a user has in `/dev/shm` when the user logs out.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::{Uid, User};

use super::check::Check;

/// Where systemd reads logind's settings; what comes later counts.
const FILES: [&str; 3] =
    ["usr/lib/systemd/logind.conf", "run/systemd/logind.conf", "etc/systemd/logind.conf"];

/// A finding for a region that would be gone when its owner logs out. `owner` is the file's.
pub fn check(region: &Path) -> Option<Check> {
    // Of the name itself, which may be a link to hugetlbfs.
    let owner = fs::symlink_metadata(region).ok()?.uid();
    let region = std::path::absolute(region).ok()?;
    let name = User::from_uid(Uid::from_raw(owner)).ok().flatten().map(|user| user.name);
    check_under(Path::new("/"), &region, owner, &name.unwrap_or(owner.to_string()))
}

fn check_under(root: &Path, region: &Path, owner: u32, user: &str) -> Option<Check> {
    // It leaves the users of the system's own services alone, and walks through all of /dev/shm.
    if owner <= last_system_user(root) || !region.starts_with("/dev/shm") {
        return None;
    }
    let lingers = root.join("var/lib/systemd/linger").join(user).exists();
    if lingers || !root.join("run/systemd/system").exists() {
        return None;
    }
    let (removes, file) = setting(root);
    removes.then(|| {
        Check::warning(
            format!(
                "{} belongs to {user}: it is removed when {user} logs out (logind's RemoveIPC=yes{})",
                region.display(),
                file.map_or(String::new(), |file| format!(", {}", file.display()))
            ),
            format!(
                "sudo loginctl enable-linger {user}; or RemoveIPC=no in /etc/systemd/logind.conf.d/vmshm.conf; or have root \
                 create the region (systemd: vmshm-region@NAME)"
            ),
        )
    })
}

/// `SYS_UID_MAX`, or what it mostly is.
fn last_system_user(root: &Path) -> u32 {
    let text = fs::read_to_string(root.join("etc/login.defs")).unwrap_or_default();
    let number = text.lines().find_map(|line| line.trim().strip_prefix("SYS_UID_MAX")?.trim().parse().ok());
    number.unwrap_or(999)
}

/// The setting of logind, and where it stands. Unless anything sets it, the default that distributions note in a comment counts.
fn setting(root: &Path) -> (bool, Option<PathBuf>) {
    let mut found = (None, None);
    let mut default = true;
    for name in FILES {
        let main = root.join(name);
        let mut files: Vec<_> = fs::read_dir(root.join(format!("{name}.d")))
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "conf"))
            .collect();
        files.sort();
        for file in std::iter::once(main).chain(files) {
            let Ok(text) = fs::read_to_string(&file) else { continue };
            default = value(&text, "#RemoveIPC=").unwrap_or(default);
            if let Some(removes) = value(&text, "RemoveIPC=") {
                let shown = Path::new("/").join(file.strip_prefix(root).unwrap_or(&file));
                found = (Some(removes), Some(shown));
            }
        }
    }
    (found.0.unwrap_or(default), found.1)
}

/// The last line that begins so.
fn value(text: &str, name: &str) -> Option<bool> {
    let value = text.lines().rev().find_map(|line| line.trim().strip_prefix(name))?;
    Some(matches!(value.trim(), "yes" | "true" | "on" | "1"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for dir in ["run/systemd/system", "etc/systemd/logind.conf.d", "usr/lib/systemd"] {
            fs::create_dir_all(root.path().join(dir)).unwrap();
        }
        root
    }

    #[test]
    fn a_user_s_region_in_dev_shm_is_lost_at_logout() {
        let root = machine();
        let root = root.path();
        let region = Path::new("/dev/shm/vmshm/job");
        let check = |owner| check_under(root, region, owner, "ann");
        let found = check(1000).unwrap();
        assert!(found.what.contains("/dev/shm/vmshm/job belongs to ann"), "{found:?}");
        assert!(found.cure.unwrap().contains("enable-linger ann"));
        // The system's own users, other places, a user who lingers.
        assert!(check(0).is_none() && check(999).is_none());
        assert!(check_under(root, Path::new("/dev/hugepages/vmshm/job"), 1000, "ann").is_none());
        fs::write(root.join("etc/login.defs"), "UID_MIN 500\nSYS_UID_MAX\t\t499\n").unwrap();
        assert!(check(500).is_some());
        fs::create_dir_all(root.join("var/lib/systemd/linger")).unwrap();
        fs::write(root.join("var/lib/systemd/linger/ann"), "").unwrap();
        assert!(check(1000).is_none());
    }

    #[test]
    fn the_last_setting_counts() {
        let root = machine();
        let root = root.path();
        assert_eq!(setting(root), (true, None));
        // As Red Hat builds it.
        fs::write(root.join("usr/lib/systemd/logind.conf"), "[Login]\n#RemoveIPC=no\n").unwrap();
        assert!(!setting(root).0);
        fs::write(root.join("etc/systemd/logind.conf"), "[Login]\n#RemoveIPC=no\nRemoveIPC=yes\n").unwrap();
        assert_eq!(setting(root), (true, Some("/etc/systemd/logind.conf".into())));
        fs::write(root.join("etc/systemd/logind.conf.d/no.conf"), "[Login]\nRemoveIPC=no\n").unwrap();
        assert!(!setting(root).0);
    }

    #[test]
    fn without_logind_nothing_is_removed() {
        let root = tempfile::tempdir().unwrap();
        assert!(check_under(root.path(), Path::new("/dev/shm/vmshm/job"), 1000, "ann").is_none());
    }
}
