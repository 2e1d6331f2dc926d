//! Processes that have a region's file open, mapped or locked: asked of `/proc`.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;

use crate::error::Error;
use crate::process::Process;
use crate::region::Region;

/// Which file: device and inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileId {
    dev: u64,
    ino: u64,
}

/// A range of bytes of the file that a process has locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Held {
    pid: u32,
    first: u64,
    last: u64,
}

/// The processes that use a file, but for the one that asks.
#[derive(Debug, Default)]
pub struct Users {
    /// Their pids, ascending.
    pub pids: BTreeSet<u32>,
    /// How many processes this user may not look into.
    pub hidden: usize,
    locks: Vec<Held>,
}

impl Users {
    /// Pids of the processes that hold a lock on the byte.
    pub fn holding(&self, byte: u64) -> Vec<u32> {
        let mut pids: Vec<_> =
            self.locks.iter().filter(|l| (l.first..=l.last).contains(&byte)).map(|l| l.pid).collect();
        pids.dedup();
        pids
    }
}

impl FileId {
    /// Which file this is.
    pub(crate) fn of(file: &File) -> Result<Self, Error> {
        let meta = file.metadata().map_err(Error::io("look at the region's file"))?;
        Ok(Self { dev: meta.dev(), ino: meta.ino() })
    }
}

impl Region {
    /// Which file the region is.
    pub fn file_id(&self) -> Result<FileId, Error> {
        FileId::of(self.file())
    }
}

/// Finds the processes that use a file.
pub fn users(file: &FileId) -> Users {
    users_among(file, |_| true)
}

/// Finds those of some processes that use a file.
pub(crate) fn users_among(file: &FileId, are_meant: impl Fn(u32) -> bool) -> Users {
    let mut found = Users::default();
    let me = std::process::id();
    let Ok(processes) = fs::read_dir("/proc") else { return found };
    let pids = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    for pid in pids.filter(|&pid| pid != me && are_meant(pid)) {
        let Ok(open) = fs::read_dir(format!("/proc/{pid}/fd")) else {
            found.hidden += usize::from(Process::with_pid(pid).is_some());
            continue;
        };
        for fd in open.flatten() {
            let same = fs::metadata(fd.path()).is_ok_and(|m| m.dev() == file.dev && m.ino() == file.ino);
            if !same {
                continue;
            }
            found.pids.insert(pid);
            let info = format!("/proc/{pid}/fdinfo/{}", fd.file_name().to_string_lossy());
            let info = fs::read_to_string(info).unwrap_or_default();
            found.locks.extend(info.lines().filter_map(parse_lock).map(|(first, last)| Held {
                pid,
                first,
                last,
            }));
        }
        if fs::read_to_string(format!("/proc/{pid}/maps"))
            .is_ok_and(|maps| maps.lines().any(|l| maps_file(l, file)))
        {
            found.pids.insert(pid);
        }
    }
    found
}

/// First and last byte of a line such as `lock: 1: OFDLCK  ADVISORY  WRITE -1 00:1a:7 0 EOF`.
fn parse_lock(line: &str) -> Option<(u64, u64)> {
    let mut words = line.strip_prefix("lock:")?.split_ascii_whitespace();
    let first = words.nth(6)?.parse().ok()?;
    let last = match words.next()? {
        "EOF" => u64::MAX,
        last => last.parse().ok()?,
    };
    Some((first, last))
}

/// Whether a line such as `7f00-7f10 rw-s 00000000 00:1a 1234   /dev/shm/x` is of the file.
fn maps_file(line: &str, file: &FileId) -> bool {
    let mut words = line.split_ascii_whitespace().skip(3);
    let (Some(dev), Some(ino)) = (words.next(), words.next()) else { return false };
    let Some((major, minor)) = dev.split_once(':') else { return false };
    let number = |hex| u32::from_str_radix(hex, 16).ok();
    let (Some(major), Some(minor)) = (number(major), number(minor)) else { return false };
    ino.parse() == Ok(file.ino) && libc::makedev(major, minor) == file.dev
}

/// Whether a process was started with `text` somewhere in its arguments.
pub(crate) fn mentions(pid: u32, text: &str) -> bool {
    fs::read(format!("/proc/{pid}/cmdline"))
        .is_ok_and(|args| String::from_utf8_lossy(&args).to_ascii_lowercase().contains(text))
}

/// Pids with their names: `pid 12 (qemu-system-x86), pid 13 (mpirun)`.
pub(crate) fn describe<'a>(pids: impl IntoIterator<Item = &'a u32>) -> String {
    let list: Vec<_> = pids.into_iter().map(|&pid| format!("pid {pid} ({})", Process::name(pid))).collect();
    if list.is_empty() { "a process of another user".to_owned() } else { list.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_proc_are_understood() {
        assert_eq!(parse_lock("lock:\t1: OFDLCK  ADVISORY  WRITE -1 00:1a:7 256 256"), Some((256, 256)));
        assert_eq!(parse_lock("lock:\t1: POSIX  ADVISORY  READ 17 00:1a:7 0 EOF"), Some((0, u64::MAX)));
        assert_eq!(parse_lock("pos:\t0"), None);
        let file = FileId { dev: libc::makedev(0, 0x1a), ino: 1234 };
        assert!(maps_file("7f00-7f10 rw-s 00000000 00:1a 1234   /dev/shm/x y", &file));
        assert!(!maps_file("7f00-7f10 rw-s 00000000 00:1b 1234   /dev/shm/x", &file));
        assert!(!maps_file("", &file));
    }
}
