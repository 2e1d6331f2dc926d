//! Accessors: what the transport needs from shared memory.

use core::sync::atomic::Ordering;

use vmshm_abi::LINE;
use vmshm_abi::ring::SLOT;

use super::cache::CacheHints;
use super::device::Device;

/// A place in a region that was found to be there, once for all accesses to it: [`Memory::place`].
#[derive(Debug, Clone, Copy)]
pub struct Place(pub(super) *const u8);

// SAFETY: nothing is done with the pointer but by a memory, which any thread may use.
unsafe impl Send for Place {}
// SAFETY: as above.
unsafe impl Sync for Place {}

/// Accessors of a region as one member sees it: readable as a whole, writable where the member may write.
///
/// There are no references into it, only copies and atomic words, because others change it at any time. Offsets count
/// bytes from the start of the region; words are 64 bits wide and aligned.
///
/// # Panics
///
/// All methods panic where an access would leave the region, or write where the member may not: accesses by a [`Place`] when the
/// place is made. The transport checks every number that comes from a peer before it gets here, so this is the net under the net.
pub trait Memory: CacheHints + Device {
    /// Bytes of the region.
    fn len(&self) -> u64;

    /// Whether the region has no bytes at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Loads a word.
    fn load(&self, offset: u64, order: Ordering) -> u64;

    /// As [`Memory::load`], of a word that a peer writes: the check for the own section comes second.
    #[inline(always)]
    fn load_peer(&self, offset: u64, order: Ordering) -> u64 {
        self.load(offset, order)
    }

    /// Stores a word.
    fn store(&self, offset: u64, value: u64, order: Ordering);

    /// Adds to a word that several processes of this member write, and returns what it was.
    fn fetch_add(&self, offset: u64, value: u64, order: Ordering) -> u64;

    /// Replaces a word that several processes of this member write, if it still is `current`.
    ///
    /// # Errors
    ///
    /// The word's value, if it is not `current`.
    fn compare_exchange(&self, offset: u64, current: u64, new: u64) -> Result<u64, u64>;

    /// Orders the accesses before it and after it.
    fn fence(&self, order: Ordering);

    /// Copies bytes out of the region.
    ///
    /// # Safety
    ///
    /// `to` must be valid for writes of `len` bytes.
    unsafe fn copy_out(&self, offset: u64, to: *mut u8, len: usize);

    /// Copies bytes into the region.
    ///
    /// # Safety
    ///
    /// `from` must be valid for reads of `len` bytes.
    unsafe fn copy_in(&self, offset: u64, from: *const u8, len: usize);

    /// Address of the bytes in this process, for code that must be given one, such as a packing routine. May be written to only
    /// where the member may write.
    fn address(&self, offset: u64, len: u64) -> *mut u8;

    /// The offset of memory of this process that lies in the part the member may write.
    fn offset_of(&self, address: *const u8, len: u64) -> Option<u64>;

    /// Copies bytes out of the region.
    fn read(&self, offset: u64, to: &mut [u8]) {
        // SAFETY: a slice is valid for writes of its length.
        unsafe { self.copy_out(offset, to.as_mut_ptr(), to.len()) }
    }

    /// Copies bytes into the region.
    fn write(&self, offset: u64, from: &[u8]) {
        // SAFETY: a slice is valid for reads of its length.
        unsafe { self.copy_in(offset, from.as_ptr(), from.len()) }
    }

    /// Copies a few words that a peer writes out of the region.
    #[inline(always)]
    fn load_words<const N: usize>(&self, offset: u64) -> [u64; N]
    where
        Self: Sized,
    {
        core::array::from_fn(|n| self.load_peer(offset + n as u64 * 8, Ordering::Relaxed))
    }

    /// Copies a few words into the region.
    #[inline(always)]
    fn store_words<const N: usize>(&self, offset: u64, words: [u64; N])
    where
        Self: Sized,
    {
        for (n, word) in words.into_iter().enumerate() {
            self.store(offset + n as u64 * 8, word, Ordering::Relaxed);
        }
    }

    /// Publishes a slot of the own section, four words: the `first` is stored last, with Release, and whoever sees it sees the
    /// others. Then zeroes the first word of the slot that lies `ZERO` slots behind it, unless that is 0, and prefetches for
    /// writing what lies `owned` bytes behind it, modulo 2^64.
    #[inline(always)]
    fn store_slot<const ZERO: u64>(&self, offset: u64, first: u64, words: [u64; 3], owned: u64)
    where
        Self: Sized,
    {
        self.store_words(offset + 8, words);
        self.store(offset, first, Ordering::Release);
        if ZERO > 0 {
            self.store(offset + ZERO * SLOT, 0, Ordering::Relaxed);
            self.prefetch_write(offset.wrapping_add(owned), 8);
        }
    }

    /// As [`Memory::store_slot`], of a message of two or three `slots`, which goes on with the `rest` in the next ones: zeroes the first
    /// words of as many, from the one that lies `ZERO` slots behind the first on.
    #[inline(always)]
    fn store_slots<const ZERO: u64>(
        &self,
        offset: u64,
        slots: u64,
        first: u64,
        words: [u64; 3],
        rest: &[u8],
        owned: u64,
    ) where
        Self: Sized,
    {
        self.write(offset + SLOT, rest);
        self.store_slot::<0>(offset, first, words, 0);
        self.zero_slots(offset + ZERO * SLOT, slots);
        self.prefetch_write(offset.wrapping_add(owned), 8);
    }

    /// Zeroes the first words of so many slots of the own section, from `offset` on.
    #[inline(always)]
    fn zero_slots(&self, offset: u64, slots: u64)
    where
        Self: Sized,
    {
        for slot in 0..slots {
            self.store(offset + slot * SLOT, 0, Ordering::Relaxed);
        }
    }

    /// The place of `len` bytes, aligned words.
    fn place(&self, offset: u64, len: u64) -> Place {
        assert!(offset.is_multiple_of(8) && offset.checked_add(len).is_some_and(|end| end <= self.len()));
        Place(core::ptr::without_provenance(offset as usize))
    }

    /// As [`Memory::load_peer`], of the word that lies `at` bytes behind the start of a place.
    ///
    /// # Safety
    ///
    /// The place is of this memory, and has an aligned word there.
    #[inline(always)]
    unsafe fn load_placed(&self, place: Place, at: u64, order: Ordering) -> u64 {
        self.load_peer(place.0.addr() as u64 + at, order)
    }

    /// Copies the slot that lies `at` bytes behind the start of a place, if its first word is as `is_there` wants it: one that a peer
    /// publishes by [`Memory::store_slot`].
    ///
    /// # Errors
    ///
    /// The first word, if it is not.
    ///
    /// # Safety
    ///
    /// The place is of this memory, and has an aligned slot there.
    #[inline(always)]
    unsafe fn load_slot(
        &self,
        place: Place,
        at: u64,
        is_there: impl FnOnce(u64) -> bool,
    ) -> Result<(u64, [u64; 3]), u64>
    where
        Self: Sized,
    {
        // SAFETY: the caller keeps the same contract.
        let word = |n, order| unsafe { self.load_placed(place, at + 8 * n, order) };
        let first = word(0, Ordering::Acquire);
        let body = |n| word(1 + n as u64, Ordering::Relaxed);
        if is_there(first) { Ok((first, core::array::from_fn(body))) } else { Err(first) }
    }

    /// Owns the lines of these bytes of the own section, which begin with a line and of whose content nobody has any use, so that
    /// they can be written without waiting for them.
    fn own(&self, offset: u64, len: u64) {
        if !self.stores_ahead() {
            return self.prefetch_write(offset, len);
        }
        for at in (offset..offset + len).step_by(LINE as usize) {
            self.store(at, 0, Ordering::Relaxed);
        }
    }

    /// Sets words to zero.
    fn zero(&self, offset: u64, len: u64) {
        for at in (offset..offset + len).step_by(8) {
            self.store(at, 0, Ordering::Relaxed);
        }
    }
}

/// Implements all three for a pointer to what does.
macro_rules! forward {
    ($pointer:ty) => {
        impl<M: Memory> Memory for $pointer {
            #[inline]
            fn len(&self) -> u64 {
                (**self).len()
            }
            #[inline(always)]
            fn load(&self, offset: u64, order: Ordering) -> u64 {
                (**self).load(offset, order)
            }
            #[inline(always)]
            fn load_peer(&self, offset: u64, order: Ordering) -> u64 {
                (**self).load_peer(offset, order)
            }
            #[inline(always)]
            fn store(&self, offset: u64, value: u64, order: Ordering) {
                (**self).store(offset, value, order);
            }
            #[inline]
            fn fetch_add(&self, offset: u64, value: u64, order: Ordering) -> u64 {
                (**self).fetch_add(offset, value, order)
            }
            #[inline]
            fn compare_exchange(&self, offset: u64, current: u64, new: u64) -> Result<u64, u64> {
                (**self).compare_exchange(offset, current, new)
            }
            #[inline]
            fn fence(&self, order: Ordering) {
                (**self).fence(order);
            }
            #[inline]
            unsafe fn copy_out(&self, offset: u64, to: *mut u8, len: usize) {
                // SAFETY: the caller keeps the same contract.
                unsafe { (**self).copy_out(offset, to, len) }
            }
            #[inline]
            unsafe fn copy_in(&self, offset: u64, from: *const u8, len: usize) {
                // SAFETY: the caller keeps the same contract.
                unsafe { (**self).copy_in(offset, from, len) }
            }
            #[inline]
            fn address(&self, offset: u64, len: u64) -> *mut u8 {
                (**self).address(offset, len)
            }
            #[inline]
            fn offset_of(&self, address: *const u8, len: u64) -> Option<u64> {
                (**self).offset_of(address, len)
            }
            #[inline(always)]
            fn load_words<const N: usize>(&self, offset: u64) -> [u64; N] {
                (**self).load_words(offset)
            }
            #[inline(always)]
            fn store_words<const N: usize>(&self, offset: u64, words: [u64; N]) {
                (**self).store_words(offset, words);
            }
            #[inline(always)]
            fn store_slot<const ZERO: u64>(&self, offset: u64, first: u64, words: [u64; 3], owned: u64) {
                (**self).store_slot::<ZERO>(offset, first, words, owned);
            }
            #[inline(always)]
            fn store_slots<const ZERO: u64>(
                &self,
                offset: u64,
                slots: u64,
                first: u64,
                words: [u64; 3],
                rest: &[u8],
                owned: u64,
            ) {
                (**self).store_slots::<ZERO>(offset, slots, first, words, rest, owned);
            }
            #[inline(always)]
            fn zero_slots(&self, offset: u64, slots: u64) {
                (**self).zero_slots(offset, slots);
            }
            #[inline]
            fn own(&self, offset: u64, len: u64) {
                (**self).own(offset, len);
            }
            #[inline]
            fn place(&self, offset: u64, len: u64) -> Place {
                (**self).place(offset, len)
            }
            #[inline(always)]
            unsafe fn load_placed(&self, place: Place, at: u64, order: Ordering) -> u64 {
                // SAFETY: the caller keeps the same contract.
                unsafe { (**self).load_placed(place, at, order) }
            }
        }

        impl<M: CacheHints> CacheHints for $pointer {
            #[inline]
            fn prefetch_write(&self, offset: u64, len: u64) {
                (**self).prefetch_write(offset, len);
            }
            #[inline]
            fn stores_ahead(&self) -> bool {
                (**self).stores_ahead()
            }
            #[inline]
            fn demote(&self, offset: u64, len: u64) {
                (**self).demote(offset, len);
            }
            #[inline]
            fn prefetch(&self, offset: u64) {
                (**self).prefetch(offset);
            }
        }

        impl<M: Device> Device for $pointer {
            fn ring(&self, section: u32, slot: u32) {
                (**self).ring(section, slot);
            }
            fn is_lost(&self) -> bool {
                (**self).is_lost()
            }
        }
    };
}

forward!(&M);
forward!(alloc::sync::Arc<M>);
