//! The DSDT: devices by name, with what they occupy.

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace as Range, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Memory32Fixed, Method,
    Name, Notify, ONE, Package, PackageBuilder, Path, ResourceTemplate, ZERO,
};
use acpi_tables::sdt::Sdt;

use super::platform::Platform;
use super::table::{OEM, OEM_TABLE, bytes};
use crate::{layout, pci, power, serial};

/// Where the interrupt lines of devices below root ports end: all four of a port at one pin of the I/O APIC.
fn lines() -> PackageBuilder {
    let mut routes = PackageBuilder::new();
    for device in 0..pci::MOST as u32 {
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

    let ports = IO::new(pci::PORTS as u16, pci::PORTS as u16, 1, 8);
    // Addresses of the other root buses are theirs alone.
    let last = platform.roots.iter().map(|root| root.first).min().unwrap_or(layout::BUSES) - 1;
    let rooms = [(layout::BARS_32, layout::BARS_32_LEN), platform.bars_64];
    let taken = |wide: usize| platform.roots.iter().map(move |root| root.room[wide]);
    let rooms = [0, 1].map(|wide| layout::without(rooms[wide], taken(wide)));
    dsdt.append_slice(&root_bus("_SB_.PCI0", (0, last), &rooms, &[&ports], &[]));
    for (number, root) in (1..).zip(platform.roots) {
        let rooms = root.room.map(|room| layout::without(room, [].into_iter()));
        let node = Name::new(Path::new("_PXM"), &(root.node as u32));
        let path = format!("_SB_.PCI{number:X}");
        dsdt.append_slice(&root_bus(&path, (root.first, root.last), &rooms, &[], &[&node]));
    }
    dsdt
}

/// A root bus: its buses, its addresses below and above 4 GiB, what else it has, and what else is said of it.
fn root_bus(
    path: &str,
    (first, last): (u8, u8),
    rooms: &[Vec<(u64, u64)>; 2],
    more: &[&dyn Aml],
    words: &[&dyn Aml],
) -> Vec<u8> {
    let name = |name, value: &dyn Aml| Name::new(Path::new(name), value);
    let buses = Range::<u16>::new_bus_number(first.into(), last.into());
    let (plain, cached) = (AddressSpaceCacheable::NotCacheable, AddressSpaceCacheable::PreFetchable);
    let low = rooms[0].iter().map(|(start, len)| {
        Range::<u32>::new_memory(plain, true, *start as u32, (start + len - 1) as u32, None)
    });
    let high = rooms[1]
        .iter()
        .map(|(start, len)| Range::<u64>::new_memory(cached, true, *start, start + len - 1, None));
    let (low, high): (Vec<_>, Vec<_>) = (low.collect(), high.collect());
    let mut resources: Vec<&dyn Aml> = vec![&buses];
    resources.extend(more);
    resources.extend(low.iter().map(|range| range as &dyn Aml));
    resources.extend(high.iter().map(|range| range as &dyn Aml));
    let resources = ResourceTemplate::new(resources);
    let (hid, cid) = (name("_HID", &EISAName::new("PNP0A08")), name("_CID", &EISAName::new("PNP0A03")));
    let (uid, number) = (name("_UID", &first), name("_BBN", &first));
    let (segment, coherent) = (name("_SEG", &ZERO), name("_CCA", &ONE));
    let (lines, resources) = (name("_PRT", &lines()), name("_CRS", &resources));
    let mut content: Vec<&dyn Aml> = vec![&hid, &cid, &uid, &segment, &number, &coherent, &resources];
    if last > first {
        // Only what lies below ports has interrupt lines.
        content.push(&lines);
    }
    content.extend(words);
    bytes(&Device::new(Path::new(path), content))
}
