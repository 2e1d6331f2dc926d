//! SMBIOS tables: the UUID by which a guest finds its section, and who made the machine.

use uuid::Uuid;

/// Where the entry point lies, in the range that kernels search.
pub const START: u64 = 0xf_0000;
const TABLES: u64 = START + 32;

/// The bytes at [`START`]: the entry point (of SMBIOS 3), and behind it the tables.
pub fn tables(uuid: Uuid) -> Vec<u8> {
    let mut tables = Vec::new();
    // BIOS information: vendor, version, date; no features.
    let mut bios = vec![0, 24, 0, 0, 1, 2, 0, 0, 3, 0];
    bios.extend([0; 14]);
    structure(&mut tables, &bios, &["vmshm", env!("CARGO_PKG_VERSION"), "01/01/2026"]);
    // System information: manufacturer, product, version, serial number (none), UUID, wake-up by the power switch.
    let mut system = vec![1, 27, 1, 0, 1, 2, 3, 0];
    system.extend(uuid.to_bytes_le());
    system.extend([6, 0, 0]);
    structure(&mut tables, &system, &["vmshm", "vmshm virtual machine", env!("CARGO_PKG_VERSION")]);
    // The end.
    structure(&mut tables, &[127, 4, 2, 0], &[]);

    let mut entry = Vec::from(*b"_SM3_\0\x18\x03\x02\0\x01\0");
    entry.extend((tables.len() as u32).to_le_bytes());
    entry.extend(TABLES.to_le_bytes());
    entry[5] = entry.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte));
    entry.resize((TABLES - START) as usize, 0);
    entry.extend(tables);
    entry
}

fn structure(tables: &mut Vec<u8>, fields: &[u8], strings: &[&str]) {
    debug_assert_eq!(usize::from(fields[1]), fields.len());
    tables.extend(fields);
    for string in strings {
        tables.extend(string.bytes().chain([0]));
    }
    // Strings end with an empty one; no strings with two.
    tables.extend(if strings.is_empty() { &[0, 0][..] } else { &[0] });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_entry_point_is_sound_and_the_uuid_stands_where_kernels_look() {
        let uuid = Uuid::from_u128(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff);
        let bytes = tables(uuid);
        assert_eq!(bytes[..24].iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
        let tables = &bytes[32..];
        assert_eq!(bytes[12..16], (tables.len() as u32).to_le_bytes());
        // Behind the first structure's strings.
        let second = 24 + tables[24..].windows(2).position(|pair| pair == [0, 0]).unwrap() + 2;
        assert_eq!(tables[second..second + 2], [1, 27]);
        let found = Uuid::from_bytes_le(tables[second + 8..second + 24].try_into().unwrap());
        assert_eq!(found, uuid);
        assert_eq!(tables[tables.len() - 6..], [127, 4, 2, 0, 0, 0]);
    }
}
