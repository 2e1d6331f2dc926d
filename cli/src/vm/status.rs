//! `vmshm vm status`: where the threads and the memory of running VMs really are.
//!
//! All is read from /proc, so it is what the kernel did, not what the VMM asked for.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::Serialize;
use vmshm_host::format_bytes;

use super::monitor;
use super::view::{View, title};

/// Width of a bar that stands for all of a memory.
const BAR: u64 = 20;

/// Options of `vmshm vm status`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A vCPU whose node differs from its memory's pays for every cache miss: what lies on another node is the VM's leakage.

Of a region that part is shown which this host process has touched, or its guest.")]
pub struct Args {
    #[command(flatten)]
    view: View,
}

/// A VM of this host that the user may look into.
#[derive(Debug, Serialize)]
struct Vm {
    pid: u32,
    regions: Vec<String>,
    vcpus: Vec<Vcpu>,
    memory: Vec<Memory>,
    /// Share of the memory that lies on no node on which a vCPU runs, or not on that which its policy names, in percent.
    leakage: u64,
}

#[derive(Debug, Serialize)]
struct Vcpu {
    number: u32,
    /// The CPU on which it ran last.
    cpu: u32,
    node: Option<u32>,
    /// CPUs on which it may run.
    allowed: String,
}

#[derive(Debug, Serialize)]
struct Memory {
    what: String,
    /// Where the kernel is to take it from, `bind:0` or `prefer:1`; none where it may choose. A VM with several nodes has
    /// memory of each.
    policy: Option<String>,
    /// Bytes by node.
    nodes: BTreeMap<u32, u64>,
}

impl Args {
    /// Prints the table or JSON.
    pub fn run(&self) -> anyhow::Result<()> {
        self.view.show(|| pids().into_iter().filter_map(look).collect(), table)
    }
}

/// The processes of all running VMs.
pub fn pids() -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let runs = |pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|&byte| byte == 0).skip(1).take(2).eq([&b"vm"[..], b"run"])
    };
    let mut pids: Vec<_> = pids.filter(runs).collect();
    pids.sort_unstable();
    pids
}

/// The vCPUs of the process with this directory, by number, and the directories of their threads.
pub fn vcpus(dir: &Path) -> BTreeMap<u32, PathBuf> {
    let number = |task: &Path| {
        let name = fs::read_to_string(task.join("comm")).ok()?;
        name.trim().strip_prefix("vcpu")?.parse().ok()
    };
    let tasks = fs::read_dir(dir.join("task")).into_iter().flatten().flatten();
    tasks.filter_map(|task| Some((number(&task.path())?, task.path()))).collect()
}

/// A field of a process's or thread's `stat`, with its number in proc(5).
pub fn stat_field<T: FromStr>(stat: &str, number: usize) -> Option<T> {
    // Behind the name, which may contain anything, comes field 3.
    stat.rsplit_once(')')?.1.split_whitespace().nth(number - 3)?.parse().ok()
}

/// Looks at a process; `None` where it is no VM of ours, or ended meanwhile.
fn look(pid: u32) -> Option<Vm> {
    let dir = Path::new("/proc").join(pid.to_string());
    let vcpus: Vec<_> = vcpus(&dir).into_iter().filter_map(|(number, task)| vcpu(number, &task)).collect();
    if vcpus.is_empty() {
        return None;
    }
    let smaps = fs::read_to_string(dir.join("smaps")).ok()?;
    let memory = memory(&fs::read_to_string(dir.join("numa_maps")).ok()?, &private(&smaps));
    let own: Vec<_> = vcpus.iter().filter_map(|vcpu| vcpu.node).collect();
    let regions = monitor::ask(pid).map_or_else(Vec::new, |answer| answer.regions);
    let leakage = leakage(&memory, &own);
    Some(Vm { pid, regions, vcpus, memory, leakage })
}

/// How much of the guest's own memory lies elsewhere than it should, in percent. A region has parts for other VMs.
fn leakage(memory: &[Memory], vcpu_nodes: &[u32]) -> u64 {
    let (mut all, mut elsewhere) = (0, 0);
    for part in memory.iter().filter(|part| part.what == RAM) {
        let wanted = part.policy.as_ref().and_then(|policy| policy.rsplit_once(':')?.1.parse().ok());
        for (&node, &bytes) in &part.nodes {
            all += bytes;
            if !vcpu_nodes.contains(&node) || wanted.is_some_and(|wanted: u32| wanted != node) {
                elsewhere += bytes;
            }
        }
    }
    elsewhere * 100 / all.max(1)
}

fn vcpu(number: u32, task: &Path) -> Option<Vcpu> {
    let stat = fs::read_to_string(task.join("stat")).ok()?;
    let cpu = stat_field(&stat, 39)?;
    let status = fs::read_to_string(task.join("status")).ok()?;
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    Some(Vcpu { number, cpu, node: node_of(cpu), allowed: allowed.trim().to_owned() })
}

fn node_of(cpu: u32) -> Option<u32> {
    let dir = fs::read_dir(format!("/sys/devices/system/cpu/cpu{cpu}")).ok()?;
    dir.flatten().find_map(|entry| entry.file_name().to_str()?.strip_prefix("node")?.parse().ok())
}

/// Start addresses of mappings that are kept out of core dumps, as the VMM does with what the guest sees.
fn private(smaps: &str) -> Vec<u64> {
    let mut found = Vec::new();
    let mut start = None;
    for line in smaps.lines() {
        let range = line.split(' ').next().and_then(|range| range.split_once('-'));
        if let Some((first, last)) = range
            && u64::from_str_radix(last, 16).is_ok()
        {
            start = u64::from_str_radix(first, 16).ok();
        } else if line.starts_with("VmFlags:") && line.split_whitespace().any(|flag| flag == "dd") {
            found.extend(start);
        }
    }
    found
}

const RAM: &str = "memory";

/// Sums what the guest sees by policy and node.
fn memory(numa_maps: &str, private: &[u64]) -> Vec<Memory> {
    let mut sums: BTreeMap<(String, Option<String>), BTreeMap<u32, u64>> = BTreeMap::new();
    for line in numa_maps.lines() {
        let mut words = line.split_whitespace();
        let start = words.next().and_then(|start| u64::from_str_radix(start, 16).ok());
        if !start.is_some_and(|start| private.contains(&start)) {
            continue;
        }
        let words: Vec<_> = words.collect();
        let value = |name: &str| words.iter().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        let what = match value("file") {
            Some(file) => format!("region {}", file.rsplit('/').next().unwrap_or(file)),
            None => RAM.to_owned(),
        };
        let page = value("kernelpagesize_kB").and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(4) << 10;
        let policy = words.first().filter(|policy| policy.contains(':')).map(|policy| (*policy).to_owned());
        let nodes = sums.entry((what, policy)).or_default();
        for word in &words {
            if let Some((node, pages)) = word.strip_prefix('N').and_then(|word| word.split_once('='))
                && let (Ok(node), Ok(pages)) = (node.parse(), pages.parse::<u64>())
            {
                *nodes.entry(node).or_default() += pages * page;
            }
        }
    }
    sums.into_iter().map(|((what, policy), nodes)| Memory { what, policy, nodes }).collect()
}

fn table(vms: &[Vm]) -> String {
    if vms.is_empty() {
        return "no VM runs that this user may look into (`vmshm vm run` starts one)\n".to_owned();
    }
    let mut text = String::new();
    for vm in vms {
        write_vm(&mut text, vm).expect("a String takes everything");
    }
    text
}

fn write_vm(text: &mut String, vm: &Vm) -> std::fmt::Result {
    let title = title(vm.pid, &vm.regions);
    writeln!(text, "{title}: {} % of its memory on other nodes than its own", vm.leakage)?;
    for vcpu in &vm.vcpus {
        let node = vcpu.node.map_or(String::new(), |node| format!(", node {node}"));
        writeln!(text, "  vCPU {:<4} on CPU {}{node}; may run on {}", vcpu.number, vcpu.cpu, vcpu.allowed)?;
    }
    for part in &vm.memory {
        let all = part.nodes.values().sum::<u64>().max(1);
        let what = match &part.policy {
            Some(policy) => format!("{} ({policy})", part.what),
            None => part.what.clone(),
        };
        for (node, bytes) in &part.nodes {
            let bar = "#".repeat((bytes * BAR).div_ceil(all) as usize);
            let share = bytes * 100 / all;
            writeln!(text, "  {what:<20} node {node} {bar:<20} {share:>3} %  {}", format_bytes(*bytes))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NUMA_MAPS: &str = "\
7f00 bind:0 anon=51200 dirty=51200 N0=51000 N1=200 kernelpagesize_kB=4
8f00 bind:1 file=/dev/hugepages/vmshm-pages/job huge N1=3 kernelpagesize_kB=2048
9f00 default heap anon=100 N0=100 kernelpagesize_kB=4
";

    #[test]
    fn what_the_guest_sees_is_summed_by_node_and_nothing_else() {
        let smaps = "7f00-8000 rw-p 0 0:0 0\nRss: 1 kB\nVmFlags: rd wr dd hg\n\
                     8f00-9000 r--s 0 0:0 7 /job\nVmFlags: rd dd\n9f00-a000 rw-p 0 0:0 0 [heap]\nVmFlags: rd wr\n";
        assert_eq!(private(smaps), [0x7f00, 0x8f00]);
        let memory = memory(NUMA_MAPS, &private(smaps));
        assert_eq!(memory.len(), 2);
        assert_eq!((&memory[0].what[..], &memory[1].what[..]), (RAM, "region job"));
        assert_eq!(memory[0].nodes, BTreeMap::from([(0, 51000 << 12), (1, 200 << 12)]));
        assert_eq!(memory[1].nodes, BTreeMap::from([(1, 3 << 21)]));
    }

    #[test]
    fn a_vm_with_several_nodes_has_memory_of_each() {
        let maps = "1000 bind:0 anon=4 N0=3 N1=1 kernelpagesize_kB=4\n2000 bind:1 anon=3 N1=3 kernelpagesize_kB=4\n\
                    3000 bind:0 anon=1 N0=1 kernelpagesize_kB=4\n";
        let memory = memory(maps, &[0x1000, 0x2000, 0x3000]);
        let seen: Vec<_> = memory.iter().map(|part| (part.policy.as_deref(), part.nodes.clone())).collect();
        assert_eq!(
            seen,
            [
                (Some("bind:0"), BTreeMap::from([(0, 4 << 12), (1, 1 << 12)])),
                (Some("bind:1"), BTreeMap::from([(1, 3 << 12)]))
            ]
        );
        assert_eq!(leakage(&memory, &[0, 1]), 100 / 8, "a page of node 0 lies on node 1");
        assert_eq!(leakage(&memory, &[0]), 400 / 8);
    }

    #[test]
    fn the_table_has_a_bar_per_node() {
        let vm = Vm {
            pid: 7,
            regions: vec!["job:1".into()],
            vcpus: vec![Vcpu { number: 0, cpu: 3, node: Some(1), allowed: "3".into() }],
            memory: vec![Memory {
                what: RAM.into(),
                policy: Some("bind:1".into()),
                nodes: BTreeMap::from([(0, 1 << 20), (1, 3 << 20)]),
            }],
            leakage: 25,
        };
        let text = table(&[vm]);
        assert!(text.contains("25 % of its memory"), "{text}");
        assert!(text.contains("vCPU 0    on CPU 3, node 1; may run on 3"), "{text}");
        assert!(text.contains("memory (bind:1)      node 0 #####                 25 %  1 MiB"), "{text}");
        assert!(text.contains("node 1 ###############       75 %  3 MiB"), "{text}");
    }
}
