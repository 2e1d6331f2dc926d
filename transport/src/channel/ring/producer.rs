//! The sending end: room, stamps, and what is owned and zeroed ahead.

use core::sync::atomic::Ordering;

use vmshm_abi::LINE;
use vmshm_abi::ring::{KIND_PADDED, MAX_INLINE, SLOT, Stamp};

use super::join::{copy_short, join_long, join_short};
use super::{HEAD, slots_for};
use crate::error::Fault;
use crate::memory::{Memory, short_word};

/// Prefetch distance, slots: behind the newest message the producer prefetches this many for writing, if they are free. Their
/// lines were last read by the consumer, and a store would wait for each.
const AHEAD: u64 = 40;

/// Slots of these whose stamps are zeroed ahead, too: a short message waits for no other store than its own.
const CLEARED: u64 = 4;

/// Slots between two looks for credit that is short but not gone: each look takes a line away from the consumer.
const ASK_INTERVAL: u64 = 16;

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
