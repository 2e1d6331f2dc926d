//! Tables as bytes, and the names that stand in all of them.

use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, AmlSink};

pub(super) const OEM: [u8; 6] = *b"VMSHM ";
pub(super) const OEM_TABLE: [u8; 8] = *b"VMSHMVMM";

/// A table that is written byte by byte.
pub(super) struct Bytes(pub(super) Vec<u8>);

impl AmlSink for Bytes {
    fn byte(&mut self, byte: u8) {
        self.0.push(byte);
    }
}

/// The bytes of a table.
pub(super) fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Bytes(Vec::new());
    table.to_aml_bytes(&mut bytes);
    bytes.0
}

/// A table with a body that the library cannot make as it is wanted here.
pub(super) fn table(signature: &[u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let mut table = Sdt::new(*signature, 36, revision, OEM, OEM_TABLE, 1);
    table.append_slice(body);
    table.as_slice().to_vec()
}
