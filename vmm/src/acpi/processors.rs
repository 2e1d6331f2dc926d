//! The MADT: processors and interrupt controllers.

use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};

use super::{MOST_VCPUS, OEM, OEM_TABLE, Platform, bytes};
use crate::layout;

pub(super) fn madt(platform: &Platform) -> Vec<u8> {
    let mut madt = MADT::new(OEM, OEM_TABLE, 1, LocalInterruptController::Address(layout::LAPIC as u32));
    for number in 0..platform.vcpus.min(MOST_VCPUS) as u8 {
        madt.add_structure(ProcessorLocalApic::new(number, number, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, layout::IOAPIC as u32, 0));
    bytes(&madt)
}
