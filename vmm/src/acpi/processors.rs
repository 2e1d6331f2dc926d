//! The MADT: processors and interrupt controllers. The PPTT: what processors share.

use std::collections::BTreeMap;

use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::pptt::{
    AllocationType, CacheNode, CacheNodeBuilder, CacheType, PPTT, ProcessorHandle, ProcessorNode, WritePolicy,
};

use super::table::{OEM, OEM_TABLE, bytes};
use crate::layout;
use crate::topology::{Cache, Level, Topology};

pub(super) fn madt(ids: &[u32]) -> Vec<u8> {
    let mut madt = MADT::new(OEM, OEM_TABLE, 1, LocalInterruptController::Address(layout::LAPIC as u32));
    for (number, &id) in ids.iter().enumerate() {
        madt.add_structure(ProcessorLocalApic::new(number as u8, id as u8, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, layout::IOAPIC as u32, 0));
    bytes(&madt)
}

/// A tree from packages down to processors, each group with the caches that it shares.
pub(super) fn pptt(topology: &Topology, caches: &[Cache]) -> Vec<u8> {
    // Levels of which each group is one of the level above are the same node.
    let mut nodes: Vec<(u32, Vec<Level>)> = Vec::new();
    for level in Level::ALL {
        let shift = topology.shift(level);
        match nodes.last_mut() {
            Some((above, levels)) if *above == shift => levels.push(level),
            _ => nodes.push((shift, vec![level])),
        }
    }
    let mut pptt = PPTT::new(OEM, OEM_TABLE, 1);
    let mut known: BTreeMap<(u32, u32), ProcessorHandle> = BTreeMap::new();
    for (number, &id) in topology.ids().iter().enumerate() {
        let mut parent = None;
        for (shift, levels) in &nodes {
            let handle = known.entry((*shift, id >> shift)).or_insert_with(|| {
                let leaf = levels.contains(&Level::Thread);
                let mut node = ProcessorNode::new(parent.as_ref(), if leaf { number as u32 } else { 0 });
                if levels.contains(&Level::Package) {
                    node = node.physical();
                }
                if leaf {
                    node = node.valid().leaf();
                    node = if levels.contains(&Level::Core) { node } else { node.thread() };
                }
                for cache in caches.iter().filter(|cache| levels.contains(&cache.shared)) {
                    let handle = pptt.add_cache(structure(cache));
                    node = node.add_cache(&handle);
                }
                pptt.add_processor(node)
            });
            parent = Some(*handle);
        }
    }
    bytes(&pptt)
}

fn structure(cache: &Cache) -> CacheNode {
    CacheNodeBuilder::default()
        .size(cache.line.saturating_mul(cache.ways).saturating_mul(cache.sets))
        .sets(cache.sets)
        .associativity(cache.ways as u8)
        .allocation_type(AllocationType::Both)
        .cache_type(match cache.kind {
            1 => CacheType::Data,
            2 => CacheType::Instruction,
            _ => CacheType::Unified,
        })
        .write_policy(WritePolicy::Writeback)
        .line_size(cache.line as u16)
        .to_node()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Offset and words of each structure of a kind.
    fn structures(table: &[u8], kind: u8) -> Vec<(usize, Vec<u32>)> {
        let mut found = Vec::new();
        let mut at = 36;
        while at < table.len() {
            let len = usize::from(table[at + 1]);
            let words =
                table[at + 4..at + len].chunks(4).map(|word| u32::from_le_bytes(word.try_into().unwrap()));
            found.extend((table[at] == kind).then(|| (at, words.collect())));
            at += len;
        }
        found
    }

    /// Two packages with a third-level cache each, over two cores of two threads.
    #[test]
    fn the_tree_leads_from_packages_to_threads() {
        let topology = Topology::of((0..8).map(|n| [n / 4, n / 4, n / 2, n / 2, n]).collect());
        let cache = |shared, kind| Cache { shared, kind, line: 64, ways: 8, sets: 1024 };
        let caches = [cache(Level::Core, 1), cache(Level::Core, 2), cache(Level::L2, 3), cache(Level::L3, 3)];
        let table = pptt(&topology, &caches);
        let nodes = structures(&table, 0);
        let kinds = |flags| nodes.iter().filter(|(_, words)| words[0] == flags).collect::<Vec<_>>();
        let (packages, cores, threads) = (kinds(0b1), kinds(0), kinds(0b1110));
        assert_eq!([nodes.len(), packages.len(), cores.len(), threads.len()], [2 + 4 + 8, 2, 4, 8]);
        assert_eq!(structures(&table, 1).len(), 2 + 4 * 3, "caches");
        for (number, (_, words)) in threads.iter().enumerate() {
            assert_eq!(words[2] as usize, number);
            let core = cores.iter().find(|(at, _)| *at == words[1] as usize).unwrap();
            assert_eq!(core.0, cores[number / 2].0);
            assert_eq!(
                (core.1[1] as usize, core.1[3]),
                (packages[number / 4].0, 3),
                "parent, and its caches"
            );
        }
        let first = &structures(&table, 1)[0].1;
        assert_eq!(first[2..4], [64 * 8 * 1024, 1024]);
    }
}
