//! One-sided communication: windows whose memory lies in our section, read in place by the other processes.
//!
//! It is a component of its own for Open MPI, found as `mca_osc_vmshm.so`, and adds two things to Open MPI's component
//! `pt2pt`, which makes the window and does all the rest by messages: memory from the section for `MPI_Win_allocate`; and
//! `MPI_Get` (in an open region `MPI_Put` too) by copying from the target's section, without the target's help.

mod component;
mod operations;
mod window;

pub use component::{finalize, init, query, register, select};
pub use window::is_used;
