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
//! none of them, it is served, and the owner of the memory reads it for others too.
//!
//! - `component`: what Open MPI calls once, and for each new window.
//! - `meet`: the processes of a new window exchange where their memory is; `members`: they and their memory; `memory`: what a
//!   window allocates.
//! - `window`: windows of ours behind Open MPI's; `functions`: their functions, as Open MPI wants them.
//! - `access`: put, get, accumulate and so on; `active_target`: fence, post, start, complete, wait; `passive_target`: lock,
//!   unlock, flush; `epochs`: what a kind of window has to do itself for these.
//! - `datatype`: predefined datatypes; `runs`: where the data of elements lie; `accumulate`: operands and results.
//! - `direct`: direct windows; `served`: served windows.
//! - `message_windows`: whether there are windows, of ours or of another component, that need this process's progress.

mod access;
mod accumulate;
mod active_target;
mod component;
mod datatype;
mod direct;
mod epochs;
mod functions;
mod meet;
mod members;
mod memory;
mod message_windows;
mod passive_target;
mod runs;
mod served;
mod window;

pub use component::{finalize, init, publish, query, register, select};
pub use message_windows::is_used;
pub use served::{TAG, accept};
