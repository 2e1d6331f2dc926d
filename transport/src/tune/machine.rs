//! Facts of the processor.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use crate::memory::copy::Kernel;

/// Where Linux describes the first CPU.
const CPU: &str = "/sys/devices/system/cpu/cpu0";

/// Maker of a processor, as far as its caches differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vendor {
    /// AMD, and Hygon after its design: the third level cache holds what the second ones have dropped.
    Amd,
    /// Intel and all others.
    Other,
}

/// Facts of the processor that this runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine {
    /// Maker.
    pub vendor: Vendor,
    /// First level data cache of a core, bytes; 0 where nobody tells.
    pub level1: u64,
    /// Second level cache, bytes; 0 where nobody tells.
    pub level2: u64,
    /// Third level cache, bytes; 0 where there is none.
    pub level3: u64,
    /// Clock now, MHz; 0 where nobody tells.
    pub clock: u64,
    /// Vectors of 32 bytes: AVX of the processor's flags.
    pub avx: bool,
    /// `rep movsb` is fast: ERMS of the processor's flags.
    pub fast_strings: bool,
    /// Lines can be demoted to the shared cache: CLDEMOTE of the processor's flags.
    pub demotes: bool,
}

impl Machine {
    /// Asks the kernel.
    pub fn read() -> Self {
        let [level1, level2, level3] = caches(&Path::new(CPU).join("cache"));
        let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Self {
            vendor: vendor(&info),
            level1,
            level2,
            level3,
            clock: clock(&info),
            // Also of the system, which may not save these registers.
            avx: has_flag(&info, "avx") && Kernel::all().any(|kernel| kernel == Kernel::Avx),
            fast_strings: has_flag(&info, "erms"),
            demotes: has_flag(&info, "cldemote"),
        }
    }

    /// The kind of this machine, on which a measurement holds: processor, microcode and caches, in one line without spaces.
    pub fn kind(&self) -> String {
        kind(
            &fs::read_to_string("/proc/cpuinfo").unwrap_or_default(),
            [self.level1, self.level2, self.level3],
        )
    }
}

fn kind(info: &str, caches: [u64; 3]) -> String {
    let mut kind = String::new();
    for name in ["vendor_id", "cpu family", "model", "stepping", "microcode"] {
        let value = field(info, name).map_or("unknown", str::trim);
        kind.extend(value.chars().filter(|c| c.is_ascii_alphanumeric()));
        kind.push('-');
    }
    let _ = write!(kind, "{}-{}-{}", caches[0], caches[1], caches[2]);
    kind
}

/// The sizes of the data caches of levels 1 to 3, bytes.
fn caches(directory: &Path) -> [u64; 3] {
    let mut sizes = [0; 3];
    for index in 0..8 {
        let read = |name: &str| fs::read_to_string(directory.join(format!("index{index}/{name}"))).ok();
        let (Some(level), Some(kind), Some(size)) = (read("level"), read("type"), read("size")) else {
            continue;
        };
        if let (Ok(level @ 1..=3), Some(size)) = (level.trim().parse::<usize>(), size_of_cache(size.trim()))
            && kind.trim() != "Instruction"
        {
            sizes[level - 1] = size;
        }
    }
    sizes
}

/// `48K` or `2M`, as bytes.
fn size_of_cache(text: &str) -> Option<u64> {
    let (number, unit) = match text.split_at_checked(text.len().checked_sub(1)?)? {
        (number, "K") => (number, 1 << 10),
        (number, "M") => (number, 1 << 20),
        _ => (text, 1),
    };
    number.parse::<u64>().ok()?.checked_mul(unit)
}

fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.trim() == name)
        .map(|(_, value)| value)
}

fn vendor(info: &str) -> Vendor {
    match field(info, "vendor_id").map(str::trim) {
        Some("AuthenticAMD" | "HygonGenuine") => Vendor::Amd,
        _ => Vendor::Other,
    }
}

fn clock(info: &str) -> u64 {
    field(info, "cpu MHz").and_then(|value| value.trim().split('.').next()?.parse().ok()).unwrap_or(0)
}

fn has_flag(info: &str, flag: &str) -> bool {
    field(info, "flags").is_some_and(|flags| flags.split_whitespace().any(|found| found == flag))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_the_kernel_writes_them() {
        assert_eq!(size_of_cache("48K"), Some(48 << 10));
        assert_eq!(size_of_cache("2M"), Some(2 << 20));
        assert_eq!(size_of_cache("512"), Some(512));
        assert_eq!(size_of_cache("K"), None);
        assert_eq!(size_of_cache(""), None);
        let directory = tempfile::tempdir().unwrap();
        for (index, level, kind, size) in
            [(0, 1, "Data", "48K"), (1, 1, "Instruction", "64K"), (2, 2, "Unified", "2048K")]
        {
            let path = directory.path().join(format!("index{index}"));
            fs::create_dir(&path).unwrap();
            fs::write(path.join("level"), format!("{level}\n")).unwrap();
            fs::write(path.join("type"), format!("{kind}\n")).unwrap();
            fs::write(path.join("size"), format!("{size}\n")).unwrap();
        }
        assert_eq!(caches(directory.path()), [48 << 10, 2 << 20, 0]);
    }

    #[test]
    fn vendor_clock_flags_and_kind_are_read() {
        let info = "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\n\
                    stepping\t: 1\nmicrocode\t: 0x1000065\ncpu MHz\t\t: 2100.123\nflags\t\t: fpu erms\n";
        assert_eq!((vendor(info), vendor("vendor_id : GenuineIntel")), (Vendor::Amd, Vendor::Other));
        assert_eq!(clock(info), 2100);
        assert!(has_flag(info, "erms") && !has_flag(info, "erm"));
        assert_eq!(clock(""), 0);
        assert_eq!(kind(info, [32768, 1048576, 0]), "AuthenticAMD-25-17-1-0x1000065-32768-1048576-0");
        assert_eq!(kind("model : ../../x y\n", [0; 3]), "unknown-unknown-xy-unknown-unknown-0-0-0");
    }
}
