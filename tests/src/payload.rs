//! Seeded bytes for messages, and the comparison that names the first wrong byte.
//!
//! Each message has a [`Key`] made from the run's seed and the message's own coordinates (case,
//! sender, receiver, number). Both sides compute the same bytes from it, so a message that arrives
//! at the wrong place, in the wrong order or with old content never matches.

use std::fmt;

/// One step of the SplitMix64 generator's output function: a bijection that mixes all bits.
fn mix(value: u64) -> u64 {
    let z = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// The key that determines the bytes of one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key(u64);

impl Key {
    /// A key from the run's seed and any coordinates of the message.
    pub fn new(seed: u64, coordinates: &[u64]) -> Key {
        let folded = coordinates.iter().fold(mix(seed.wrapping_add(STEP)), |key, part| {
            mix(key.wrapping_add(STEP) ^ mix(part.wrapping_add(STEP)))
        });
        Key(folded)
    }

    fn word(self, index: usize) -> [u8; 8] {
        mix(self.0.wrapping_add((index as u64).wrapping_mul(STEP))).to_le_bytes()
    }

    /// Writes the message's bytes over the whole of `out`.
    pub fn fill(self, out: &mut [u8]) {
        let mut words = out.chunks_exact_mut(8);
        let mut index = 0;
        for word in &mut words {
            word.copy_from_slice(&self.word(index));
            index += 1;
        }
        let rest = words.into_remainder();
        let last = self.word(index);
        rest.copy_from_slice(&last[..rest.len()]);
    }

    /// The message's bytes, `length` of them.
    pub fn bytes(self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.fill(&mut bytes);
        bytes
    }

    /// Compares `got` with the message's bytes.
    ///
    /// # Errors
    /// The first wrong byte and how many are wrong.
    pub fn compare(self, got: &[u8]) -> Result<(), Mismatch> {
        let words = got.chunks_exact(8);
        let rest = words.remainder();
        let whole = got.len() / 8;
        let equal = words.enumerate().all(|(index, word)| word == self.word(index))
            && rest == &self.word(whole)[..rest.len()];
        if equal {
            return Ok(());
        }
        // Byte by byte, without a copy: messages may be larger than the memory left.
        let expected = |at: usize| self.word(at / 8)[at % 8];
        let mut wrong = got.iter().enumerate().filter(|&(at, &byte)| byte != expected(at));
        let (first, byte) = wrong.next().expect("some word differs");
        Err(Mismatch {
            first,
            expected: Some(expected(first)),
            got: Some(*byte),
            wrong: 1 + wrong.count(),
            of: got.len(),
        })
    }
}

/// Compares two byte strings of one length.
///
/// # Errors
/// The first wrong byte and how many are wrong; a difference in length counts as one, at the end of
/// the shorter string.
pub fn compare(expected: &[u8], got: &[u8]) -> Result<(), Mismatch> {
    let mut pairs = expected.iter().zip(got).enumerate().filter(|(_, (e, g))| e != g);
    if let Some((first, (e, g))) = pairs.next() {
        let wrong = 1 + pairs.count();
        return Err(Mismatch { first, expected: Some(*e), got: Some(*g), wrong, of: got.len() });
    }
    if expected.len() != got.len() {
        let first = expected.len().min(got.len());
        return Err(Mismatch {
            first,
            expected: expected.get(first).copied(),
            got: got.get(first).copied(),
            wrong: expected.len().abs_diff(got.len()),
            of: got.len(),
        });
    }
    Ok(())
}

/// Where two byte strings differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// Offset of the first wrong byte.
    pub first: usize,
    /// The byte wanted there; `None` past the end of the expected bytes.
    pub expected: Option<u8>,
    /// The byte there; `None` past the end of the bytes got.
    pub got: Option<u8>,
    /// How many bytes are wrong.
    pub wrong: usize,
    /// How many bytes were looked at.
    pub of: usize,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |byte: Option<u8>| byte.map_or("nothing".to_string(), |b| format!("{b:#04x}"));
        write!(
            f,
            "first wrong byte at {}: expected {}, got {} ({} of {} bytes wrong)",
            self.first,
            show(self.expected),
            show(self.got),
            self.wrong,
            self.of
        )
    }
}

/// A small seeded random generator (SplitMix64), the same on every machine.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A generator that starts from `key`.
    pub fn new(key: Key) -> Random {
        Random(key.0)
    }

    /// The next 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        mix(self.0)
    }

    /// A number from 0 to `end - 1`; 0 if `end` is 0.
    pub fn below(&mut self, end: usize) -> usize {
        // The remainder is below `end`, which is a usize.
        usize::try_from(self.next_u64() % (end.max(1) as u64)).unwrap_or(0)
    }

    /// A message size up to `limit`, spread evenly over its orders of magnitude.
    pub fn size(&mut self, limit: usize) -> usize {
        let bits = self.below(limit.max(1).ilog2() as usize + 2);
        self.below(1 << bits).min(limit)
    }

    /// Puts `items` in a random order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_one_key_compare_equal_at_every_short_length() {
        for length in 0..70 {
            let key = Key::new(1, &[2, 3]);
            assert_eq!(key.compare(&key.bytes(length)), Ok(()));
        }
    }

    #[test]
    fn a_flipped_bit_is_found_where_it_is() {
        let key = Key::new(7, &[1]);
        for at in 0..40 {
            let mut bytes = key.bytes(40);
            bytes[at] ^= 0x10;
            let wrong = key.compare(&bytes).unwrap_err();
            assert_eq!((wrong.first, wrong.wrong, wrong.of), (at, 1, 40));
        }
    }

    #[test]
    fn other_coordinates_give_other_bytes() {
        let key = Key::new(7, &[1, 2]);
        for other in [Key::new(7, &[2, 1]), Key::new(8, &[1, 2]), Key::new(7, &[1])] {
            assert!(other.compare(&key.bytes(64)).is_err());
        }
    }

    #[test]
    fn a_difference_in_length_is_a_mismatch() {
        let wrong = compare(b"abc", b"ab").unwrap_err();
        assert_eq!((wrong.first, wrong.expected, wrong.got), (2, Some(b'c'), None));
    }

    #[test]
    fn random_sizes_stay_within_the_limit_and_reach_both_ends() {
        let mut random = Random::new(Key::new(3, &[]));
        let sizes: Vec<usize> = (0..10_000).map(|_| random.size(1000)).collect();
        assert!(sizes.iter().all(|&size| size <= 1000));
        assert!(sizes.contains(&0) && sizes.iter().any(|&size| size > 900));
    }
}
