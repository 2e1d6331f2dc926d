// SPDX-License-Identifier: GPL-2.0

//! Memory that others, in other machines, read and write at any time.

use core::mem::{size_of, MaybeUninit};
use kernel::{
    bindings,
    prelude::*,
    sync::atomic::{self, Full, Relaxed},
};

use crate::abi::{driver, region};

/// Types that any bytes are a valid value of.
///
/// # Safety
///
/// Implementors have no padding, no invalid bit patterns, and a size and alignment that are a
/// multiple of, and at most, eight bytes.
pub(crate) unsafe trait Plain: Copy {}

// SAFETY: Integers and arrays of them; the size and all offsets are asserted where the type is
// defined.
unsafe impl Plain for region::RegionHeader {}
// SAFETY: As above.
unsafe impl Plain for region::SectionEntry {}

/// A range of physical memory, mapped write-back into the kernel where that can be had.
///
/// No reference to it ever exists: it is read and written word by word through raw pointers, since
/// strangers change it meanwhile.
///
/// # Invariants
///
/// `base` is a mapping of `len` bytes made by `memremap`, aligned to a page.
pub(crate) struct Memory {
    base: *mut c_void,
    start: u64,
    len: u64,
}

// SAFETY: The mapping belongs to no thread.
unsafe impl Send for Memory {}
// SAFETY: All access is by single volatile or atomic words.
unsafe impl Sync for Memory {}

impl Memory {
    /// Maps `len` bytes of physical memory, which the caller has reserved for itself.
    ///
    /// This also settles the memory type of each mapping of the range, in whatever process, while
    /// this one lives.
    pub(crate) fn map(start: u64, len: u64) -> Result<Self> {
        // SAFETY: Any range may be asked for; what can't be mapped gives null.
        let base =
            unsafe { bindings::memremap(start, len as usize, bindings::MEMREMAP_WB as c_ulong) };
        if base.is_null() {
            return Err(ENOMEM);
        }
        // INVARIANT: Made by `memremap` just now; a BAR starts at a page.
        Ok(Self { base, start, len })
    }

    /// Number of bytes.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Number of the first page frame.
    pub(crate) fn first_frame(&self) -> u64 {
        self.start >> kernel::page::PAGE_SHIFT
    }

    fn at(&self, offset: u64, len: usize) -> Result<*mut u64> {
        if offset % 8 != 0
            || offset
                .checked_add(len as u64)
                .is_none_or(|end| end > self.len)
        {
            return Err(EINVAL);
        }
        Ok(self.base.wrapping_byte_add(offset as usize).cast())
    }

    /// Copies a value out, word by word. It may be torn, and is a stranger's: to be checked by the
    /// caller.
    pub(crate) fn copy<T: Plain>(&self, offset: u64) -> Result<T> {
        let from = self.at(offset, size_of::<T>())?;
        let mut value = MaybeUninit::<T>::uninit();
        let to = value.as_mut_ptr().cast::<u64>();
        for word in 0..size_of::<T>() / 8 {
            // SAFETY: `at` has checked the source; `T` is `size_of::<T>() / 8` whole words by
            // `Plain`, and aligned to at most eight bytes, which `write_unaligned` does not even
            // need.
            unsafe { to.add(word).write_unaligned(from.add(word).read_volatile()) };
        }
        // SAFETY: All its bytes are written, and any bytes are valid by `Plain`.
        Ok(unsafe { value.assume_init() })
    }

    /// Reads a word.
    pub(crate) fn load(&self, offset: u64) -> Result<u64> {
        let word = self.at(offset, 8)?;
        // SAFETY: `at` has checked it; the kernel itself stores to it only by this type,
        // atomically.
        Ok(unsafe { atomic::atomic_load(word, Relaxed) })
    }

    /// Writes `new` if the word is still `old`, and says whether it was. A full barrier on both
    /// sides if so.
    pub(crate) fn compare_exchange(&self, offset: u64, old: u64, new: u64) -> Result<bool> {
        let word = self.at(offset, 8)?;
        // SAFETY: As in `load`.
        Ok(unsafe { atomic::cmpxchg(word, old, new, Full) }.is_ok())
    }

    /// How the memory is really mapped: [`driver::WRITE_BACK`] or [`driver::UNCACHED`].
    ///
    /// The kernel does not always give what it was asked for: firmware may have made the range
    /// uncacheable in the MTRRs. Its own page table tells.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn memory_type(&self) -> u32 {
        // From `asm/pgtable_types.h`: whichever of these is set, entry 0 of the PAT, write-back, is
        // not meant.
        const WRITE_THROUGH: u64 = 1 << 3;
        const CACHE_DISABLE: u64 = 1 << 4;
        const PAT: u64 = 1 << 7;
        const PAT_LARGE: u64 = 1 << 12;

        let mut level: c_uint = 0;
        // SAFETY: Any address may be asked for. The entry stays while the mapping does, which we
        // own.
        let entry = unsafe { bindings::lookup_address(self.base as c_ulong, &mut level) };
        if entry.is_null() {
            return driver::UNCACHED;
        }
        // SAFETY: Not null, so it is a valid page table entry, of one word.
        let bits = unsafe { entry.cast::<u64>().read_volatile() };
        // In the entry of a large page, bit 7 says that it is one.
        let pat = if level == bindings::pg_level_PG_LEVEL_4K {
            PAT
        } else {
            PAT_LARGE
        };
        if bits & (WRITE_THROUGH | CACHE_DISABLE | pat) == 0 {
            driver::WRITE_BACK
        } else {
            driver::UNCACHED
        }
    }

    /// How the memory is really mapped. Elsewhere than on x86 a driver gets what it asks for.
    #[cfg(not(target_arch = "x86_64"))]
    pub(crate) fn memory_type(&self) -> u32 {
        driver::WRITE_BACK
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: By the type's invariants; nobody can use the mapping any more.
        unsafe { bindings::memunmap(self.base) };
    }
}
