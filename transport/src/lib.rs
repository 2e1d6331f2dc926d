//! Lock-free messages between processes and virtual machines over one shared region.
//!
//! An [`Endpoint`] is one process in one section of the region. It finds its peers by their
//! [`EndpointName`](vmshm_abi::EndpointName) and sends them
//!
//! - *inline* messages, which travel in the ring's own cache lines ([`Endpoint::send`]),
//! - *eager* fragments, whose payload lies in the sender's section ([`Endpoint::send_fragment`]),
//! - *rendezvous* offers of memory in its section, from which the receiver pulls ([`Endpoint::offer`],
//!   [`Endpoint::get`]).
//!
//! Nothing here blocks, spins or makes a system call: a full ring is reported as [`SendError::Full`], and
//! [`Endpoint::poll`] returns what has arrived, one [`Event`] at a time.
//!
//! A peer is a stranger: what is read from its section is copied once, checked, then used. A peer that breaks the
//! protocol, leaves or dies is reported by [`Event::Gone`] and never listened to again.
//!
//! The core is `no_std` and generic over [`Memory`]. With the feature `std` (the default), [`attach`] finds the
//! region of this host or guest, maps it, and watches over the lives of processes.
#![cfg_attr(not(feature = "std"), no_std)]

extern crate alloc;

mod channel;
pub mod collective;
mod endpoint;
mod error;
mod memory;
mod region;

#[cfg(feature = "std")]
pub mod attach;
#[cfg(feature = "std")]
pub mod tune;

#[cfg(feature = "std")]
pub use attach::Sleeper;
pub use channel::traffic::{Amount, Traffic};
pub use endpoint::{
    ChunkAllocator, Endpoint, Event, Fragment, Glance, Holder, Inbox, MAX_EAGER, MEDIUM, Packed, Peer,
    Process, Verdicts,
};
pub use error::{AttachError, ConnectError, Fault, PeerError, SendError};
pub use memory::copy::{
    self, from_shared as copy_from_shared, past_caches as copy_past_caches, to_far as copy_to_far,
    to_shared as copy_to_shared,
};
pub use memory::{CacheHints, Device, Memory, Place, Window, likely_word};
#[cfg(feature = "std")]
pub use memory::{MappedFile, Mapping};
pub use region::chunks::Purpose;
pub use region::{Region, Section};
pub use vmshm_abi as abi;
pub use vmshm_abi::ring::MAX_INLINE;

/// The protocols between processes, one by one, for the model checker and the raw benchmarks.
///
/// Applications use [`Endpoint`]; nothing in here is stable.
pub mod parts {
    pub use crate::channel::activity::{Activity, bump};
    pub use crate::channel::connection::{close, is_closed};
    pub use crate::channel::doorbell::{announce, announced, retract};
    pub use crate::channel::ring::{Consumer, Producer};
    pub use crate::error::Fault;
    pub use crate::region::chunks::{claim_run, free_all, free_run};
    pub use crate::region::slot::{claim, ending, lives, publish, reap, state};
}
