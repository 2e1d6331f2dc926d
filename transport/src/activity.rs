//! Activity lines: which of a section's endpoints have something new for us.
//!
//! A sending member has one line for each receiver. Its slot `s` counts up word `s % 8` after it has published a message,
//! unless the receiver says that it polls that ring anyway. So a receiver looks at one line for a whole section of silent
//! peers. The words are a hint: a receiver that misses one (it may stop polling a ring just when the sender believes it
//! does not) still finds the message by looking at one silent ring now and then.

use core::sync::atomic::Ordering;

use vmshm_abi::section::ACTIVITY_WORDS;
use vmshm_abi::{EndpointId, LINE};

use crate::memory::Memory;
use crate::region::Section;

const WORDS: usize = ACTIVITY_WORDS as usize;

/// Tells `receiver` that slot `slot` of our own `section` has published something for it.
pub fn bump(memory: &impl Memory, section: &Section, slot: u32, receiver: EndpointId) {
    let line = section.entry.offset + section.layout.activity_line(receiver.0);
    // Release: whoever sees the count sees the message.
    memory.fetch_add(line + u64::from(slot) % ACTIVITY_WORDS * 8, 1, Ordering::Release);
}

/// A receiver's view of one section's line.
#[derive(Debug)]
pub struct Activity {
    line: u64,
    seen: Option<[u64; WORDS]>,
}

impl Activity {
    /// The line that `section` has for `receiver`.
    pub fn new(section: &Section, receiver: EndpointId) -> Self {
        let line = section.entry.offset + section.layout.activity_line(receiver.0);
        debug_assert!(line.is_multiple_of(LINE));
        Self { line, seen: None }
    }

    /// Which words have changed since the last look, one bit each; at the first look all have.
    pub fn look(&mut self, memory: &impl Memory) -> u8 {
        let now: [u64; WORDS] =
            core::array::from_fn(|n| memory.load(self.line + n as u64 * 8, Ordering::Acquire));
        let changed = match &self.seen {
            None => u8::MAX,
            Some(seen) => (0..WORDS).filter(|n| seen[*n] != now[*n]).fold(0, |bits, n| bits | 1 << n),
        };
        self.seen = Some(now);
        changed
    }
}
