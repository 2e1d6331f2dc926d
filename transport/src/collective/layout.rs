//! Layout of a rank's block.

use vmshm_abi::{LINE, LINE_PAIR};

/// Slots for payloads that do not travel with their stamp. More than `LAG` steps can be published before a slot comes
/// round again.
pub const SLOTS: u64 = if cfg!(loom) { 4 } else { 8 };

/// Slots for stamps, and for payloads that travel with them: this many short messages can be published before any was read.
pub const HEAD_SLOTS: u64 = if cfg!(loom) { 4 } else { 64 };

/// Lag: a rank that publishes a step has finished with all steps that lie more than this before it.
pub const LAG: u64 = if cfg!(loom) { 2 } else { 6 };

/// Offset of the tag, which names the block's owner: zero once the owner has left the group.
pub const TAG: u64 = 0;

/// Offset of the `done` word, the first step that the owner has not finished with. On a line of its own: it is written often, and
/// read seldom.
pub const DONE: u64 = LINE_PAIR;

const HEADS: u64 = 2 * LINE_PAIR;

/// Bytes from one head to the next. In its first line are the stamp, and a payload that travels with it.
const HEAD: u64 = LINE_PAIR;

/// Offset of a payload in its head: as aligned as any number that is computed with needs.
pub const HEAD_PAYLOAD: u64 = 16;

/// Longest payload of a head, bytes: the rest of the stamp's line. The processor of a reader that waits for the stamp fetches the
/// line behind it as well, and so takes it away from its writer.
pub const MAX_HEAD: u64 = LINE - HEAD_PAYLOAD;

const BODIES: u64 = HEADS + HEAD_SLOTS * HEAD;

/// Longest payload of a body, bytes.
pub const MAX_BODY: u64 = 4096;

/// Whether a payload goes through one slot and needs no chunks.
#[inline(always)]
pub const fn is_short(len: usize) -> bool {
    len as u64 <= MAX_BODY
}

/// Place and length of a rank's bytes.
pub type Part = (*mut u8, usize);

/// Bytes of a block, without its chunks.
pub const BLOCK: usize = (BODIES + SLOTS * MAX_BODY) as usize;

/// Chunks are longer than a body, bytes.
pub const MIN_CHUNK: usize = 2 * MAX_BODY as usize;

/// Longest chunk, bytes: a stamp has room for its length.
pub const MAX_CHUNK: usize = 1 << 20;

/// Whether chunks may have this many bytes: whole pages, from [`MIN_CHUNK`] to [`MAX_CHUNK`].
pub const fn is_chunk(bytes: usize) -> bool {
    bytes >= MIN_CHUNK && bytes <= MAX_CHUNK && bytes.is_multiple_of(4096)
}

/// Fewest chunks of a rank; it has at most [`MAX_CHUNKS`]. More than `LAG` steps can be published before one
/// comes round again.
pub const MIN_CHUNKS: u64 = 8;

// `Group::await_slot` counts on it.
const _: () = assert!(MIN_CHUNKS >= SLOTS && HEAD_SLOTS >= SLOTS);

/// See [`MIN_CHUNKS`].
pub const MAX_CHUNKS: u64 = 1024;

/// Whether there may be this many chunks: a power of two, from [`MIN_CHUNKS`] to [`MAX_CHUNKS`].
pub const fn is_count(chunks: u64) -> bool {
    chunks >= MIN_CHUNKS && chunks <= MAX_CHUNKS && chunks.is_power_of_two()
}

/// Bytes of `count` chunks of `chunk` bytes.
pub const fn chunks_len(chunk: usize, count: u64) -> usize {
    chunk * count as usize
}

/// Stride from one step's head to the next, slots. With a stride of one, a reader's processor would prefetch the next line, out
/// of the cache of the rank that is about to write it: processors look ahead by 2 KiB at most. An odd stride comes to all slots
/// in turn.
const STRIDE: u64 = 27;

const _: () = assert!(STRIDE % 2 == 1 && HEAD_SLOTS.is_power_of_two());

/// Offset of the stamp of a step in a block.
pub const fn head(step: u64) -> u64 {
    HEADS + step.wrapping_mul(STRIDE) % HEAD_SLOTS * HEAD
}

/// Offset of a short payload in a block.
pub const fn head_payload(step: u64) -> u64 {
    head(step) + HEAD_PAYLOAD
}

/// Offset of a payload of medium length in a block.
pub const fn body(step: u64) -> u64 {
    BODIES + step % SLOTS * MAX_BODY
}

/// Bits of a length: as few as the longest chunk needs, for the steps have the others. At ten million steps a second these last
/// for ten days of nothing else.
const LEN_BITS: u32 = 21;

/// Longest payload that a stamp can name, bytes.
const MAX_LEN: usize = (1 << LEN_BITS) - 1;

/// Length in the stamp of an exposed operand: greater than any that is published in a slot.
pub const EXPOSED: usize = MAX_LEN;

const _: () = assert!(MAX_CHUNK < EXPOSED);

/// The stamp of a step with `len` bytes of payload.
pub const fn stamp(step: u64, len: usize) -> u64 {
    step << LEN_BITS | len as u64
}

/// The step and the length in a stamp.
pub const fn stamped(stamp: u64) -> (u64, usize) {
    (stamp >> LEN_BITS, stamp as usize & MAX_LEN)
}
