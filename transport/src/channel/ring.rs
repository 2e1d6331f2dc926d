//! The ring of one endpoint towards one peer: a single producer, a single consumer, and no shared counter.
//!
//! The producer publishes a message by storing its stamp last; the next message is there for the consumer when the stamp carries
//! the next sequence number. Credit: the consumer acknowledges slots by a word in its own section, and the producer looks there
//! only when it runs out of room. docs/protocol.md has all steps with their orderings.

use core::sync::atomic::Ordering;

use vmshm_abi::LINE;
use vmshm_abi::ring::{
    Descriptor, KIND_DONE, KIND_FRAGMENT, KIND_INLINE, KIND_OFFER, KIND_PADDED, MAX_INLINE, SLOT, STAMP,
    Stamp,
};
use zerocopy::{FromZeros, IntoBytes};

use crate::error::Fault;
use crate::memory::{Memory, Place, short_word};

/// Prefetch distance, slots: behind the newest message the producer prefetches this many for writing, if they are free. Their
/// lines were last read by the consumer, and a store would wait for each.
const AHEAD: u64 = 40;

/// Slots of these whose stamps are zeroed ahead, too: a short message waits for no other store than its own.
const CLEARED: u64 = 4;

/// Slots between two looks for credit that is short but not gone: each look takes a line away from the consumer.
const ASK_INTERVAL: u64 = 16;

/// Most slots of a message that is copied word by word: for longer ones a call is worth its while.
const FEW: u64 = 4;

/// Slots that a message of `len` bytes takes.
#[inline]
pub const fn slots_for(len: usize) -> u64 {
    (STAMP + len as u64).div_ceil(SLOT)
}

/// Slots that the message with this stamp takes.
#[inline]
pub const fn slots_of(stamp: Stamp) -> u64 {
    slots_for(stamp.len as usize) + (stamp.kind == KIND_PADDED) as u64
}

/// The sending end of a ring, in the section of the member that writes it.
#[derive(Debug)]
pub struct Producer {
    slots: u64,
    count: u64,
    /// Slots sent so far, and where the next one lies in the ring, bytes.
    position: u64,
    at: u64,
    acknowledged: u64,
    /// Slots from the next one on whose stamps are zero, and whose lines were asked for.
    cleared: u64,
    owned: u64,
    /// Before this position [`Producer::push_slot`] may be called.
    ready: u64,
    /// Position at which [`Producer::asks`] said yes last.
    asked: u64,
    /// Slots whose stamps are zeroed ahead: more than the next message needs, where that is how their lines are owned.
    ahead: u64,
    /// Slots of messages behind their first ones. Those of a single slot, the most frequent ones, pay nothing for it.
    further: u64,
}

impl Producer {
    /// The producer of a zeroed ring of `count` slots at offset `slots`.
    pub fn new(slots: u64, count: u32) -> Self {
        let count = u64::from(count);
        Self {
            slots,
            count,
            position: 0,
            at: 0,
            acknowledged: 0,
            cleared: count,
            owned: count,
            ready: 0,
            asked: 0,
            ahead: CLEARED,
            further: 0,
        }
    }

    /// Slots sent so far.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Messages sent so far.
    pub fn messages(&self) -> u64 {
        self.position - self.further
    }

    /// Slots that the consumer has acknowledged, as far as this end knows.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// Whether a message of `len` bytes fits now, and the stamp behind it.
    #[inline]
    pub fn has_room(&self, len: usize) -> bool {
        self.position - self.acknowledged + slots_for(len) < self.count
    }

    /// Whether half of what the ring has beside a message of `len` bytes is free, as far as this end knows.
    #[inline]
    pub fn is_spacious(&self, len: usize) -> bool {
        (self.position - self.acknowledged) * 2 + slots_for(len) <= self.count
    }

    /// Loads the consumer's acknowledgement from offset `consumed`.
    ///
    /// # Errors
    ///
    /// A number that goes backwards, or beyond what was sent.
    pub fn learn(&mut self, memory: &impl Memory, consumed: u64) -> Result<(), Fault> {
        self.accept(memory.load(consumed, Ordering::Acquire))
    }

    /// Takes `value` for the number of slots that the consumer has acknowledged, if it can be.
    ///
    /// # Errors
    ///
    /// As [`Producer::learn`].
    pub fn accept(&mut self, value: u64) -> Result<(), Fault> {
        if value < self.acknowledged || value > self.position {
            return Err(Fault { what: "acknowledgement", value });
        }
        self.acknowledged = value;
        Ok(())
    }

    /// Publishes one message, whose bytes are the `parts` in their order; there must be room for it.
    #[inline(always)]
    pub fn push(&mut self, memory: &impl Memory, kind: u8, tag: u8, parts: &[&[u8]]) {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        debug_assert!(len <= MAX_INLINE && self.has_room(len));
        let slots = slots_for(len);
        if self.cleared <= slots {
            self.clear(memory, slots);
            self.cleared = slots + 1;
        }
        let head = self.write(memory, parts);
        self.publish::<0>(memory, kind, tag, len, head, 0);
        self.pass(memory, slots);
        self.make_ready(memory);
    }

    /// Whether [`Producer::push_slot`] may be called.
    #[inline(always)]
    pub fn is_ready(&self) -> bool {
        self.position < self.ready
    }

    /// Nothing is ready any more, unless [`Producer::prepare`] is called: the peer is gone.
    pub fn stop(&mut self) {
        self.ready = 0;
    }

    /// Publishes a message of one slot, with `len` bytes in `words`; the ring is [ready](Producer::is_ready). What
    /// [`Producer::prepare`] does for many slots at a time, this does for one.
    #[inline(always)]
    pub fn push_slot(&mut self, memory: &impl Memory, kind: u8, tag: u8, len: usize, words: [u64; 3]) {
        debug_assert!(self.is_ready() && len <= HEAD);
        let owned = self.behind(AHEAD).wrapping_sub(self.at);
        self.publish::<CLEARED>(memory, kind, tag, len, words, owned);
        self.position += 1;
        self.at += SLOT;
    }

    /// As [`Producer::push`], of a header of 9 to 16 bytes and a payload that the first slot does not hold with it, where no part of
    /// it lies behind the ring's end. False if nothing was sent.
    #[inline(always)]
    pub fn push_long(
        &mut self,
        memory: &impl Memory,
        kind: u8,
        tag: u8,
        header: &[u8],
        payload: &[u8],
    ) -> bool {
        let Some((words, rest)) = join_long(header, payload) else { return false };
        let len = header.len() + payload.len();
        let slots = slots_for(len);
        // Where credit is short, somebody has to look for more.
        if slots + AHEAD >= self.free() || self.at + slots * SLOT >= self.count * SLOT {
            return false;
        }
        if self.cleared <= slots {
            self.clear(memory, slots);
            self.cleared = slots + 1;
        }
        let start = self.slots + self.at + SLOT;
        if rest.len() < SLOT as usize {
            let (words, tail) = rest.as_chunks();
            for (at, word) in (start..).step_by(8).zip(words) {
                memory.store(at, u64::from_ne_bytes(*word), Ordering::Relaxed);
            }
            if !tail.is_empty() {
                let at = start + size_of_val(words) as u64;
                memory.store(at, short_word(tail).to_le(), Ordering::Relaxed);
            }
        } else {
            memory.write(start, rest);
        }
        self.publish::<0>(memory, kind, tag, len, words, 0);
        self.pass(memory, slots);
        self.make_ready(memory);
        true
    }

    /// As [`Producer::push_long`], of a message of two or three slots while the ring is [ready](Producer::is_ready) for them.
    #[inline(always)]
    pub fn push_few(
        &mut self,
        memory: &impl Memory,
        kind: u8,
        tag: u8,
        header: &[u8],
        payload: &[u8],
    ) -> bool {
        let len = header.len() + payload.len();
        let slots = slots_for(len);
        // A message of two slots takes one line, not two, where the one before it has ended with a line.
        let is_padded = slots == LINE / SLOT && !self.at.is_multiple_of(LINE);
        let (slots, kind) = if is_padded { (slots + 1, KIND_PADDED) } else { (slots, kind) };
        if !(2..CLEARED).contains(&slots) || self.position + slots > self.ready {
            return false;
        }
        let Some((words, rest)) = join_long(header, payload) else { return false };
        let (stamp, owned) = (self.stamp(kind, tag, len), self.behind(AHEAD).wrapping_sub(self.at));
        // Release: as in `publish`.
        memory.store_slots::<CLEARED>(self.slots + self.at, slots, stamp, words, rest, owned);
        if slots > LINE / SLOT {
            memory.prefetch_write(self.slots + self.behind(AHEAD + LINE / SLOT), SLOT);
            self.demote(memory, slots);
        }
        self.position += slots;
        self.further += slots - 1;
        self.at += slots * SLOT;
        true
    }

    /// The stamp of the next message.
    #[inline(always)]
    fn stamp(&self, kind: u8, tag: u8, len: usize) -> u64 {
        // The length fits 16 bits because MAX_INLINE does.
        Stamp { sequence: Stamp::sequence_at(self.position), len: len as u16, kind, tag }.pack()
    }

    /// Counts a message of so many slots, which was just published.
    #[inline(always)]
    fn pass(&mut self, memory: &impl Memory, slots: u64) {
        if slots > LINE / SLOT {
            self.demote(memory, slots);
        }
        self.at = self.behind(slots);
        self.position += slots;
        self.further += slots - 1;
        self.cleared -= slots;
        // The next message is likely to be as long.
        self.ahead = if memory.stores_ahead() { CLEARED.max(slots + 1) } else { CLEARED };
        self.owned = self.owned.saturating_sub(slots);
    }

    /// Stores the first slot of a message; see [`Memory::store_slot`].
    #[inline(always)]
    fn publish<const ZERO: u64>(
        &self,
        memory: &impl Memory,
        kind: u8,
        tag: u8,
        len: usize,
        head: [u64; 3],
        owned: u64,
    ) {
        // Release: a consumer that sees this stamp sees all the bytes of the message, and the zero behind them.
        memory.store_slot::<ZERO>(self.slots + self.at, self.stamp(kind, tag, len), head, owned);
    }

    /// Demotes the next slots, which were just written, to the shared cache, but for a line that the next message begins in.
    #[inline(never)]
    fn demote(&self, memory: &impl Memory, slots: u64) {
        let (start, ring_end) = (self.slots + self.at, self.slots + self.count * SLOT);
        let end = (start + slots * SLOT) & !(LINE - 1);
        memory.demote(start, end.min(ring_end) - start);
        if end > ring_end {
            memory.demote(self.slots, end - ring_end);
        }
    }

    /// Prefetches the cache lines of the slots that will be written next, and zeroes the stamps of the first of them.
    #[inline]
    pub fn prepare(&mut self, memory: &impl Memory) {
        self.own_ahead(memory);
        let free = self.free();
        let end = self.ahead.min(free);
        if self.cleared < end {
            self.in_runs(self.cleared, end, |start, slots| memory.zero_slots(start, slots));
            self.cleared = end;
        }
    }

    /// Calls `each` with the offsets and numbers of the slots that lie from `start` to `end` behind the next one, in one piece or in two.
    #[inline(always)]
    fn in_runs(&self, start: u64, end: u64, each: impl Fn(u64, u64)) {
        let (at, slots) = (self.behind(start), end - start);
        let first = slots.min(self.count - at / SLOT);
        each(self.slots + at, first);
        if first < slots {
            each(self.slots, slots - first);
        }
    }

    /// Prefetches the lines ahead.
    #[inline]
    fn own_ahead(&mut self, memory: &impl Memory) {
        let end = AHEAD.min(self.free());
        if self.owned < end {
            self.in_runs(self.owned, end, |start, slots| {
                let lines = (start..start + slots * SLOT).step_by(LINE as usize);
                lines.for_each(|line| memory.prefetch_write(line, SLOT));
            });
            self.owned = end;
        }
    }

    /// As [`Producer::prepare`], and makes the ring [ready](Producer::is_ready), as far as there is room.
    #[inline]
    pub fn make_ready(&mut self, memory: &impl Memory) {
        self.prepare(memory);
        // As many as stay zero, and asked for, from now on.
        (self.cleared, self.owned) = (self.cleared.min(CLEARED), self.owned.min(AHEAD));
        // The slots that are zeroed and asked for ahead are free, and the zeroed ones lie before the ring's end.
        let (free, to_end) = (self.free(), self.count - self.at / SLOT);
        self.ready = self.position + free.saturating_sub(AHEAD).min(to_end.saturating_sub(CLEARED));
    }

    /// Whether the consumer's acknowledgement is worth a look, for [`Producer::make_ready`]: the known credit is short, and it
    /// [may](Producer::may_ask) be.
    pub fn asks(&mut self) -> bool {
        self.free() <= AHEAD && self.may_ask()
    }

    /// Whether the consumer's acknowledgement may be looked at. If so, it is not for the next few slots.
    pub fn may_ask(&mut self) -> bool {
        let may = self.position >= self.asked + ASK_INTERVAL;
        if may {
            self.asked = self.position;
        }
        may
    }

    /// Slots that are free, as far as this end knows.
    #[inline]
    fn free(&self) -> u64 {
        self.acknowledged + self.count - self.position
    }

    /// Whether a quarter of the ring is not known to be acknowledged, so that this end should look again while it waits: the consumer
    /// acknowledges as much at once, and to look before a message would keep the message waiting.
    #[inline]
    pub fn is_short(&self) -> bool {
        (self.position - self.acknowledged) * 4 > self.count
    }

    /// Where the slot lies that is `slots` behind the next one, at most a ring.
    #[inline]
    fn behind(&self, slots: u64) -> u64 {
        let at = self.at + slots * SLOT;
        if at >= self.count * SLOT { at - self.count * SLOT } else { at }
    }

    /// Zeroes the stamp of the slot that is `slots` behind the next one.
    #[inline]
    fn clear(&self, memory: &impl Memory, slots: u64) {
        memory.store(self.slots + self.behind(slots), 0, Ordering::Relaxed);
    }

    /// Writes the `parts` in whole words. Those in the slot of the stamp are returned, to be written at one go with it: the
    /// receiver takes that line away with each look.
    #[inline(always)]
    fn write(&self, memory: &impl Memory, parts: &[&[u8]]) -> [u64; 3] {
        if let [header, payload] = parts
            && let Some(words) = join_short(header, payload)
        {
            return words;
        }
        let mut head = [0u8; HEAD];
        let mut filled = 0;
        for (n, part) in parts.iter().enumerate() {
            if part.len() > HEAD - filled {
                let (fits, rest) = part.split_at(HEAD - filled);
                copy_short(&mut head[filled..], fits);
                match &parts[n + 1..] {
                    [] => self.write_rest(memory, rest),
                    others => self.join_rest(memory, rest, others),
                }
                break;
            }
            copy_short(&mut head[filled..], part);
            filled += part.len();
        }
        let word = |n: usize| u64::from_ne_bytes(head[n..n + 8].try_into().unwrap_or_default());
        [word(0), word(8), word(16)]
    }

    /// Writes the rest, for which the first slot has no room.
    #[inline(always)]
    fn write_rest(&self, memory: &impl Memory, rest: &[u8]) {
        let (words, tail) = rest.split_at(rest.len() & !7);
        if !tail.is_empty() {
            let mut word = [0; 8];
            copy_short(&mut word, tail);
            self.write_words(memory, SLOT + words.len() as u64, &word);
        }
        if !words.is_empty() {
            self.write_words(memory, SLOT, words);
        }
    }

    /// As [`Producer::write_rest`], of several parts.
    #[cold]
    #[inline(never)]
    fn join_rest(&self, memory: &impl Memory, first: &[u8], others: &[&[u8]]) {
        let mut joined = [0u8; MAX_INLINE];
        let mut len = 0;
        for part in [first].iter().chain(others) {
            joined[len..len + part.len()].copy_from_slice(part);
            len += part.len();
        }
        self.write_rest(memory, &joined[..len]);
    }

    /// Writes whole words, `at` bytes behind the start of the next slot.
    #[inline(always)]
    fn write_words(&self, memory: &impl Memory, at: u64, words: &[u8]) {
        let (size, at) = (self.count * SLOT, self.at + at);
        if at >= size {
            return memory.write(self.slots + at - size, words);
        }
        let room = (size - at) as usize;
        if words.len() <= room {
            return memory.write(self.slots + at, words);
        }
        memory.write(self.slots + at, &words[..room]);
        memory.write(self.slots, &words[room..]);
    }
}

/// Bytes of a message that lie in the slot of its stamp.
const HEAD: usize = (SLOT - STAMP) as usize;

/// A header of 9 to 16 bytes and a payload of up to 8 behind it, as words. They are made in registers: words that are read
/// back from where they were written in other pieces have to wait for the cache.
#[inline(always)]
pub fn join_short(header: &[u8], payload: &[u8]) -> Option<[u64; 3]> {
    let (Some(first), Some(last)) = (header.first_chunk(), header.last_chunk()) else { return None };
    if !(9..=16).contains(&header.len()) || payload.len() > 8 {
        return None;
    }
    // Bits of the second word that are the header's, from 8 to 64: no shift is by all 64.
    let bits = 8 * (header.len() - 8);
    // Most are words.
    let payload = payload.first_chunk().map_or_else(|| short_word(payload), |word| u64::from_le_bytes(*word));
    let last = u64::from_le_bytes(*last);
    let second = last >> (64 - bits) | payload << (bits - 8) << 8;
    Some([u64::from_ne_bytes(*first), second.to_le(), (payload >> (64 - bits)).to_le()])
}

/// As [`join_short`], of a payload that is longer: what lies in the first slot, and the rest of the payload.
#[inline(always)]
pub fn join_long<'a>(header: &[u8], payload: &'a [u8]) -> Option<([u64; 3], &'a [u8])> {
    let (first, last) = (header.first_chunk()?, header.last_chunk()?);
    if !(9..=16).contains(&header.len()) {
        return None;
    }
    let (third, rest) = payload.get(16 - header.len()..)?.split_first_chunk()?;
    let bits = 8 * (header.len() - 8);
    let (last, start) = (u64::from_le_bytes(*last), u64::from_le_bytes(*payload.first_chunk()?));
    let second = last >> (64 - bits) | start << (bits - 8) << 8;
    Some(([u64::from_ne_bytes(*first), second.to_le(), u64::from_ne_bytes(*third)], rest))
}

/// Copies all of `from` to the start of `to`, without a call for the lengths of headers and small payloads.
#[inline(always)]
fn copy_short(to: &mut [u8], from: &[u8]) {
    let len = from.len();
    // Two copies of a known length, which overlap.
    macro_rules! ends {
        ($n:literal) => {{
            let (first, last): ([u8; $n], [u8; $n]) =
                (from[..$n].try_into().unwrap_or([0; $n]), from[len - $n..].try_into().unwrap_or([0; $n]));
            to[..$n].copy_from_slice(&first);
            to[len - $n..len].copy_from_slice(&last);
        }};
    }
    match len {
        0 => (),
        1 => to[0] = from[0],
        2..4 => ends!(2),
        4..8 => ends!(4),
        8..=16 => ends!(8),
        17..=32 => ends!(16),
        _ => to[..len].copy_from_slice(from),
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_messages_are_joined_byte_by_byte() {
        let bytes: [u8; 32] = core::array::from_fn(|n| n as u8 + 0x81);
        for header in 0..=17 {
            for payload in 0..=9 {
                let whole = &bytes[..header + payload];
                let joined = join_short(&whole[..header], &whole[header..]);
                assert_eq!(joined.is_some(), (9..=16).contains(&header) && payload <= 8);
                if let Some(joined) = joined {
                    let mut expected = [0; 24];
                    expected[..whole.len()].copy_from_slice(whole);
                    assert_eq!(
                        joined.map(u64::to_ne_bytes).as_flattened(),
                        expected,
                        "{header} and {payload}"
                    );
                }
            }
        }
    }
}
