//! The rendezvous: long messages from ordinary memory, which peers cannot read.
//!
//! ```text
//!     sender                                               receiver
//!     expose: a source ───── the caller's header ────────► get: a partial get
//!     accept ◄────────────────────────────── REQUEST ───── (which source, from where, how much)
//!     push ───── CHUNK, CHUNK, CHUNK ────────────────────► Upcall::Piece, landed: copied to where it belongs
//! ```
//!
//! Both copies run at the same time, each in one call and not in many of the caller's. The oldest requests are served in turn, a
//! chunk each, so that a short message does not wait for a long one. The chunks of a request come in order, and the tag of a
//! chunk says which request it belongs to: it needs no header.
//!
//! A source is exposed to one peer, which may ask for each byte once; or to any peer that shows a random key of 64 bits, which
//! may ask again and again.
//!
//! The beginning of a message, up to a chunk, need not be requested where a [`Prefix`] was sent ahead:
//!
//! ```text
//!     sender                                               receiver
//!     expose: a chunk, a progress word of 0
//!     send ────── the caller's header (where both are) ──► get
//!     fill, step by step: copy, raise the word             step by step: look at the word, copy
//!     unexpose ◄──────────────── the caller's word ─────── all is there
//! ```
//!
//! The progress word has a line of its own in the sender's section and counts the bytes that lie in the chunk. It is 0 before
//! the header goes, so that a receiver that knows the header never sees what the word was before. Neither side can count on the
//! other to go on: a receiver that has looked in vain for some time looks again in a later poll, and a sender keeps the chunk
//! until the caller ends the source.
//!
//! The memory of chunks is used in turn, never the one that came back last: that one lies in the caches of the process that
//! has just read it, from where the next copy would fetch it back line by line. In turn over a part of the second level cache,
//! both copies are half as fast again.

mod chunks;
mod gets;
mod prefix;
mod request;
mod requests;
mod source;

pub(crate) use chunks::{Chunks, RESERVED};
pub(crate) use gets::{Gets, PartialGet};
pub(crate) use prefix::PrefixBuffer;
pub(crate) use request::{MAX_REQUESTS, REQUEST, Request, is_chunk, tag_of};
pub(crate) use requests::Requests;
pub(crate) use source::{Audience, Source, Sources};

pub use gets::Get;
pub use prefix::Prefix;
pub use request::is_reserved;
pub use source::{BY_KEY, LEAST};
