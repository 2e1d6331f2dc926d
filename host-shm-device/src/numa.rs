//! NUMA nodes: which there are, binding memory to one, asking where memory lies.

use std::fs;
use std::io;
use std::path::Path;

use crate::error::Error;
use crate::hugetlb::PageSize;
use crate::mapping::Mapping;
use crate::memory;

const SYSFS: &str = "/sys/devices/system/node";

/// A NUMA node of this host.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Node {
    /// The kernel's number of it.
    pub id: u32,
    /// Its CPUs, as the kernel lists them: `0-3,8`.
    pub cpus: String,
    /// Bytes of memory that are free, or hold file pages that can be dropped.
    pub free: u64,
    /// Whether it has memory at all.
    pub has_memory: bool,
}

/// The NUMA nodes of this host; none where the kernel has no NUMA support.
pub fn nodes() -> Vec<Node> {
    nodes_under(Path::new(SYSFS))
}

fn nodes_under(sysfs: &Path) -> Vec<Node> {
    let list = |name| fs::read_to_string(sysfs.join(name)).map(|s| parse_list(&s)).unwrap_or_default();
    let with_memory = list("has_memory");
    list("online")
        .into_iter()
        .map(|id| {
            let dir = sysfs.join(format!("node{id}"));
            let meminfo = fs::read_to_string(dir.join("meminfo")).unwrap_or_default();
            let field = |name| memory::field(&meminfo, name).unwrap_or(0);
            Node {
                id,
                cpus: fs::read_to_string(dir.join("cpulist")).unwrap_or_default().trim().to_owned(),
                free: field("MemFree:") + field("Active(file):") + field("Inactive(file):"),
                has_memory: with_memory.contains(&id),
            }
        })
        .collect()
}

/// Numbers from a kernel list such as `0-3,8`; what is no number is skipped.
pub fn parse_list(list: &str) -> Vec<u32> {
    let mut numbers = Vec::new();
    for part in list.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<u32>(), last.parse::<u32>()) {
            numbers.extend(first..=last.min(first.saturating_add(4096)));
        }
    }
    numbers
}

/// Refuses a node that does not exist or has no memory.
pub(crate) fn check(node: u32) -> Result<(), Error> {
    let all = nodes();
    let why = match all.iter().find(|n| n.id == node) {
        Some(n) if n.has_memory => return Ok(()),
        Some(_) => "has no memory",
        None => "does not exist",
    };
    let with: Vec<_> = all.iter().filter(|n| n.has_memory).map(|n| n.id.to_string()).collect();
    let nodes =
        if with.is_empty() { "none (the kernel has no NUMA support)".to_owned() } else { with.join(", ") };
    Err(Error::Node { node, why, nodes })
}

/// Refuses `needed` bytes where the node has less; for huge pages its pool counts.
///
/// Memory bound to a full node would not fail: the kernel would kill processes until it fits.
pub(crate) fn check_room(node: u32, needed: u64, pages: PageSize) -> Result<(), Error> {
    if pages != PageSize::Base {
        return crate::hugetlb::check_pool(needed, pages, Some(node));
    }
    let free = nodes().iter().find(|n| n.id == node).map_or(0, |n| n.free);
    if needed > free {
        return Err(Error::NoRoom {
            needed: memory::format_bytes(needed),
            free: format!("{} free", memory::format_bytes(free)),
            place: format!("NUMA node {node}"),
            cure: "choose a smaller --size or other --nodes".into(),
        });
    }
    Ok(())
}

/// Binds `[offset, offset + len)` of a mapping to a node. The binding belongs to the file and so holds for
/// whoever touches it later.
pub(crate) fn bind(mapping: &Mapping, offset: u64, len: u64, node: u32) -> Result<(), Error> {
    let (mask, bits) = node_mask(node);
    let start = mapping.at(offset, len);
    // SAFETY: the range lies in the mapping, as `at` checked, and the mask has as many bits as announced.
    let rc = unsafe { libc::syscall(libc::SYS_mbind, start, len, libc::MPOL_BIND, mask.as_ptr(), bits, 0) };
    if rc != 0 {
        return Err(Error::io(format!("bind {} to NUMA node {node}", memory::format_bytes(len)))(
            io::Error::last_os_error(),
        ));
    }
    Ok(())
}

/// Does something in a thread that takes memory from one node only; or in this one, where no node is given.
pub(crate) fn on_node<T: Send>(node: Option<u32>, act: impl FnOnce() -> T + Send) -> Result<T, Error> {
    let Some(node) = node else { return Ok(act()) };
    // The policy ends with the thread.
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            let (mask, bits) = node_mask(node);
            // SAFETY: the mask has as many bits as announced.
            if unsafe { libc::syscall(libc::SYS_set_mempolicy, libc::MPOL_BIND, mask.as_ptr(), bits) } != 0 {
                let doing = format!("take memory from NUMA node {node}");
                return Err(Error::io(doing)(io::Error::last_os_error()));
            }
            Ok(act())
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// A node as the kernel's calls take it: a bit mask, and how many bits it has.
fn node_mask(node: u32) -> (Vec<u64>, usize) {
    let mut mask = vec![0u64; node as usize / 64 + 1];
    mask[node as usize / 64] |= 1 << (node % 64);
    // The kernel reads one bit less than it is told.
    let bits = mask.len() * 64 + 1;
    (mask, bits)
}

/// The node on which the (populated) page at `offset` of a mapping lies, where the kernel tells.
pub(crate) fn node_of(mapping: &Mapping, offset: u64) -> Option<i32> {
    let page = mapping.at(offset, 1);
    let mut status: libc::c_int = -1;
    // SAFETY: one page address and room for one status; without target nodes nothing is moved.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_move_pages,
            0,
            1usize,
            &raw const page,
            std::ptr::null::<libc::c_int>(),
            &raw mut status,
            0,
        )
    };
    (rc == 0 && status >= 0).then_some(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_lists_are_understood() {
        assert_eq!(parse_list("0\n"), [0]);
        assert_eq!(parse_list("0-2,5"), [0, 1, 2, 5]);
        assert!(parse_list("").is_empty());
        assert!(parse_list("x-y,-").is_empty());
    }

    #[test]
    fn a_host_with_a_memoryless_node_is_described() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("online"), "0-1\n").unwrap();
        fs::write(dir.path().join("has_memory"), "1\n").unwrap();
        fs::create_dir(dir.path().join("node1")).unwrap();
        fs::write(
            dir.path().join("node1/meminfo"),
            "Node 1 MemFree: 100 kB\nNode 1 Active(file): 10 kB\nNode 1 Inactive(file): 1 kB\n",
        )
        .unwrap();
        fs::write(dir.path().join("node1/cpulist"), "2-3\n").unwrap();
        let nodes = nodes_under(dir.path());
        assert_eq!(nodes.len(), 2);
        assert!(!nodes[0].has_memory);
        assert_eq!(nodes[1], Node { id: 1, cpus: "2-3".into(), free: 111 << 10, has_memory: true });
    }

    #[test]
    fn a_node_that_does_not_exist_is_refused_with_those_there_are() {
        let error = check(4000).unwrap_err().to_string();
        assert!(error.contains("node 4000 does not exist"), "{error}");
    }
}
