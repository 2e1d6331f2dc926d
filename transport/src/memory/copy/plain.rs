//! Where there is nothing but words: other processors, sanitizers, Miri.

pub use super::words::from_shared as copy;
#[cfg(feature = "std")]
pub use super::words::from_shared as sse2;
#[cfg(feature = "std")]
pub use super::words::from_shared as avx;
#[cfg(feature = "std")]
pub use super::words::from_shared as string;

/// No copy is so long that there is another way.
pub const SHORTEST: usize = isize::MAX as usize;

/// Bytes that [`copy_block`] would copy.
pub const BLOCK: usize = 4 * 4096;

/// Nor is there a way for whole blocks.
pub fn has_blocks() -> bool {
    false
}

/// # Safety
///
/// Never called, see [`has_blocks`].
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

/// The length from which on copies are by `rep movsb`: none.
#[cfg(feature = "std")]
pub fn string_from() -> usize {
    usize::MAX
}

/// Sets [`string_from`], where there is one.
#[cfg(feature = "std")]
pub fn set_string_from(_: usize) {}
