//! Where threads run: one CPU of a NUMA node for each vCPU, and everything else elsewhere.

use std::fs;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use vmshm_host::nodes;

use crate::error::Error;

/// CPUs of a node for that many vCPUs: one thread of each core first, then the cores' second threads.
///
/// # Errors
/// No such node, or fewer CPUs there than vCPUs that this process may use.
pub fn cpus(node: u32, vcpus: usize) -> Result<Vec<usize>, Error> {
    let mut chosen = usable(node)?;
    if chosen.len() < vcpus {
        return Err(Error::Invalid {
            what: "the number of vCPUs",
            value: vcpus.to_string(),
            why: format!(
                "is more than the {} CPUs of NUMA node {node} that this process may use: give fewer, since each vCPU \
                 gets a CPU of its own",
                chosen.len(),
            ),
        });
    }
    chosen.truncate(vcpus);
    Ok(chosen)
}

/// All CPUs of a node that this process may use, in the order in which VMs get them.
///
/// # Errors
/// No such node.
pub fn usable(node: u32) -> Result<Vec<usize>, Error> {
    let all = nodes();
    let Some(found) = all.iter().find(|found| found.id == node) else {
        let known: Vec<_> = all.iter().map(|node| node.id.to_string()).collect();
        return Err(Error::Invalid {
            what: "NUMA node",
            value: node.to_string(),
            why: format!("does not exist on this host; there are: {}", known.join(", ")),
        });
    };
    let allowed = allowed()?;
    let usable = list(&found.cpus).into_iter().filter(|&cpu| allowed.is_set(cpu).unwrap_or(false)).collect();
    Ok(by_thread(usable, siblings))
}

/// The node that a VM is put on when the user leaves that open: its section's, else the one with the most free memory.
///
/// # Errors
/// The kernel knows no node with memory.
pub fn auto(section: Option<u32>) -> Result<u32, Error> {
    let best = nodes().into_iter().filter(|node| node.has_memory).max_by_key(|node| node.free);
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

/// The threads of a CPU's core, itself among them.
fn siblings(cpu: usize) -> Vec<usize> {
    let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
    fs::read_to_string(path).map_or(vec![cpu], |text| list(&text))
}

/// CPUs ordered by which thread of its core each is.
fn by_thread(mut cpus: Vec<usize>, siblings: impl Fn(usize) -> Vec<usize>) -> Vec<usize> {
    cpus.sort_by_cached_key(|&cpu| (siblings(cpu).iter().filter(|&&other| other < cpu).count(), cpu));
    cpus
}

/// Numbers from a kernel list such as `0-3,8`; what is no number is skipped.
fn list(text: &str) -> Vec<usize> {
    let part = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse::<usize>().ok()?..=last.parse::<usize>().ok()?)
    };
    text.trim().split(',').filter_map(part).flatten().collect()
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
    fn kernel_lists_are_understood() {
        assert_eq!(list("0-2,8\n"), [0, 1, 2, 8]);
        assert!(list("x,-").is_empty());
    }

    #[test]
    fn what_cannot_be_had_is_named() {
        let text = cpus(4000, 1).unwrap_err().to_string();
        assert!(text.contains("4000") && text.contains("there are"), "{text}");
        let Ok(node) = auto(None) else { return };
        let text = cpus(node, 100_000).unwrap_err().to_string();
        assert!(text.contains("100000") && text.contains("CPUs of NUMA node"), "{text}");
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
