//! Memory that a window takes: of the section, or ordinary pages.

use memmap2::MmapMut;

use crate::mpool;
use crate::process::is_wanted;

/// Windows are aligned to pages.
const ALIGNMENT: usize = 4096;

/// Memory for a window.
pub enum Memory {
    /// Of the section.
    Section(*mut u8),
    /// Other memory, on pages of its own.
    Ordinary(MmapMut),
}

impl Memory {
    /// So many bytes of the section, the last ones if need be.
    pub fn for_words(len: usize) -> Option<Self> {
        mpool::take_aligned(len, ALIGNMENT, true).map(Self::Section)
    }

    /// So many bytes for the user: of the section if that is wanted and there is room, or ordinary ones if they will do.
    pub fn for_user(len: usize, anywhere: bool) -> Option<Self> {
        if is_wanted()
            && let Some(placed) = mpool::take_aligned(len, ALIGNMENT, false)
        {
            return Some(Self::Section(placed));
        }
        if anywhere { MmapMut::map_anon(len).ok().map(Self::Ordinary) } else { None }
    }

    pub fn start(&mut self) -> *mut u8 {
        match self {
            Self::Section(start) => *start,
            Self::Ordinary(pages) => pages.as_mut_ptr(),
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Self::Section(start) = self {
            mpool::give_back(*start);
        }
    }
}
