//! Measurements of vmshm side by side with its peers.
//!
//! The programs `osu_*` take the options of the OSU micro-benchmarks of the same names, use the same
//! algorithms and print the same columns, so that scripts for the one read the other; they are
//! written anew for vmshm. `--vary` is an addition: it changes the buffers between messages, which
//! OSU's programs never do and which flatters caches.

pub mod osu;
