//! Eviction of freshly written lines from the nearest cache.
//!
//! Other processors read that cache at half the speed of the next one (9 and 20 GB/s between two cores of a Sapphire Rapids).
//! An idle writer can evict its lines, so that readers hit the next cache. Neither writing them back (`clwb`) nor demoting them
//! (`cldemote`) did that; filling the cache with something else does.

use std::ptr;

use vmshm_transport::tune::Tuning;

/// Memory that fills the nearest cache.
#[derive(Debug)]
pub struct Evictor {
    from: usize,
    /// More than the cache holds.
    filling: Vec<u64>,
}

impl Evictor {
    /// Evicts what has at least `from` bytes. The memory is taken now, not in the midst of a message.
    pub fn new(from: usize) -> Self {
        // `evict_size` is two thirds of the cache. Written, so that it has pages of its own.
        Self { from, filling: vec![1; 2 * Tuning::of_this_machine().evict_size / size_of::<u64>()] }
    }

    /// Evicts the nearest cache if at least `from` of the `len` bytes just written may lie in it. To be called when the process
    /// would only wait.
    pub fn evict(&self, len: usize) {
        if len < self.from {
            return;
        }
        for line in self.filling.chunks(8) {
            // SAFETY: a reference can be read.
            unsafe { ptr::from_ref(&line[0]).read_volatile() };
        }
    }
}
