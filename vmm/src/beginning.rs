//! How vCPUs and interrupt controllers stand before the guest's first instruction, to which a reset leads back.

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, Msrs, kvm_debugregs, kvm_irqchip,
    kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Error, Kvm, VcpuFd, VmFd};

/// The time stamp counter. All vCPUs begin it anew with zero, which KVM takes as the wish that they agree.
const MSR_TSC: u32 = 0x10;

/// A VM before its first instruction.
#[derive(Debug)]
pub(crate) struct Beginning {
    vcpus: Vec<Vcpu>,
    chips: Vec<kvm_irqchip>,
}

struct Vcpu {
    regs: kvm_regs,
    sregs: kvm_sregs,
    lapic: kvm_lapic_state,
    xsave: kvm_xsave,
    xcrs: Option<kvm_xcrs>,
    debug: kvm_debugregs,
    events: kvm_vcpu_events,
    runs: kvm_mp_state,
    msrs: Vec<kvm_msr_entry>,
}

impl std::fmt::Debug for Vcpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Vcpu({:x?}, {} MSRs)", self.regs, self.msrs.len())
    }
}

impl Beginning {
    /// Notes how all stands now.
    pub(crate) fn note<'a>(
        kvm: &Kvm,
        vm: &VmFd,
        vcpus: impl Iterator<Item = &'a VcpuFd>,
    ) -> Result<Self, Error> {
        let list = kvm.get_msr_index_list()?;
        let chip = |chip_id| {
            let mut chip = kvm_irqchip { chip_id, ..kvm_irqchip::default() };
            vm.get_irqchip(&mut chip).map(|()| chip)
        };
        let chips = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC].map(chip);
        Ok(Self {
            vcpus: vcpus.map(|vcpu| Vcpu::note(vcpu, list.as_slice())).collect::<Result<_, _>>()?,
            chips: chips.into_iter().collect::<Result<_, _>>()?,
        })
    }

    /// Makes all stand so again. No vCPU runs.
    pub(crate) fn restore<'a>(
        &self,
        vm: &VmFd,
        vcpus: impl Iterator<Item = &'a VcpuFd>,
    ) -> Result<(), Error> {
        self.chips.iter().try_for_each(|chip| vm.set_irqchip(chip))?;
        self.vcpus.iter().zip(vcpus).try_for_each(|(noted, vcpu)| noted.restore(vcpu))
    }
}

/// Finishes what a vCPU left the guest for: its registers and the memory change no more, unless it runs on.
pub(crate) fn settle(vcpu: &mut VcpuFd) {
    vcpu.set_kvm_immediate_exit(1);
    let _ = vcpu.run();
    vcpu.set_kvm_immediate_exit(0);
}

impl Vcpu {
    fn note(vcpu: &VcpuFd, list: &[u32]) -> Result<Self, Error> {
        Ok(Self {
            regs: vcpu.get_regs()?,
            sregs: vcpu.get_sregs()?,
            lapic: vcpu.get_lapic()?,
            xsave: vcpu.get_xsave()?,
            // A processor without XSAVE has none.
            xcrs: vcpu.get_xcrs().ok(),
            debug: vcpu.get_debug_regs()?,
            events: vcpu.get_vcpu_events()?,
            runs: vcpu.get_mp_state()?,
            msrs: list.iter().filter_map(|&index| msr(vcpu, index)).collect(),
        })
    }

    fn restore(&self, vcpu: &VcpuFd) -> Result<(), Error> {
        // The local APIC's mode is among the special registers.
        vcpu.set_sregs(&self.sregs)?;
        vcpu.set_lapic(&self.lapic)?;
        vcpu.set_regs(&self.regs)?;
        // SAFETY: KVM reads no more than this structure has, since this process asks for no feature whose state is larger
        // (arch_prctl), and gave the guest none.
        unsafe { vcpu.set_xsave(&self.xsave)? };
        if let Some(xcrs) = &self.xcrs {
            vcpu.set_xcrs(xcrs)?;
        }
        for noted in &self.msrs {
            let wanted =
                kvm_msr_entry { data: if noted.index == MSR_TSC { 0 } else { noted.data }, ..*noted };
            if msr(vcpu, wanted.index).is_some_and(|now| now.data == wanted.data) {
                continue;
            }
            let one = Msrs::from_entries(&[wanted]).expect("one is not too many");
            if vcpu.set_msrs(&one) != Ok(1) {
                tracing::debug!(index = format_args!("{:#x}", wanted.index), "a register keeps its value");
            }
        }
        vcpu.set_vcpu_events(&self.events)?;
        vcpu.set_mp_state(self.runs)?;
        vcpu.set_debug_regs(&self.debug)
    }
}

/// A model-specific register; none where this KVM does not show it after all.
fn msr(vcpu: &VcpuFd, index: u32) -> Option<kvm_msr_entry> {
    let entry = kvm_msr_entry { index, ..kvm_msr_entry::default() };
    let mut one = Msrs::from_entries(&[entry]).expect("one is not too many");
    (vcpu.get_msrs(&mut one) == Ok(1)).then(|| one.as_slice()[0])
}
