//! The collective component `vmshm`: barrier, broadcast, reductions and exchanges among the processes of one region.
//!
//! It is a component of its own for Open MPI, found as `mca_coll_vmshm.so`; that must be a link to `mca_btl_vmshm.so`, so
//! that both share one attached endpoint. What the members of a communicator do together is
//! [`vmshm_transport::collective`]; here is the translation:
//!
//! - `component`: parameters, and which communicators we take.
//! - `state`: what a communicator's module knows: its group, made when it is first used.
//! - `operations`: the functions that Open MPI calls.
//! - `data`: buffers of any datatype as bytes.
//! - `levels`: the same in two levels, for members of several regions, where the user wants that.
//! - `combine`: Open MPI's operations on those bytes.
//!
//! What we do not gain at is handed to the component below us.

mod combine;
mod component;
mod data;
mod levels;
mod operations;
mod state;

pub use component::{comm_query, init_query, register};
pub use state::close;
