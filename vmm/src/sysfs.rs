//! sysfs: this host's CPUs and nodes, as the kernel describes them.

use std::fs;
use std::path::Path;

use vmshm_host::parse_list;

/// The folder of nodes.
pub(crate) const NODES: &str = "/sys/devices/system/node";

/// Numbers from a kernel list such as `0-3,8`; what is no number is skipped.
pub(crate) fn list(text: &str) -> Vec<usize> {
    parse_list(text).into_iter().map(|number| number as usize).collect()
}

/// The threads of a CPU's core, itself among them.
pub(crate) fn siblings(cpu: usize) -> Vec<usize> {
    let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
    fs::read_to_string(path).map_or(vec![cpu], |text| list(&text))
}

/// The nodes of this host with their distance from `node`, the nearest first.
pub(crate) fn nearest(node: u32) -> Vec<u32> {
    let mut known = distances(Path::new(NODES), node);
    known.sort_by_key(|(_, distance)| *distance);
    known.into_iter().map(|(node, _)| node).collect()
}

/// Nodes with their distance from `from`, of the folder in which the kernel describes nodes.
pub(crate) fn distances(sysfs: &Path, from: u32) -> Vec<(u32, u8)> {
    let text = fs::read_to_string(sysfs.join(format!("node{from}/distance"))).unwrap_or_default();
    let online = fs::read_to_string(sysfs.join("online")).unwrap_or_default();
    parse_list(&online)
        .into_iter()
        .zip(text.split_whitespace().filter_map(|word| word.parse().ok()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_lists_are_understood() {
        assert_eq!(list("0-2,8\n"), [0, 1, 2, 8]);
        assert!(list("x,-").is_empty());
    }
}
