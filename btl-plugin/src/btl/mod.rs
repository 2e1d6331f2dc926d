//! The byte transfer layer: a verb of Open MPI's interface a file.
//!
//! - `component`: what Open MPI calls once: register, init. `module`: what it can call, with the limits that hold.
//! - `procs`: add_procs, del_procs.
//! - `prepare`: alloc, free, prepare_src. `send`, `sendi`.
//! - `register_mem`: register_mem, deregister_mem. `get`, `put` (and flush), `atomic`.
//! - `deliver`: messages to those that have registered their tags.
//! - `progress`: all that only goes on when it is asked for.
//! - `traffic`: what went to and from each process, as performance variables.
//! - `finalize`: the end.

mod atomic;
mod component;
mod deliver;
mod finalize;
mod get;
mod module;
mod prepare;
mod procs;
mod progress;
mod put;
mod register_mem;
mod send;
mod sendi;
mod traffic;

pub use component::{close, init, open, register};
pub use progress::progress;
