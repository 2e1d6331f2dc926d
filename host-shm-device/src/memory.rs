//! How much memory there is.

use std::fs;
use std::path::Path;

use nix::sys::statvfs::statvfs;

use crate::error::Error;

/// A number of bytes as people write it: `8 GiB`, `1.5 MiB`, `4096 bytes`.
pub fn format_bytes(bytes: u64) -> String {
    const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    for (unit, shift) in UNITS {
        let one = 1u64 << shift;
        if bytes >= one {
            let (whole, tenth) = (bytes >> shift, ((bytes & (one - 1)) * 10) >> shift);
            return if tenth == 0 && bytes.is_multiple_of(one) {
                format!("{whole} {unit}")
            } else {
                format!("{whole}.{tenth} {unit}")
            };
        }
    }
    format!("{bytes} bytes")
}

/// Bytes of memory that can be had without swapping (`MemAvailable`), where the kernel tells.
pub fn available() -> Option<u64> {
    field(&fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:")
}

/// The value in bytes of a `name  N kB` line.
pub(crate) fn field(meminfo: &str, name: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.split_once(name).map(|(_, rest)| rest))?;
    line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Refuses `needed` bytes where memory or the file system of `dir` has less.
pub(crate) fn check(needed: u64, dir: &Path) -> Result<(), Error> {
    if let Some(free) = available()
        && needed > free
    {
        return Err(Error::NoRoom {
            needed: format_bytes(needed),
            free: format!("{} available", format_bytes(free)),
            place: "this host's memory".into(),
            cure: "choose a smaller --size, or --sparse for an experiment that never fills it".into(),
        });
    }
    let fs = statvfs(dir).map_err(Error::sys(format!("ask for the size of {}", dir.display())))?;
    let (total, free) =
        (fs.blocks() * fs.fragment_size(), fs.blocks_available().saturating_mul(fs.fragment_size()));
    // A tmpfs without a limit says 0 blocks.
    if total != 0 && needed > free {
        return Err(Error::NoRoom {
            needed: format_bytes(needed),
            free: format!("{} left", format_bytes(free)),
            place: format!("the file system of {}", dir.display()),
            cure: format!(
                "choose a smaller --size, or enlarge it: `sudo mount -o remount,size={} $(stat -c %m {})`",
                total - free.min(total) + needed,
                dir.display()
            ),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_read_well() {
        assert_eq!(format_bytes(0), "0 bytes");
        assert_eq!(format_bytes(4096), "4 KiB");
        assert_eq!(format_bytes(8 << 30), "8 GiB");
        assert_eq!(format_bytes(3 << 19), "1.5 MiB");
        assert_eq!(format_bytes((1 << 30) + 1), "1.0 GiB");
        assert_eq!(format_bytes(u64::MAX), "16777215.9 TiB");
    }

    #[test]
    fn the_kernel_tells_how_much_memory_is_available() {
        assert!(available().unwrap() > 0);
        assert_eq!(field("Node 0 MemFree:   12 kB\n", "MemFree:"), Some(12288));
        assert_eq!(field("MemFree: x kB", "MemFree:"), None);
    }
}
