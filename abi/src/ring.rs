//! Connections: the ring of one endpoint towards one peer, and its acknowledgement of the peer's ring.
//!
//! A ring is an array of 32-byte slots. A message takes as many slots in a row as it needs, and goes on at the ring's first slot
//! behind its last. It begins with its *stamp*: sequence number, kind, tag and length in one 64-bit word, stored
//! last, so that one cache-line transfer carries a small message whole. The payload follows the stamp without gaps.
//! The word where the next message's stamp will be is zeroed before a message is published, so that no byte of an older
//! payload is ever taken for a stamp.

use core::mem::{offset_of, size_of};

#[cfg(feature = "zerocopy")]
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::line::{LINE, LINE_PAIR};

/// Header of an endpoint's connection with one peer, and its acknowledgement of the peer's ring. 128 bytes, followed by the
/// slots of its own ring.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(feature = "zerocopy", derive(FromBytes, IntoBytes, Immutable, KnownLayout))]
#[repr(C)]
pub struct ConnectionHeader {
    /// Which life of the peer's slot this connection is for.
    pub peer_incarnation: u64,
    /// Which life of the owner's slot made it.
    pub incarnation: u64,
    /// Number of the peer, see [`super::region::EndpointId`].
    pub peer: u32,
    /// Slots of the ring.
    pub slots: u32,
    /// [`POLLED`], [`CLOSED`] or 0.
    pub polled: u64,
    /// Zero.
    pub reserved0: [u64; 4],
    /// Slots of the peer's ring that the owner has consumed, counted from the connection's start. On its own line.
    pub consumed: u64,
    /// Traffic of the connection. Behind the acknowledgement, which its reader looks at only where credit is short.
    pub told: Told,
}

/// What the owner of a connection tells of its traffic, now and then: for the host, no endpoint reads it. 56 bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[cfg_attr(feature = "zerocopy", derive(FromBytes, IntoBytes, Immutable, KnownLayout))]
#[repr(C)]
pub struct Told {
    /// Inline messages that it has received from the peer.
    pub inline: u64,
    /// Fragments that it has received from the peer.
    pub fragments: u64,
    /// Bytes of these.
    pub fragment_bytes: u64,
    /// Reads of the peer's section in place.
    pub gets: u64,
    /// Bytes of these.
    pub get_bytes: u64,
    /// Writes to the peer's section.
    pub puts: u64,
    /// Bytes of these.
    pub put_bytes: u64,
}

/// In [`ConnectionHeader::polled`]: the owner polls the peer's ring itself, so that the peer need not count up the activity word.
pub const POLLED: u64 = 1;
/// In [`ConnectionHeader::polled`]: the owner has given the peer up, and nothing of this connection holds any more.
pub const CLOSED: u64 = 2;

/// Bytes of a [`ConnectionHeader`] before its slots.
pub const CONNECTION_LEN: u64 = LINE_PAIR;

const _: () = {
    assert!(size_of::<ConnectionHeader>() as u64 == CONNECTION_LEN);
    assert!(offset_of!(ConnectionHeader, peer_incarnation) == 0);
    assert!(offset_of!(ConnectionHeader, incarnation) == 8);
    assert!(offset_of!(ConnectionHeader, peer) == 16);
    assert!(offset_of!(ConnectionHeader, slots) == 20);
    assert!(offset_of!(ConnectionHeader, polled) == 24);
    assert!(offset_of!(ConnectionHeader, reserved0) == 32);
    assert!(offset_of!(ConnectionHeader, consumed) as u64 == LINE);
    assert!(offset_of!(ConnectionHeader, told) == 72);
    assert!(size_of::<Told>() == 56);
};

/// Bytes of a slot: two short messages share a cache line.
pub const SLOT: u64 = LINE / 2;

/// Bytes of a stamp.
pub const STAMP: u64 = 8;

/// Longest payload of an inline message, bytes: 1 KiB with a header, a good quarter of the transport's rings.
pub const MAX_INLINE: usize = 1080;

/// Fewest slots of a ring.
pub const MIN_SLOTS: u32 = 8;

/// Most slots of a ring.
pub const MAX_SLOTS: u32 = 1 << 16;

/// The payload follows the stamp.
pub const KIND_INLINE: u8 = 1;
/// The slot holds a [`Descriptor`] of a payload in the sender's section, which is the sender's again when the
/// slot is acknowledged (eager).
pub const KIND_FRAGMENT: u8 = 2;
/// The slot holds a [`Descriptor`] of memory that the receiver may pull from until it says [`KIND_DONE`]
/// (rendezvous).
pub const KIND_OFFER: u8 = 3;
/// The slot holds the [`Descriptor`] of an offer that its receiver has finished with.
pub const KIND_DONE: u8 = 4;
/// As [`KIND_INLINE`], and the slot behind the payload is skipped, so that the next message begins with a line.
pub const KIND_PADDED: u8 = 5;

/// The first word of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Low 32 bits of the message's position in the stream of slots, plus 1.
    pub sequence: u32,
    /// Bytes of payload of the whole message; for descriptors, 24.
    pub len: u16,
    /// One of the `KIND_` constants.
    pub kind: u8,
    /// The sender's tag; the transport does not look at it.
    pub tag: u8,
}

impl Stamp {
    /// Takes a stamp apart.
    pub const fn unpack(word: u64) -> Self {
        Self {
            sequence: word as u32,
            len: (word >> 32) as u16,
            kind: (word >> 48) as u8,
            tag: (word >> 56) as u8,
        }
    }

    /// Puts a stamp together.
    pub const fn pack(self) -> u64 {
        self.sequence as u64 | (self.len as u64) << 32 | (self.kind as u64) << 48 | (self.tag as u64) << 56
    }

    /// Whether the payload follows the stamp.
    pub const fn is_inline(self) -> bool {
        self.kind == KIND_INLINE || self.kind == KIND_PADDED
    }

    /// The sequence number that the slot at `position` of the stream carries.
    pub const fn sequence_at(position: u64) -> u32 {
        (position as u32).wrapping_add(1)
    }
}

/// Where a payload lies: the body of [`KIND_FRAGMENT`], [`KIND_OFFER`] and [`KIND_DONE`]. 24 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "zerocopy", derive(FromBytes, IntoBytes, Immutable, KnownLayout))]
#[repr(C)]
pub struct Descriptor {
    /// First byte of the payload, from the start of the region; inside the sender's section.
    pub offset: u64,
    /// Bytes of the payload.
    pub len: u64,
    /// The sender's mark, given back to it unchanged by [`KIND_DONE`].
    pub cookie: u64,
}

const _: () = {
    assert!(size_of::<Descriptor>() == 24);
    assert!(offset_of!(Descriptor, len) == 8);
    assert!(offset_of!(Descriptor, cookie) == 16);
    assert!(size_of::<Descriptor>() as u64 + STAMP <= SLOT);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_survive_packing() {
        let s = Stamp { sequence: u32::MAX, len: 0xabcd, kind: KIND_DONE, tag: 0xfe };
        assert_eq!(Stamp::unpack(s.pack()), s);
    }

    #[test]
    fn the_first_slot_has_sequence_one_and_zeroed_memory_never_matches_it() {
        assert_eq!(Stamp::sequence_at(0), 1);
        assert_eq!(Stamp::sequence_at(u64::from(u32::MAX)), 0);
    }
}
