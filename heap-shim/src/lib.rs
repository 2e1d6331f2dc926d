//! `libvmshm_heap.so`, for `LD_PRELOAD`: places a program's large allocations in the shared section of its process, from
//! where peers in other virtual machines read them without a copy by the sender.
//!
//! It stands before glibc's `malloc` and its relatives and does nothing but decide: allocations of at least so many bytes
//! go to the plugin of Open MPI, once that has registered; what is freed goes where its address says. A program that does not
//! register a table, or has not set `VMSHM_HEAP`, gets glibc's memory and pays a comparison.
//!
//! No allocation, no lock and no look-up of symbols stands before the first `malloc` of a process. Where another library's
//! `malloc` is the process's, as that of a sanitizer, this one is never called, and places nothing.

#[cfg(not(target_env = "gnu"))]
compile_error!("the shim hands on to glibc's allocator, by the names that only glibc has");

mod fork;
mod glibc;
mod malloc;
mod stack;
mod table;
#[cfg(test)]
mod tests;
