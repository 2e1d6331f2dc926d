//! Limits of control groups: whoever touches more memory than its group may have is killed, however much the host has.

use std::fs;
use std::path::{Path, PathBuf};

use vmshm_host::format_bytes;

use super::check::Check;

/// The narrowest limit on a resource, of this process's group and those above it.
#[derive(Debug, PartialEq, Eq)]
struct Limit {
    /// Bytes that may be used.
    bytes: u64,
    /// Bytes that are.
    used: u64,
    /// The file that says so.
    file: PathBuf,
}

/// Findings on the limits, for regions of these names, bytes, and bytes of a page.
pub fn checks(regions: &[(String, u64, u64)]) -> Vec<Check> {
    checks_under(Path::new("/"), regions)
}

fn checks_under(root: &Path, regions: &[(String, u64, u64)]) -> Vec<Check> {
    let mut checks = Vec::new();
    // hugetlbfs has counters of its own, which tell the sizes of pages apart.
    for (page_len, controller, files) in [
        (
            4 << 10,
            "memory",
            ["memory.max", "memory.current", "memory.limit_in_bytes", "memory.usage_in_bytes"],
        ),
        (
            2 << 20,
            "hugetlb",
            [
                "hugetlb.2MB.max",
                "hugetlb.2MB.current",
                "hugetlb.2MB.limit_in_bytes",
                "hugetlb.2MB.usage_in_bytes",
            ],
        ),
        (
            1 << 30,
            "hugetlb",
            [
                "hugetlb.1GB.max",
                "hugetlb.1GB.current",
                "hugetlb.1GB.limit_in_bytes",
                "hugetlb.1GB.usage_in_bytes",
            ],
        ),
    ] {
        let Some(limit) = narrowest(root, controller, files) else { continue };
        let what = match page_len {
            4096 => "memory".to_owned(),
            len => format!("pages of {}", format_bytes(len)),
        };
        let said = format!(
            "the control group allows this shell {} of {what}, of which {} are used ({})",
            format_bytes(limit.bytes),
            format_bytes(limit.used),
            limit.file.display()
        );
        let larger = regions.iter().find(|(_, len, page)| *page == page_len && *len > limit.bytes);
        checks.push(match larger {
            None => Check::ok(said),
            Some((name, len, _)) => Check::warning(
                format!(
                    "{said}: less than the {} of region {name}, so that what touches all of it from here is killed",
                    format_bytes(*len)
                ),
                "ask for more (Slurm: --mem; containers: --memory; systemd: sudo systemctl set-property UNIT \
                 MemoryMax=...), or start VMs and programs outside of the group",
            ),
        });
    }
    checks
}

/// The narrowest limit of a controller, in whichever version of control groups has it. `files` are its limit and usage in
/// version 2, then in version 1.
fn narrowest(root: &Path, controller: &str, files: [&str; 4]) -> Option<Limit> {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let mounts = fs::read_to_string(root.join("proc/self/mountinfo")).ok()?;
    let [max, current, max_1, current_1] = files;
    let limits = groups.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, group) = (fields.next()?, fields.next()?);
        let (kind, option, max, current) = match controllers {
            "" => ("cgroup2", None, max, current),
            list if list.split(',').any(|name| name == controller) => {
                ("cgroup", Some(controller), max_1, current_1)
            }
            _ => return None,
        };
        let (mount, top) = mount_of(&mounts, kind, option)?;
        // In a container the mount shows a part of the tree, whose root may be named in full.
        let below = Path::new(group).strip_prefix(&top).or(Path::new(group).strip_prefix("/")).ok()?;
        let inner = below.ancestors().map(|group| mount.join(group));
        inner.filter_map(|dir| limit(root, &dir, max, current)).min_by_key(|limit| limit.bytes)
    });
    limits.min_by_key(|limit| limit.bytes)
}

/// Where a hierarchy is mounted, and which part of it.
fn mount_of(mounts: &str, kind: &str, option: Option<&str>) -> Option<(PathBuf, PathBuf)> {
    mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let mut before = before.split(' ').skip(3);
        let (top, mount) = (before.next()?, before.next()?);
        let mut after = after.split(' ');
        let (found, options) = (after.next()?, after.nth(1)?);
        let fits = found == kind && option.is_none_or(|option| options.split(',').any(|o| o == option));
        fits.then(|| (PathBuf::from(mount), PathBuf::from(top)))
    })
}

fn limit(root: &Path, dir: &Path, max: &str, current: &str) -> Option<Limit> {
    let read = |name: &str| {
        let path = root.join(dir.strip_prefix("/").ok()?).join(name);
        fs::read_to_string(path).ok()?.trim().parse::<u64>().ok()
    };
    // Version 1 says "none" by the largest number of pages that it can count.
    let bytes = read(max).filter(|bytes| *bytes < 1 << 62)?;
    Some(Limit { bytes, used: read(current).unwrap_or(0), file: dir.join(max) })
}

#[cfg(test)]
mod tests {
    use super::super::check::Verdict;
    use super::*;

    const GIB: u64 = 1 << 30;

    fn machine(groups: &str, mounts: &str, files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let files = [("proc/self/cgroup", groups), ("proc/self/mountinfo", mounts)]
            .into_iter()
            .chain(files.iter().copied());
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    fn texts(root: &tempfile::TempDir, regions: &[(String, u64, u64)]) -> Vec<(Verdict, String)> {
        checks_under(root.path(), regions).into_iter().map(|check| (check.verdict, check.what)).collect()
    }

    const V2: &str = "29 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";

    #[test]
    fn the_narrowest_group_above_counts() {
        let root = machine(
            "0::/user.slice/user-1000.slice/job.scope\n",
            V2,
            &[
                ("sys/fs/cgroup/user.slice/memory.max", "max\n"),
                ("sys/fs/cgroup/user.slice/user-1000.slice/memory.max", "4294967296\n"),
                ("sys/fs/cgroup/user.slice/user-1000.slice/memory.current", "1073741824\n"),
                ("sys/fs/cgroup/user.slice/user-1000.slice/job.scope/memory.max", "8589934592\n"),
                ("sys/fs/cgroup/user.slice/hugetlb.2MB.max", "2097152\n"),
                ("sys/fs/cgroup/user.slice/hugetlb.1GB.max", "max\n"),
            ],
        );
        let found = texts(&root, &[("small".into(), GIB, 4096), ("job".into(), 6 * GIB, 4096)]);
        assert_eq!(found.len(), 2, "{found:?}");
        let (verdict, text) = &found[0];
        assert_eq!(*verdict, Verdict::Warning);
        for part in ["4 GiB of memory", "1 GiB are used", "6 GiB of region job", "user-1000.slice/memory.max"]
        {
            assert!(text.contains(part), "{text}");
        }
        assert!(found[1].0 == Verdict::Ok && found[1].1.contains("2 MiB of pages of 2 MiB"), "{found:?}");
        // Each region counts for the memory that it is made of.
        let found = texts(&root, &[("job".into(), GIB, 2 << 20)]);
        assert!(found[0].0 == Verdict::Ok && found[1].0 == Verdict::Warning, "{found:?}");
    }

    #[test]
    fn version_one_is_read_as_well() {
        let mounts = "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let groups = "4:memory:/job\n3:cpuset:/\n0::/\n";
        let file = "sys/fs/cgroup/memory/job/memory.limit_in_bytes";
        let root = machine(groups, mounts, &[(file, "2147483648\n")]);
        let found = texts(&root, &[("job".into(), 4 * GIB, 4096)]);
        assert!(found.len() == 1 && found[0].1.contains("2 GiB of memory"), "{found:?}");
        let root = machine(groups, mounts, &[(file, "9223372036854771712\n")]);
        assert_eq!(texts(&root, &[]), []);
    }

    #[test]
    fn a_container_sees_its_own_group_as_the_root() {
        let mounts = "35 31 0:32 /docker/7 /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n";
        let root = machine(
            "4:memory:/docker/7\n",
            mounts,
            &[("sys/fs/cgroup/memory/memory.limit_in_bytes", "1073741824\n")],
        );
        assert!(texts(&root, &[])[0].1.contains("1 GiB of memory"));
        assert_eq!(texts(&machine("", "", &[]), &[]), []);
    }
}
