//! One-sided communication: windows whose memory lies in sections.
//!
//! It is a component of its own for Open MPI, found as `mca_osc_vmshm.so`, and makes two kinds of windows where the memory of
//! all processes lies in their sections, as that of `MPI_Win_allocate` does. Both are read without the target's help.
//!
//! Where everyone may write everyone's memory, in an open region or among processes of one section, windows are *direct*:
//! each process does all by itself, on memory and on words in the section of the one it is for. Else they are *served*: a
//! process writes its own memory only, and does so for others when they ask.
//!
//! Where some memory is elsewhere, as in dynamic windows, Open MPI's component `sm` or `pt2pt` makes the window. Where there is
//! none of them, it is served, and who owns the memory reads it for others too.
//!
//! - `component`: what Open MPI calls once, and for each new window.
//! - `members`: the processes of a window, and where their memory is.
//! - `window`: windows of ours behind Open MPI's; `calls`: their functions, as Open MPI wants them.
//! - `access`, `epochs`: what they do for both kinds of windows, and what each kind has to do itself.
//! - `numbers`: where the data of elements lie, to be moved or for an operation.
//! - `direct`, `state`: direct windows, and the words that say when they may be accessed.
//! - `served`: served windows.
//! - `others`: what we know of windows that others make.

mod access;
mod calls;
mod component;
mod direct;
mod epochs;
mod members;
mod numbers;
mod others;
mod served;
mod state;
mod window;

pub use component::{finalize, init, publish, query, register, select};
pub use others::is_used;
pub use served::{TAG, accept};
