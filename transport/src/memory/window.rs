//! A region in this process's address space.

use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering, fence};

use vmshm_abi::LINE;
use vmshm_abi::ring::SLOT;

use super::access::{Memory, Place};
use super::cache::{self, CacheHints};
use super::copy::{self, short_word};
use super::device::Device;

/// Two views of one region: all of it to read, and the part that this member may write; and the device behind them.
///
/// The two may be one mapping or two; the caller decides whether the hardware enforces the difference. Every access is
/// checked against both, those by a [`Place`] when the place is made.
#[derive(Debug)]
pub struct Window<D = ()> {
    read: *mut u8,
    len: u64,
    write: *mut u8,
    writable: Range<u64>,
    /// Whole words and slots in both, for the checks.
    words: u64,
    own_words: u64,
    own_slots: u64,
    device: D,
}

// SAFETY: the pointers are fixed, and lead to memory that is accessed by atomics and volatile copies alone, from any thread:
// other processes change it at any time anyway.
unsafe impl<D: Send> Send for Window<D> {}
// SAFETY: methods with `&self` change no field, and access the memory by atomics and volatile copies alone.
unsafe impl<D: Sync> Sync for Window<D> {}

impl Window {
    /// A window on `len` bytes at `read`, of which the range `writable` can also be written at `write`.
    ///
    /// # Safety
    ///
    /// As long as the window lives, `read` must be valid for reads of `len` bytes and `write` for reads and writes of the
    /// bytes of `writable`; both are aligned to 8 bytes, and nobody in this process holds a reference to them.
    pub unsafe fn new(read: *mut u8, len: u64, write: *mut u8, writable: Range<u64>) -> Self {
        // SAFETY: this function's contract is that of the callee.
        unsafe { Self::with_device(read, len, write, writable, ()) }
    }
}

impl<D> Window<D> {
    /// As [`Window::new`], on the memory of a device.
    ///
    /// # Safety
    ///
    /// As there; the device may be what keeps the memory mapped.
    pub(crate) unsafe fn with_device(
        read: *mut u8,
        len: u64,
        write: *mut u8,
        writable: Range<u64>,
        device: D,
    ) -> Self {
        assert!(writable.start <= writable.end && writable.end <= len);
        assert!(writable.start.is_multiple_of(8) && read.cast::<u64>().is_aligned());
        assert!(write.cast::<u64>().is_aligned());
        let own = writable.end - writable.start;
        let (words, own_words, own_slots) = (len / 8, own / 8, own / SLOT);
        Self { read, len, write, writable, words, own_words, own_slots, device }
    }

    /// The device behind the memory.
    pub fn device(&self) -> &D {
        &self.device
    }

    #[inline(always)]
    fn writes(&self, offset: u64, len: u64) -> bool {
        // Below the range this wraps around, and is more than any length.
        let at = offset.wrapping_sub(self.writable.start);
        let size = self.writable.end - self.writable.start;
        at <= size && len <= size - at
    }

    /// Address of bytes to be read. Own memory is read where it is written: one address, one entry in the translation buffer.
    #[inline(always)]
    fn readable(&self, offset: u64, len: u64) -> *mut u8 {
        if self.writes(offset, len) {
            // SAFETY: the offset lies in the writable range, which is mapped from `write` on.
            return unsafe { self.write.add((offset - self.writable.start) as usize) };
        }
        if offset > self.len || len > self.len - offset {
            leaves("the region", offset, len);
        }
        // SAFETY: offset + len <= the mapping's length, as checked above, so that the sum stays in the mapping.
        unsafe { self.read.add(offset as usize) }
    }

    #[inline(always)]
    fn writable(&self, offset: u64, len: u64) -> *mut u8 {
        if !self.writes(offset, len) {
            leaves("this member's section", offset, len);
        }
        // SAFETY: the offset lies in the writable range, as checked above, which is mapped from `write` on.
        unsafe { self.write.add((offset - self.writable.start) as usize) }
    }

    /// The word at `offset`, to be read.
    #[inline(always)]
    fn word(&self, offset: u64) -> &AtomicU64 {
        let at = offset.wrapping_sub(self.writable.start);
        if has_word(self.own_words, at) {
            // SAFETY: an aligned word of the writable range, as `has_word` found. All accesses to words of the region are atomic.
            return unsafe { AtomicU64::from_ptr(self.write.add(at as usize).cast()) };
        }
        let [word] = self.words_of_all(offset);
        word
    }

    /// The words from `offset` on, to be read where the whole region is mapped.
    #[inline(always)]
    fn words_of_all<const N: usize>(&self, offset: u64) -> [&AtomicU64; N] {
        if !has_word(self.words.saturating_sub(N as u64 - 1), offset) {
            leaves("the region", offset, 8 * N as u64);
        }
        // SAFETY: N aligned words of the mapping, as `has_word` found. All accesses to words of the region are atomic.
        unsafe {
            let first = self.read.add(offset as usize).cast::<u64>();
            core::array::from_fn(|n| AtomicU64::from_ptr(first.add(n)))
        }
    }

    /// The word at `offset`, to be read and written.
    #[inline(always)]
    fn own_word(&self, offset: u64) -> &AtomicU64 {
        let at = offset.wrapping_sub(self.writable.start);
        if !has_word(self.own_words, at) {
            leaves("this member's section", offset, 8);
        }
        // SAFETY: an aligned word of the writable range, as `has_word` found. All accesses to words of the region are atomic.
        unsafe { AtomicU64::from_ptr(self.write.add(at as usize).cast()) }
    }
}

/// Whether the word at `at` is aligned and lies in `words` words, which begin aligned.
#[inline(always)]
fn has_word(words: u64, at: u64) -> bool {
    // The three lowest bits become the highest: one comparison for both.
    at.rotate_right(3) < words
}

/// Whether the slot at `at` is aligned and lies in `slots` slots, which begin aligned.
#[inline(always)]
fn has_slot(slots: u64, at: u64) -> bool {
    // As in `has_word`.
    at.rotate_right(SLOT.ilog2()) < slots
}

#[cold]
#[inline(never)]
fn leaves(what: &str, offset: u64, len: u64) -> ! {
    panic!("access to {len} bytes at {offset} is not aligned, or leaves {what}");
}

impl<D: Device> Memory for Window<D> {
    fn len(&self) -> u64 {
        self.len
    }

    #[inline(always)]
    fn load(&self, offset: u64, order: Ordering) -> u64 {
        self.word(offset).load(order)
    }

    #[inline(always)]
    fn load_peer(&self, offset: u64, order: Ordering) -> u64 {
        let [word] = self.words_of_all(offset);
        word.load(order)
    }

    #[inline(always)]
    fn store(&self, offset: u64, value: u64, order: Ordering) {
        self.own_word(offset).store(value, order);
    }

    #[inline]
    fn fetch_add(&self, offset: u64, value: u64, order: Ordering) -> u64 {
        self.own_word(offset).fetch_add(value, order)
    }

    #[inline]
    fn compare_exchange(&self, offset: u64, current: u64, new: u64) -> Result<u64, u64> {
        self.own_word(offset).compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire)
    }

    #[inline]
    fn fence(&self, order: Ordering) {
        fence(order);
    }

    #[inline]
    unsafe fn copy_out(&self, offset: u64, to: *mut u8, len: usize) {
        // SAFETY: `readable` returned an address with `len` bytes of the mapping behind it; the caller vouches for `to`, which is
        // private and so does not overlap them.
        unsafe { copy::from_shared(self.readable(offset, len as u64), to, len) }
    }

    #[inline]
    unsafe fn copy_in(&self, offset: u64, from: *const u8, len: usize) {
        // SAFETY: `writable` returned an address with `len` bytes of the writable range behind it; the caller vouches for `from`,
        // which is private and so does not overlap them.
        unsafe { copy::to_shared(from, self.writable(offset, len as u64), len) }
    }

    #[inline(always)]
    fn load_words<const N: usize>(&self, offset: u64) -> [u64; N] {
        self.words_of_all(offset).map(|word| word.load(Ordering::Relaxed))
    }

    #[inline(always)]
    fn store_words<const N: usize>(&self, offset: u64, values: [u64; N]) {
        let words = self.writable(offset, 8 * N as u64).cast::<u64>();
        assert!(words.is_aligned());
        for (n, value) in values.into_iter().enumerate() {
            // SAFETY: `writable` checked the range of N words, the assertion their alignment; all accesses to words of the region
            // are atomic.
            unsafe { AtomicU64::from_ptr(words.add(n)) }.store(value, Ordering::Relaxed);
        }
    }

    #[inline(always)]
    fn store_slot<const ZERO: u64>(&self, offset: u64, first: u64, words: [u64; 3], owned: u64) {
        let at = offset.wrapping_sub(self.writable.start);
        if !has_slot(self.own_slots.saturating_sub(ZERO), at) {
            leaves("this member's section", offset, (ZERO + 1) * SLOT);
        }
        // SAFETY: the words of an aligned slot of the writable range that has ZERO others behind it, as `has_slot` found. All accesses
        // to words of the region are atomic.
        unsafe {
            let start = self.write.add(at as usize).cast::<u64>();
            for (n, word) in words.into_iter().enumerate() {
                AtomicU64::from_ptr(start.add(1 + n)).store(word, Ordering::Relaxed);
            }
            AtomicU64::from_ptr(start).store(first, Ordering::Release);
            if ZERO > 0 {
                AtomicU64::from_ptr(start.add((ZERO * SLOT / 8) as usize)).store(0, Ordering::Relaxed);
                cache::prefetch_write(start.cast::<u8>().wrapping_add(owned as usize));
            }
        }
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
        let at = offset.wrapping_sub(self.writable.start);
        let (is_third, fills_third) = (slots > 2, rest.len() > SLOT as usize);
        assert!(ZERO >= 3 && rest.len() <= 2 * SLOT as usize);
        let last = ZERO + 1 + u64::from(is_third);
        if !has_slot(self.own_slots.saturating_sub(last), at) {
            leaves("this member's section", offset, (last + 1) * SLOT);
        }
        // SAFETY: the words of aligned slots of the writable range, of which there are `last` behind the one at `at`, as `has_slot`
        // found. All accesses to words of the region are atomic.
        unsafe {
            let start = self.write.add(at as usize).cast::<u64>();
            let store = |n: usize, value, order| AtomicU64::from_ptr(start.add(n)).store(value, order);
            const BEHIND: usize = (SLOT / 8) as usize;
            if fills_third {
                copy::to_shared(rest.as_ptr(), start.add(BEHIND).cast(), rest.len());
            } else {
                let (whole, tail) = rest.as_chunks();
                for (n, bytes) in whole.iter().enumerate() {
                    store(BEHIND + n, u64::from_ne_bytes(*bytes), Ordering::Relaxed);
                }
                if !tail.is_empty() {
                    store(BEHIND + whole.len(), short_word(tail).to_le(), Ordering::Relaxed);
                }
            }
            for (n, value) in words.into_iter().enumerate() {
                store(1 + n, value, Ordering::Relaxed);
            }
            store(0, first, Ordering::Release);
            store(ZERO as usize * BEHIND, 0, Ordering::Relaxed);
            store((ZERO as usize + 1) * BEHIND, 0, Ordering::Relaxed);
            if is_third {
                store((ZERO as usize + 2) * BEHIND, 0, Ordering::Relaxed);
            }
            cache::prefetch_write(start.cast::<u8>().wrapping_add(owned as usize));
        }
    }

    #[inline(always)]
    fn zero_slots(&self, offset: u64, slots: u64) {
        let at = offset.wrapping_sub(self.writable.start);
        if !has_slot((self.own_slots + 1).saturating_sub(slots), at) {
            leaves("this member's section", offset, slots * SLOT);
        }
        for slot in 0..slots {
            // SAFETY: the first word of an aligned slot of the writable range, which has so many from `at` on, as `has_slot` found. All
            // accesses to words of the region are atomic.
            unsafe {
                AtomicU64::from_ptr(self.write.add((at + slot * SLOT) as usize).cast())
                    .store(0, Ordering::Relaxed);
            }
        }
    }

    #[inline]
    fn own(&self, offset: u64, len: u64) {
        if !cache::stores_ahead() {
            return self.prefetch_write(offset, len);
        }
        let start = self.writable(offset, len);
        assert!(offset.is_multiple_of(LINE));
        for at in (0..len as usize).step_by(LINE as usize) {
            // SAFETY: the first word of a line, of which a byte at least is in the writable range that `writable` checked; sections end
            // with a line. All accesses to words of the region are atomic.
            unsafe { AtomicU64::from_ptr(start.add(at).cast()) }.store(0, Ordering::Relaxed);
        }
    }

    fn place(&self, offset: u64, len: u64) -> Place {
        if !offset.is_multiple_of(8) || offset > self.len || len > self.len - offset {
            leaves("the region", offset, len);
        }
        Place(self.read.wrapping_add(offset as usize))
    }

    #[inline(always)]
    unsafe fn load_placed(&self, place: Place, at: u64, order: Ordering) -> u64 {
        // SAFETY: the caller vouches for an aligned word of the mapping there. All accesses to words of the region are atomic.
        unsafe { AtomicU64::from_ptr(place.0.add(at as usize).cast_mut().cast()) }.load(order)
    }

    #[inline]
    fn address(&self, offset: u64, len: u64) -> *mut u8 {
        self.readable(offset, len)
    }

    fn offset_of(&self, address: *const u8, len: u64) -> Option<u64> {
        let distance = (address as u64).checked_sub(self.write as u64)?;
        let offset = self.writable.start.checked_add(distance)?;
        self.writes(offset, len).then_some(offset)
    }
}

impl<D> CacheHints for Window<D> {
    #[inline]
    fn prefetch_write(&self, offset: u64, len: u64) {
        if len > LINE && !cache::owns_ahead() {
            return;
        }
        // No check: a hint does no harm anywhere.
        let start = self.write.wrapping_add(offset.wrapping_sub(self.writable.start) as usize);
        for at in (0..len as usize).step_by(LINE as usize) {
            cache::prefetch_write(start.wrapping_add(at));
        }
    }

    #[inline]
    fn stores_ahead(&self) -> bool {
        cache::stores_ahead()
    }

    #[inline]
    fn demote(&self, offset: u64, len: u64) {
        if !cache::demotes() {
            return;
        }
        // No check, as above.
        let start = self.write.wrapping_add(offset.wrapping_sub(self.writable.start) as usize);
        for at in (0..len as usize).step_by(LINE as usize) {
            cache::demote(start.wrapping_add(at));
        }
    }

    #[inline]
    fn prefetch(&self, offset: u64) {
        // No check, as above.
        cache::prefetch(self.read.wrapping_add(offset as usize));
    }
}

impl<D: Device> Device for Window<D> {
    fn ring(&self, section: u32, slot: u32) {
        self.device.ring(section, slot);
    }

    fn is_lost(&self) -> bool {
        self.device.is_lost()
    }
}
