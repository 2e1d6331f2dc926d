//! Ways of copying, to be chosen from and compared.

use super::{native, words};

/// A way of copying.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// Words of 8 bytes, one by one.
    Words,
    /// Vectors of 16 bytes, which every processor of this architecture has.
    Sse2,
    /// Vectors of 32 bytes.
    Avx,
    /// `rep movsb`.
    String,
    /// Vectors of 16 bytes, past the caches.
    NonTemporal,
}

impl Kernel {
    /// Those that this processor has; a slow `rep movsb` is none.
    pub fn all() -> impl Iterator<Item = Self> {
        [Self::Words, Self::Sse2, Self::Avx, Self::String, Self::NonTemporal].into_iter().filter(|kernel| {
            match kernel {
                Self::Words => true,
                Self::Sse2 | Self::NonTemporal => native::has_vectors(),
                Self::Avx => native::has_blocks(),
                Self::String => native::has_fast_strings(),
            }
        })
    }

    /// The one that copies `len` bytes out of shared memory here.
    pub fn of(len: usize) -> Self {
        match len {
            _ if len < native::SHORTEST || !native::has_vectors() => Self::Words,
            _ if len >= native::strings()[1] => Self::String,
            _ if native::has_blocks() => Self::Avx,
            _ => Self::Sse2,
        }
    }

    /// Copies this way.
    ///
    /// # Safety
    ///
    /// As [`from_shared`](super::from_shared); the kernel is one of [`Kernel::all`], and `len` at least 32.
    pub unsafe fn copy(self, from: *const u8, to: *mut u8, len: usize) {
        // SAFETY: the caller vouches for all of it.
        unsafe {
            match self {
                Self::Words => words::from_shared(from, to, len),
                Self::Sse2 => native::sse2(from, to, len),
                Self::Avx => native::avx(from, to, len),
                Self::String => native::string(from, to, len),
                Self::NonTemporal => native::nontemporal(from, to, len),
            }
        }
    }
}

/// Copies out of shared memory from four pages at a time, and what is left by vectors.
///
/// # Safety
///
/// As [`from_shared`](super::from_shared), where there is [`Kernel::Avx`].
pub unsafe fn by_blocks(mut from: *const u8, mut to: *mut u8, mut len: usize) {
    // SAFETY: the caller vouches for len bytes and for the processor.
    unsafe {
        while len >= native::BLOCK {
            native::copy_block(from, to);
            (from, to) = (from.add(native::BLOCK), to.add(native::BLOCK));
            len -= native::BLOCK;
        }
        if len >= native::SHORTEST { native::avx(from, to, len) } else { words::from_shared(from, to, len) }
    }
}
