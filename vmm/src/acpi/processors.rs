//! The MADT: processors and interrupt controllers.

use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};

use super::table::{OEM, OEM_TABLE, bytes};
use crate::layout;

pub(super) fn madt(ids: &[u32]) -> Vec<u8> {
    let mut madt = MADT::new(OEM, OEM_TABLE, 1, LocalInterruptController::Address(layout::LAPIC as u32));
    for (number, &id) in ids.iter().enumerate() {
        madt.add_structure(ProcessorLocalApic::new(number as u8, id as u8, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, layout::IOAPIC as u32, 0));
    bytes(&madt)
}
