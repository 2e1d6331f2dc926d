//! The nearest cache, which keeps what was written last.
//!
//! Other processors read that out of it at half the speed at which they read the next cache (9 and 20 GB/s between two cores
//! of a Sapphire Rapids). Whoever has nothing to do but to wait for them can see to it that it lies there. Neither writing
//! the lines back (`clwb`) nor demoting them (`cldemote`) did that; filling the cache with something else does.

use std::ptr;
use std::sync::LazyLock;

use vmshm_transport::tune::Machine;

use crate::component;

/// What the cache is filled with: more than it holds.
static OTHER: LazyLock<Vec<u64>> = LazyLock::new(|| {
    let cache = match Machine::read().level1 {
        0 => 48 << 10,
        known => known.min(1 << 20) as usize,
    };
    // Written, so that it has pages of its own.
    vec![1; cache / 3 * 4 / size_of::<u64>()]
});

static LIMIT: LazyLock<usize> = LazyLock::new(component::leave);

/// Asks the machine and takes the memory, so that this need not be done in the midst of a message.
pub fn prepare() {
    LazyLock::force(&LIMIT);
    LazyLock::force(&OTHER);
}

/// Fills the nearest cache with something else, where `len` bytes that others are about to read were just written, and are
/// enough for that: to be called when there is nothing else to do.
pub fn leave(len: usize) {
    if len < *LIMIT {
        return;
    }
    for line in OTHER.chunks(8) {
        // SAFETY: a reference can be read.
        unsafe { ptr::from_ref(&line[0]).read_volatile() };
    }
}
