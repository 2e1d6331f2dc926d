//! The nearest cache, which keeps what was written last.
//!
//! Other processors read that out of it at half the speed at which they read the next cache (9 and 20 GB/s between two cores
//! of a Sapphire Rapids). Whoever has nothing to do but to wait for them can see to it that it lies there. Neither writing
//! the lines back (`clwb`) nor demoting them (`cldemote`) did that; filling the cache with something else does.

use std::ptr;
use std::sync::LazyLock;

use vmshm_transport::tune::Tuning;

use crate::component;

/// How the cache is filled.
struct Filling {
    /// From so many bytes on that were just written.
    limit: usize,
    /// With this, which is more than the cache holds.
    other: Vec<u64>,
}

static FILLING: LazyLock<Filling> = LazyLock::new(|| {
    let leave = Tuning::of_this_machine().evict_size;
    let limit = match component::leave() {
        0 => leave,
        asked => asked,
    };
    // `leave` is two thirds of the cache. Written, so that it has pages of its own.
    Filling { limit, other: vec![1; 2 * leave / size_of::<u64>()] }
});

/// Asks the machine and takes the memory, so that this need not be done in the midst of a message.
pub fn prepare() {
    LazyLock::force(&FILLING);
}

/// Fills the nearest cache with something else, where `len` bytes that others are about to read were just written, and are
/// enough for that: to be called when there is nothing else to do.
pub fn leave(len: usize) {
    let Filling { limit, other } = &*FILLING;
    if len < *limit {
        return;
    }
    for line in other.chunks(8) {
        // SAFETY: a reference can be read.
        unsafe { ptr::from_ref(&line[0]).read_volatile() };
    }
}
