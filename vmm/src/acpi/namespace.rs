//! The DSDT: devices by name, with what they occupy.

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace as Range, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Memory32Fixed, Method,
    Name, Notify, ONE, Package, PackageBuilder, Path, ResourceTemplate, ZERO,
};
use acpi_tables::sdt::Sdt;

use super::{OEM, OEM_TABLE, Platform};
use crate::{layout, pci, power, serial};

/// Where the interrupt lines of devices below root ports end: all four of a port at one pin of the I/O APIC.
fn lines() -> PackageBuilder {
    let mut routes = PackageBuilder::new();
    for device in 1..pci::MOST as u32 {
        for line in 0..4u8 {
            let pin = layout::line(device);
            routes.add_element(&Package::new(vec![&(device << 16 | 0xffff), &line, &ZERO, &pin]));
        }
    }
    routes
}

pub(super) fn dsdt(platform: &Platform<'_>) -> Sdt {
    let name = |name, value: &dyn Aml| Name::new(Path::new(name), value);
    let mut dsdt = Sdt::new(*b"DSDT", 36, 6, OEM, OEM_TABLE, 1);

    // Sleep type 5 is off; the sleep control register knows no other.
    let off = Package::new(vec![&5u8, &ZERO, &ZERO, &ZERO]);
    name("_S5_", &off).to_aml_bytes(&mut dsdt);

    let io = IO::new(serial::PORT as u16, serial::PORT as u16, 1, 8);
    let line = Interrupt::new(true, true, false, false, serial::INTERRUPT);
    Device::new(
        Path::new("_SB_.COM1"),
        vec![
            &name("_HID", &EISAName::new("PNP0501")),
            &name("_UID", &ZERO),
            &name("_CRS", &ResourceTemplate::new(vec![&io, &line])),
        ],
    )
    .to_aml_bytes(&mut dsdt);

    // The one event of the generic event device is the button's.
    let line = Interrupt::new(true, true, false, false, power::BUTTON);
    let button = Path::new("\\_SB_.PWRB");
    let pressed = Notify::new(&button, &0x80u8);
    Device::new(
        Path::new("_SB_.GED_"),
        vec![
            &name("_HID", &"ACPI0013"),
            &name("_UID", &ZERO),
            &name("_CRS", &ResourceTemplate::new(vec![&line])),
            &Method::new("_EVT".into(), 1, true, vec![&pressed]),
        ],
    )
    .to_aml_bytes(&mut dsdt);
    Device::new(Path::new("_SB_.PWRB"), vec![&name("_HID", &EISAName::new("PNP0C0C")), &name("_UID", &ZERO)])
        .to_aml_bytes(&mut dsdt);

    // Kernels believe in ECAM only where a motherboard resource reserves it.
    let ecam_len = u32::from(layout::BUSES) << 20;
    let ecam = Memory32Fixed::new(true, layout::ECAM as u32, ecam_len);
    let ports = IO::new(power::PORT as u16, power::PORT as u16, 1, 4);
    Device::new(
        Path::new("_SB_.MBRD"),
        vec![
            &name("_HID", &EISAName::new("PNP0C02")),
            &name("_UID", &ZERO),
            &name("_CRS", &ResourceTemplate::new(vec![&ecam, &ports])),
        ],
    )
    .to_aml_bytes(&mut dsdt);

    let buses = Range::<u16>::new_bus_number(0, u16::from(layout::BUSES) - 1);
    let low = (layout::BARS_32, layout::BARS_32_LEN);
    let ports = IO::new(pci::PORTS as u16, pci::PORTS as u16, 1, 8);
    let bars_32 = Range::<u32>::new_memory(
        AddressSpaceCacheable::NotCacheable,
        true,
        low.0 as u32,
        (low.0 + low.1 - 1) as u32,
        None,
    );
    let high = platform.bars_64;
    let bars_64 = Range::<u64>::new_memory(
        AddressSpaceCacheable::PreFetchable,
        true,
        high.0,
        high.0 + high.1 - 1,
        None,
    );
    Device::new(
        Path::new("_SB_.PCI0"),
        vec![
            &name("_HID", &EISAName::new("PNP0A08")),
            &name("_CID", &EISAName::new("PNP0A03")),
            &name("_UID", &ZERO),
            &name("_SEG", &ZERO),
            &name("_BBN", &ZERO),
            &name("_CCA", &ONE),
            &name("_PRT", &lines()),
            &name("_CRS", &ResourceTemplate::new(vec![&buses, &ports, &bars_32, &bars_64])),
        ],
    )
    .to_aml_bytes(&mut dsdt);
    dsdt
}
