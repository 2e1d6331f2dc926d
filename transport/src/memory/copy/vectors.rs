//! Copies by vectors and by `rep movsb`, which the compiler can't look into.
//!
//! The processor fetches ahead within a page of 4 KiB, and begins anew with the next one. Lines that another core has written
//! are far away, and one page's worth of fetches under way hides only a part of that: in four pages at a time there are four
//! times as many. Between two processes on a Sapphire Rapids that read messages of 32 and 64 KiB a sixth faster than
//! `rep movsb`, of 128 KiB a tenth, and longer or shorter ones no slower.

use core::arch::asm;
use core::arch::x86_64::__cpuid;
#[cfg(feature = "std")]
use core::arch::x86_64::__cpuid_count;
use core::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

/// Bytes of a block, four pages: copies out of shared memory go by blocks where the processor has the vectors and gains by it.
pub const BLOCK: usize = 4 * 4096;

/// From this many bytes on, vectors are faster than words.
pub const SHORTEST: usize = 32;

/// From this many bytes on, `rep movsb` is taken, until the machine was measured.
const STRING: usize = 1024;

const UNKNOWN: u8 = 0;
const SSE2: u8 = 1;
const AVX: u8 = 2;

/// The vectors of this processor.
static VECTORS: AtomicU8 = AtomicU8::new(UNKNOWN);
/// From this many bytes on, copies into shared memory are by `rep movsb`; and those out of it.
static STRING_INTO: AtomicUsize = AtomicUsize::new(STRING);
static STRING_OUT_OF: AtomicUsize = AtomicUsize::new(STRING);
/// From this many bytes on, copies out of shared memory read from four pages at a time.
static FOUR_PAGES: AtomicUsize = AtomicUsize::new(BLOCK);
/// From this many bytes on, copies to far memory pass by the caches.
static NONTEMPORAL: AtomicUsize = AtomicUsize::new(BLOCK);

/// Copies out of shared memory as fast as this processor can.
///
/// # Safety
///
/// As [`copy`].
#[inline]
pub unsafe fn copy_out(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: the caller vouches for all of it.
    unsafe { copy_by(from, to, len, &STRING_OUT_OF) };
}

/// Copies into shared memory as fast as this processor can.
///
/// # Safety
///
/// `from` must be valid for reads and `to` for writes of `len` bytes, 32 or more, and they must not overlap.
#[inline]
pub unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: the caller vouches for all of it.
    unsafe { copy_by(from, to, len, &STRING_INTO) };
}

/// # Safety
///
/// As [`copy`].
#[inline]
unsafe fn copy_by(from: *const u8, to: *mut u8, len: usize, string_from: &AtomicUsize) {
    // SAFETY: the caller vouches for the pointers; the processor has the vectors.
    unsafe {
        if len >= string_from.load(Ordering::Relaxed) && !crawls(from, to) {
            string(from, to, len);
        } else if widest() == AVX {
            avx(from, to, len);
        } else {
            sse2(from, to, len);
        }
    }
}

/// Whether `rep movsb` between these would store where it is about to load, as far as the processor tells by the lower 12
/// bits of an address: up to 64 bytes behind. On AMD's Zen 3 and 4 that takes five times as long.
#[inline]
fn crawls(from: *const u8, to: *mut u8) -> bool {
    let ahead = to.addr().wrapping_sub(from.addr()) % 4096;
    (1..=64).contains(&ahead)
}

/// The widest vectors that the processor has, and that the system lets us use.
#[inline]
fn widest() -> u8 {
    match VECTORS.load(Ordering::Relaxed) {
        UNKNOWN => detect(),
        known => known,
    }
}

#[cold]
fn detect() -> u8 {
    let found = if has_avx() { AVX } else { SSE2 };
    VECTORS.store(found, Ordering::Relaxed);
    found
}

/// Whether [`copy_block`] can be used.
#[inline]
pub fn has_blocks() -> bool {
    widest() == AVX
}

/// Whether there are vectors: every processor of this architecture has those of 16 bytes.
#[cfg(feature = "std")]
pub fn has_vectors() -> bool {
    true
}

fn has_avx() -> bool {
    const OSXSAVE: u32 = 1 << 27;
    const AVX: u32 = 1 << 28;
    const XMM_AND_YMM: u32 = 0b110;
    if __cpuid(1).ecx & (OSXSAVE | AVX) != OSXSAVE | AVX {
        return false;
    }
    let enabled: u32;
    // SAFETY: OSXSAVE says that the instruction is there; it reads a register that says what the system saves.
    unsafe {
        asm!("xgetbv", in("ecx") 0, out("eax") enabled, out("edx") _, options(nomem, nostack, preserves_flags));
    }
    enabled & XMM_AND_YMM == XMM_AND_YMM
}

/// Whether the processor says that `rep movsb` is fast (ERMS).
#[cfg(feature = "std")]
pub fn has_fast_strings() -> bool {
    const ERMS: u32 = 1 << 9;
    __cpuid(0).eax >= 7 && __cpuid_count(7, 0).ebx & ERMS != 0
}

/// From how many bytes on copies into and out of shared memory are by `rep movsb`.
#[cfg(feature = "std")]
pub fn strings() -> [usize; 2] {
    [STRING_INTO.load(Ordering::Relaxed), STRING_OUT_OF.load(Ordering::Relaxed)]
}

/// Sets [`strings`].
#[cfg(feature = "std")]
pub fn set_strings(into: usize, out_of: usize) {
    STRING_INTO.store(into, Ordering::Relaxed);
    STRING_OUT_OF.store(out_of, Ordering::Relaxed);
}

/// Whether a copy of so many bytes out of shared memory goes by [`copy_block`].
#[inline]
pub fn goes_by_blocks(len: usize) -> bool {
    len >= BLOCK && len >= FOUR_PAGES.load(Ordering::Relaxed) && has_blocks()
}

/// Sets from how many bytes on copies out of shared memory read from four pages at a time.
#[cfg(feature = "std")]
pub fn set_four_pages(from: usize) {
    FOUR_PAGES.store(from, Ordering::Relaxed);
}

/// From how many bytes on copies to far memory pass by the caches.
#[inline]
pub fn nontemporal_from() -> usize {
    NONTEMPORAL.load(Ordering::Relaxed)
}

/// Sets [`nontemporal_from`].
#[cfg(feature = "std")]
pub fn set_nontemporal(from: usize) {
    NONTEMPORAL.store(from, Ordering::Relaxed);
}

/// Copies past the caches: the lines go to memory without being fetched first. They are there before any later store of this
/// thread.
///
/// # Safety
///
/// As [`copy`].
pub unsafe fn nontemporal(mut from: *const u8, mut to: *mut u8, len: usize) {
    // Up to a whole line, and what is left behind the last one: at most 64 bytes twice, which `sse2` copies.
    let lead = to.align_offset(64);
    if len < lead + 128 {
        // SAFETY: the caller vouches for all of it.
        return unsafe { sse2(from, to, len) };
    }
    let lines = (len - lead) / 64;
    let rest = len - lead - lines * 64;
    // SAFETY: the lead, the lines and the rest are len bytes. 64 bytes from either end lie within it: what they copy twice is
    // the same both times, and the whole lines come between.
    unsafe {
        if lead > 0 {
            sse2(from, to, 64);
        }
        if rest > 0 {
            sse2(from.add(len - 64), to.add(len - 64), 64);
        }
        (from, to) = (from.add(lead), to.add(lead));
        asm!(
            "2:",
            "movdqu xmm0, [{from}]",
            "movdqu xmm1, [{from} + 16]",
            "movdqu xmm2, [{from} + 32]",
            "movdqu xmm3, [{from} + 48]",
            "movntdq [{to}], xmm0",
            "movntdq [{to} + 16], xmm1",
            "movntdq [{to} + 32], xmm2",
            "movntdq [{to} + 48], xmm3",
            "add {from}, 64",
            "add {to}, 64",
            "dec {lines}",
            "jnz 2b",
            // These stores wait for no one: what publishes them must come after.
            "sfence",
            from = inout(reg) from => _,
            to = inout(reg) to => _,
            lines = inout(reg) lines => _,
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
            options(nostack)
        );
    }
}

/// # Safety
///
/// As [`copy`].
pub unsafe fn string(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: the caller vouches for the pointers; the ABI has the direction flag clear on entry.
    unsafe {
        asm!(
            "rep movsb",
            inout("rcx") len => _,
            inout("rsi") from => _,
            inout("rdi") to => _,
            options(nostack, preserves_flags)
        );
    }
}

/// A copy of `$width` bytes or more by vectors of as many. The first and the last overlap what lies between them, which
/// is aligned where it is written.
macro_rules! by_vectors {
    ($name:ident, $width:literal, $move:literal, $vector:literal, $end:literal) => {
        /// # Safety
        ///
        /// As [`copy`], on a processor that has these vectors.
        pub unsafe fn $name(from: *const u8, to: *mut u8, len: usize) {
            // SAFETY: the caller vouches for the pointers; nothing beyond `len` bytes is touched on either side.
            unsafe {
                asm!(
                    concat!($move, " ", $vector, "4, [{from} + {len} - ", $width, "]"),
                    concat!($move, " ", $vector, "0, [{from}]"),
                    "lea {end}, [{to} + {len}]",
                    "sub {from}, {to}",
                    concat!($move, " [{to}], ", $vector, "0"),
                    concat!("and {to}, -", $width),
                    concat!("add {to}, ", $width),
                    "mov {len}, {end}",
                    "sub {len}, {to}",
                    concat!("cmp {len}, 4*", $width),
                    "jb 3f",
                    "2:",
                    concat!($move, " ", $vector, "0, [{from} + {to}]"),
                    concat!($move, " ", $vector, "1, [{from} + {to} + ", $width, "]"),
                    concat!($move, " ", $vector, "2, [{from} + {to} + 2*", $width, "]"),
                    concat!($move, " ", $vector, "3, [{from} + {to} + 3*", $width, "]"),
                    concat!($move, " [{to}], ", $vector, "0"),
                    concat!($move, " [{to} + ", $width, "], ", $vector, "1"),
                    concat!($move, " [{to} + 2*", $width, "], ", $vector, "2"),
                    concat!($move, " [{to} + 3*", $width, "], ", $vector, "3"),
                    concat!("add {to}, 4*", $width),
                    concat!("sub {len}, 4*", $width),
                    concat!("cmp {len}, 4*", $width),
                    "jae 2b",
                    "3:",
                    concat!("sub {len}, ", $width),
                    "jbe 4f",
                    concat!($move, " ", $vector, "0, [{from} + {to}]"),
                    concat!($move, " [{to}], ", $vector, "0"),
                    concat!("add {to}, ", $width),
                    "jmp 3b",
                    "4:",
                    concat!($move, " [{end} - ", $width, "], ", $vector, "4"),
                    $end,
                    from = inout(reg) from => _,
                    to = inout(reg) to => _,
                    len = inout(reg) len => _,
                    end = out(reg) _,
                    out("xmm0") _,
                    out("xmm1") _,
                    out("xmm2") _,
                    out("xmm3") _,
                    out("xmm4") _,
                    // `vzeroupper` clears the upper halves of all of them.
                    out("xmm5") _,
                    out("xmm6") _,
                    out("xmm7") _,
                    out("xmm8") _,
                    out("xmm9") _,
                    out("xmm10") _,
                    out("xmm11") _,
                    out("xmm12") _,
                    out("xmm13") _,
                    out("xmm14") _,
                    out("xmm15") _,
                    options(nostack)
                );
            }
        }
    };
}

by_vectors!(sse2, "16", "movdqu", "xmm", "");
by_vectors!(avx, "32", "vmovdqu", "ymm", "vzeroupper");

/// Copies a [`BLOCK`], out of its four pages at a time.
///
/// # Safety
///
/// `from` must be valid for reads and `to` for writes of [`BLOCK`] bytes, and they must not overlap. The processor has AVX,
/// see [`has_blocks`].
#[target_feature(enable = "avx")]
pub unsafe fn copy_block(from: *const u8, to: *mut u8) {
    // SAFETY: each of 16 rounds copies 256 bytes of each of the four pages, 4 * 4096 in all. The caller vouches for both sides
    // and for AVX.
    unsafe {
        core::arch::asm!(
            "2:",
            ".irp page, 0, 4096, 8192, 12288",
            "vmovdqu ymm0, [{from} + \\page]",
            "vmovdqu ymm1, [{from} + \\page + 32]",
            "vmovdqu ymm2, [{from} + \\page + 64]",
            "vmovdqu ymm3, [{from} + \\page + 96]",
            "vmovdqu ymm4, [{from} + \\page + 128]",
            "vmovdqu ymm5, [{from} + \\page + 160]",
            "vmovdqu ymm6, [{from} + \\page + 192]",
            "vmovdqu ymm7, [{from} + \\page + 224]",
            "vmovdqu [{to} + \\page], ymm0",
            "vmovdqu [{to} + \\page + 32], ymm1",
            "vmovdqu [{to} + \\page + 64], ymm2",
            "vmovdqu [{to} + \\page + 96], ymm3",
            "vmovdqu [{to} + \\page + 128], ymm4",
            "vmovdqu [{to} + \\page + 160], ymm5",
            "vmovdqu [{to} + \\page + 192], ymm6",
            "vmovdqu [{to} + \\page + 224], ymm7",
            ".endr",
            "add {from}, 256",
            "add {to}, 256",
            "dec {rounds:e}",
            "jnz 2b",
            "vzeroupper",
            from = inout(reg) from => _,
            to = inout(reg) to => _,
            rounds = inout(reg) BLOCK / 4 / 256 => _,
            out("ymm0") _, out("ymm1") _, out("ymm2") _, out("ymm3") _,
            out("ymm4") _, out("ymm5") _, out("ymm6") _, out("ymm7") _,
            out("ymm8") _, out("ymm9") _, out("ymm10") _, out("ymm11") _,
            out("ymm12") _, out("ymm13") _, out("ymm14") _, out("ymm15") _,
            options(nostack)
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use alloc::vec::Vec;

    /// Numbers that a compiler for AVX keeps in vectors while it calls the copy between. Only an optimised build does.
    #[target_feature(enable = "avx")]
    #[inline(never)]
    fn count(sums: &mut [[f32; 8]; 6], rounds: usize) {
        let (from, mut to) = ([7u8; 64], [0u8; 64]);
        let mut now = *sums;
        for round in 0..rounds {
            for number in now.as_flattened_mut() {
                *number = *number * 1.5 + round as f32;
            }
            // SAFETY: both have 64 bytes, and the processor has AVX, or nobody would be here.
            unsafe { avx(from.as_ptr(), to.as_mut_ptr(), from.len()) };
        }
        *sums = now;
        assert_eq!(from, to);
    }

    #[test]
    fn a_copy_leaves_the_vectors_of_its_caller_alone() {
        if has_avx() {
            let mut sums = [[1.0; 8]; 6];
            // SAFETY: the processor has AVX.
            unsafe { count(&mut sums, 3) };
            // ((1 * 1.5 + 0) * 1.5 + 1) * 1.5 + 2
            assert_eq!(sums, [[6.875; 8]; 6]);
        }
    }

    #[test]
    fn a_copy_past_the_caches_is_whole_from_and_to_any_address_and_nothing_beside() {
        let source: Vec<u8> = (0..2000u32).map(|i| (i * 7 + i / 255) as u8).collect();
        for (from, to) in [(0, 0), (1, 0), (0, 1), (17, 33), (3, 63)] {
            for len in (96..260).chain([511, 1024, 1900]) {
                let mut target = vec![0u8; 2000];
                // SAFETY: from + len and to + len bytes are less than there are.
                unsafe { nontemporal(source.as_ptr().add(from), target.as_mut_ptr().add(to), len) };
                assert!(target[to..to + len] == source[from..from + len], "{from} {to} {len}");
                assert!(target[..to].iter().chain(&target[to + len..]).all(|byte| *byte == 0));
            }
        }
    }

    #[test]
    fn strings_are_not_copied_to_just_behind_where_they_come_from_modulo_a_page() {
        let page = core::ptr::without_provenance_mut::<u8>(4096);
        let is_behind = |from: usize, to: usize| crawls(page.wrapping_add(from), page.wrapping_add(to));
        assert!(is_behind(0, 1) && is_behind(0, 64) && is_behind(0, 5 * 4096 + 14) && is_behind(4090, 4096));
        assert!(is_behind(3 * 4096, 14) && is_behind(4095, 7));
        assert!(!is_behind(0, 0) && !is_behind(0, 65) && !is_behind(16, 14) && !is_behind(0, 4095));
    }

    #[test]
    fn a_block_is_copied_whole_from_and_to_any_address_and_nothing_beside() {
        if !has_blocks() {
            return;
        }
        let source: Vec<u8> = (0..2 * BLOCK as u32).map(|i| (i * 7 + i / 255) as u8).collect();
        for (from, to) in [(0, 0), (1, 0), (0, 1), (17, 33), (64, 4095)] {
            let mut target = vec![0u8; 2 * BLOCK];
            // SAFETY: from + BLOCK and to + BLOCK bytes are less than there are.
            unsafe { copy_block(source.as_ptr().add(from), target.as_mut_ptr().add(to)) };
            assert!(target[to..to + BLOCK] == source[from..from + BLOCK]);
            assert!(target[..to].iter().chain(&target[to + BLOCK..]).all(|byte| *byte == 0));
        }
    }
}
