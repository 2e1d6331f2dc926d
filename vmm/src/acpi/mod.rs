//! ACPI tables: how a kernel finds processors, interrupt controllers, the PCI bus, the serial port and the power switch.
//!
//! The hardware-reduced kind: no timer, no legacy interrupt controller, a power button that is a device.

mod namespace;
mod processors;

use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};

use crate::{layout, power};

/// Where the tables lie, in the range that kernels search.
pub const START: u64 = 0xe_0000;
/// Where they must end.
pub const END: u64 = 0xf_0000;

const OEM: [u8; 6] = *b"VMSHM ";
const OEM_TABLE: [u8; 8] = *b"VMSHMVMM";
/// Most vCPUs: their APIC ids have eight bits in these tables.
pub const MOST_VCPUS: usize = 255;

/// What the tables tell.
#[derive(Debug, Clone, Copy)]
pub struct Platform {
    /// Number of vCPUs, at most [`MOST_VCPUS`].
    pub vcpus: usize,
    /// 64-bit BARs: first address and length.
    pub bars_64: (u64, u64),
}

/// A table, and its signature.
#[derive(Debug, Clone)]
pub struct Table {
    /// Four letters.
    pub name: &'static str,
    /// The whole of it.
    pub bytes: Vec<u8>,
}

struct Bytes(Vec<u8>);

impl AmlSink for Bytes {
    fn byte(&mut self, byte: u8) {
        self.0.push(byte);
    }
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Bytes(Vec::new());
    table.to_aml_bytes(&mut bytes);
    bytes.0
}

/// All tables in the order in which they lie in memory, with their addresses; the first is the root pointer.
pub fn tables(platform: &Platform) -> Vec<(u64, Table)> {
    let mut next = START + 64;
    let mut placed: Vec<(u64, Table)> = Vec::new();
    let mut put = |name, bytes: Vec<u8>| {
        let at = next;
        next = (at + bytes.len() as u64).next_multiple_of(16);
        placed.push((at, Table { name, bytes }));
        at
    };
    let dsdt = put("DSDT", namespace::dsdt(platform).as_slice().to_vec());
    let listed = [put("FACP", fadt(dsdt)), put("APIC", processors::madt(platform)), put("MCFG", mcfg())];
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, 1);
    listed.iter().for_each(|&table| xsdt.add_entry(table));
    let xsdt = put("XSDT", bytes(&xsdt));
    assert!(next <= END, "the tables fit");
    placed.insert(0, (START, Table { name: "RSDP", bytes: bytes(&Rsdp::new(OEM, xsdt)) }));
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

    const PLATFORM: Platform = Platform { vcpus: 3, bars_64: (1 << 45, 1 << 44) };

    #[test]
    fn every_table_sums_up_to_zero_and_lies_where_its_owner_says() {
        let tables = tables(&PLATFORM);
        for (at, table) in &tables {
            let sum = table.bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
            assert_eq!(sum, 0, "{}", table.name);
            assert!((START..END).contains(at));
        }
        let address = |name: &str| tables.iter().find(|(_, t)| t.name == name).unwrap().0;
        let xsdt = &tables.iter().find(|(_, t)| t.name == "XSDT").unwrap().1.bytes;
        for (i, name) in ["FACP", "APIC", "MCFG"].iter().enumerate() {
            let entry = u64::from_le_bytes(xsdt[36 + 8 * i..44 + 8 * i].try_into().unwrap());
            assert_eq!(entry, address(name), "{name}");
        }
        assert_eq!(tables[0].1.bytes[24..32], address("XSDT").to_le_bytes());
    }

    #[test]
    fn the_most_vcpus_fit() {
        let tables = tables(&Platform { vcpus: MOST_VCPUS, ..PLATFORM });
        let (at, last) = tables.last().unwrap();
        assert!(at + (last.bytes.len() as u64) < END);
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
        for (_, table) in tables(&PLATFORM).iter().filter(|(_, table)| table.name != "RSDP") {
            fs::write(dir.path().join(format!("{}.dat", table.name)), &table.bytes).unwrap();
            let run = |args: &[&str]| {
                let out = Command::new(&iasl).args(args).current_dir(dir.path()).output().unwrap();
                let text = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
                assert!(out.status.success(), "{}: {text}", table.name);
                text
            };
            let text = run(&["-d", &format!("{}.dat", table.name)]);
            assert!(!text.contains("Error") && !text.contains("Warning"), "{}: {text}", table.name);
            let text = run(&["-p", "again", &format!("{}.dsl", table.name)]);
            let clean =
                text.contains("0 Errors, 0 Warnings") || table.name != "DSDT" && !text.contains("Error");
            assert!(clean, "{}: {text}", table.name);
        }
    }
}
