//! The members of a set: one VM for each NUMA node, or several on each, none of which shares a CPU with another.

use anyhow::bail;
use vmshm_host::nodes;
use vmshm_vmm::place;

/// A VM that is to be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// `vm0` and so on.
    pub name: String,
    /// Where it is confined to; nowhere on kernels without NUMA support.
    pub node: Option<u32>,
    /// How many vCPUs it has.
    pub vcpus: usize,
    /// A CPU for each of them, on its node.
    pub cpus: Vec<usize>,
}

/// The members of a set on this host, as many as it has nodes unless `vms` says otherwise.
pub fn members(vms: Option<usize>, vcpus: Option<usize>) -> anyhow::Result<Vec<Member>> {
    let mut usable = place::usable()?;
    let with_memory = nodes().into_iter().filter(|node| node.has_memory);
    let found = with_memory.filter_map(|node| Some((node.id, usable.remove(&node.id)?)));
    let found: Vec<_> = found.filter(|(_, cpus)| !cpus.is_empty()).collect();
    if !found.is_empty() {
        return share(&found, vms.unwrap_or(found.len()), vcpus);
    }
    let member =
        |k| Member { name: format!("vm{k}"), node: None, vcpus: vcpus.unwrap_or(1), cpus: Vec::new() };
    Ok((0..vms.unwrap_or(1)).map(member).collect())
}

/// Deals nodes and their CPUs, neighbouring VMs on one node. Without a number of vCPUs each node keeps a CPU for all else.
fn share(nodes: &[(u32, Vec<usize>)], vms: usize, vcpus: Option<usize>) -> anyhow::Result<Vec<Member>> {
    let home = |k: usize| if vms < nodes.len() { k } else { k * nodes.len() / vms };
    let mut members = Vec::new();
    for (index, (node, cpus)) in nodes.iter().enumerate() {
        let here: Vec<usize> = (0..vms).filter(|&k| home(k) == index).collect();
        if here.is_empty() {
            continue;
        }
        let each = vcpus.unwrap_or(((cpus.len() - 1) / here.len()).max(1));
        if each * here.len() > cpus.len() {
            bail!(
                "NUMA node {node} has {} CPUs that this process may use, fewer than {} VMs with {each} vCPUs each need: \
                 give a smaller --cpus, or fewer --vms",
                cpus.len(),
                here.len()
            );
        }
        for (k, cpus) in here.into_iter().zip(cpus.chunks_exact(each.max(1))) {
            members.push(Member {
                name: format!("vm{k}"),
                node: Some(*node),
                vcpus: each,
                cpus: cpus.to_vec(),
            });
        }
    }
    Ok(members)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dealt(nodes: &[(u32, Vec<usize>)], vms: usize, vcpus: Option<usize>) -> Vec<(u32, Vec<usize>)> {
        let members = share(nodes, vms, vcpus).unwrap();
        assert!(members.iter().enumerate().all(|(k, member)| member.name == format!("vm{k}")));
        members.into_iter().map(|member| (member.node.unwrap(), member.cpus)).collect()
    }

    #[test]
    fn no_two_vms_share_a_cpu_and_each_node_keeps_one() {
        let nodes = [(0, vec![0, 2, 1, 3]), (1, vec![4, 6, 5, 7])];
        assert_eq!(dealt(&nodes, 2, None), [(0, vec![0, 2, 1]), (1, vec![4, 6, 5])]);
        assert_eq!(dealt(&nodes, 1, None), [(0, vec![0, 2, 1])]);
        assert_eq!(dealt(&nodes, 3, None), [(0, vec![0]), (0, vec![2]), (1, vec![4, 6, 5])]);
        assert_eq!(
            dealt(&nodes, 4, Some(2)),
            [(0, vec![0, 2]), (0, vec![1, 3]), (1, vec![4, 6]), (1, vec![5, 7])]
        );
        assert_eq!(dealt(&[(3, vec![9])], 1, None), [(3, vec![9])]);
    }

    #[test]
    fn too_many_vcpus_are_refused_with_the_numbers() {
        let error = share(&[(1, vec![0, 1])], 2, Some(2)).unwrap_err().to_string();
        assert!(error.contains("node 1 has 2 CPUs") && error.contains("2 VMs with 2 vCPUs"), "{error}");
        assert!(share(&[(1, vec![0])], 2, None).is_err());
    }
}
