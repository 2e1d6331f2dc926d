//! Tests that cross the rooms of vmshm.
//!
//! The library holds what the test programs share:
//!
//! - [`payload`]: seeded bytes, and the comparison that names the first wrong one;
//! - [`buffer`], [`comm`], [`request`], [`datatype`], [`predefined`], [`reduction`], [`window`], [`universe`], [`pvar`]: MPI calls
//!   with owned buffers and an error check on every return code, over the raw functions of the `mpi` crate;
//! - [`session`], [`failure`], [`persistent`]: the same of what only newer releases have;
//! - [`check`]: the named cases that `vmshm-mpi-check` runs under `mpirun`.

pub mod buffer;
pub mod check;
pub mod collective;
pub mod comm;
pub mod datatype;
pub mod failure;
mod newer;
pub mod payload;
pub mod persistent;
pub mod predefined;
pub mod pvar;
pub mod reduction;
pub mod request;
pub mod session;
pub mod universe;
pub mod window;
