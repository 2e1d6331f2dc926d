//! Where there is nothing but words: other processors, sanitizers, Miri.

#[cfg(feature = "std")]
use super::Kernel;
pub use super::words as copy;
#[cfg(feature = "std")]
pub use super::words as sse2;
#[cfg(feature = "std")]
pub use super::words as avx;
#[cfg(feature = "std")]
pub use super::words as string;

/// No copy is so long that there is another way.
pub const SHORTEST: usize = isize::MAX as usize;

/// Nor is there a way for whole blocks.
pub fn has_blocks() -> bool {
    false
}

/// # Safety
///
/// Never called, see [`has_blocks`].
pub unsafe fn copy_block(_: *const u8, _: *mut u8) {}

/// Whether a kernel can be used.
#[cfg(feature = "std")]
pub fn has(kernel: Kernel) -> bool {
    kernel == Kernel::Words
}

/// What is used where others have vectors.
#[cfg(feature = "std")]
pub fn vectors() -> Kernel {
    Kernel::Words
}

/// The length from which on copies are by `rep movsb`: none.
#[cfg(feature = "std")]
pub fn string_from() -> usize {
    usize::MAX
}

/// Sets [`string_from`], where there is one.
#[cfg(feature = "std")]
pub fn set_string_from(_: usize) {}
