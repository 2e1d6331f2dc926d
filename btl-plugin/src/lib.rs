//! The Open MPI byte transfer layer (BTL) `vmshm`: MPI messages between virtual machines over one shared region.
//!
//! This crate holds no transport logic, only the translation between Open MPI's C interface and
//! [`vmshm_transport`]:
//!
//! - [`ompi`]: all that depends on Open MPI's version, with `shim.c` for what its headers have as macros only.
//! - `component`: what Open MPI calls once: parameters, init, progress.
//! - `module`: what it calls for each peer and message.
//! - `fabric`: the endpoint, its peers and what waits for them, behind one lock.
//! - `lock`: that lock.
//! - `descriptor`: a message on its way from Open MPI to the transport.
//! - `idle`: when to stop looking for messages.
//! - `heard`: messages that come by other transports.
//! - `sleep`: sleeping on the doorbell.
//! - `stage`: long messages from memory that peers cannot read.
//! - `lead`: their beginnings, which come without being asked for.
//! - `rdma`: operations on a peer's registered memory.
//! - `atomic`: atomic ones.
//! - `mpool`: memory of the section for `MPI_Alloc_mem`.
//! - `heap`: memory of the section for the program's own large allocations.
//! - `coll`: collective operations.
//! - `osc`: one-sided communication, on windows in sections.
//! - `help`: how a problem is told to the user.
//!
//! No panic leaves this crate: every function that C calls is `extern "C"`, which aborts the process instead of
//! unwinding into Open MPI.

mod atomic;
mod coll;
mod component;
mod descriptor;
mod fabric;
mod heap;
mod heard;
mod help;
mod idle;
mod lead;
mod lock;
mod module;
mod mpool;
mod nearest;
pub mod ompi;
mod osc;
mod rdma;
mod sleep;
mod stage;
