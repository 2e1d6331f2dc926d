//! NUMA balancing: the kernel takes pages away to see who uses them, and moves them to another node.

use std::fs;
use std::path::Path;

use super::check::Check;

/// A finding on a machine with several NUMA nodes whose kernel balances between them.
pub fn check(nodes: usize) -> Option<Check> {
    check_under(Path::new("/"), nodes)
}

fn check_under(root: &Path, nodes: usize) -> Option<Check> {
    let text = fs::read_to_string(root.join("proc/sys/kernel/numa_balancing")).ok()?;
    let value = text.trim();
    (nodes > 1 && value != "0").then(|| {
        Check::warning(
            format!(
                "kernel.numa_balancing = {value} with {nodes} NUMA nodes: VMs and ranks fault on pages that the kernel takes \
                 away to see who uses them; memory bound to a node, and huge pages, are spared"
            ),
            "sudo sysctl kernel.numa_balancing=0; or bind: regions by --nodes, VMs by numactl --membind or <numatune>",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn balancing_matters_between_nodes_only() {
        let root = tempfile::tempdir().unwrap();
        assert!(check_under(root.path(), 2).is_none());
        let dir = root.path().join("proc/sys/kernel");
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("numa_balancing"), "1\n").unwrap();
        assert!(check_under(root.path(), 1).is_none());
        let found = check_under(root.path(), 2).unwrap();
        assert!(found.what.contains("kernel.numa_balancing = 1 with 2 NUMA nodes"), "{found:?}");
        fs::write(dir.join("numa_balancing"), "0\n").unwrap();
        assert!(check_under(root.path(), 2).is_none());
    }
}
