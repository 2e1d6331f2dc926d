//! Page faults of several processes must not wait for each other: the driver takes no lock in them that keeps others out.
//!
//! Seen by a probe on the kernel's `mutex_lock`, which says how often the driver calls it for this thread. Waiting itself
//! can't be asked for on a machine with one processor.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use anyhow::{Context, Result, ensure};

use crate::device::Device;
use crate::mapping::{Map, PAGE};
use crate::report::Report;

const TRACING: &str = "/sys/kernel/tracing";
/// Faults, and calls that do take the lock.
const COUNT: usize = 64;

/// A probe on a function of the kernel, taken away when this is dropped.
struct Probe {
    name: String,
}

impl Probe {
    fn new(function: &str) -> Result<Self> {
        // SAFETY: it only tells a number.
        let thread = unsafe { libc::gettid() };
        let name = format!("vmshm_{thread}");
        write("kprobe_events", &format!("p:kprobes/{name} {function} caller=+0($stack):symbol"))?;
        let probe = Self { name };
        write(&probe.event("filter"), &format!("common_pid == {thread}"))?;
        Ok(probe)
    }

    fn event(&self, file: &str) -> String {
        format!("events/kprobes/{}/{file}", self.name)
    }

    /// How often the driver calls the function, itself or by the kernel's Rust code, while this thread does some work.
    fn count(&self, work: impl FnOnce() -> Result<()>) -> Result<usize> {
        write("trace", "")?;
        write(&self.event("enable"), "1")?;
        let done = work();
        write(&self.event("enable"), "0")?;
        done?;
        let text = fs::read_to_string(Path::new(TRACING).join("trace")).context("read the trace")?;
        let calls = text.lines().filter(|line| line.contains(&format!(" {}: ", self.name)));
        Ok(calls.filter(|line| line.contains("[vmshm]") || line.contains("caller=rust_helper")).count())
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        let _ = write(&self.event("enable"), "0");
        let _ = write("kprobe_events", &format!("-:kprobes/{}", self.name));
    }
}

/// Appends a line, so that other probes stay.
fn write(file: &str, text: &str) -> Result<()> {
    let path: PathBuf = Path::new(TRACING).join(file);
    let mut options = fs::OpenOptions::new();
    match file {
        "kprobe_events" => options.append(true),
        _ => options.write(true).truncate(true),
    };
    let mut file = options.open(&path).with_context(|| format!("open {}", path.display()))?;
    std::io::Write::write_all(&mut file, text.as_bytes())
        .with_context(|| format!("write {text:?} to {}", path.display()))
}

/// Runs the checks.
pub fn checks(path: &Path, report: &mut Report) -> Result<()> {
    let device = Device::open(path)?;
    report.check("page faults take no mutex", || {
        let probe = Probe::new("mutex_lock")?;
        // One page each, so that each has a fault of its own.
        let offset = |page: usize| (page * PAGE) as u64;
        let maps: Vec<Map> = (0..COUNT)
            .map(|page| Ok(Map::shared(&device, offset(page), PAGE, libc::PROT_READ)?))
            .collect::<Result<_>>()?;
        let faults = probe.count(|| {
            for map in &maps {
                map.byte(0).load(Ordering::Relaxed);
            }
            Ok(())
        })?;
        let calls = probe.count(|| {
            for _ in 0..COUNT {
                device.claim(1)?;
                device.unclaim()?;
            }
            Ok(())
        })?;
        println!("        mutex_lock: {faults} in {COUNT} faults, {calls} in {} calls", 2 * COUNT);
        ensure!(
            calls >= 2 * COUNT,
            "the probe saw {calls} mutexes in {} calls that take one each",
            2 * COUNT
        );
        ensure!(faults == 0, "{faults} mutexes were taken in {COUNT} faults");
        Ok(())
    });
    Ok(())
}
