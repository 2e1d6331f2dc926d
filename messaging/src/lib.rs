//! Messages over vmshm: what every plugin needs above [`vmshm_transport`].
//!
//! An [`Engine`] owns an endpoint, its peers, what is in flight to them, a queue per peer, memory set aside for messages, and
//! the rendezvous of long messages from ordinary memory. It knows no MPI and no C, has no static and no lock: several engines
//! work beside each other in a process, and each is used by one thread at a time.
//!
//! **Upcalls are values.** [`Engine::poll`] returns an [`Upcall`]: a message, a fragment, a piece to be copied, a completed or
//! failed send or get, a lost peer. Nothing is called back, so that a caller gives up its lock before it acts on one.
//! `S` is what completes a send, `G` what completes a get; both are moved, never looked into.
//!
//! **Sending has two forms.** [`Engine::try_send`] and [`Engine::try_send_fragment`] answer [`Refused::Full`] and keep nothing.
//! [`Engine::send`] and [`Engine::send_fragment`] queue what finds no room, in order.
//!
//! Each file uses only those before it:
//!
//! | file | subject |
//! |---|---|
//! | `params` | tuning, as plain values |
//! | `idle`, `sleep` | when to stop polling; sleeping on the doorbell |
//! | `distance` | how far a reader's core is, and copies past the caches |
//! | `cache_evict` | evicting written lines to where readers find them fast |
//! | `rendezvous/` | the protocol for long messages: wire format, sources, gets, chunks, prefixes |
//! | `in_flight`, `memory_wait` | messages under way; waits for memory |
//! | `peer`, `upcall` | one peer's state and queue; what has happened |
//! | `engine` | the engine, its peers and their loss |
//! | `memory` | fragments, bounce buffers, chunks |
//! | `send` | sending, at once or queued |
//! | `serve`, `get` | both sides of the rendezvous |
//! | `poll` | from events to upcalls |

mod cache_evict;
mod distance;
mod engine;
mod get;
mod idle;
mod in_flight;
mod memory;
mod memory_wait;
mod params;
mod peer;
mod poll;
mod rendezvous;
mod send;
mod serve;
mod sleep;
#[cfg(test)]
mod tests;
mod upcall;

pub use cache_evict::Evictor;
pub use engine::{Engine, NoMemory};
pub use idle::IdleAction;
pub use memory::Bounce;
pub use params::{Params, Pipeline};
pub use rendezvous::{BY_KEY, Get, LEAST, Prefix, is_reserved};
pub use send::{Refused, Unsent};
pub use sleep::{Sleeping, Waker};
pub use upcall::{Piece, Upcall};
