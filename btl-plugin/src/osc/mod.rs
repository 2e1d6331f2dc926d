//! One-sided communication: windows whose memory lies in sections.
//!
//! It is a component of its own for Open MPI, found as `mca_osc_vmshm.so`, and makes two kinds of windows.
//!
//! Where everyone may write everyone's memory, in an open region or among processes of one section, windows are *direct*:
//! each process does all by itself, on memory and on words in the section of the one it is for.
//!
//! Else it adds two things to Open MPI's component `pt2pt`, which makes the window and does all the rest by messages: memory
//! from the section for `MPI_Win_allocate`; and `MPI_Get` by copying from the target's section, without the target's help.
//!
//! - `component`: what Open MPI calls once, and for each new window.
//! - `direct`, `epochs`, `state`: direct windows, when they may be accessed, and the words that say so.
//! - `window`, `operations`: the others.

mod component;
mod direct;
mod epochs;
mod members;
mod operations;
mod served;
mod state;
mod window;

pub use component::{finalize, init, query, register, select};
pub use served::{TAG, heard};
pub use window::is_used;
