//! The receiving end: what is there, copied once, and what was acknowledged.

use core::sync::atomic::Ordering;

use vmshm_abi::LINE;
use vmshm_abi::ring::{
    Descriptor, KIND_DONE, KIND_FRAGMENT, KIND_INLINE, KIND_OFFER, KIND_PADDED, MAX_INLINE, SLOT, STAMP,
    Stamp,
};
use zerocopy::{FromZeros, IntoBytes};

use super::{HEAD, slots_for, slots_of};
use crate::error::Fault;
use crate::memory::{Memory, Place};

/// Most slots of a message that is copied word by word: for longer ones a call is worth its while.
const FEW: u64 = 4;

/// Whether the word is a stamp for `position`, or what is left there of another message's.
#[inline(always)]
const fn is_for(word: u64, position: u64) -> bool {
    word as u32 == Stamp::sequence_at(position)
}

/// Whether a stamp is that of a message that lies in one slot.
#[inline(always)]
const fn is_short(word: u64) -> bool {
    // Kind and length, one above the other, in one comparison.
    ((word >> 32) as u32 & 0x00ff_ffff).wrapping_sub((KIND_INLINE as u32) << 16) <= HEAD as u32
}

/// The receiving end of a ring, in the section of a peer.
#[derive(Debug)]
pub struct Consumer {
    slots: u64,
    /// Where these are in the memory that the consumer was made with.
    ring: Place,
    count: u64,
    /// Bytes of the ring.
    size: u64,
    /// Slots stepped over so far, and where the next one lies in the ring, bytes.
    position: u64,
    at: u64,
    acknowledged: u64,
    /// Position from which on an acknowledgement is due.
    due: u64,
    /// Slots of messages behind their first ones.
    further: u64,
}

impl Consumer {
    /// The consumer of the ring of `count` slots at offset `slots`, from its first slot on.
    pub fn new(memory: &impl Memory, slots: u64, count: u32) -> Self {
        let count = u64::from(count);
        Self {
            slots,
            ring: memory.place(slots, count * SLOT),
            count,
            size: count * SLOT,
            position: 0,
            at: 0,
            acknowledged: 0,
            due: count.div_ceil(4),
            further: 0,
        }
    }

    /// The stamp of the next message, if it is there.
    ///
    /// # Errors
    ///
    /// A stamp with the right number that says what no producer says.
    #[inline(always)]
    pub fn peek(&self, memory: &impl Memory) -> Result<Option<Stamp>, Fault> {
        let word = memory.load_peer(self.slots + self.at, Ordering::Acquire);
        let stamp = Stamp::unpack(word);
        if stamp.sequence != Stamp::sequence_at(self.position) || stamp.kind == 0 {
            return Ok(None);
        }
        let len = usize::from(stamp.len);
        let sound = match stamp.kind {
            KIND_INLINE | KIND_PADDED => len <= MAX_INLINE && slots_of(stamp) < self.count,
            KIND_FRAGMENT | KIND_OFFER | KIND_DONE => len == size_of::<Descriptor>(),
            _ => false,
        };
        if sound { Ok(Some(stamp)) } else { Err(Fault { what: "stamp", value: word }) }
    }

    /// Copies the bytes of the message that [`Consumer::peek`] showed; those behind them, up to a whole word or the end of
    /// the slot, may become anything. `to` has room for them.
    #[inline(always)]
    pub fn read(&self, memory: &impl Memory, stamp: Stamp, to: &mut [u8]) {
        let at = self.at + STAMP;
        // A message that fits one slot is read as all of it, as it was written.
        if stamp.len <= 24
            && let Some(to) = to.first_chunk_mut::<24>()
        {
            let words: [u64; 3] = memory.load_words(self.slots + at);
            for (to, word) in to.chunks_exact_mut(8).zip(words) {
                to.copy_from_slice(&word.to_ne_bytes());
            }
            return;
        }
        let to = &mut to[..usize::from(stamp.len).next_multiple_of(8)];
        let (first, second) = to.split_at_mut(to.len().min((self.size - at) as usize));
        memory.read(self.slots + at, first);
        if !second.is_empty() {
            memory.read(self.slots, second);
        }
    }

    /// Copies short messages, from the next one on, as they lie in their slots: all that are there, up to the length of `to`
    /// and the end of the ring. Returns how many; they have not been stepped over.
    ///
    /// # Safety
    ///
    /// The consumer was made with this memory.
    #[inline(always)]
    pub unsafe fn read_run(&self, memory: &impl Memory, to: &mut [[u8; SLOT as usize]]) -> usize {
        let mut count = 0;
        for to in to {
            // SAFETY: the caller vouches for it.
            if unsafe { self.read_short(memory, count as u64, to) }.is_err() {
                break;
            }
            count += 1;
        }
        count
    }

    /// Copies the short message that lies `n` slots behind the next one, as it lies in its slot.
    ///
    /// # Errors
    ///
    /// There is none; and whether there is another one, which may be of any length.
    ///
    /// # Safety
    ///
    /// The consumer was made with this memory.
    #[inline(always)]
    pub unsafe fn read_short(
        &self,
        memory: &impl Memory,
        n: u64,
        to: &mut [u8; SLOT as usize],
    ) -> Result<(), bool> {
        let (at, position) = (self.at + n * SLOT, self.position + n);
        if n > 0 && at >= self.size {
            return Err(false);
        }
        let is_there = |word| is_for(word, position) && is_short(word);
        // SAFETY: the place is of this memory, as the caller vouches. The next slot lies in the ring, and none behind its end is read.
        let slot = unsafe { memory.load_slot(self.ring, at, is_there) };
        let (word, body) = slot.map_err(|word| is_for(word, position))?;
        for (to, word) in to.chunks_exact_mut(8).zip([word, body[0], body[1], body[2]]) {
            to.copy_from_slice(&word.to_ne_bytes());
        }
        Ok(())
    }

    /// Copies the next message, as it lies in its slots, if it is inline and none of it lies behind the end of the ring. Returns how many
    /// slots it takes. `to` has room for the longest.
    ///
    /// # Safety
    ///
    /// The consumer was made with this memory.
    #[inline(always)]
    pub unsafe fn read_long(&self, memory: &impl Memory, to: &mut [[u8; SLOT as usize]]) -> Option<u64> {
        // SAFETY: the place is of this memory, as the caller vouches, and the words are those of slots in the ring, as is checked.
        let load = |at, order| unsafe { memory.load_placed(self.ring, self.at + at, order) };
        let word = load(0, Ordering::Acquire);
        let stamp = Stamp::unpack(word);
        let (len, slots) = (usize::from(stamp.len), slots_of(stamp));
        let fits = len <= MAX_INLINE && slots < self.count && self.at + slots * SLOT <= self.size;
        if !is_for(word, self.position) || !stamp.is_inline() || !fits {
            return None;
        }
        let to = to.get_mut(..slots_for(len) as usize)?.as_flattened_mut();
        let (stamp, body) = to.split_first_chunk_mut()?;
        *stamp = word.to_ne_bytes();
        if slots <= FEW {
            for (n, to) in body.as_chunks_mut().0.iter_mut().enumerate() {
                *to = load(8 * (1 + n as u64), Ordering::Relaxed).to_ne_bytes();
            }
        } else {
            memory.read(self.slots + self.at + STAMP, body);
        }
        Some(slots)
    }

    /// Copies inline messages of a few slots, from the next one on, as they lie in their slots: all that are there, up to `most` of them
    /// and the end of the ring. Returns how many, and how many slots they take; they have not been stepped over. `to` has room for so many
    /// of the longest.
    ///
    /// # Safety
    ///
    /// As [`Consumer::read_long`].
    #[inline(always)]
    pub unsafe fn read_few(
        &self,
        memory: &impl Memory,
        to: &mut [[u8; SLOT as usize]],
        most: u32,
    ) -> (u32, u64) {
        let (mut count, mut taken, mut filled) = (0, 0, 0);
        while count < most {
            let (at, position) = (self.at + taken * SLOT, self.position + taken);
            if at >= self.size {
                break;
            }
            // SAFETY: as in `read_long`.
            let load = |word, order| unsafe { memory.load_placed(self.ring, at + 8 * word, order) };
            let word = load(0, Ordering::Acquire);
            let stamp = Stamp::unpack(word);
            let (slots, steps) = (slots_for(stamp.len.into()), slots_of(stamp));
            if !is_for(word, position) || !stamp.is_inline() || slots > FEW || at + steps * SLOT > self.size {
                break;
            }
            let Some(to) = to.get_mut(filled..filled + slots as usize) else { break };
            for (n, to) in to.iter_mut().enumerate() {
                for (m, to) in to.as_chunks_mut().0.iter_mut().enumerate() {
                    *to = match 4 * n + m {
                        0 => word,
                        n => load(n as u64, Ordering::Relaxed),
                    }
                    .to_ne_bytes();
                }
            }
            (count, taken, filled) = (count + 1, taken + steps, filled + slots as usize);
        }
        (count, taken)
    }

    /// The next message's stamp and descriptor, if it lies in a fragment.
    ///
    /// # Safety
    ///
    /// As [`Consumer::read_long`].
    #[inline(always)]
    pub unsafe fn read_fragment(&self, memory: &impl Memory) -> Option<(Stamp, Descriptor)> {
        let is_there = |word| {
            let Stamp { kind, len, .. } = Stamp::unpack(word);
            is_for(word, self.position)
                && kind == KIND_FRAGMENT
                && usize::from(len) == size_of::<Descriptor>()
        };
        // SAFETY: the place is of this memory, as the caller vouches, and the next slot lies in the ring.
        let (word, [offset, len, cookie]) = unsafe { memory.load_slot(self.ring, self.at, is_there) }.ok()?;
        Some((Stamp::unpack(word), Descriptor { offset, len, cookie }))
    }

    /// Prefetches the lines of the next `slots` slots.
    #[inline(always)]
    pub fn prefetch(&self, memory: &impl Memory, slots: u64) {
        for slot in (0..slots).step_by((LINE / SLOT) as usize) {
            let at = self.at + slot * SLOT;
            memory.prefetch(self.slots + if at < self.size { at } else { at - self.size });
        }
    }

    /// Copies the descriptor of the message that [`Consumer::peek`] showed.
    #[inline]
    pub fn descriptor(&self, memory: &impl Memory) -> Descriptor {
        let mut descriptor = Descriptor::new_zeroed();
        memory.read(self.slots + self.at + STAMP, descriptor.as_mut_bytes());
        descriptor
    }

    /// Steps behind the message that [`Consumer::peek`] showed. Its bytes still stand until it is acknowledged.
    #[inline(always)]
    pub fn advance(&mut self, memory: &impl Memory, stamp: Stamp) {
        self.advance_by(memory, slots_of(stamp), 1);
    }

    /// Steps over `slots` slots of so many messages, which were read: no more than a ring.
    #[inline(always)]
    pub fn advance_by(&mut self, memory: &impl Memory, slots: u64, messages: u64) {
        self.further += slots - messages;
        self.position += slots;
        self.at += slots * SLOT;
        if self.at >= self.size {
            self.at -= self.size;
        }
        memory.prefetch(self.slots + self.at);
    }

    /// Slots stepped over so far.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Messages that were read and stepped over so far.
    pub fn messages(&self) -> u64 {
        self.position - self.further
    }

    /// Slots that were stepped over but not yet acknowledged.
    pub fn unacknowledged(&self) -> u64 {
        self.position - self.acknowledged
    }

    /// Whether an acknowledgement is due: a quarter of the ring was consumed since the last one.
    #[inline]
    pub fn is_acknowledgement_due(&self) -> bool {
        self.position >= self.due
    }

    /// Acknowledges all slots stepped over, at offset `consumed` in the consumer's own section: they may be written again.
    #[inline]
    pub fn acknowledge(&mut self, memory: &impl Memory, consumed: u64) {
        self.acknowledged = self.position;
        self.due = self.position + self.count.div_ceil(4);
        // Release: the copies above are done before the producer may overwrite.
        memory.store(consumed, self.position, Ordering::Release);
    }
}
