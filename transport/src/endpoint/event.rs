//! Peers, fragments, inboxes, events: an endpoint's values.

use vmshm_abi::ring::{Descriptor, SLOT, STAMP, Stamp};

use crate::error::PeerError;

/// A peer that an endpoint has met; only meaningful to the endpoint that gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Peer(pub(crate) u32);

impl Peer {
    /// A small number, counted from 0 in the order in which the endpoint met its peers; see
    /// [`Endpoint::forget`](crate::Endpoint::forget).
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A piece of our section to put a payload in.
#[derive(Debug, PartialEq, Eq)]
pub struct Fragment {
    pub(crate) offset: u64,
    pub(crate) len: usize,
    pub(crate) address: *mut u8,
    /// The memory is of that for messages.
    pub(crate) is_message: bool,
}

// SAFETY: the address is that of shared memory, which no thread owns more than another.
unsafe impl Send for Fragment {}

impl Fragment {
    /// Address of the payload: valid for [`Fragment::capacity`] bytes until the fragment is freed or its endpoint
    /// dropped.
    pub fn ptr(&self) -> *mut u8 {
        self.address
    }

    /// Capacity, bytes.
    pub fn capacity(&self) -> usize {
        self.len
    }

    /// Offset in the region.
    pub fn offset(&self) -> u64 {
        self.offset
    }
}

/// Longest message of [`Endpoint::send_eager`](crate::Endpoint::send_eager), and of those that an inbox takes whole, with its header,
/// bytes: more would leave the receiver's first level cache.
pub const MAX_EAGER: usize = (16 << 10) + 256;

/// Slots for the longest message.
const SLOTS: usize = (STAMP as usize + MAX_EAGER).div_ceil(SLOT as usize);

/// Where [`Endpoint::poll`](crate::Endpoint::poll) puts the bytes of an inline message. Each endpoint has one, always the same:
/// short messages are read several at a time, and wait here for the next polls.
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct Inbox {
    /// Messages begin in the middle of a page: see [`Inbox::eager`].
    _before: [u8; 2048],
    /// One message from its first byte on, or several short ones, each as it lay in its slot.
    slots: [[u8; SLOT as usize]; SLOTS],
    /// Offset of the message that was found last, bytes.
    at: usize,
    /// Short messages that were read together, which of them is the next, and how many are left.
    next: usize,
    left: usize,
    /// Their sender.
    peer: Peer,
}

impl Inbox {
    /// Most short messages that are read together.
    pub const RUN: u32 = 8;

    /// An empty inbox.
    pub fn new() -> Self {
        Self {
            _before: [0; 2048],
            slots: [[0; SLOT as usize]; SLOTS],
            at: 0,
            next: 0,
            left: 0,
            peer: Peer(0),
        }
    }

    /// The first `len` bytes.
    #[inline]
    pub fn bytes(&self, len: usize) -> &[u8] {
        &self.slots.as_flattened()[self.at..][..len]
    }

    /// The first `len` bytes, to change them in place.
    #[inline]
    pub fn bytes_mut(&mut self, len: usize) -> &mut [u8] {
        &mut self.slots.as_flattened_mut()[self.at..][..len]
    }

    /// The tag and the length of the next message, if it has come together with the last one and its tag is `wanted`: what
    /// [`Endpoint::poll`](crate::Endpoint::poll) would find, only sooner.
    #[inline(always)]
    pub fn next_if(&mut self, wanted: impl FnOnce(u8) -> bool) -> Option<(u8, usize)> {
        if self.is_empty() {
            return None;
        }
        let slot = self.slots.get(self.next)?;
        let stamp = Stamp::unpack(u64::from_ne_bytes(*slot.first_chunk()?));
        if !wanted(stamp.tag) {
            return None;
        }
        self.at = self.next * SLOT as usize + STAMP as usize;
        self.next += Self::slots_of(stamp.len.into());
        self.left -= 1;
        Some((stamp.tag, usize::from(stamp.len)))
    }

    /// Whether there is no message that [`Endpoint::poll`](crate::Endpoint::poll) would find here.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.left == 0
    }

    /// Slots that a message of `len` bytes takes here: the next one's place is as much further.
    #[inline(always)]
    pub const fn slots_of(len: usize) -> usize {
        (STAMP as usize + len).div_ceil(SLOT as usize)
    }

    /// The tag and the bytes of a message that was seen [at a glance](crate::Glance::Short), by its place: the slot in which it begins.
    #[inline(always)]
    pub fn seen(&mut self, at: u32) -> Option<(u8, &mut [u8])> {
        let slots = self.slots.get_mut(at as usize..)?;
        let (stamp, body) = slots.as_flattened_mut().split_first_chunk_mut()?;
        let stamp = Stamp::unpack(u64::from_ne_bytes(*stamp));
        Some((stamp.tag, body.get_mut(..usize::from(stamp.len))?))
    }

    /// Leaves `count` messages seen at a glance, from this place on, to [`Endpoint::poll`](crate::Endpoint::poll).
    pub fn leave(&mut self, peer: Peer, place: u32, count: u32) {
        (self.peer, self.next, self.left) = (peer, place as usize, count as usize);
    }

    /// As [`Inbox::next_if`], whatever its tag.
    #[inline(always)]
    pub(crate) fn next(&mut self) -> Option<Event> {
        let (tag, len) = self.next_if(|_| true)?;
        Some(Event::Message { peer: self.peer, tag, len })
    }

    /// Where a single message goes.
    #[inline(always)]
    pub(crate) fn whole(&mut self) -> &mut [u8] {
        self.at = 0;
        self.slots.as_flattened_mut()
    }

    /// Where a message goes as it lies in its slots, with its stamp.
    #[inline(always)]
    pub(crate) fn slots(&mut self) -> &mut [[u8; SLOT as usize]] {
        &mut self.slots
    }

    /// Where the bytes of an eager message go, which is then as if it had lain in slots.
    ///
    /// They begin in the middle of a page. A caller copies from there, with a `memcpy` that on AMD's Zen crawls where it writes up to 64
    /// bytes behind where it reads, modulo a page; programs' buffers begin at the start of one, or where `malloc` does.
    #[inline(always)]
    pub(crate) fn eager(&mut self, tag: u8, len: usize) -> &mut [u8] {
        let stamp = Stamp { sequence: 0, len: len as u16, kind: 0, tag };
        let (first, body) = self.slots.as_flattened_mut().split_at_mut(STAMP as usize);
        first.copy_from_slice(&stamp.pack().to_ne_bytes());
        &mut body[..len]
    }

    /// Where messages go that are read together; they are there after [`Inbox::hold`].
    #[inline(always)]
    pub(crate) fn run(&mut self) -> &mut [[u8; SLOT as usize]] {
        &mut self.slots[..Self::RUN as usize]
    }

    /// The first `count` slots hold short messages of `peer`.
    #[inline(always)]
    pub(crate) fn hold(&mut self, peer: Peer, count: usize) {
        (self.peer, self.next, self.left) = (peer, 0, count);
    }
}

impl Default for Inbox {
    fn default() -> Self {
        Self::new()
    }
}

/// Event that [`Endpoint::poll`](crate::Endpoint::poll) found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// An inline message; its bytes are in the inbox.
    Message {
        /// Its sender.
        peer: Peer,
        /// The sender's tag.
        tag: u8,
        /// Bytes in the inbox.
        len: usize,
    },
    /// An eager message, whose payload lies in the sender's section until [`Endpoint::consume`](crate::Endpoint::consume) gives
    /// it back. A hostile sender may change it at any time: bytes that must be trusted are to be copied first.
    Fragment {
        /// Its sender.
        peer: Peer,
        /// The sender's tag.
        tag: u8,
        /// Offset of the payload in the region; [`Endpoint::address`](crate::Endpoint::address) says where that is in this
        /// process.
        offset: u64,
        /// Bytes of the payload.
        len: usize,
    },
    /// The receiver has consumed a fragment; its memory is ours again.
    Sent {
        /// Its receiver.
        peer: Peer,
        /// The token given to [`Endpoint::send_fragment`](crate::Endpoint::send_fragment).
        token: u64,
    },
    /// The receiver has gone before it consumed a fragment; its memory is ours again.
    Unsent {
        /// Its receiver, which is gone.
        peer: Peer,
        /// The token given to [`Endpoint::send_fragment`](crate::Endpoint::send_fragment).
        token: u64,
    },
    /// A peer offers memory to pull from with [`Endpoint::get`](crate::Endpoint::get), until
    /// [`Endpoint::finish`](crate::Endpoint::finish) is called.
    Offer {
        /// The peer that offers.
        peer: Peer,
        /// The sender's tag.
        tag: u8,
        /// The memory that is offered; the cookie is the sender's.
        offer: Descriptor,
    },
    /// The receiver of an offer has finished with it.
    Done {
        /// The peer that has finished.
        peer: Peer,
        /// The tag that it gave.
        tag: u8,
        /// The cookie of the offer.
        cookie: u64,
    },
    /// The peer is gone. Reported once, after what was under way to it.
    Gone {
        /// Which peer.
        peer: Peer,
        /// Why.
        why: PeerError,
    },
}
