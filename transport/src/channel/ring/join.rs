//! Header and payload of a short message as the words of its slots.

use crate::memory::likely_word;

/// A header of 9 to 16 bytes and a payload of up to 8 behind it, as words. They are made in registers: words that are read
/// back from where they were written in other pieces have to wait for the cache.
#[inline(always)]
pub fn join_short(header: &[u8], payload: &[u8]) -> Option<[u64; 3]> {
    let (Some(first), Some(last)) = (header.first_chunk(), header.last_chunk()) else { return None };
    if !(9..=16).contains(&header.len()) || payload.len() > 8 {
        return None;
    }
    // Bits of the second word that are the header's, from 8 to 64: no shift is by all 64.
    let bits = 8 * (header.len() - 8);
    let payload = likely_word(payload);
    let last = u64::from_le_bytes(*last);
    let second = last >> (64 - bits) | payload << (bits - 8) << 8;
    Some([u64::from_ne_bytes(*first), second.to_le(), (payload >> (64 - bits)).to_le()])
}

/// As [`join_short`], of a payload that is longer: what lies in the first slot, and the rest of the payload.
#[inline(always)]
pub fn join_long<'a>(header: &[u8], payload: &'a [u8]) -> Option<([u64; 3], &'a [u8])> {
    let (first, last) = (header.first_chunk()?, header.last_chunk()?);
    if !(9..=16).contains(&header.len()) {
        return None;
    }
    let (third, rest) = payload.get(16 - header.len()..)?.split_first_chunk()?;
    let bits = 8 * (header.len() - 8);
    let (last, start) = (u64::from_le_bytes(*last), u64::from_le_bytes(*payload.first_chunk()?));
    let second = last >> (64 - bits) | start << (bits - 8) << 8;
    Some(([u64::from_ne_bytes(*first), second.to_le(), u64::from_ne_bytes(*third)], rest))
}

/// Copies all of `from` to the start of `to`, without a call for the lengths of headers and small payloads.
#[inline(always)]
pub fn copy_short(to: &mut [u8], from: &[u8]) {
    let len = from.len();
    // Two copies of a known length, which overlap.
    macro_rules! ends {
        ($n:literal) => {{
            let (first, last): ([u8; $n], [u8; $n]) =
                (from[..$n].try_into().unwrap_or([0; $n]), from[len - $n..].try_into().unwrap_or([0; $n]));
            to[..$n].copy_from_slice(&first);
            to[len - $n..len].copy_from_slice(&last);
        }};
    }
    match len {
        0 => (),
        1 => to[0] = from[0],
        2..4 => ends!(2),
        4..8 => ends!(4),
        8..=16 => ends!(8),
        17..=32 => ends!(16),
        _ => to[..len].copy_from_slice(from),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_messages_are_joined_byte_by_byte() {
        let bytes: [u8; 32] = core::array::from_fn(|n| n as u8 + 0x81);
        for header in 0..=17 {
            for payload in 0..=9 {
                let whole = &bytes[..header + payload];
                let joined = join_short(&whole[..header], &whole[header..]);
                assert_eq!(joined.is_some(), (9..=16).contains(&header) && payload <= 8);
                if let Some(joined) = joined {
                    let mut expected = [0; 24];
                    expected[..whole.len()].copy_from_slice(whole);
                    assert_eq!(
                        joined.map(u64::to_ne_bytes).as_flattened(),
                        expected,
                        "{header} and {payload}"
                    );
                }
            }
        }
    }
}
