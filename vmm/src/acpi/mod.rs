//! ACPI tables: how a kernel finds processors, interrupt controllers, the PCI bus, the serial port and the power switch.
//!
//! The hardware-reduced kind: no timer, no legacy interrupt controller, a power button that is a device.

mod namespace;
mod numa;
mod platform;
mod processors;
mod table;

use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;

use table::{OEM, OEM_TABLE, bytes};

use crate::{layout, power};

pub(crate) use platform::Platform;

/// Where the tables lie, in the range that kernels search.
pub const START: u64 = 0xe_0000;
/// Where they must end.
pub const END: u64 = 0xf_0000;

/// The last APIC id: they have eight bits in these tables, and one that is all ones means everybody.
pub(crate) const LAST_ID: u32 = 254;

/// All tables in the order in which they lie in memory, with their addresses; the first is the root pointer.
pub(crate) fn tables(platform: &Platform<'_>) -> Vec<(u64, Vec<u8>)> {
    let mut next = START + 64;
    let mut placed: Vec<(u64, Vec<u8>)> = Vec::new();
    let mut put = |bytes: Vec<u8>| {
        let at = next;
        next = (at + bytes.len() as u64).next_multiple_of(16);
        placed.push((at, bytes));
        at
    };
    let dsdt = put(namespace::dsdt(platform).as_slice().to_vec());
    let ids = platform.processors.ids();
    let mut listed = vec![put(fadt(dsdt)), put(processors::madt(ids)), put(mcfg())];
    listed.push(put(processors::pptt(platform.processors, platform.caches)));
    if let Some(numa) = platform.numa {
        listed.extend([put(numa::srat(numa, ids)), put(numa::slit(numa))]);
        if !numa.access.is_empty() {
            listed.push(put(numa::hmat(numa)));
        }
    }
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, 1);
    listed.iter().for_each(|&table| xsdt.add_entry(table));
    let xsdt = put(bytes(&xsdt));
    assert!(next <= END, "the tables fit");
    placed.insert(0, (START, bytes(&Rsdp::new(OEM, xsdt))));
    placed
}

fn fadt(dsdt: u64) -> Vec<u8> {
    let port = |offset| GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, power::PORT + offset);
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, 1)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::Headless);
    fadt.reset_reg = port(power::RESET_REGISTER);
    fadt.reset_value = power::RESET;
    fadt.sleep_control_reg = port(power::SLEEP_CONTROL);
    fadt.sleep_status_reg = port(power::SLEEP_STATUS);
    // No VGA, no CMOS clock; no keyboard controller either, since bit 1 is not set.
    fadt.iapc_boot_arch = (1 << 2 | 1 << 5).into();
    bytes(&fadt.finalize())
}

fn mcfg() -> Vec<u8> {
    let mut mcfg = MCFG::new(OEM, OEM_TABLE, 1);
    mcfg.add_ecam(layout::ECAM, 0, 0, layout::BUSES - 1);
    bytes(&mcfg)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

    use super::*;
    use crate::numa::Numa;
    use crate::port::RootBus;
    use crate::topology::{Cache, Level, Topology};

    const ROOTS: [RootBus; 1] =
        [RootBus { node: 1, first: 3, last: 5, room: [(0xd000_0000, 0x1000_0000), (3 << 44, 1 << 40)] }];

    fn all(vcpus: usize, roots: &[RootBus]) -> Vec<(u64, Vec<u8>)> {
        let numa = Numa { vcpus: (0..vcpus).map(|number| number % 2).collect(), ..numa::tests::numa() };
        let processors = &Topology::flat(vcpus);
        let cache = |level, kind| Cache { shared: Level::sharing(level), kind, line: 64, ways: 8, sets: 64 };
        let caches = &[cache(1, 1), cache(1, 2), cache(2, 3), cache(3, 3)];
        let bars_64 = (1 << 45, 1 << 44);
        tables(&Platform { processors, caches, numa: Some(&numa), bars_64, roots })
    }

    fn name(table: &[u8]) -> &str {
        std::str::from_utf8(&table[..4]).unwrap()
    }

    #[test]
    fn every_table_sums_up_to_zero_and_lies_where_its_owner_says() {
        let tables = all(3, &ROOTS);
        for (at, table) in &tables {
            let sum = table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
            assert_eq!(sum, 0, "{}", name(table));
            assert!((START..END).contains(at));
        }
        let find = |wanted: &str| tables.iter().find(|(_, table)| name(table) == wanted).unwrap();
        let xsdt = &find("XSDT").1;
        for (i, name) in ["FACP", "APIC", "MCFG", "PPTT", "SRAT", "SLIT", "HMAT"].iter().enumerate() {
            let entry = u64::from_le_bytes(xsdt[36 + 8 * i..44 + 8 * i].try_into().unwrap());
            assert_eq!(entry, find(name).0, "{name}");
        }
        assert_eq!(tables[0].1[24..32], find("XSDT").0.to_le_bytes());
    }

    #[test]
    fn the_most_vcpus_fit() {
        let room = [(layout::BARS_32, 1 << 17), (3 << 44, 1 << 40)];
        let roots: Vec<_> =
            (1..layout::BUSES).map(|first| RootBus { node: 7, first, last: first, room }).collect();
        let tables = all(LAST_ID as usize + 1, &roots);
        let (at, last) = tables.last().unwrap();
        assert!(at + (last.len() as u64) < END);
    }

    /// `iasl`, of Debian's package acpica-tools, reads every table back and finds nothing odd.
    #[test]
    fn iasl_has_no_complaint() {
        let iasl = std::env::var("IASL").unwrap_or("iasl".into());
        if Command::new(&iasl).arg("-v").output().is_err() {
            eprintln!("skipped: there is no iasl; the package acpica-tools has it, or IASL names it");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        for (_, table) in all(3, &ROOTS).iter().skip(1) {
            let name = name(table);
            fs::write(dir.path().join(format!("{name}.dat")), table).unwrap();
            let run = |args: &[&str]| {
                let out = Command::new(&iasl).args(args).current_dir(dir.path()).output().unwrap();
                let text = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
                assert!(out.status.success(), "{name}: {text}");
                text
            };
            let text = run(&["-d", &format!("{name}.dat")]);
            assert!(!text.contains("Error") && !text.contains("Warning"), "{name}: {text}");
            let text = run(&["-p", "again", &format!("{name}.dsl")]);
            let clean = text.contains("0 Errors, 0 Warnings") || name != "DSDT" && !text.contains("Error");
            assert!(clean, "{name}: {text}");
        }
    }
}
