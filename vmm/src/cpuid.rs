//! CPUID of the guest's processors: all that KVM offers, with the guest's own topology.
//!
//! Numbers of the host's cores must not shine through, or the guest would take its vCPUs for siblings that they are not.

use std::arch::x86_64::__cpuid;

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

use crate::topology::{Cache, Level, Topology};

const HYPERVISOR: u32 = 1 << 31;
const TSC_DEADLINE: u32 = 1 << 24;
const MONITOR: u32 = 1 << 3;
const HTT: u32 = 1 << 28;
/// Leaf 5: its own extensions are listed, and a pending interrupt ends MWAIT even where interrupts are off.
const MWAIT_EXTENSIONS: u32 = 0b11;
const KVM_FEATURES: u32 = 0x4000_0001;
/// No vCPU is ever kept from running for long, so that spinning beats giving way.
const KVM_HINTS_REALTIME: u32 = 1;

/// Features of a vCPU that KVM does not tell by itself.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Extras {
    /// The local APIC's timer takes deadlines.
    pub(crate) tsc_deadline: bool,
    /// Each vCPU has a CPU of its own: it need not fear to be interrupted for long.
    pub(crate) own_cpu: bool,
    /// MONITOR and MWAIT do not leave the guest.
    pub(crate) mwait: bool,
}

/// CPUID of vCPU `number`.
pub(crate) fn of(supported: &CpuId, topology: &Topology, number: usize, extras: Extras) -> CpuId {
    let id = topology.ids()[number];
    let [package, thread] = [Level::Package, Level::Core].map(|level| topology.shift(level));
    let threads = topology.most(Level::Core);
    let in_package = topology.most(Level::Package);
    let mut entries: Vec<kvm_cpuid_entry2> = supported
        .as_slice()
        .iter()
        // Topology leaves are made anew below.
        .filter(|leaf| !matches!(leaf.function, 0xb | 0x1f | 0x8000_001e | 0x8000_0026))
        .copied()
        .collect();
    for leaf in &mut entries {
        match leaf.function {
            1 => {
                leaf.ebx = leaf.ebx & 0xffff | (1 << package).min(255) << 16 | (id & 0xff) << 24;
                leaf.ecx |= HYPERVISOR;
                for (on, bit) in [(extras.tsc_deadline, TSC_DEADLINE), (extras.mwait, MONITOR)] {
                    leaf.ecx |= if on { bit } else { 0 };
                }
                leaf.edx = if in_package > 1 { leaf.edx | HTT } else { leaf.edx & !HTT };
            }
            // Caches of Intel, and of AMD: how many ids share one.
            4 | 0x8000_001d if leaf.eax & 0x1f != 0 => {
                let shift = topology.shift(Level::sharing(leaf.eax >> 5 & 7));
                leaf.eax = leaf.eax & 0x3fff | ((1 << shift) - 1) << 14;
                if leaf.function == 4 {
                    leaf.eax |= ((1u32 << (package - thread)) - 1).min(63) << 26;
                }
            }
            5 if extras.mwait => {
                let host = __cpuid(5);
                (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx) = (host.eax, host.ebx, MWAIT_EXTENSIONS, host.edx);
            }
            KVM_FEATURES if extras.own_cpu => leaf.edx |= KVM_HINTS_REALTIME,
            0x8000_0008 => leaf.ecx = package << 12 | (in_package - 1).min(255),
            _ => {}
        }
    }
    let leaf = |function, index, [eax, ebx, ecx, edx]: [u32; 4], flags| kvm_cpuid_entry2 {
        function,
        index,
        flags,
        eax,
        ebx,
        ecx,
        edx,
        ..kvm_cpuid_entry2::default()
    };
    let indexed = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
    // A level of threads, a level of cores, the end.
    entries.push(leaf(0xb, 0, [thread, threads, 1 << 8, id], indexed));
    entries.push(leaf(0xb, 1, [package, in_package, 2 << 8 | 1, id], indexed));
    entries.push(leaf(0xb, 2, [0, 0, 2, id], indexed));
    if supported.as_slice().iter().any(|leaf| leaf.function == 0x8000_001e) {
        let core = (id & ((1 << package) - 1)) >> thread;
        let node = id >> package;
        entries.push(leaf(0x8000_001e, 0, [id, (threads - 1) << 8 | core, node, 0], 0));
    }
    CpuId::from_entries(&entries).expect("hardly more leaves than KVM itself gave")
}

/// The caches that KVM shows.
pub(crate) fn caches(supported: &CpuId) -> Vec<Cache> {
    let found = supported.as_slice().iter().filter(|leaf| leaf.eax & 0x1f != 0);
    let cache = |leaf: &kvm_cpuid_entry2| Cache {
        shared: Level::sharing(leaf.eax >> 5 & 7),
        kind: leaf.eax & 0x1f,
        line: (leaf.ebx & 0xfff) + 1,
        ways: (leaf.ebx >> 22) + 1,
        sets: leaf.ecx.wrapping_add(1),
    };
    let of = |function| found.clone().filter(move |leaf| leaf.function == function).map(cache).collect();
    let intel: Vec<_> = of(4);
    if intel.is_empty() { of(0x8000_001d) } else { intel }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        let found = cpuid.as_slice().iter().find(|l| l.function == function && l.index == index);
        *found.unwrap_or_else(|| panic!("leaf {function:#x}.{index}"))
    }

    fn host() -> CpuId {
        let leaf = |function, index, eax, ebx| kvm_cpuid_entry2 {
            function,
            index,
            eax,
            ebx,
            ..kvm_cpuid_entry2::default()
        };
        let host = [
            leaf(1, 0, 0xa20f12, 0x3712_0800),
            leaf(4, 0, 0x121 | 1 << 14, 0),
            leaf(4, 2, 0x143 | 1 << 14, 0),
            leaf(4, 3, 0x163 | 63 << 14, 0),
            leaf(5, 0, 0, 0),
            leaf(0xb, 0, 1, 2),
            leaf(KVM_FEATURES, 0, 0xff, 0),
            leaf(0x8000_0008, 0, 0x3030, 0),
            leaf(0x8000_001d, 0, 0x121 | 1 << 14, 0),
            leaf(0x8000_001d, 3, 0x163 | 15 << 14, 0),
            leaf(0x8000_001e, 0, 0x37, 0x101),
        ];
        CpuId::from_entries(&host).unwrap()
    }

    #[test]
    fn each_vcpu_has_its_own_number_and_all_count_the_same_cores() {
        let extras = Extras { tsc_deadline: true, ..Extras::default() };
        let cpuid = of(&host(), &Topology::flat(3), 2, extras);
        assert_eq!(find(&cpuid, 1, 0).ebx, 2 << 24 | 4 << 16 | 0x800);
        assert_eq!(find(&cpuid, 1, 0).ecx, HYPERVISOR | TSC_DEADLINE);
        assert_eq!((find(&cpuid, 0xb, 1).eax, find(&cpuid, 0xb, 1).ebx, find(&cpuid, 0xb, 1).edx), (2, 3, 2));
        assert_eq!(find(&cpuid, 0x8000_0008, 0).ecx, 2 << 12 | 2);
        assert_eq!(find(&cpuid, 0x8000_001d, 0).eax >> 14, 0, "the first level belongs to one core");
        assert_eq!(find(&cpuid, 0x8000_001d, 3).eax >> 14, 3, "the last level belongs to all");
        assert_eq!(find(&cpuid, 0x8000_001e, 0).eax, 2);
        assert_eq!((find(&cpuid, 5, 0).ecx, find(&cpuid, KVM_FEATURES, 0).edx), (0, 0));
    }

    /// Two packages, in each two third-level caches over two cores of two threads.
    #[test]
    fn siblings_caches_and_packages_are_told_as_they_are() {
        let groups = |number: usize| [number / 8, number / 4, number / 2, number / 2, number];
        let topology = Topology::of((0..16).map(groups).collect());
        let cpuid = of(&host(), &topology, 13, Extras::default());
        assert_eq!(find(&cpuid, 1, 0).ebx, 13 << 24 | 8 << 16 | 0x800);
        let leaf = find(&cpuid, 0xb, 0);
        assert_eq!((leaf.eax, leaf.ebx, leaf.edx), (1, 2, 13), "two threads a core");
        let leaf = find(&cpuid, 0xb, 1);
        assert_eq!((leaf.eax, leaf.ebx, leaf.edx), (3, 8, 13), "eight in a package");
        for (function, level, sharing) in
            [(4, 0, 2), (4, 2, 2), (4, 3, 4), (0x8000_001d, 0, 2), (0x8000_001d, 3, 4)]
        {
            assert_eq!(
                (find(&cpuid, function, level).eax >> 14 & 0xfff) + 1,
                sharing,
                "{function:x}.{level}"
            );
        }
        assert_eq!(find(&cpuid, 4, 0).eax >> 26, 3, "four cores");
        assert_eq!(find(&cpuid, 0x8000_0008, 0).ecx, 3 << 12 | 7);
        let leaf = find(&cpuid, 0x8000_001e, 0);
        assert_eq!(
            (leaf.eax, leaf.ebx, leaf.ecx),
            (13, 1 << 8 | 2, 1),
            "the third core of the second package"
        );
    }

    #[test]
    fn caches_are_those_of_leaf_4_or_of_amd_s() {
        let all: Vec<_> = host().as_slice().to_vec();
        assert_eq!(caches(&host()).len(), 3);
        let mut amd: Vec<_> = all.into_iter().filter(|leaf| leaf.function != 4).collect();
        for leaf in amd.iter_mut().filter(|leaf| leaf.function == 0x8000_001d) {
            (leaf.ebx, leaf.ecx) = (15 << 22 | 63, 32767);
        }
        let cache = |shared, kind| Cache { shared, kind, line: 64, ways: 16, sets: 32768 };
        let wanted = [cache(Level::Core, 1), cache(Level::L3, 3)];
        assert_eq!(caches(&CpuId::from_entries(&amd).unwrap()), wanted);
    }

    #[test]
    fn a_vcpu_with_a_cpu_of_its_own_may_wait_as_it_likes() {
        let extras = Extras { own_cpu: true, mwait: true, ..Extras::default() };
        let cpuid = of(&host(), &Topology::flat(1), 0, extras);
        assert_eq!(find(&cpuid, 1, 0).ecx, HYPERVISOR | MONITOR);
        assert_eq!(find(&cpuid, 5, 0).ecx, MWAIT_EXTENSIONS);
        assert_eq!(find(&cpuid, KVM_FEATURES, 0).edx, 1);
    }
}
