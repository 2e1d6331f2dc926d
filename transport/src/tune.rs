//! Pipeline parameters of this machine, from the sizes of its caches.
//!
//! The sizes come from the kernel, the rules from measurements.

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

/// Sizes of a first and second level cache where nobody tells them, bytes: nearly every server has these or more.
const LEVEL1: u64 = 32 << 10;
const LEVEL2: u64 = 1 << 20;

/// Where Linux describes the first CPU.
const CPU: &str = "/sys/devices/system/cpu/cpu0";

/// What is known of the processor that this runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine {
    /// First level data cache of a core, bytes; 0 where nobody tells.
    pub level1: u64,
    /// Second level cache, bytes; 0 where nobody tells.
    pub level2: u64,
    /// Third level cache, bytes; 0 where there is none.
    pub level3: u64,
    /// Clock now, MHz; 0 where nobody tells.
    pub clock: u64,
    /// `rep movsb` is fast: ERMS of the processor's flags.
    pub fast_strings: bool,
}

impl Machine {
    /// Asks the kernel.
    pub fn read() -> Self {
        let [level1, level2, level3] = caches(&Path::new(CPU).join("cache"));
        let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Self { level1, level2, level3, clock: clock(&info), fast_strings: has_flag(&info, "erms") }
    }
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

fn clock(info: &str) -> u64 {
    field(info, "cpu MHz").and_then(|value| value.trim().split('.').next()?.parse().ok()).unwrap_or(0)
}

fn has_flag(info: &str, flag: &str) -> bool {
    field(info, "flags").is_some_and(|flags| flags.split_whitespace().any(|found| found == flag))
}

/// Pipeline parameters: how messages are cut. All sizes are bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuning {
    /// Eager limit: longer messages go by rendezvous, when their receiver asks for them.
    pub eager_limit: usize,
    /// Chunk of a rendezvous message in ordinary memory, with many in flight.
    pub chunk_size: usize,
    /// Chunk at the beginning and the end of a message that is alone: its receiver begins when the first is there.
    pub tail_size: usize,
    /// Window of a sender with many messages in flight: how far it runs ahead of the receivers.
    pub window: usize,
    /// Window of a single message: the memory that its chunks take in rotation.
    pub window_single: usize,
    /// Chunk of a collective operation: half of a message's, since both sides copy at the same time.
    pub coll_chunk_size: usize,
    /// Memory that the chunks of a collective operation take in rotation, between two ranks: less than `window`, since other
    /// ranks' caches hold only what they read.
    pub coll_rotation: usize,
    /// Longest operand that the root of a reduction reads in place.
    pub coll_zero_copy_limit: usize,
    /// Eviction size: a sender that waits with this much just written for others evicts it from its first level cache.
    pub evict_size: usize,
}

impl Tuning {
    /// What suits a machine.
    ///
    /// Measured with 48 KiB, 2 MiB and 260 MiB of cache: a window beyond four second level caches gains nothing; chunks longer
    /// than the first level cost latency, shorter ones cost more than they gain. Memory that is used again at once lies in the
    /// receiver's cache and is slow to get back, so that the chunks of even a single message rotate through a good part of the
    /// second level cache.
    pub fn of(machine: &Machine) -> Self {
        let or = |size: u64, default| if size == 0 { default } else { size };
        let (level1, level2) = (or(machine.level1, LEVEL1), or(machine.level2, LEVEL2));
        let chunk_size = level1.next_power_of_two().clamp(32 << 10, 128 << 10);
        // The third level cache is for all cores.
        let most = if machine.level3 == 0 { 2 * level2 } else { (machine.level3 / 8).max(level2) };
        let window = (4 * level2).min(most).clamp(1 << 20, 16 << 20);
        // Within these bounds the casts lose nothing.
        Self {
            eager_limit: (chunk_size / 8) as usize,
            chunk_size: chunk_size as usize,
            tail_size: (chunk_size / 4) as usize,
            window: window as usize,
            window_single: (window / 16).max(chunk_size) as usize,
            coll_chunk_size: (chunk_size / 2) as usize,
            coll_rotation: (window / 4) as usize,
            // The operand, the root's own and the result fit the second level cache together.
            coll_zero_copy_limit: (level2 / 3) as usize & !4095,
            // Evicting less takes longer than its readers save.
            evict_size: (level1 / 3 * 2).clamp(8 << 10, 256 << 10) as usize,
        }
    }

    /// What suits this machine, which is asked once.
    pub fn of_this_machine() -> &'static Self {
        static TUNING: LazyLock<Tuning> = LazyLock::new(|| Tuning::of(&Machine::read()));
        &TUNING
    }
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
    fn clock_and_flags_are_read() {
        let info = "processor\t: 0\ncpu MHz\t\t: 2100.123\nflags\t\t: fpu erms\n";
        assert_eq!(clock(info), 2100);
        assert!(has_flag(info, "erms") && !has_flag(info, "erm"));
        assert_eq!(clock(""), 0);
    }

    #[test]
    fn every_machine_gets_sizes_that_fit_each_other() {
        for level1 in [0, 16 << 10, 32 << 10, 48 << 10, 128 << 10, u64::MAX >> 1] {
            for level2 in [0, 256 << 10, 2 << 20, 1 << 40] {
                for level3 in [0, 4 << 20, 260 << 20, u64::MAX] {
                    let machine = Machine { level1, level2, level3, clock: 0, fast_strings: true };
                    let tuning = Tuning::of(&machine);
                    assert!(
                        tuning.tail_size >= 4096
                            && tuning.tail_size <= tuning.chunk_size
                            && tuning.eager_limit <= 32 << 10
                    );
                    assert!(
                        tuning.chunk_size <= tuning.window_single && tuning.window_single <= tuning.window,
                        "{machine:?} {tuning:?}"
                    );
                    assert!(tuning.window <= 16 << 20);
                }
            }
        }
    }
}
