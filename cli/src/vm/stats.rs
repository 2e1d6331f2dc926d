//! `vmshm vm stats`: how quiet running VMs are, as figures.
//!
//! Exits are what KVM counts, faults and steal what the kernel's /proc says of the VMM's threads.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::Instant;

use serde::Serialize;

use super::monitor::{self, Answer};
use super::status::{pids, stat_field, vcpus};
use super::view::{View, title};

/// Options of `vmshm vm stats`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
An exit is a way out of the guest, into KVM; few of them go on to the VMM. A guest that polls has none. KVM decides what it \
counts: names are its own (pf_: faults on the guest's memory; irq_injections: interrupts given to the guest).

Steal is the time in which a vCPU would have run but had no CPU; faults are those of the whole VMM.")]
pub struct Args {
    #[command(flatten)]
    view: View,
}

/// Counts of a VM, per second.
#[derive(Debug, Serialize)]
struct Vm {
    pid: u32,
    regions: Vec<String>,
    /// By KVM, of the VM as a whole.
    vm: BTreeMap<String, f64>,
    vcpus: Vec<Vcpu>,
    /// Page faults of the VMM that cost no I/O.
    minor_faults: f64,
    /// Page faults of the VMM that waited for a disk.
    major_faults: f64,
}

#[derive(Debug, Serialize)]
struct Vcpu {
    number: u32,
    /// By KVM.
    kvm: BTreeMap<String, f64>,
    /// Share of the time in which it was ready to run but did not, in percent.
    steal: f64,
}

/// All that has been counted of a VM so far.
struct Sample {
    at: Instant,
    answer: Answer,
    /// By vCPU, in nanoseconds.
    waited: BTreeMap<u32, u64>,
    faults: [u64; 2],
}

impl Args {
    /// Prints the table or JSON.
    pub fn run(&self) -> anyhow::Result<()> {
        let mut before = samples();
        self.view.pause();
        let look = || {
            let now = samples();
            let since = std::mem::replace(&mut before, now);
            before.iter().filter_map(|(pid, now)| Some(between(*pid, since.get(pid)?, now))).collect()
        };
        self.view.show(look, table)
    }
}

fn samples() -> BTreeMap<u32, Sample> {
    pids().into_iter().filter_map(|pid| Some((pid, sample(pid)?))).collect()
}

/// `None` where it is no VM of ours, or ended meanwhile.
fn sample(pid: u32) -> Option<Sample> {
    let dir = Path::new("/proc").join(pid.to_string());
    let vcpus = vcpus(&dir);
    if vcpus.is_empty() {
        return None;
    }
    let answer = monitor::ask(pid)?;
    let waited = vcpus.into_iter().filter_map(|(number, task)| {
        // Time on a CPU, time in wait for one, both in nanoseconds.
        let text = fs::read_to_string(task.join("schedstat")).ok()?;
        Some((number, text.split_whitespace().nth(1)?.parse().ok()?))
    });
    let waited = waited.collect();
    let stat = fs::read_to_string(dir.join("stat")).ok()?;
    let faults = [stat_field(&stat, 10)?, stat_field(&stat, 12)?];
    Some(Sample { at: Instant::now(), answer, waited, faults })
}

fn between(pid: u32, before: &Sample, now: &Sample) -> Vm {
    let seconds = (now.at - before.at).as_secs_f64();
    let rate = |before: u64, now: u64| now.saturating_sub(before) as f64 / seconds;
    let rates = |before: Option<&BTreeMap<String, u64>>, now: &BTreeMap<String, u64>| {
        let of = |(name, &now): (&String, &u64)| {
            let before = before.and_then(|counts| counts.get(name)).copied().unwrap_or(0);
            (name.clone(), rate(before, now))
        };
        now.iter().map(of).collect::<BTreeMap<_, _>>()
    };
    let (old, new) = (&before.answer.counts, &now.answer.counts);
    let vcpus = now.waited.iter().map(|(&number, &waited)| {
        let at = number as usize;
        let kvm = new.vcpus.get(at).map(|counts| rates(old.vcpus.get(at), counts));
        let waited = rate(before.waited.get(&number).copied().unwrap_or(waited), waited);
        Vcpu { number, kvm: kvm.unwrap_or_default(), steal: waited / 1e7 }
    });
    Vm {
        pid,
        regions: now.answer.regions.clone(),
        vm: rates(Some(&old.vm), &new.vm),
        vcpus: vcpus.collect(),
        minor_faults: rate(before.faults[0], now.faults[0]),
        major_faults: rate(before.faults[1], now.faults[1]),
    }
}

fn table(vms: &[Vm]) -> String {
    if vms.is_empty() {
        return "no VM runs that tells this user what it counts (`vmshm vm run` starts one)\n".to_owned();
    }
    let mut text = String::new();
    for vm in vms {
        write_vm(&mut text, vm).expect("a String takes everything");
    }
    text
}

fn write_vm(text: &mut String, vm: &Vm) -> std::fmt::Result {
    let counted = vm.vcpus.iter().any(|vcpu| vcpu.kvm.contains_key("exits"));
    let exits = match counted {
        true => format!("{:.1} exits", sum(vm, "exits")),
        // Such a kernel cannot say more than /proc does.
        false => "no count of exits from this KVM (Linux 5.14 or later has it)".to_owned(),
    };
    writeln!(
        text,
        "{}, per second: {exits}, {:.1} page faults of the VMM ({:.1} with I/O)",
        title(vm.pid, &vm.regions),
        vm.minor_faults + vm.major_faults,
        vm.major_faults
    )?;
    for vcpu in &vm.vcpus {
        let exits = vcpu.kvm.get("exits").map_or(String::new(), |exits| format!("{exits:>12.1} exits/s, "));
        writeln!(text, "  vCPU {:<4} {exits}{:.1} % steal", vcpu.number, vcpu.steal)?;
    }
    let names: std::collections::BTreeSet<_> = vm.vcpus.iter().flat_map(|vcpu| vcpu.kvm.keys()).collect();
    let mut rates: Vec<_> = names.into_iter().map(|name| (sum(vm, name), name)).collect();
    rates.extend(vm.vm.iter().map(|(name, rate)| (*rate, name)));
    // The most frequent first; what did not happen is left out.
    rates.retain(|(rate, name)| *rate > 0.0 && *name != "exits");
    rates.sort_by(|a, b| b.0.total_cmp(&a.0));
    for (rate, name) in rates {
        writeln!(text, "  {name:<28} {rate:>12.1} /s")?;
    }
    Ok(())
}

/// Of all vCPUs.
fn sum(vm: &Vm, name: &str) -> f64 {
    vm.vcpus.iter().filter_map(|vcpu| vcpu.kvm.get(name)).sum()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use vmshm_vmm::Counts;

    use super::*;

    fn counts(exits: u64, mmio: u64) -> BTreeMap<String, u64> {
        BTreeMap::from([("exits".into(), exits), ("mmio_exits".into(), mmio), ("hypercalls".into(), 5)])
    }

    #[test]
    fn rates_are_differences_by_time_and_what_did_not_happen_is_left_out() {
        let at = Instant::now();
        let sample = |at, exits, waited, faults| Sample {
            at,
            answer: Answer {
                regions: vec!["job:1".into()],
                counts: Counts {
                    vm: BTreeMap::new(),
                    vcpus: vec![counts(exits, 7), counts(2 * exits, exits)],
                },
            },
            waited: BTreeMap::from([(0, waited), (1, 0)]),
            faults: [faults, 3],
        };
        let before = sample(at, 100, 0, 10);
        let vm = between(7, &before, &sample(at + Duration::from_secs(2), 300, 1_000_000_000, 14));
        assert_eq!((vm.vcpus[0].kvm["exits"], vm.vcpus[1].kvm["mmio_exits"]), (100.0, 100.0));
        assert_eq!((vm.vcpus[0].steal, vm.vcpus[1].steal), (50.0, 0.0));
        assert_eq!((vm.minor_faults, vm.major_faults), (2.0, 0.0));
        let text = table(&[vm]);
        assert!(text.contains("VM of pid 7, job:1, per second: 300.0 exits, 2.0 page faults"), "{text}");
        assert!(text.contains("mmio_exits                          100.0 /s"), "{text}");
        assert!(!text.contains("hypercalls"), "{text}");
    }

    #[test]
    fn a_kvm_that_counts_nothing_is_told() {
        let vcpu = Vcpu { number: 0, kvm: BTreeMap::new(), steal: 0.0 };
        let vm = Vm {
            pid: 7,
            regions: Vec::new(),
            vm: BTreeMap::new(),
            vcpus: vec![vcpu],
            minor_faults: 0.0,
            major_faults: 0.0,
        };
        assert!(table(&[vm]).contains("no count of exits from this KVM"));
    }
}
