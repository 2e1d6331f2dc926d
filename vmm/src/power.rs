//! Power: the port by which a guest switches itself off or resets itself (ACPI's sleep control and reset registers), and
//! the button by which it is asked to.

use std::sync::{Arc, Weak};

use kvm_bindings::{KVM_IRQCHIP_IOAPIC, kvm_irqchip};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::{Bus, Device};
use crate::control::{Control, End};
use crate::error::Error;
use crate::space::Space;
use crate::vm::Vm;

/// The first of its four ports.
pub const PORT: u64 = 0x600;
/// Sleep control: [`SLEEP`] ends the VM.
pub const SLEEP_CONTROL: u64 = 0;
/// Sleep status: always zero.
pub const SLEEP_STATUS: u64 = 1;
/// Reset: [`RESET`] resets the VM.
pub const RESET_REGISTER: u64 = 2;
/// The bit of sleep control that makes it so.
pub const SLEEP: u8 = 1 << 5;
/// The value of the reset register that makes it so.
pub const RESET: u8 = 1;

/// Where a program in real mode finds the firmware's first instruction. Linux goes there to reboot: with ACPI of the
/// hardware-reduced kind it expects EFI to do it, finds none, and turns to the BIOS.
pub const FIRMWARE_START: u64 = 0xf_fff0;
/// All the firmware that there is: mov dx, reset register; mov al, [`RESET`]; out dx, al; hlt; jmp to the hlt.
pub const FIRMWARE: [u8; 9] = {
    let [low, high] = ((PORT + RESET_REGISTER) as u16).to_le_bytes();
    [0xba, low, high, 0xb0, RESET, 0xee, 0xf4, 0xeb, 0xfd]
};

/// The button's interrupt, a pin of the I/O APIC.
pub const BUTTON: u32 = 5;

struct Power(Arc<Control>);

impl Device for Power {
    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (SLEEP_CONTROL, &[value]) if value & SLEEP != 0 => self.0.end(End::PowerOff),
            (RESET_REGISTER, &[RESET]) => self.0.end(End::Reset),
            _ => {}
        }
    }
}

/// Gives a VM this device.
///
/// # Errors
/// Another device has the ports.
pub fn add(vm: &Vm) -> Result<(), Error> {
    let bus: &Bus = vm.port_bus();
    bus.insert(PORT, 4, Arc::new(Power(vm.control())))
}

/// The power button: an interrupt, upon which ACPI's generic event device tells the guest's kernel.
#[derive(Debug)]
pub struct Button {
    line: EventFd,
    /// Not kept alive: whoever waits for a signal outlives the VM, whose sections go back when its memory goes.
    space: Weak<Space>,
}

impl Button {
    pub(crate) fn add(vm: &Vm) -> Result<Self, Error> {
        let doing = || "make the power button's interrupt";
        let line = EventFd::new(libc::EFD_CLOEXEC | libc::EFD_NONBLOCK).map_err(Error::io(doing()))?;
        vm.space().fd().register_irqfd(&line, BUTTON).map_err(Error::kvm(doing()))?;
        Ok(Self { line, space: Arc::downgrade(vm.space()) })
    }

    /// Asks the guest to switch itself off. `false` where no kernel listens: it masks the interrupt.
    pub fn press(&self) -> bool {
        let mut chip = kvm_irqchip { chip_id: KVM_IRQCHIP_IOAPIC, ..kvm_irqchip::default() };
        let read = self.space.upgrade().map(|space| space.fd().get_irqchip(&mut chip));
        if !matches!(read, Some(Ok(()))) {
            return false;
        }
        // SAFETY: KVM fills in this member of the union for this chip; all of its bits are integers.
        let entry = unsafe { chip.chip.ioapic.redirtbl[BUTTON as usize].bits };
        entry & MASKED == 0 && self.line.write(1).is_ok()
    }
}

/// An entry of the I/O APIC: no interrupt comes.
const MASKED: u64 = 1 << 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_right_values_end_a_vm() {
        let control = Arc::new(Control::default());
        let power = Power(Arc::clone(&control));
        for (offset, data) in [(0, &[0x1f][..]), (0, &[0x20, 0]), (2, &[2]), (1, &[0x20]), (3, &[1])] {
            power.write(offset, data);
            assert_eq!(control.ended(), None);
        }
        power.write(SLEEP_CONTROL, &[SLEEP | 5 << 2]);
        power.write(RESET_REGISTER, &[RESET]);
        assert_eq!(control.ended(), Some(End::PowerOff));
    }
}
