//! Activity lines: which of a section's endpoints have something new for us.
//!
//! A sending section has one line of 32 counters for each receiver. Its slot `s` counts up counter `s % 32` after it has
//! published a message, unless the receiver says that it polls that ring anyway. So a receiver looks at one line for a whole
//! section of silent peers, and touches no memory of those that have never sent to it. The counters are a hint: a receiver
//! that misses one (it may stop polling a ring just when the sender believes it does not) still finds the message by looking
//! at one silent ring now and then.
//!
//! Four counters share a word. One that overflows carries into the next, which costs a look in vain.

use core::sync::atomic::Ordering;

use vmshm_abi::section::ACTIVITY_WORDS;
use vmshm_abi::{EndpointId, LINE};

use crate::memory::Memory;
use crate::region::Section;

const WORDS: usize = ACTIVITY_WORDS as usize;

/// Counters in a word. A ring is full long before one has come around.
const COUNTERS: u64 = u32::BITS as u64 / ACTIVITY_WORDS;
const COUNTER_BITS: u64 = u64::BITS as u64 / COUNTERS;

/// Tells `receiver` that slot `slot` of our own `section` has published something for it.
pub fn bump(memory: &impl Memory, section: &Section, slot: u32, receiver: EndpointId) {
    let line = section.entry.offset + section.layout.activity_line(receiver.0);
    // Release: a receiver that sees the count sees the message.
    let slot = u64::from(slot);
    let one = 1 << (slot / ACTIVITY_WORDS % COUNTERS * COUNTER_BITS);
    memory.fetch_add(line + slot % ACTIVITY_WORDS * 8, one, Ordering::Release);
}

/// Whether slot `slot` may have sent, by what [`Activity::look`] said.
pub fn may_have_sent(changed: u32, slot: u32) -> bool {
    changed >> (slot % u32::BITS) & 1 == 1
}

/// A receiver's view of one section's line.
#[derive(Debug)]
pub struct Activity {
    line: u64,
    seen: [u64; WORDS],
    /// Nobody has looked yet.
    is_new: bool,
}

impl Activity {
    /// The line that `section` has for `receiver`, all of it news.
    pub fn new(section: &Section, receiver: EndpointId) -> Self {
        let line = section.entry.offset + section.layout.activity_line(receiver.0);
        debug_assert!(line.is_multiple_of(LINE));
        Self { line, seen: [0; WORDS], is_new: true }
    }

    /// The line that `section` has for `receiver`, which is not live yet: counts so far were for earlier lives.
    pub fn from_now(memory: &impl Memory, section: &Section, receiver: EndpointId) -> Self {
        let mut activity = Self::new(section, receiver);
        activity.look(memory);
        activity
    }

    /// Which counters have changed since the last look, one bit each; at the first look all have.
    pub fn look(&mut self, memory: &impl Memory) -> u32 {
        let now: [u64; WORDS] = memory.load_words(self.line);
        let differs = self.seen.iter().zip(now).fold(0, |bits, (seen, now)| bits | (seen ^ now));
        if differs == 0 && !self.is_new {
            return 0;
        }
        // Pairs with `bump`.
        memory.fence(Ordering::Acquire);
        let seen = core::mem::replace(&mut self.seen, now);
        if core::mem::take(&mut self.is_new) {
            return u32::MAX;
        }
        let counter = |words: &[u64; WORDS], n: u32| {
            let n = u64::from(n);
            (words[(n % ACTIVITY_WORDS) as usize] >> (n / ACTIVITY_WORDS * COUNTER_BITS)) as u16
        };
        (0..u32::BITS).filter(|n| counter(&seen, *n) != counter(&now, *n)).fold(0, |bits, n| bits | 1 << n)
    }
}
