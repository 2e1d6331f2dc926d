//! The guest's physical addresses. `docs/vmm.md` has them as a table.

use crate::error::Error;

/// Page tables, descriptor tables and boot parameters lie below this; RAM that the kernel may use begins here.
pub const HIGH_RAM: u64 = 0x10_0000;
/// RAM below 4 GiB ends here; what is more lies at [`RAM_ABOVE`].
pub const LOW_RAM_END: u64 = 0xc000_0000;
/// 32-bit BARs.
pub const BARS_32: u64 = 0xc000_0000;
/// Bytes for 32-bit BARs.
pub const BARS_32_LEN: u64 = 0x2000_0000;
/// PCI configuration space, 1 MiB a bus.
pub const ECAM: u64 = 0xe000_0000;
/// Buses in it.
pub const BUSES: u8 = 16;
/// I/O APIC, in KVM.
pub const IOAPIC: u64 = 0xfec0_0000;
/// The pin of the I/O APIC at which the interrupt line of what lies below a root port ends, by the port's device number.
pub fn line(device: u32) -> u32 {
    16 + device % 8
}

/// Local APICs, in KVM.
pub const LAPIC: u64 = 0xfee0_0000;
/// A page that KVM needs for real mode on Intel.
pub const IDENTITY_MAP: u64 = 0xfffb_c000;
/// Three pages that KVM needs for real mode on Intel.
pub const TSS: usize = 0xfffb_d000;
/// RAM beyond [`LOW_RAM_END`].
pub const RAM_ABOVE: u64 = 1 << 32;

/// Where the RAM of a VM lies, as address and length.
pub fn ram(len: u64) -> Vec<(u64, u64)> {
    ranges(&[len]).into_iter().map(|(_, start, len)| (start, len)).collect()
}

/// Cuts so much into parts that are as equal as multiples of `unit` can be; what is over is the last one's.
pub fn shares(whole: u64, parts: usize, unit: u64) -> Vec<u64> {
    let (units, parts) = (whole / unit, parts as u64);
    let mut shares: Vec<_> =
        (0..parts).map(|part| (units / parts + u64::from(part < units % parts)) * unit).collect();
    if let Some(last) = shares.last_mut() {
        *last += whole % unit;
    }
    shares
}

/// Where parts of RAM lie that follow each other: number of the part, address and length, in the order of addresses. The
/// part that reaches beyond [`LOW_RAM_END`] has two ranges.
pub(crate) fn ranges(lens: &[u64]) -> Vec<(usize, u64, u64)> {
    let mut ranges = Vec::new();
    let mut start = 0;
    for (part, &len) in lens.iter().enumerate() {
        let end = start + len;
        for (base, from, to) in
            [(0, start, end.min(LOW_RAM_END)), (RAM_ABOVE - LOW_RAM_END, start.max(LOW_RAM_END), end)]
        {
            if from < to {
                ranges.push((part, base + from, to - from));
            }
        }
        start = end;
    }
    ranges
}

/// The 64-bit BARs: the second quarter from above of the physical address space.
///
/// The topmost quarter stays empty, since AMD keeps its last 12 GiB for itself.
pub fn bars_64(address_bits: u32) -> (u64, u64) {
    let bits = address_bits.clamp(36, 46);
    (1 << (bits - 1), 1 << (bits - 2))
}

/// Gives each 64-bit BAR an address that is a multiple of its length (a power of two), in the order asked.
///
/// # Errors
/// More than there is room for between the RAM and the end of the address space.
pub fn place_64(lens: &[u64], address_bits: u32, ram_len: u64) -> Result<Vec<u64>, Error> {
    let (base, room) = bars_64(address_bits);
    let invalid = |what, value: u64, why: String| Error::Invalid { what, value: format!("{value:#x}"), why };
    if ram_len > LOW_RAM_END && RAM_ABOVE + (ram_len - LOW_RAM_END) > base {
        let why = format!("bytes reach beyond {base:#x}, where shared memory begins: give less memory");
        return Err(invalid("memory of", ram_len, why));
    }
    // Longest first: then each follows the one before without a gap, and is aligned.
    let mut order: Vec<usize> = (0..lens.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(lens[i]));
    let mut places = vec![0; lens.len()];
    let mut next = base;
    for i in order {
        if lens[i] > room || next + lens[i] > base + room {
            let why = format!("bytes do not fit into the {room:#x} that this processor's addresses leave");
            return Err(invalid("a region of", lens[i], why));
        }
        places[i] = next;
        next += lens[i];
    }
    Ok(places)
}

/// Gives ranges of these lengths (powers of two, or 0) addresses in `[start, start + room)` that are multiples of their
/// lengths, from the end down, where addresses are round: the longest first. `None` where they do not fit.
pub fn stack(lens: &[u64], start: u64, room: u64) -> Option<Vec<u64>> {
    let mut order: Vec<usize> = (0..lens.len()).filter(|&i| lens[i] > 0).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(lens[i]));
    let mut places = vec![start; lens.len()];
    let mut next = start.checked_add(room)?;
    for i in order {
        next = next.checked_sub(lens[i])? & !(lens[i] - 1);
        if next < start {
            return None;
        }
        places[i] = next;
    }
    Some(places)
}

/// The rest of a range without others: address and length of each part.
pub(crate) fn without(range: (u64, u64), taken: impl Iterator<Item = (u64, u64)>) -> Vec<(u64, u64)> {
    let mut taken: Vec<_> = taken.filter(|(_, len)| *len > 0).collect();
    taken.sort_unstable();
    let (mut next, end) = (range.0, range.0 + range.1);
    let mut left = Vec::new();
    for (start, len) in taken.into_iter().chain([(end, 0)]) {
        let until = start.min(end);
        if next < until {
            left.push((next, until - next));
        }
        next = next.max(start + len);
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_leaves_the_hole_below_4_gib_free() {
        assert_eq!(ram(1 << 30), [(0, 1 << 30)]);
        assert_eq!(ram(4 << 30), [(0, LOW_RAM_END), (1 << 32, 1 << 30)]);
    }

    #[test]
    fn parts_follow_each_other_and_make_up_the_whole() {
        assert_eq!(shares(8, 3, 1), [3, 3, 2]);
        assert_eq!(shares((7 << 21) + 4096, 2, 1 << 21), [4 << 21, (3 << 21) + 4096]);
        let ranges = ranges(&[2 << 30, 2 << 30, 1 << 30]);
        let high = 1 << 32;
        assert_eq!(
            ranges,
            [(0, 0, 2 << 30), (1, 2 << 30, 1 << 30), (1, high, 1 << 30), (2, high + (1 << 30), 1 << 30)]
        );
    }

    #[test]
    fn shared_bars_are_aligned_to_their_size_and_do_not_overlap() {
        let lens = [1 << 20, 1 << 40, 1 << 30, 1 << 20];
        let places = place_64(&lens, 46, 512 << 30).unwrap();
        for (i, (&place, &len)) in places.iter().zip(&lens).enumerate() {
            assert_eq!(place % len, 0);
            for (j, (&other, &other_len)) in places.iter().zip(&lens).enumerate() {
                assert!(i == j || place + len <= other || other + other_len <= place);
            }
        }
    }

    #[test]
    fn windows_begin_at_multiples_of_their_length() {
        let lens = [1 << 20, 0, 1 << 28, 2 << 20];
        let places = stack(&lens, 0xc040_0000, 0x1fc0_0000).unwrap();
        assert_eq!(places, [0xcfd0_0000, 0xc040_0000, 0xd000_0000, 0xcfe0_0000]);
        assert_eq!(stack(&[1 << 28, 1 << 28], 0xc040_0000, 0x1fc0_0000), None);
        assert_eq!(stack(&[2], 0, 1), None);
    }

    #[test]
    fn what_is_left_of_a_range_has_no_byte_of_what_is_taken() {
        assert_eq!(without((8, 8), [].into_iter()), [(8, 8)]);
        assert_eq!(without((8, 8), [(12, 2), (0, 0), (8, 1)].into_iter()), [(9, 3), (14, 2)]);
        assert_eq!(without((8, 8), [(12, 4), (8, 4)].into_iter()), []);
        assert_eq!(
            without((8, 8), [(15, 9), (4, 6), (9, 3)].into_iter()),
            [(12, 3)],
            "they overlap and reach out"
        );
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let text = place_64(&[1 << 40], 40, 1 << 30).unwrap_err().to_string();
        assert!(text.contains("do not fit"), "{text}");
        assert!(place_64(&[], 40, 1 << 40).is_err());
    }
}
