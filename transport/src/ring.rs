//! The ring of one endpoint towards one peer: a single producer, a single consumer, and no shared counter.
//!
//! The producer publishes a slot by storing its stamp last; the consumer knows the next slot is there when the stamp
//! carries the next sequence number. How far the consumer is, it says in its own section, and the producer looks there
//! only when it runs out of room.

use core::sync::atomic::Ordering;

use vmshm_abi::ring::{
    Descriptor, KIND_CONTINUED, KIND_DONE, KIND_FRAGMENT, KIND_INLINE, KIND_OFFER, SLOT, SLOT_PAYLOAD, Stamp,
};
use zerocopy::{FromZeros, IntoBytes};

use crate::memory::Memory;

/// Most bytes of an inline message: 16 slots full.
pub const MAX_INLINE: usize = 16 * SLOT_PAYLOAD;

/// What a peer wrote that the protocol does not allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// The word that is wrong.
    pub what: &'static str,
    /// Its value.
    pub value: u64,
}

/// Slots that a message of `len` bytes takes.
fn slots_for(len: usize) -> u64 {
    len.div_ceil(SLOT_PAYLOAD).max(1) as u64
}

/// The sending end of a ring, in the section of the member that writes it.
#[derive(Debug)]
pub struct Producer {
    slots: u64,
    mask: u64,
    position: u64,
    acknowledged: u64,
}

impl Producer {
    /// The producer of a zeroed ring of `count` slots (a power of two) at offset `slots`.
    pub fn new(slots: u64, count: u32) -> Self {
        Self { slots, mask: u64::from(count) - 1, position: 0, acknowledged: 0 }
    }

    /// Slots sent so far.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Slots that the consumer has acknowledged, as far as this end knows.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// Whether a message of `len` bytes fits now.
    pub fn has_room(&self, len: usize) -> bool {
        self.position - self.acknowledged + slots_for(len) <= self.mask + 1
    }

    /// Looks at offset `consumed` how far the consumer is.
    ///
    /// # Errors
    ///
    /// A number that goes backwards, or beyond what was sent.
    pub fn learn(&mut self, memory: &impl Memory, consumed: u64) -> Result<(), Fault> {
        self.accept(memory.load(consumed, Ordering::Acquire))
    }

    /// Believes that the consumer has acknowledged `value` slots.
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
    pub fn push(&mut self, memory: &impl Memory, kind: u8, tag: u8, parts: &[&[u8]]) {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        assert!(len <= MAX_INLINE && self.has_room(len));
        let mut bytes = Gather { parts, taken: 0 };
        let mut slot = [0u8; SLOT_PAYLOAD];
        let first = self.position;
        let count = slots_for(len);
        // The length fits 16 bits because MAX_INLINE does.
        let stamp = Stamp { sequence: Stamp::sequence_at(first), len: len as u16, kind, tag };
        let filled = bytes.fill(&mut slot);
        memory.write(self.at(first) + 8, &slot[..filled.next_multiple_of(8)]);
        for position in first + 1..first + count {
            let filled = bytes.fill(&mut slot);
            memory.write(self.at(position) + 8, &slot[..filled.next_multiple_of(8)]);
            // An inner slot is stamped too, so that none of its bytes is ever taken for a stamp on a later lap.
            let inner = Stamp { sequence: Stamp::sequence_at(position), len: 0, kind: KIND_CONTINUED, tag };
            memory.store(self.at(position), inner.pack(), Ordering::Relaxed);
        }
        // Release: whoever sees this stamp sees all the bytes above.
        memory.store(self.at(first), stamp.pack(), Ordering::Release);
        self.position += count;
    }

    fn at(&self, position: u64) -> u64 {
        self.slots + (position & self.mask) * SLOT
    }
}

/// Reads `parts` as one stream.
struct Gather<'a> {
    parts: &'a [&'a [u8]],
    taken: usize,
}

impl Gather<'_> {
    /// Fills `slot` as far as there are bytes, and says how far.
    fn fill(&mut self, slot: &mut [u8]) -> usize {
        let mut filled = 0;
        while let [part, rest @ ..] = self.parts {
            let rest_of_part = &part[self.taken..];
            let n = rest_of_part.len().min(slot.len() - filled);
            slot[filled..filled + n].copy_from_slice(&rest_of_part[..n]);
            filled += n;
            if n < rest_of_part.len() {
                self.taken += n;
                break;
            }
            self.parts = rest;
            self.taken = 0;
        }
        filled
    }
}

/// The receiving end of a ring, in the section of a peer.
#[derive(Debug)]
pub struct Consumer {
    slots: u64,
    mask: u64,
    position: u64,
    acknowledged: u64,
}

impl Consumer {
    /// The consumer of the ring of `count` slots (a power of two) at offset `slots`, from its first slot on.
    pub fn new(slots: u64, count: u32) -> Self {
        Self { slots, mask: u64::from(count) - 1, position: 0, acknowledged: 0 }
    }

    /// The stamp of the next message, if it is there.
    ///
    /// # Errors
    ///
    /// A stamp with the right number that says what no producer says.
    #[inline]
    pub fn peek(&self, memory: &impl Memory) -> Result<Option<Stamp>, Fault> {
        let word = memory.load(self.at(self.position), Ordering::Acquire);
        let stamp = Stamp::unpack(word);
        if stamp.sequence != Stamp::sequence_at(self.position) || stamp.kind == 0 {
            return Ok(None);
        }
        let len = usize::from(stamp.len);
        let sound = match stamp.kind {
            KIND_INLINE => len <= MAX_INLINE && slots_for(len) <= self.mask + 1,
            KIND_FRAGMENT | KIND_OFFER | KIND_DONE => len == size_of::<Descriptor>(),
            _ => false,
        };
        if sound { Ok(Some(stamp)) } else { Err(Fault { what: "stamp", value: word }) }
    }

    /// Copies the bytes of the message that [`Consumer::peek`] showed.
    pub fn read(&self, memory: &impl Memory, stamp: Stamp, to: &mut [u8]) {
        let to = &mut to[..usize::from(stamp.len)];
        for (n, piece) in to.chunks_mut(SLOT_PAYLOAD).enumerate() {
            memory.read(self.at(self.position + n as u64) + 8, piece);
        }
    }

    /// Copies the descriptor of the message that [`Consumer::peek`] showed.
    pub fn descriptor(&self, memory: &impl Memory) -> Descriptor {
        let mut descriptor = Descriptor::new_zeroed();
        memory.read(self.at(self.position) + 8, descriptor.as_mut_bytes());
        descriptor
    }

    /// Steps behind the message that [`Consumer::peek`] showed. Its bytes still stand until it is acknowledged.
    pub fn advance(&mut self, stamp: Stamp) {
        self.position += slots_for(usize::from(stamp.len));
    }

    /// Slots that were stepped over but not yet acknowledged.
    pub fn unacknowledged(&self) -> u64 {
        self.position - self.acknowledged
    }

    /// Whether so much is unacknowledged that the producer may soon want to know.
    pub fn is_acknowledgement_due(&self) -> bool {
        self.unacknowledged() * 4 > self.mask
    }

    /// Says at offset `consumed`, in the consumer's own section, that all stepped-over slots may be written again.
    pub fn acknowledge(&mut self, memory: &impl Memory, consumed: u64) {
        self.acknowledged = self.position;
        // Release: the copies above are done before the producer may overwrite.
        memory.store(consumed, self.position, Ordering::Release);
    }

    #[inline]
    fn at(&self, position: u64) -> u64 {
        self.slots + (position & self.mask) * SLOT
    }
}
