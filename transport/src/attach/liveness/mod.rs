//! Which processes live: a lock that shows our own, and the monitor of all others.

pub mod monitor;
mod process_lock;
