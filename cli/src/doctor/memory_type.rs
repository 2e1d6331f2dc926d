//! The memory type that the guest's kernel gives to a device's memory, as `/sys/kernel/debug/x86/pat_memtype_list` has it.

use std::fs;

use super::check::Check;

/// A finding for the memory at `start`, `len` bytes, of the device at this PCI address, which the guest driver has or has not.
/// Only root can read the list, and only where debugfs is mounted.
pub fn check(address: &str, start: u64, len: u64, is_driven: bool) -> Option<Check> {
    let list = fs::read_to_string("/sys/kernel/debug/x86/pat_memtype_list").ok()?;
    check_in(&list, address, start, len, is_driven)
}

fn check_in(list: &str, address: &str, start: u64, len: u64, is_driven: bool) -> Option<Check> {
    // There firmware decides, and the driver says so.
    if is_driven && start < 1 << 32 {
        return None;
    }
    let (range, kind) = list.lines().filter_map(entry).find_map(|(first, end, kind)| {
        let overlaps = first < start + len && start < end;
        (overlaps && kind != "write-back").then(|| (format!("{first:#x}-{end:#x}"), kind))
    })?;
    let cure = match is_driven {
        true => {
            "whoever mapped it first decides: end what has its resource2 in sysfs open (fuser), then sudo modprobe -r vmshm; \
                 sudo modprobe vmshm"
        }
        false => "load the guest driver, which maps it write-back",
    };
    Some(Check::warning(
        format!(
            "{address}: its memory at {range} is mapped {kind}, not write-back, which is slow (pat_memtype_list)"
        ),
        cure,
    ))
}

/// First byte, the one behind the last, and memory type: `PAT: [mem 0x...-0x...] write-back`.
fn entry(line: &str) -> Option<(u64, u64, &str)> {
    let (range, kind) = line.split_once("[mem ")?.1.split_once(']')?;
    let (first, end) = range.split_once('-')?;
    let number = |text: &str| u64::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok();
    Some((number(first)?, number(end)?, kind.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_type_than_write_back_is_found_where_it_overlaps() {
        let list = "PAT memtype list:\n\
                    PAT: [mem 0x00000000bffe0000-0x00000000bffe4000] write-back\n\
                    PAT: [mem 0x00000000febf1000-0x00000000febf2000] uncached-minus\n\
                    PAT: [mem 0x0000000800000000-0x0000000a00000000] write-back\n\
                    PAT: [mem 0x0000000a00000000-0x0000000a00001000] uncached-minus\n";
        assert!(check_in(list, "0000:00:04.0", 0x8_0000_0000, 8 << 30, true).is_none());
        let found = check_in(list, "0000:00:05.0", 0xa_0000_0000, 1 << 20, false).unwrap();
        assert!(
            found.what.contains("0000:00:05.0") && found.what.contains("mapped uncached-minus"),
            "{found:?}"
        );
        assert!(found.cure.unwrap().contains("guest driver"));
        let found = check_in(list, "0000:00:05.0", 0xa_0000_0000, 1 << 20, true).unwrap();
        assert!(found.cure.unwrap().contains("resource2"));
        assert!(check_in(list, "0000:00:03.0", 0xfebf_1000, 4096, true).is_none());
        assert!(check_in("rubbish\n[mem x-y] z\n", "", 0, 1, false).is_none());
    }
}
