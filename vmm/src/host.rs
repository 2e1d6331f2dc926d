//! KVM of this host: opened, and asked for all that a VM needs before any VM is made.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Cap, Kvm};

use crate::error::Error;

/// Capabilities that every VM needs, with what to do where one is missing.
const NEEDED: [(Cap, &str, &str); 7] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY", OLD),
    (
        Cap::ReadonlyMem,
        "KVM_CAP_READONLY_MEM",
        "without read-only slots the sections of other VMs cannot be protected; use Linux 5.15 or later on x86-64",
    ),
    (Cap::Irqchip, "KVM_CAP_IRQCHIP", OLD),
    (Cap::Irqfd, "KVM_CAP_IRQFD", "doorbells need it; use a kernel with CONFIG_HAVE_KVM_IRQ_ROUTING"),
    (Cap::IrqRouting, "KVM_CAP_IRQ_ROUTING", OLD),
    (Cap::SignalMsi, "KVM_CAP_SIGNAL_MSI", OLD),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID", OLD),
];

const OLD: &str = "use Linux 5.15 or later on x86-64";

/// This host's KVM.
#[derive(Debug)]
pub struct Host {
    pub(crate) kvm: Kvm,
    /// CPUID as KVM can show it to guests.
    pub(crate) cpuid: CpuId,
}

impl Host {
    /// Opens `/dev/kvm` and checks what it offers.
    ///
    /// # Errors
    /// No `/dev/kvm`, no permission, or a capability that is missing; each says how to mend it.
    pub fn open() -> Result<Self, Error> {
        let kvm = Kvm::new().map_err(|error| match error.errno() {
            libc::ENOENT | libc::ENODEV | libc::ENXIO => Error::NoKvm,
            libc::EACCES | libc::EPERM => Error::KvmPermission,
            _ => Error::kvm("open /dev/kvm")(error),
        })?;
        let version = kvm.get_api_version();
        if version != kvm_bindings::KVM_API_VERSION as i32 {
            return Err(Error::Invalid {
                what: "KVM's interface version",
                value: version.to_string(),
                why: "is not 12, which every Linux since 2.6.22 has: use such a kernel".into(),
            });
        }
        for (cap, capability, cure) in NEEDED {
            if !kvm.check_extension(cap) {
                return Err(Error::Capability { capability, cure });
            }
        }
        let cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(Error::kvm("ask KVM which processor features it has"))?;
        Ok(Self { kvm, cpuid })
    }

    /// Most vCPUs that a VM can have.
    pub fn max_vcpus(&self) -> usize {
        self.kvm.get_max_vcpus()
    }

    /// Bits of a guest's physical address.
    pub fn address_bits(&self) -> u32 {
        let leaf = self.cpuid.as_slice().iter().find(|leaf| leaf.function == 0x8000_0008);
        leaf.map_or(36, |leaf| leaf.eax & 0xff)
    }
}
