//! Where there is nothing but words: other processors, sanitizers, Miri.

pub use super::words::from_shared as copy;
pub use super::words::from_shared as copy_out;
#[cfg(feature = "std")]
pub use super::words::from_shared as sse2;
#[cfg(feature = "std")]
pub use super::words::from_shared as avx;
#[cfg(feature = "std")]
pub use super::words::from_shared as string;
pub use super::words::to_shared as nontemporal;

/// No copy is so long that there is another way.
pub const SHORTEST: usize = isize::MAX as usize;

/// Bytes that [`copy_block`] would copy.
pub const BLOCK: usize = 4 * 4096;

/// Nor is there a way for whole blocks.
#[cfg(feature = "std")]
pub fn has_blocks() -> bool {
    false
}

/// # Safety
///
/// Never called, see [`goes_by_blocks`].
pub unsafe fn copy_block(_: *const u8, _: *mut u8) {}

/// Whether there are vectors.
#[cfg(feature = "std")]
pub fn has_vectors() -> bool {
    false
}

/// Whether there is a fast `rep movsb`.
#[cfg(feature = "std")]
pub fn has_fast_strings() -> bool {
    false
}

/// From how many bytes on copies are by `rep movsb`: never.
#[cfg(feature = "std")]
pub fn strings() -> [usize; 2] {
    [usize::MAX; 2]
}

/// Sets [`strings`], where there are any.
#[cfg(feature = "std")]
pub fn set_strings(_: usize, _: usize) {}

/// Whether a copy goes by [`copy_block`]: none does.
pub fn goes_by_blocks(_: usize) -> bool {
    false
}

/// Sets which copies go by [`copy_block`], where any do.
#[cfg(feature = "std")]
pub fn set_four_pages(_: usize) {}

/// From how many bytes on copies to far memory pass by the caches: never.
pub fn nontemporal_from() -> usize {
    usize::MAX
}

/// Sets [`nontemporal_from`], where there is such a copy.
#[cfg(feature = "std")]
pub fn set_nontemporal(_: usize) {}
