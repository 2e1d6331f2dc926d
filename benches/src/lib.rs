//! Measurements of vmshm side by side with its peers.
//!
//! The programs `osu_*` take the options of the OSU micro-benchmarks of the same names, use the same
//! algorithms and print the same columns, so that scripts for the one read the other; they are
//! written anew for vmshm. All of them look at least once for each size whether the data arrives. `--vary`
//! and `--alloc-mem` are additions: OSU's programs never change their buffers, which flatters caches, and
//! take them from the heap.

pub mod fixture;
pub mod floor;
pub mod osu;
