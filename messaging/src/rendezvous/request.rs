//! Requests for exposed memory as they travel, and the tags of the rendezvous.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The tag of requests. Below it are UCX's; Open MPI gives these to the BTLs themselves.
pub(crate) const REQUEST: u8 = 0x20;

/// The tag of the chunks of the first request; the others follow.
const CHUNK: u8 = REQUEST + 1;

/// Requests of one peer that are served in turn, and tags of chunks. Later requests wait.
pub(crate) const ACTIVE: u64 = 30;

/// Requests of one peer for keyed sources that wait or are served, at most: these may be repeated for ever, and must not fill
/// the memory of the process that serves them.
pub(crate) const MAX_REQUESTS: usize = 1024;

/// Whether a tag is the engine's own, so that no message of a caller may have it.
#[inline]
pub const fn is_reserved(tag: u8) -> bool {
    tag >= REQUEST && tag < CHUNK + ACTIVE as u8
}

/// Whether a tag is that of a chunk.
#[inline]
pub(crate) const fn is_chunk(tag: u8) -> bool {
    tag >= CHUNK && is_reserved(tag)
}

/// The tag of the chunks of a peer's request with this number.
pub(crate) fn tag_of(number: u64) -> u8 {
    CHUNK + (number % ACTIVE) as u8
}

/// How many requests lie between one with the number `first` and the next one whose chunks have this tag.
pub(crate) fn distance(first: u64, tag: u8) -> usize {
    ((u64::from(tag - CHUNK) + ACTIVE - first % ACTIVE) % ACTIVE) as usize
}

/// A request, as it travels. The key of a keyed source follows.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Request {
    /// The source's number.
    pub source: u64,
    /// Its first byte that is wanted.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

impl Request {
    /// A request and its key, if it has one; `None` for what is no request.
    pub fn read(bytes: &[u8]) -> Option<(Self, Option<u64>)> {
        let (request, rest) = Self::read_from_prefix(bytes).ok()?;
        match rest.len() {
            0 => Some((request, None)),
            _ => Some((request, Some(u64::from_ne_bytes(rest.try_into().ok()?)))),
        }
    }
}
