//! The machine of a measurement: processor, caches and load, as Linux tells them.

use std::fs;
use std::path::Path;

/// A kind of machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    vendor: String,
    family: String,
    model: String,
    name: String,
    /// Data caches of a core, the nearest first, as `32K`.
    caches: Vec<String>,
}

impl Machine {
    /// This one.
    pub fn here() -> Machine {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Self::read(&cpuinfo, Path::new("/sys/devices/system/cpu/cpu0/cache"))
    }

    fn read(cpuinfo: &str, caches: &Path) -> Machine {
        let word = |name: &str| {
            let value = |line: &str| {
                let (found, value) = line.split_once(':')?;
                (found.trim() == name).then(|| value.trim().to_owned())
            };
            cpuinfo.lines().find_map(value).unwrap_or_else(|| "unknown".into())
        };
        let cache = |index: u32| {
            let dir = caches.join(format!("index{index}"));
            let read = |what| Some(fs::read_to_string(dir.join(what)).ok()?.trim().to_owned());
            (read("type")? != "Instruction").then(|| read("size")).flatten()
        };
        Machine {
            vendor: match word("vendor_id").as_str() {
                "GenuineIntel" => "intel".into(),
                "AuthenticAMD" => "amd".into(),
                other => other.to_lowercase(),
            },
            family: word("cpu family"),
            model: word("model"),
            name: word("model name"),
            caches: (0..8).filter_map(cache).collect(),
        }
    }

    /// The name of the file in docs/measured that holds the figures of this kind.
    pub fn file(&self) -> String {
        format!("{}-family{}-model{}.md", self.vendor, self.family, self.model)
    }

    /// A phrase for a report.
    pub fn describe(&self) -> String {
        let caches = if self.caches.is_empty() { "unknown".into() } else { self.caches.join(", ") };
        format!("{} (family {}, model {}, caches {caches})", self.name, self.family, self.model)
    }
}

/// Processes that ran or wanted to, on average over the last minute.
pub fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().unwrap_or("unknown").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_vendor_family_and_model() {
        let dir = tempfile::tempdir().unwrap();
        for (index, kind, size) in [(0, "Data", "32K"), (1, "Instruction", "32K"), (2, "Unified", "512K")] {
            let cache = dir.path().join(format!("index{index}"));
            fs::create_dir(&cache).unwrap();
            fs::write(cache.join("type"), format!("{kind}\n")).unwrap();
            fs::write(cache.join("size"), format!("{size}\n")).unwrap();
        }
        let text = "vendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 1\nmodel name\t: AMD EPYC 7763\n";
        let machine = Machine::read(text, dir.path());
        assert_eq!(machine.file(), "amd-family25-model1.md");
        assert_eq!(machine.describe(), "AMD EPYC 7763 (family 25, model 1, caches 32K, 512K)");
    }
}
