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

mod activity;
mod arena;
mod cache;
pub mod collective;
mod copy;
mod endpoint;
mod error;
mod event;
mod heap;
mod link;
mod memory;
mod region;
mod ring;
mod runs;
mod sleep;
mod slot;
mod watch;
mod window;

#[cfg(feature = "std")]
pub mod attach;
#[cfg(feature = "std")]
mod driver;
#[cfg(feature = "std")]
mod hold;
#[cfg(feature = "std")]
mod keeper;
#[cfg(feature = "std")]
mod life;
#[cfg(feature = "std")]
mod lock;
#[cfg(feature = "std")]
mod lost;
#[cfg(feature = "std")]
mod mapping;
#[cfg(feature = "std")]
mod pages;
#[cfg(feature = "std")]
mod sleeper;
#[cfg(feature = "std")]
pub mod tune;

pub use copy::{from_shared as copy_from_shared, to_shared as copy_to_shared};
pub use endpoint::{Endpoint, Process};
pub use error::{AttachError, ConnectError, Fault, PeerError, SendError};
pub use event::{Event, Fragment, Inbox, Peer};
pub use heap::Purpose;
#[cfg(feature = "std")]
pub use mapping::{MappedFile, Mapping};
pub use memory::{CacheHints, Device, Memory};
pub use region::{Region, Section};
pub use runs::{Holder, Runs};
#[cfg(feature = "std")]
pub use sleeper::Sleeper;
pub use vmshm_abi as abi;
pub use vmshm_abi::ring::MAX_INLINE;
pub use watch::Watch;
pub use window::Window;

/// The protocols between processes, one by one, for the model checker and the raw benchmarks.
///
/// Applications use [`Endpoint`]; nothing in here is stable.
pub mod parts {
    pub use crate::activity::{Activity, bump};
    pub use crate::error::Fault;
    pub use crate::heap::{claim_run, free_all, free_run};
    pub use crate::link::{close, is_closed};
    pub use crate::ring::{Consumer, Producer};
    pub use crate::sleep::{announce, announced, retract};
    pub use crate::slot::{claim, ending, lives, publish, reap, state};
}
