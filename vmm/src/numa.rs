//! The guest's NUMA nodes: their memory, their vCPUs, and what the host says of the way between its own.

use std::fs;
use std::path::Path;

use crate::layout;
use crate::memory::Ram;
use crate::sysfs::{NODES, distances};

/// Latency and bandwidth of a node's memory, seen from a node's CPUs, as the host's firmware tells them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Access {
    /// Virtual nodes: whose CPUs, and whose memory.
    pub(crate) from: usize,
    pub(crate) to: usize,
    /// Nanoseconds, to read and to write; 0 where it is not said.
    pub(crate) latency: [u32; 2],
    /// Megabytes per second, likewise.
    pub(crate) bandwidth: [u32; 2],
}

/// Virtual nodes by number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Numa {
    /// Node, guest-physical address and length of each range of RAM.
    pub(crate) memory: Vec<(usize, u64, u64)>,
    /// The node of each vCPU.
    pub(crate) vcpus: Vec<usize>,
    /// Distances, from each node to all.
    pub(crate) distances: Vec<Vec<u8>>,
    /// As far as the host tells.
    pub(crate) access: Vec<Access>,
}

impl Numa {
    /// The nodes of a VM whose RAM lies on several of the host's; else `None`, since one node needs no word.
    pub(crate) fn new(ram: &Ram, vcpus: usize) -> Option<Self> {
        Self::under(Path::new(NODES), ram.nodes(), ram.memory(), vcpus)
    }

    fn under(
        sysfs: &Path,
        nodes: &[u32],
        memory: impl Iterator<Item = (usize, u64, u64)>,
        vcpus: usize,
    ) -> Option<Self> {
        if nodes.len() < 2 {
            return None;
        }
        let rows = nodes.iter().map(|&from| {
            let known = distances(sysfs, from);
            let to = |to| known.iter().find(|(node, _)| *node == to).map(|(_, distance)| *distance);
            // The values that kernels take where firmware says nothing.
            nodes.iter().map(|&node| to(node).unwrap_or(if node == from { 10 } else { 20 })).collect()
        });
        let vcpus = layout::shares(vcpus as u64, nodes.len(), 1);
        Some(Self {
            memory: memory.collect(),
            vcpus: (0..).zip(vcpus).flat_map(|(node, share)| (0..share).map(move |_| node)).collect(),
            distances: rows.collect(),
            access: access_under(sysfs, nodes),
        })
    }
}

/// The guest's node that a node of the host has become; none where the guest does not know of nodes, since it has one.
pub(crate) fn virtual_node(nodes: &[u32], host: Option<u32>) -> Option<usize> {
    nodes.iter().position(|&node| nodes.len() > 1 && Some(node) == host)
}

fn access_under(sysfs: &Path, nodes: &[u32]) -> Vec<Access> {
    let mut known = Vec::new();
    for (to, node) in nodes.iter().enumerate() {
        let dir = sysfs.join(format!("node{node}/access0/initiators"));
        let value = |name: &str| {
            let text = fs::read_to_string(dir.join(name)).unwrap_or_default();
            text.trim().parse().unwrap_or(0)
        };
        let latency = [value("read_latency"), value("write_latency")];
        let bandwidth = [value("read_bandwidth"), value("write_bandwidth")];
        for (from, node) in nodes.iter().enumerate() {
            if dir.join(format!("node{node}")).exists() {
                known.push(Access { from, to, latency, bandwidth });
            }
        }
    }
    known
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtual_nodes_are_as_far_from_each_other_as_the_host_s() {
        let dir = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        put("online", "0,2-3\n");
        put("node0/distance", "10 21 31\n");
        put("node2/distance", "21 10 32\n");
        put("node3/distance", "31 33 10\n");
        put("node3/access0/initiators/node3/x", "");
        put("node3/access0/initiators/read_latency", "90\n");
        put("node3/access0/initiators/write_bandwidth", "100000\n");
        let memory = [(0, 0, 1 << 30), (1, 1 << 30, 1 << 30)];
        let numa = Numa::under(dir.path(), &[0, 3], memory.into_iter(), 5).unwrap();
        assert_eq!(numa.distances, [[10, 31], [31, 10]]);
        assert_eq!(numa.vcpus, [0, 0, 0, 1, 1]);
        assert_eq!(numa.memory, memory);
        let access = Access { from: 1, to: 1, latency: [90, 0], bandwidth: [0, 100_000] };
        assert_eq!(numa.access, [access]);
        let numa = Numa::under(dir.path(), &[2, 3, 4], memory.into_iter(), 3).unwrap();
        assert_eq!(numa.distances, [[10, 32, 20], [33, 10, 20], [20, 20, 10]]);
        assert_eq!(Numa::under(dir.path(), &[3], memory.into_iter(), 3), None);
    }
}
