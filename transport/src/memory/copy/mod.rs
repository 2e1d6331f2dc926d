//! Copies between private and shared memory.
//!
//! The compiler must neither split, merge nor repeat an access to memory that others write, so a plain `memcpy` will
//! not do. Short copies are volatile words, longer ones vectors, the longest `rep movsb`; the compiler can't look into
//! the latter two. Sanitizers and Miri can't look into them either, so they get the volatile loop for every length.
//!
//! Where the ends don't fill a vector, the first and the last overlap others: some bytes are copied twice. Bytes copied
//! out are private before anyone looks at them, and bytes copied in are published later.
//!
//! Vectors are as wide as the processor has them, up to 32 bytes (AVX). That is not measured: between two processes on a
//! Sapphire Rapids, messages of 128 bytes took 0.34 us with 32 bytes, 0.41 with 16 and 0.48 with words; from 256 bytes on
//! the lines cost more than the copy, whichever it is. 64 bytes (AVX-512) were no better for any length.
//! `rep movsb` runs at the speed of the caches but takes its time to start, and crawls on some processors; from which length
//! on it is taken, each way, is the machine's choice (`tune`), and so is whether a copy out of shared memory that is longer than
//! a few pages reads several pages at a time, see `vectors.rs`. Non-temporal stores lose where both sides share a cache, and are
//! for memory of another NUMA node. Writing back or demoting the lines for the reader (`clwb`, `cldemote`) cost the writer more
//! than the reader gained, but for messages of a few KiB, see `ring`.

#[cfg(feature = "std")]
mod kernel;
#[cfg(all(target_arch = "x86_64", not(miri), not(vmshm_sanitize)))]
#[path = "vectors.rs"]
mod native;
#[cfg(not(all(target_arch = "x86_64", not(miri), not(vmshm_sanitize))))]
#[path = "plain.rs"]
mod native;
mod words;

#[cfg(feature = "std")]
pub use kernel::Kernel;
#[cfg(feature = "std")]
pub(crate) use kernel::by_blocks;
#[cfg(not(feature = "std"))]
use native::BLOCK;
pub use native::copy as vectors;
#[cfg(feature = "std")]
pub(crate) use native::{BLOCK, set_four_pages, set_nontemporal, set_strings};
use native::{SHORTEST, copy_block, copy_out, goes_by_blocks, nontemporal, nontemporal_from};
pub use words::{from_shared as words, likely_word, short_word};

/// Copies `len` bytes from shared to private memory.
///
/// # Safety
///
/// `from` must be valid for volatile reads and `to` for writes of `len` bytes, and they must not overlap.
#[inline]
pub unsafe fn from_shared(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: the caller vouches for both pointers.
    unsafe {
        if len < SHORTEST {
            words::from_shared(from, to, len);
        } else if !goes_by_blocks(len) {
            copy_out(from, to, len);
        } else {
            whole_blocks(from, to, len);
        }
    }
}

/// As [`from_shared`], of a block or more.
///
/// # Safety
///
/// As there.
#[inline(never)]
unsafe fn whole_blocks(mut from: *const u8, mut to: *mut u8, mut len: usize) {
    while goes_by_blocks(len) {
        // SAFETY: the caller vouches for len bytes, and goes_by_blocks for the processor.
        unsafe {
            copy_block(from, to);
            (from, to) = (from.add(BLOCK), to.add(BLOCK));
        }
        len -= BLOCK;
    }
    // SAFETY: the caller vouches for both pointers.
    unsafe { if len >= SHORTEST { copy_out(from, to, len) } else { words::from_shared(from, to, len) } }
}

/// Copies `len` bytes from private to shared memory.
///
/// # Safety
///
/// `from` must be valid for reads and `to` for volatile writes of `len` bytes, and they must not overlap.
#[inline]
pub unsafe fn to_shared(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: the caller vouches for both pointers.
    unsafe { if len >= SHORTEST { vectors(from, to, len) } else { words::to_shared(from, to, len) } }
}

/// Copies `len` bytes from private memory to shared memory of a reader on another NUMA node: past the caches, where that is
/// long enough.
///
/// # Safety
///
/// As [`to_shared`].
#[inline]
pub unsafe fn to_far(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: the caller vouches for both pointers.
    unsafe { if len >= nontemporal_from() { nontemporal(from, to, len) } else { to_shared(from, to, len) } }
}

/// As [`to_far`], of any length.
///
/// # Safety
///
/// As [`to_shared`].
#[inline]
pub unsafe fn past_caches(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: the caller vouches for both pointers.
    unsafe { nontemporal(from, to, len) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use alloc::vec::Vec;

    #[test]
    fn copies_every_length_at_every_alignment_and_nothing_beside() {
        let source: Vec<u8> = (0..2000u32).map(|i| (i * 7 + 3) as u8).collect();
        for len in (0..300).chain([511, 512, 513, 1000, 1900]) {
            for skew in 0..9 {
                let mut target = vec![0u8; 2000];
                // SAFETY: skew + len < 2000 on both sides.
                unsafe { from_shared(source.as_ptr().add(skew), target.as_mut_ptr().add(3), len) };
                assert_eq!(target[3..3 + len], source[skew..skew + len]);
                assert!(target[..3].iter().chain(&target[3 + len..]).all(|b| *b == 0));
                let mut target = vec![0u8; 2000];
                // SAFETY: skew + len < 2000 and 5 + len < 2000.
                unsafe { to_shared(source.as_ptr().add(5), target.as_mut_ptr().add(skew), len) };
                assert_eq!(target[skew..skew + len], source[5..5 + len]);
                assert!(target[..skew].iter().chain(&target[skew + len..]).all(|b| *b == 0));
            }
        }
    }
}
