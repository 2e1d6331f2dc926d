//! Memory of a section for programs.
//!
//! - [`Pool`]: fragments for `MPI_Alloc_mem` and for windows, and what happens to them when the section is left.
//! - [`begin`], [`end`]: the program's own large allocations, for the library that it has preloaded; and its forks, whose
//!   children must not share that memory with their parent.
//!
//! Each file uses only those before it: `available` (memory that the process has left), `notice` (what is told where nothing may
//! allocate), `pool`, `lock`, `space` (which parts of the section are the program's), `handover` (what a child gets at a fork),
//! `child` (the heap in a child), `heap`.

mod available;
mod child;
mod handover;
mod heap;
mod lock;
mod notice;
mod pool;
mod space;

pub use available::copy_limit;
pub use heap::{Begun, Ended, begin, end, is_preloaded};
pub use pool::{Kept, Pool};
pub use space::{Counts, PAGE};
