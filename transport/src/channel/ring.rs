//! The ring of one endpoint towards one peer: a single producer, a single consumer, and no shared counter.
//!
//! The producer publishes a message by storing its stamp last; the next message is there for the consumer when the stamp carries
//! the next sequence number. Credit: the consumer acknowledges slots by a word in its own section, and the producer looks there
//! only when it runs out of room. docs/protocol.md has all steps with their orderings.

mod consumer;
mod join;
mod producer;

use vmshm_abi::ring::{KIND_PADDED, SLOT, STAMP, Stamp};

pub use consumer::Consumer;
pub use join::{join_long, join_short};
pub use producer::Producer;

/// Bytes of a message that lie in the slot of its stamp.
const HEAD: usize = (SLOT - STAMP) as usize;

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
