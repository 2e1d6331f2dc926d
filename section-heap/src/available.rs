//! Memory that a process has left: the least of what the machine and each of its control groups have. Read without an
//! allocation, since a fork's handlers ask.

use std::fs::File;
use std::io::Read;
use std::os::fd::FromRawFd;

/// Longer paths and files are cut: what is looked for stands at the files' beginnings, and a thread's stack may be small.
const PATH: usize = 1024;
const TEXT: usize = 2048;

/// Bytes that are left; 0 where the kernel does not say.
pub(crate) fn available() -> usize {
    available_under("")
}

/// Bytes of programs' memory that may be copied without harm: a part of what this process has left. A section lies
/// in the host's memory, and can be larger than all that a VM has.
pub fn copy_limit() -> usize {
    available() / 4
}

fn available_under(root: &str) -> usize {
    let mut text = [0; TEXT];
    let machine = Path::new(&[root, "/proc/meminfo"])
        .read(&mut text)
        .and_then(|text| number_after(text, "MemAvailable:"))
        .map_or(0, |kilobytes| kilobytes.saturating_mul(1024));
    let Some(groups) = Path::new(&[root, "/proc/self/cgroup"]).read(&mut text) else { return machine };
    groups.lines().filter_map(|line| of_hierarchy(root, line)).fold(machine, usize::min)
}

/// Where a hierarchy's files lie, and the names of what they say.
struct Names {
    mount: &'static str,
    limit: &'static str,
    usage: &'static str,
    /// Pages of files, which the kernel drops before it lets anyone die.
    cache: &'static str,
}

const VERSION_1: Names = Names {
    mount: "/sys/fs/cgroup/memory",
    limit: "/memory.limit_in_bytes",
    usage: "/memory.usage_in_bytes",
    cache: "total_inactive_file",
};
const VERSION_2: Names =
    Names { mount: "/sys/fs/cgroup", limit: "/memory.max", usage: "/memory.current", cache: "inactive_file" };

/// Memory left to the cgroup of a line of `/proc/self/cgroup`: the least of the group and all above it.
fn of_hierarchy(root: &str, line: &str) -> Option<usize> {
    let (_, rest) = line.split_once(':')?;
    let (controllers, mut group) = rest.split_once(':')?;
    let names = match controllers {
        "" => &VERSION_2,
        _ if controllers.split(',').any(|name| name == "memory") => &VERSION_1,
        _ => return None,
    };
    let mut least = None;
    loop {
        group = group.trim_end_matches('/');
        // A container may not see all levels.
        least = least.into_iter().chain(of_group(root, names, group)).min();
        let Some((above, _)) = group.rsplit_once('/') else { return least };
        group = above;
    }
}

fn of_group(root: &str, names: &Names, group: &str) -> Option<usize> {
    let mut text = [0; TEXT];
    let mut read = |name: &str, key: &str| {
        let text = Path::new(&[root, names.mount, group, name]).read(&mut text)?;
        number_after(text, key)
    };
    // "max" is no number.
    let limit = read(names.limit, "")?;
    let used = read(names.usage, "")?.saturating_sub(read("/memory.stat", names.cache).unwrap_or(0));
    Some(limit.saturating_sub(used))
}

/// The number on the line whose first word is `key`; with an empty key, on the first line.
fn number_after(text: &str, key: &str) -> Option<usize> {
    text.lines().find_map(|line| {
        let rest = line.strip_prefix(key)?;
        let is_whole = key.is_empty() || rest.starts_with(char::is_whitespace);
        rest.split_whitespace().next().filter(|_| is_whole)?.parse().ok()
    })
}

/// A path with a NUL behind it.
struct Path([u8; PATH]);

impl Path {
    fn new(parts: &[&str]) -> Self {
        let mut path = [0; PATH];
        let bytes = parts.iter().flat_map(|part| part.bytes());
        path[..PATH - 1].iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
        Self(path)
    }

    fn read<'a>(&self, text: &'a mut [u8; TEXT]) -> Option<&'a str> {
        // SAFETY: the path ends with a NUL.
        let fd = unsafe { libc::open(self.0.as_ptr().cast(), libc::O_RDONLY | libc::O_CLOEXEC) };
        if fd < 0 {
            return None;
        }
        // SAFETY: it has just been opened, and is nobody else's.
        let mut file = unsafe { File::from_raw_fd(fd) };
        let mut len = 0;
        while len < TEXT {
            match file.read(&mut text[len..]).ok()? {
                0 => break,
                more => len += more,
            }
        }
        // The end may be cut within a letter.
        let text = &text[..len];
        str::from_utf8(text).or_else(|error| str::from_utf8(&text[..error.valid_up_to()])).ok()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_machine_says() {
        assert!(available() > 1 << 20);
    }

    #[test]
    fn the_tightest_group_counts() {
        let directory = tempfile::TempDir::new().unwrap();
        let root = directory.path().to_str().unwrap();
        let put = |name: &str, text: &str| {
            let path = directory.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        assert_eq!(available_under(root), 0);
        put("proc/meminfo", "MemTotal: 4000 kB\nMemAvailable:    2000 kB\nX: 1 kB\n");
        assert_eq!(available_under(root), 2_048_000);

        // Version 2: the limit is the job's, above the step's.
        put("proc/self/cgroup", "0::/job/step\n");
        put("sys/fs/cgroup/job/step/memory.max", "max\n");
        put("sys/fs/cgroup/job/step/memory.current", "700000\n");
        assert_eq!(available_under(root), 2_048_000);
        put("sys/fs/cgroup/job/memory.max", "1000000\n");
        put("sys/fs/cgroup/job/memory.current", "900000\n");
        assert_eq!(available_under(root), 100_000);
        put("sys/fs/cgroup/job/memory.stat", "anon 5\ninactive_file 200000\ninactive_file_x 7\n");
        assert_eq!(available_under(root), 300_000);
        put("sys/fs/cgroup/job/memory.current", "2000000\n");
        assert_eq!(available_under(root), 0);

        // Version 1, in a container that sees its own group as the root.
        put("proc/self/cgroup", "4:cpu,memory:/outside/me\n3:cpuset:/\n0::/\n");
        put("sys/fs/cgroup/memory/memory.limit_in_bytes", "9000000\n");
        put("sys/fs/cgroup/memory/memory.usage_in_bytes", "8000000\n");
        put("sys/fs/cgroup/memory/memory.stat", "inactive_file 9\ntotal_inactive_file 1000\n");
        assert_eq!(available_under(root), 1_001_000);
    }
}
