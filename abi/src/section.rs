//! The layout of a section. Its owner alone writes it, but for the host, which overwrites all but the count of each slot's lives
//! before it assigns the section to a VM. A section that is released to processes of the host keeps what its last owner left.

use core::mem::{offset_of, size_of};

#[cfg(feature = "zerocopy")]
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::line::{LINE, LINE_PAIR};

/// Bytes of a chunk, the unit in which the processes of a section share its heap.
pub const CHUNK: u64 = 64 << 10;

/// Offset of the endpoint slots, in bytes from the start of the section.
pub const SLOTS_OFFSET: u64 = 4096;

/// Bytes of an endpoint slot.
pub const SLOT_LEN: u64 = 256;

/// The slot is free.
pub const STATE_FREE: u8 = 0;
/// A process has taken the slot and is preparing it.
pub const STATE_ATTACHING: u8 = 1;
/// The endpoint can be reached.
pub const STATE_LIVE: u8 = 2;
/// The endpoint's process has left or died; what it held is being taken back.
pub const STATE_GONE: u8 = 3;

/// In [`EndpointSlot::doorbell`]: the process may sleep until its doorbell is rung. A peer that has written something for it
/// must look at `sleeping` then, behind a full fence.
pub const MAY_SLEEP: u64 = 1;
/// In [`EndpointSlot::doorbell`]: the process can ring the doorbells of others, and rings those of peers that may sleep.
pub const RINGS: u64 = 2;

/// Endpoint slot of a section: a process, as its peers know it.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(feature = "zerocopy", derive(FromBytes, IntoBytes, Immutable, KnownLayout))]
#[repr(C)]
pub struct EndpointSlot {
    /// Incarnation and state in one word, see [`SlotState`]. The incarnation grows with every life of the slot.
    pub state: u64,
    /// Offset from the start of the section of the endpoint's directory: one word for each endpoint of the
    /// region, the offset from the start of the section of the connection with that peer, or 0.
    pub directory: u64,
    /// Process id in its own kernel.
    pub pid: u64,
    /// Boot id of that kernel (`/proc/sys/kernel/random/boot_id`), whose locks tell its own processes which of them live.
    pub boot_id: [u64; 2],
    /// The last incarnation whose process was found dead, for peers to tell death from leaving.
    pub died: u64,
    /// [`MAY_SLEEP`] and [`RINGS`], added up.
    pub doorbell: u64,
    /// Zero.
    pub reserved0: [u64; 9],
    /// Counts up while the process lives. Alone on its line pair: it changes, the words above do not.
    pub heartbeat: u64,
    /// Zero.
    pub reserved1: [u64; 7],
    /// Not 0 while the process sleeps, or is about to: twice the number of the sleep, plus 1 if it waits for
    /// acknowledgements too. Alone on its line.
    pub sleeping: u64,
    /// Zero.
    pub reserved2: [u64; 7],
}

const _: () = {
    assert!(size_of::<EndpointSlot>() as u64 == SLOT_LEN);
    assert!(offset_of!(EndpointSlot, state) == 0);
    assert!(offset_of!(EndpointSlot, directory) == 8);
    assert!(offset_of!(EndpointSlot, pid) == 16);
    assert!(offset_of!(EndpointSlot, boot_id) == 24);
    assert!(offset_of!(EndpointSlot, died) == 40);
    assert!(offset_of!(EndpointSlot, doorbell) == 48);
    assert!(offset_of!(EndpointSlot, reserved0) == 56);
    assert!(offset_of!(EndpointSlot, heartbeat) as u64 == LINE_PAIR);
    assert!(offset_of!(EndpointSlot, reserved1) == 136);
    assert!(offset_of!(EndpointSlot, sleeping) as u64 == LINE_PAIR + LINE);
    assert!(offset_of!(EndpointSlot, reserved2) == 200);
};

/// The state word of an endpoint slot: which life of the slot, and how far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotState {
    /// Which life, from 1; 48 bits.
    pub incarnation: u64,
    /// One of the `STATE_` constants.
    pub state: u8,
}

impl SlotState {
    /// Takes a state word apart.
    pub const fn unpack(word: u64) -> Self {
        Self { incarnation: word >> 8, state: (word & 0xff) as u8 }
    }

    /// Puts a state word together.
    pub const fn pack(self) -> u64 {
        self.incarnation << 8 | self.state as u64
    }
}

/// Words of an activity line, with four counters of 16 bits each. Sender slot `s` counts up counter `s / 8 % 4`, from the
/// lowest, of word `s % 8` of its receiver's line.
pub const ACTIVITY_WORDS: u64 = LINE / 8;

/// The owner word of a chunk that belongs to life `incarnation` of endpoint slot `slot`. It names the life, so that reaping
/// a dead process never takes what the slot's next process holds.
pub const fn chunk_owner(slot: u32, incarnation: u64) -> u64 {
    incarnation << 16 | (slot as u64 + 1)
}

/// Where the parts of a section begin, in bytes from its start.
///
/// It follows from four numbers of the checked region header alone: no section is trusted for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SectionLayout {
    /// Endpoint slots of a section.
    pub endpoints: u32,
    /// Endpoints of the whole region: sections times endpoints.
    pub total_endpoints: u32,
    /// Activity lines: one of 64 bytes for each endpoint of the region.
    pub activity: u64,
    /// Owner words of the chunks: 0 for a free chunk, else see [`chunk_owner`].
    pub owners: u64,
    /// First chunk of the heap.
    pub heap: u64,
    /// Number of chunks.
    pub chunks: u64,
}

impl SectionLayout {
    /// The layout of a section of `len` bytes in a region of `sections` sections with `endpoints` slots each,
    /// or `None` where it is too small to hold one chunk.
    pub const fn new(len: u64, sections: u32, endpoints: u32) -> Option<Self> {
        let total = sections as u64 * endpoints as u64;
        let activity = SLOTS_OFFSET + endpoints as u64 * SLOT_LEN;
        let owners = activity + total * LINE;
        if len < owners + CHUNK {
            return None;
        }
        // Each chunk costs its bytes and one owner word; what rounding loses is less than a chunk.
        let chunks = (len - owners) / (CHUNK + 8);
        let heap = (owners + chunks * 8).next_multiple_of(CHUNK);
        if heap >= len {
            return None;
        }
        let chunks = (len - heap) / CHUNK;
        if chunks == 0 {
            return None;
        }
        Some(Self { endpoints, total_endpoints: sections * endpoints, activity, owners, heap, chunks })
    }

    /// Offset of endpoint slot `slot`.
    pub const fn slot(&self, slot: u32) -> u64 {
        SLOTS_OFFSET + slot as u64 * SLOT_LEN
    }

    /// Offset of the activity line for the endpoint with number `receiver`.
    pub const fn activity_line(&self, receiver: u32) -> u64 {
        self.activity + receiver as u64 * LINE
    }

    /// Offset of the owner word of chunk `chunk`.
    pub const fn owner(&self, chunk: u64) -> u64 {
        self.owners + chunk * 8
    }

    /// Offset of chunk `chunk`.
    pub const fn chunk(&self, chunk: u64) -> u64 {
        self.heap + chunk * CHUNK
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_follow_each_other_within_the_section() {
        for len in [1 << 20, 3 << 20, 64 << 20, 1 << 30, 1 << 40, 7 << 40] {
            for sections in [1, 2, 3, 64, 1024] {
                for endpoints in [1, 4, 256, 1024] {
                    let Some(l) = SectionLayout::new(len, sections, endpoints) else { continue };
                    assert!(l.activity >= l.slot(endpoints));
                    assert!(l.owners >= l.activity_line(sections * endpoints));
                    assert!(l.heap >= l.owner(l.chunks), "{l:?}");
                    assert_eq!(l.heap % CHUNK, 0);
                    assert!(l.chunk(l.chunks) <= len);
                    assert!(l.chunk(l.chunks + 2) > len, "at most one chunk is lost: {l:?}");
                }
            }
        }
    }

    #[test]
    fn a_section_too_small_for_a_chunk_has_no_layout() {
        assert_eq!(SectionLayout::new(4096, 2, 4), None);
        assert!(SectionLayout::new(256 << 10, 2, 4).is_some());
    }

    #[test]
    fn state_words_survive_packing() {
        let s = SlotState { incarnation: (1 << 48) - 1, state: STATE_GONE };
        assert_eq!(SlotState::unpack(s.pack()), s);
    }
}
