//! Where threads run: one CPU of a NUMA node for each vCPU, and everything else elsewhere.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use vmshm_host::Node;

use crate::error::Error;
use crate::layout;
use crate::sysfs::{list, nearest, siblings};

/// Whether a VM may be put elsewhere than it is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Placement {
    /// It may not: what cannot be had is an error.
    #[default]
    Require,
    /// It may: what cannot be had comes from elsewhere, with a warning.
    Prefer,
}

/// CPUs for that many vCPUs, spread over nodes in equal shares, in the order of the nodes: one thread of each core first,
/// then the cores' second threads.
///
/// With [`Placement::Prefer`], what a node lacks comes from the nearest ones; none at all where the host has too few.
///
/// # Errors
/// No such node, or fewer CPUs there than vCPUs that this process may use.
pub fn cpus(nodes: &[u32], vcpus: usize, placement: Placement) -> Result<Vec<usize>, Error> {
    if vcpus < nodes.len() {
        return Err(Error::Invalid {
            what: "the number of vCPUs",
            value: vcpus.to_string(),
            why: format!("is less than that of the NUMA nodes, {}: give one for each, at least", nodes.len()),
        });
    }
    let taken = taken();
    let free = in_order(&taken)?;
    if let Some(node) = nodes.iter().find(|&node| !free.contains_key(node)) {
        let known: Vec<_> = free.keys().map(u32::to_string).collect();
        return Err(Error::Invalid {
            what: "NUMA node",
            value: node.to_string(),
            why: format!("does not exist on this host; there are: {}", known.join(", ")),
        });
    }
    let chosen = choose(free, nodes, vcpus, placement, nearest)?;
    let shared: Vec<_> = chosen.iter().filter(|cpu| taken.contains(cpu)).collect();
    if !shared.is_empty() {
        tracing::warn!(cpus = ?shared, "another VM's vCPUs run on these CPUs too: they take turns");
    }
    Ok(chosen)
}

/// All CPUs that this process may use, by node, in the order in which VMs get them: those last that another VM has.
///
/// # Errors
/// The operating system refuses to say which these are.
pub fn usable() -> Result<BTreeMap<u32, Vec<usize>>, Error> {
    in_order(&taken())
}

/// The same, where another VM has these.
fn in_order(taken: &[usize]) -> Result<BTreeMap<u32, Vec<usize>>, Error> {
    let allowed = allowed()?;
    let of = |node: Node| {
        let cpus = list(&node.cpus).into_iter().filter(|&cpu| allowed.is_set(cpu).unwrap_or(false)).collect();
        let (last, first): (Vec<_>, Vec<_>) =
            by_thread(cpus, siblings).into_iter().partition(|cpu| taken.contains(cpu));
        (node.id, [first, last].concat())
    };
    Ok(vmshm_host::nodes().into_iter().map(of).collect())
}

/// CPUs on which vCPUs of running VMs are pinned, as far as this user may see.
pub fn taken() -> Vec<usize> {
    pinned(Path::new("/proc"))
}

fn pinned(proc: &Path) -> Vec<usize> {
    let folders = |dir: &Path| fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let vmm = |dir: &PathBuf| fs::read_to_string(dir.join("comm")).is_ok_and(|name| name.trim() == "vmshm");
    let cpu = |task: PathBuf| {
        fs::read_to_string(task.join("comm")).ok().filter(|name| name.starts_with("vcpu"))?;
        let status = fs::read_to_string(task.join("status")).ok()?;
        let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
        allowed.trim().parse().ok()
    };
    folders(proc).filter(vmm).flat_map(|dir| folders(&dir.join("task"))).filter_map(cpu).collect()
}

/// Takes CPUs of each node's share out of `free`.
fn choose(
    mut free: BTreeMap<u32, Vec<usize>>,
    nodes: &[u32],
    vcpus: usize,
    placement: Placement,
    nearest: impl Fn(u32) -> Vec<u32>,
) -> Result<Vec<usize>, Error> {
    let shares: Vec<_> = layout::shares(vcpus as u64, nodes.len(), 1);
    let mut chosen: Vec<Vec<usize>> = Vec::new();
    for (&node, &share) in nodes.iter().zip(&shares) {
        let cpus = free.entry(node).or_default();
        let there = cpus.len();
        if (there as u64) < share {
            let error = Error::Invalid {
                what: "the number of vCPUs",
                value: vcpus.to_string(),
                why: format!(
                    "is more than there are CPUs: {share} are wanted on NUMA node {node}, where this process may use \
                     {there}; give fewer, since each vCPU gets a CPU of its own"
                ),
            };
            if placement == Placement::Require {
                return Err(error);
            }
            tracing::warn!(%error, "some vCPUs run elsewhere");
        }
        chosen.push(cpus.drain(..there.min(share as usize)).collect());
    }
    for ((cpus, &share), &node) in chosen.iter_mut().zip(&shares).zip(nodes) {
        for other in nearest(node) {
            let others = free.entry(other).or_default();
            cpus.extend(others.drain(..others.len().min(share as usize - cpus.len())));
        }
        if (cpus.len() as u64) < share {
            tracing::warn!("the host has too few CPUs: all vCPUs run anywhere");
            return Ok(Vec::new());
        }
    }
    Ok(chosen.concat())
}

/// The nodes of this host that have both memory and CPUs that this process may use.
///
/// # Errors
/// The kernel knows none.
pub fn all() -> Result<Vec<u32>, Error> {
    let usable = in_order(&[])?;
    let has_cpus = |node: &Node| usable.get(&node.id).is_some_and(|cpus| !cpus.is_empty());
    let found = vmshm_host::nodes().into_iter().filter(|node| node.has_memory && has_cpus(node));
    let found: Vec<_> = found.map(|node| node.id).collect();
    if found.is_empty() {
        return Err(Error::Invalid {
            what: "the host's NUMA",
            value: "map".into(),
            why: "is empty, since this kernel has no NUMA support: leave --numa-map out".into(),
        });
    }
    Ok(found)
}

/// The node that a VM is put on when the user leaves that open: its section's, else the one with the most free memory.
///
/// # Errors
/// The kernel knows no node with memory.
pub fn auto(section: Option<u32>) -> Result<u32, Error> {
    let best = vmshm_host::nodes().into_iter().filter(|node| node.has_memory).max_by_key(|node| node.free);
    section.or(best.map(|node| node.id)).ok_or_else(|| Error::Invalid {
        what: "NUMA node",
        value: "auto".into(),
        why: "means nothing here, since this kernel has no NUMA support: leave --numa-node out".into(),
    })
}

/// Lets the calling thread run on one CPU only.
///
/// # Errors
/// The CPU does not exist or is not allowed.
pub fn pin(cpu: usize) -> Result<(), Error> {
    let mut set = CpuSet::new();
    set.set(cpu).map_err(Error::sys(format!("name CPU {cpu}")))?;
    sched_setaffinity(Pid::from_raw(0), &set).map_err(Error::sys(format!("run on CPU {cpu}")))
}

/// Keeps the calling thread, and those that it starts from now on, off these CPUs; `false` where it may use no other.
///
/// # Errors
/// The operating system refuses.
pub fn leave(cpus: &[usize]) -> Result<bool, Error> {
    let mut rest = allowed()?;
    for &cpu in cpus {
        rest.unset(cpu).map_err(Error::sys(format!("name CPU {cpu}")))?;
    }
    if (0..CpuSet::count()).all(|cpu| !rest.is_set(cpu).unwrap_or(false)) {
        return Ok(false);
    }
    sched_setaffinity(Pid::from_raw(0), &rest).map_err(Error::sys("keep off the CPUs of the vCPUs"))?;
    Ok(true)
}

fn allowed() -> Result<CpuSet, Error> {
    sched_getaffinity(Pid::from_raw(0)).map_err(Error::sys("ask which CPUs may be used"))
}

/// CPUs ordered by which thread of its core each is.
fn by_thread(mut cpus: Vec<usize>, siblings: impl Fn(usize) -> Vec<usize>) -> Vec<usize> {
    cpus.sort_by_cached_key(|&cpu| (siblings(cpu).iter().filter(|&&other| other < cpu).count(), cpu));
    cpus
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_threads_of_all_cores_come_before_second_ones() {
        assert_eq!(by_thread(vec![0, 1, 2, 3], |cpu| vec![cpu & !1, cpu | 1]), [0, 2, 1, 3]);
        assert_eq!(by_thread(vec![4, 5, 12, 13], |cpu| vec![cpu % 8, cpu % 8 + 8]), [4, 5, 12, 13]);
    }

    #[test]
    fn what_cannot_be_had_is_named() {
        let text = cpus(&[4000], 1, Placement::Prefer).unwrap_err().to_string();
        assert!(text.contains("4000") && text.contains("there are"), "{text}");
        let Ok(node) = auto(None) else { return };
        let text = cpus(&[node], 100_000, Placement::Require).unwrap_err().to_string();
        assert!(text.contains("100000 are wanted on NUMA node"), "{text}");
        let text = cpus(&[node, node], 1, Placement::Require).unwrap_err().to_string();
        assert!(text.contains("vCPUs 1 is less") && text.contains("nodes, 2"), "{text}");
        assert!(all().unwrap().contains(&node));
    }

    #[test]
    fn pinned_vcpus_of_other_vms_are_seen() {
        let dir = tempfile::tempdir().unwrap();
        let task = |process: &str, program: &str, task: &str, name: &str, allowed: &str| {
            let dir = dir.path().join(process);
            fs::create_dir_all(dir.join("task").join(task)).unwrap();
            fs::write(dir.join("comm"), program).unwrap();
            fs::write(dir.join("task").join(task).join("comm"), name).unwrap();
            let status = format!("Name:\tx\nCpus_allowed_list:\t{allowed}\n");
            fs::write(dir.join("task").join(task).join("status"), status).unwrap();
        };
        task("7", "vmshm\n", "7", "vmshm\n", "0");
        task("7", "vmshm\n", "8", "vcpu0\n", "3");
        task("9", "vmshm\n", "10", "vcpu1\n", "0-3");
        task("11", "other\n", "12", "vcpu0\n", "2");
        assert_eq!(pinned(dir.path()), [3]);
    }

    #[test]
    fn each_node_gets_its_share_and_what_it_lacks_comes_from_the_nearest() {
        let free = || BTreeMap::from([(0, vec![0, 2, 1, 3]), (1, vec![4]), (2, vec![6, 7, 8]), (3, vec![])]);
        let nearest = |node| if node == 1 { vec![1, 2, 0, 3] } else { vec![node, 0, 1, 2, 3] };
        let choose = |nodes: &[u32], vcpus, placement| choose(free(), nodes, vcpus, placement, nearest);
        assert_eq!(choose(&[0, 2], 5, Placement::Require).unwrap(), [0, 2, 1, 6, 7]);
        let text = choose(&[0, 1], 4, Placement::Require).unwrap_err().to_string();
        assert!(text.contains("2 are wanted on NUMA node 1") && text.contains("may use 1"), "{text}");
        assert_eq!(
            choose(&[1, 2], 6, Placement::Prefer).unwrap(),
            [4, 0, 2, 6, 7, 8],
            "others' shares stay theirs"
        );
        assert_eq!(choose(&[1], 3, Placement::Prefer).unwrap(), [4, 6, 7]);
        assert!(choose(&[1], 9, Placement::Prefer).unwrap().is_empty());
    }

    #[test]
    fn a_pinned_thread_stays_and_others_leave() {
        std::thread::spawn(|| {
            let free = allowed().unwrap();
            let mine = (0..CpuSet::count()).find(|&cpu| free.is_set(cpu).unwrap()).unwrap();
            let others = leave(&[mine]).unwrap();
            assert_eq!(others, !allowed().unwrap().is_set(mine).unwrap());
            pin(mine).unwrap();
            assert!(allowed().unwrap().is_set(mine).unwrap());
            assert!(!leave(&[mine]).unwrap());
        })
        .join()
        .unwrap();
    }
}
