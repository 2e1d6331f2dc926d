//! Collective operations of a group of processes over single-writer blocks.
//!
//! Each rank of a [`Group`] has one block of its own section, which it alone writes and all others read. A rank *publishes*: it
//! writes a payload to a slot of its block, then the slot's stamp, with the step of the group's history that the payload belongs
//! to. Readers wait for that stamp, then copy.
//!
//! ```text
//! block   ┌─────┬──────┬──────────────────────┬─────────────────────┐   ┌──────────────────┐
//!         │ tag │ done │ heads, one a slot:   │ bodies, one a slot: │   │ chunks, one a    │
//!         │     │      │ stamp, short payload │ payload to 4 KiB    │   │ slot: long ones  │
//!         └─────┴──────┴──────────────────────┴─────────────────────┘   └──────────────────┘
//! ```
//!
//! All ranks go through the same *steps*, since they call the same operations in the same order. A step uses one slot,
//! and a slot is used again only when its readers are known to have finished, by a later stamp of theirs or by their `done`
//! word. So no operation waits for more than the data that it needs, and none ends with a barrier.
//!
//! Zero-copy: a long operand that lies in its rank's own section anyway is *exposed* instead, and read in place.
//!
//! Where ranks do not know one another's lengths, parts that are too long for a slot are left to the caller ([`Late`]).
//!
//! Nothing here knows of MPI: payloads are bytes, and the operator that joins two of them is the caller's ([`Combine`]), as is
//! waiting ([`Pause`]).

mod barrier;
mod bcast_scatter;
mod error;
mod exchange;
mod group;
mod layout;
mod pause;
mod reduce;
mod release;
mod short;
mod step;
mod vector;
mod zero_copy;

pub use error::CollError;
pub use group::{Group, Rank};
pub use layout::{BLOCK, MAX_CHUNK, MAX_CHUNKS, MIN_CHUNK, MIN_CHUNKS, Part, SLOTS, chunks_len, is_chunk};
pub use pause::Pause;
pub use reduce::Combine;
pub use release::PendingRelease;
pub use vector::{Given, Late};
