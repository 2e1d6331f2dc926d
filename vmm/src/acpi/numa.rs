//! SRAT, SLIT and HMAT: whose memory and processors belong to which node, and the way between nodes.

use acpi_tables::Aml;
use acpi_tables::hmat::{DataType, LocalityType, MemoryProximityDomain, MinTransferSize, SystemLocality};
use acpi_tables::srat::MemoryAffinity;

use super::table::{Bytes, bytes, table};
use crate::numa::{Access, Numa};

/// Memory and processors by node. The shared BARs are not in it, as memory that a kernel could take for its own would be.
pub(super) fn srat(numa: &Numa, ids: &[u32]) -> Vec<u8> {
    // Twelve reserved bytes, the first of which is 1 for systems of old.
    let mut body = vec![1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    for (&id, &node) in ids.iter().zip(&numa.vcpus) {
        // A processor by its local APIC, enabled. The node's upper bits lie apart.
        let [low, upper @ ..] = (node as u32).to_le_bytes();
        body.extend([0, 16, low, id as u8, 1, 0, 0, 0, 0]);
        body.extend(upper);
        body.extend([0; 4]);
    }
    for &(node, start, len) in &numa.memory {
        body.extend(bytes(&MemoryAffinity::new(node as u32, start, len).enabled()));
    }
    table(b"SRAT", 3, &body)
}

pub(super) fn slit(numa: &Numa) -> Vec<u8> {
    let mut body = (numa.distances.len() as u64).to_le_bytes().to_vec();
    body.extend(numa.distances.iter().flatten());
    table(b"SLIT", 1, &body)
}

/// Latency and bandwidth, as revision 2 counts them: picoseconds, and megabytes per second.
pub(super) fn hmat(numa: &Numa) -> Vec<u8> {
    let nodes = numa.distances.len();
    let mut body = Bytes(vec![0; 4]);
    for node in 0..nodes as u32 {
        MemoryProximityDomain::new(node, node).to_aml_bytes(&mut body);
    }
    let all = |value: fn(&Access) -> u32| numa.access.iter().map(value).collect::<Vec<_>>();
    for (kind, unit, values) in [
        (DataType::ReadLatency, 1000, all(|access| access.latency[0])),
        (DataType::WriteLatency, 1000, all(|access| access.latency[1])),
        (DataType::ReadBandwidth, 1, all(|access| access.bandwidth[0])),
        (DataType::WriteBandwidth, 1, all(|access| access.bandwidth[1])),
    ] {
        // Entries have 16 bits, of which the last value means unreachable.
        let most = values.iter().max().unwrap_or(&0);
        let steps = (0..).map(|power| 10u32.pow(power)).find(|step| most / step < 0xffff).unwrap_or(1);
        let mut matrix = SystemLocality::new(
            LocalityType::Memory,
            kind,
            MinTransferSize::SizeByteAligned,
            unit * u64::from(steps),
            nodes,
            nodes,
        );
        for from in 0..nodes {
            matrix.set_initiator_value(from, from as u32);
            matrix.set_target_value(from, from as u32);
            // Zero says that nothing is known.
            (0..nodes).for_each(|to| matrix.set_entry_value(from, to, 0));
        }
        for (access, value) in numa.access.iter().zip(values) {
            matrix.set_entry_value(access.from, access.to, (value / steps) as u16);
        }
        matrix.to_aml_bytes(&mut body);
    }
    table(b"HMAT", 2, &body.0)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn numa() -> Numa {
        let access = |from, to, latency| Access { from, to, latency, bandwidth: [204_800, 1000] };
        Numa {
            memory: vec![(0, 0, 2 << 30), (1, 2 << 30, 1 << 30), (1, 1 << 32, 1 << 30)],
            vcpus: vec![0, 0, 1],
            distances: vec![vec![10, 21], vec![31, 10]],
            access: vec![access(0, 0, [80, 90]), access(1, 1, [81, 0])],
        }
    }

    #[test]
    fn each_processor_and_each_range_of_memory_names_its_node() {
        let mut numa = numa();
        numa.vcpus[2] = 0x0304_0501;
        let srat = srat(&numa, &[0, 1, 4]);
        assert_eq!(srat.len(), 48 + 3 * 16 + 3 * 40);
        assert_eq!(srat[48 + 32..48 + 48], [0, 16, 1, 4, 1, 0, 0, 0, 0, 5, 4, 3, 0, 0, 0, 0]);
        let last = &srat[48 + 48 + 80..];
        assert_eq!(last[..6], [1, 40, 1, 0, 0, 0]);
        assert_eq!(last[8..24], [(1u64 << 32).to_le_bytes(), (1u64 << 30).to_le_bytes()].concat());
        assert_eq!(last[28], 1, "enabled");
    }

    #[test]
    fn distances_need_not_be_the_same_both_ways() {
        let slit = slit(&numa());
        assert_eq!(slit[36..], [2, 0, 0, 0, 0, 0, 0, 0, 10, 21, 31, 10]);
    }

    #[test]
    fn latencies_are_picoseconds_and_bandwidths_fit() {
        let hmat = hmat(&numa());
        assert_eq!(hmat[8], 2, "the revision that counts so");
        let matrices = &hmat[40 + 2 * 40..];
        let len = 32 + 2 * 4 + 2 * 4 + 4 * 2;
        assert_eq!(matrices.len(), 4 * len);
        let entries = |index: usize| -> Vec<u64> {
            let matrix = &matrices[index * len..][..len];
            let unit = u64::from_le_bytes(matrix[24..32].try_into().unwrap());
            let entries = matrix[48..].chunks(2).map(|e| u64::from(u16::from_le_bytes([e[0], e[1]])));
            entries.map(|entry| entry * unit).collect()
        };
        assert_eq!(entries(0), [80_000, 0, 0, 81_000]);
        assert_eq!(entries(1), [90_000, 0, 0, 0]);
        assert_eq!(entries(2), [204_800, 0, 0, 204_800]);
        assert_eq!(entries(3), [1000, 0, 0, 1000]);
    }
}
