//! Copies by words of 8 bytes.

/// Copies `len` bytes from shared to private memory.
///
/// # Safety
///
/// `from` must be valid for volatile reads and `to` for writes of `len` bytes, and they must not overlap.
#[inline]
pub unsafe fn from_shared(from: *const u8, to: *mut u8, len: usize) {
    let mut at = 0;
    // SAFETY: at + 8 <= len (or at + 1 <= len) in each access; the shared side of word accesses is aligned.
    unsafe {
        while at < len && !from.add(at).cast::<u64>().is_aligned() {
            to.add(at).write(from.add(at).read_volatile());
            at += 1;
        }
        while at + 8 <= len {
            to.add(at).cast::<u64>().write_unaligned(from.add(at).cast::<u64>().read_volatile());
            at += 8;
        }
        while at < len {
            to.add(at).write(from.add(at).read_volatile());
            at += 1;
        }
    }
}

/// Copies `len` bytes from private to shared memory.
///
/// # Safety
///
/// `from` must be valid for reads and `to` for volatile writes of `len` bytes, and they must not overlap.
#[inline]
pub unsafe fn to_shared(from: *const u8, to: *mut u8, len: usize) {
    let mut at = 0;
    // SAFETY: at + 8 <= len (or at + 1 <= len) in each access; the shared side of word accesses is aligned.
    unsafe {
        while at < len && !to.add(at).cast::<u64>().is_aligned() {
            to.add(at).write_volatile(from.add(at).read());
            at += 1;
        }
        while at + 8 <= len {
            to.add(at).cast::<u64>().write_volatile(from.add(at).cast::<u64>().read_unaligned());
            at += 8;
        }
        while at < len {
            to.add(at).write_volatile(from.add(at).read());
            at += 1;
        }
    }
}

/// As [`short_word`], of bytes that mostly are all 8.
#[inline(always)]
pub fn likely_word(bytes: &[u8]) -> u64 {
    bytes.first_chunk().map_or_else(|| short_word(bytes), |word| u64::from_le_bytes(*word))
}

/// Up to 8 bytes as a word, the first of them lowest.
#[inline(always)]
pub fn short_word(bytes: &[u8]) -> u64 {
    // The first and the last, which overlap.
    macro_rules! ends {
        ($word:ty) => {
            match (bytes.first_chunk(), bytes.last_chunk()) {
                (Some(first), Some(last)) => {
                    let behind = 8 * (bytes.len() - size_of::<$word>());
                    u64::from(<$word>::from_le_bytes(*first))
                        | u64::from(<$word>::from_le_bytes(*last)) << behind
                }
                _ => 0,
            }
        };
    }
    match bytes.len() {
        0 => 0,
        1 => u64::from(bytes[0]),
        2..4 => ends!(u16),
        4..8 => ends!(u32),
        _ => ends!(u64),
    }
}
