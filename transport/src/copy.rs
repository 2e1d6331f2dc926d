//! Copies between private and shared memory.
//!
//! The compiler must neither split, merge nor repeat an access to memory that others write, so a plain `memcpy` will
//! not do: short copies are volatile words, long ones `rep movsb`, which the compiler can't look into and the
//! processor runs at the speed of its caches (Intel's "Enhanced REP MOVSB", 2013; AMD since Zen 3). Sanitizers and
//! Miri can't look into it either, so they get the volatile loop for every length.
//!
//! What is read from shared memory and is longer than a few pages comes out of several of them at a time, see
//! [`crate::spread`]. There are no other kernels, since none was clearly faster between two processes on a Sapphire Rapids. In
//! a pipeline of two copies AVX-512 from one page after the other, also with prefetching of either side or in two streams, came out up to a tenth faster or slower from size
//! to size, in single runs that differ by as much; AVX2 was slower into the section, non-temporal stores slower for most
//! sizes. Writing back or demoting the lines for the reader (`clwb`, `cldemote`) cost the writer more than the reader gained.
//! `vmshm tune` shows the speed of the two that there are.

use crate::spread;

/// From this many bytes on, the start-up of `rep movsb` is repaid.
const STRING_COPY: usize = 512;

/// Copies `len` bytes from shared to private memory.
///
/// # Safety
///
/// `from` must be valid for volatile reads and `to` for writes of `len` bytes, and they must not overlap.
#[inline]
pub unsafe fn from_shared(mut from: *const u8, mut to: *mut u8, mut len: usize) {
    while len >= spread::BLOCK && spread::is_possible() {
        // SAFETY: the caller vouches for len bytes, and is_possible for the processor.
        unsafe {
            spread::copy_block(from, to);
            (from, to) = (from.add(spread::BLOCK), to.add(spread::BLOCK));
        }
        len -= spread::BLOCK;
    }
    if len >= STRING_COPY && string_copy_wanted() {
        // SAFETY: the caller vouches for both pointers.
        return unsafe { string_copy(from, to, len) };
    }
    // SAFETY: as above.
    unsafe { words(from, to, len) }
}

/// Copies word by word.
///
/// # Safety
///
/// As [`from_shared`].
#[inline]
pub unsafe fn words(from: *const u8, to: *mut u8, len: usize) {
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
    if len >= STRING_COPY && string_copy_wanted() {
        // SAFETY: the caller vouches for both pointers.
        return unsafe { string_copy(from, to, len) };
    }
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

/// Whether there is a [`string_copy`].
pub const fn string_copy_wanted() -> bool {
    cfg!(all(target_arch = "x86_64", not(miri), not(vmshm_sanitize)))
}

/// Copies by `rep movsb`.
///
/// # Safety
///
/// `from` must be valid for reads and `to` for writes of `len` bytes, and they must not overlap.
#[cfg(target_arch = "x86_64")]
pub unsafe fn string_copy(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: the caller vouches for the pointers; the ABI has the direction flag clear on entry.
    unsafe {
        core::arch::asm!(
            "rep movsb",
            inout("rcx") len => _,
            inout("rsi") from => _,
            inout("rdi") to => _,
            options(nostack, preserves_flags)
        );
    }
}

/// # Safety
///
/// Never called: [`string_copy_wanted`] is false here.
#[cfg(not(target_arch = "x86_64"))]
pub unsafe fn string_copy(_: *const u8, _: *mut u8, _: usize) {}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use alloc::vec::Vec;

    #[test]
    fn copies_every_length_at_every_alignment_and_nothing_beside() {
        let source: Vec<u8> = (0..2000u32).map(|i| (i * 7 + 3) as u8).collect();
        for len in (0..40).chain([511, 512, 513, 1000, 1900]) {
            for skew in 0..9 {
                let mut target = vec![0u8; 2000];
                // SAFETY: skew + len < 2000 on both sides.
                unsafe { from_shared(source.as_ptr().add(skew), target.as_mut_ptr().add(3), len) };
                assert_eq!(target[3..3 + len], source[skew..skew + len]);
                assert!(target[..3].iter().chain(&target[3 + len..]).all(|b| *b == 0));
                let mut target = vec![0u8; 2000];
                // SAFETY: as above.
                unsafe { to_shared(source.as_ptr().add(5), target.as_mut_ptr().add(skew), len) };
                assert_eq!(target[skew..skew + len], source[5..5 + len]);
                assert!(target[..skew].iter().chain(&target[skew + len..]).all(|b| *b == 0));
            }
        }
    }
}
