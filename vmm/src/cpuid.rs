//! What the guest's processors say of themselves: all that KVM offers, with the guest's own topology.
//!
//! The guest has one package with one thread per core. Numbers of the host's cores must not shine through, or the guest
//! would take its vCPUs for siblings that they are not.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

const HYPERVISOR: u32 = 1 << 31;
const TSC_DEADLINE: u32 = 1 << 24;
const HTT: u32 = 1 << 28;

/// CPUID of vCPU `number` of `vcpus`.
pub(crate) fn of(supported: &CpuId, number: u32, vcpus: u32, tsc_deadline: bool) -> CpuId {
    // Bits of the APIC id that tell cores apart.
    let shift = vcpus.next_power_of_two().trailing_zeros();
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
                leaf.ebx = leaf.ebx & 0xffff | (vcpus.min(255) << 16) | (number & 0xff) << 24;
                leaf.ecx |= HYPERVISOR;
                if tsc_deadline {
                    leaf.ecx |= TSC_DEADLINE;
                }
                leaf.edx = if vcpus > 1 { leaf.edx | HTT } else { leaf.edx & !HTT };
            }
            // Caches of Intel, and of AMD: the first two levels belong to one core, the others to all.
            4 | 0x8000_001d if leaf.eax & 0x1f != 0 => {
                let level = leaf.eax >> 5 & 7;
                let sharing = if level < 3 { 0 } else { (1 << shift) - 1 };
                leaf.eax = leaf.eax & 0x3fff | sharing << 14;
                if leaf.function == 4 {
                    leaf.eax |= ((1u32 << shift) - 1).min(63) << 26;
                }
            }
            0x8000_0008 => leaf.ecx = shift << 12 | (vcpus - 1).min(255),
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
    let indexed = kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
    // A level of threads, one per core; a level of cores, all in the package; the end.
    entries.push(leaf(0xb, 0, [0, 1, 1 << 8, number], indexed));
    entries.push(leaf(0xb, 1, [shift, vcpus, 2 << 8 | 1, number], indexed));
    entries.push(leaf(0xb, 2, [0, 0, 2, number], indexed));
    if supported.as_slice().iter().any(|leaf| leaf.function == 0x8000_001e) {
        entries.push(leaf(0x8000_001e, 0, [number, number & 0xff, 0, 0], 0));
    }
    CpuId::from_entries(&entries).expect("hardly more leaves than KVM itself gave")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        let found = cpuid.as_slice().iter().find(|l| l.function == function && l.index == index);
        *found.unwrap_or_else(|| panic!("leaf {function:#x}.{index}"))
    }

    #[test]
    fn each_vcpu_has_its_own_number_and_all_count_the_same_cores() {
        let leaf = |function, index, eax, ebx| kvm_cpuid_entry2 {
            function,
            index,
            eax,
            ebx,
            ..kvm_cpuid_entry2::default()
        };
        let host = [
            leaf(1, 0, 0xa20f12, 0x3712_0800),
            leaf(0xb, 0, 1, 2),
            leaf(0x8000_0008, 0, 0x3030, 0),
            leaf(0x8000_001d, 0, 0x121 | 1 << 14, 0),
            leaf(0x8000_001d, 3, 0x163 | 15 << 14, 0),
            leaf(0x8000_001e, 0, 0x37, 0x101),
        ];
        let cpuid = of(&CpuId::from_entries(&host).unwrap(), 2, 3, true);
        assert_eq!(find(&cpuid, 1, 0).ebx, 2 << 24 | 3 << 16 | 0x800);
        assert_eq!(find(&cpuid, 1, 0).ecx, HYPERVISOR | TSC_DEADLINE);
        assert_eq!((find(&cpuid, 0xb, 1).eax, find(&cpuid, 0xb, 1).ebx, find(&cpuid, 0xb, 1).edx), (2, 3, 2));
        assert_eq!(find(&cpuid, 0x8000_0008, 0).ecx, 2 << 12 | 2);
        assert_eq!(find(&cpuid, 0x8000_001d, 0).eax >> 14, 0, "the first level belongs to one core");
        assert_eq!(find(&cpuid, 0x8000_001d, 3).eax >> 14, 3, "the last level belongs to all");
        assert_eq!(find(&cpuid, 0x8000_001e, 0).eax, 2);
    }
}
