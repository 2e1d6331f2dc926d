//! Memory for other things than messages leaves room for messages.

mod common;

use common::{Region, View};
use vmshm_transport::ChunkAllocator;

const LEN: usize = ChunkAllocator::<View>::GRAIN;

/// Takes until there is no more.
fn fill(runs: &mut ChunkAllocator<View>) -> Vec<*mut u8> {
    std::iter::from_fn(|| runs.take(LEN)).collect()
}

#[test]
fn processes_that_fill_their_section_still_send() {
    let region = Region::new(32 << 20, 2, 4);
    let (mut a, b, mut far) = (region.endpoint(0), region.endpoint(0), region.endpoint(1));
    let (mut first, mut second) = (ChunkAllocator::of(&a), ChunkAllocator::of(&b));
    let held = fill(&mut first);
    let count = held.len();
    assert!(count * LEN > 14 << 20, "{count} are nearly all of the section");
    for address in held {
        first.give_back(address, LEN);
    }
    assert_eq!(fill(&mut second).len(), count, "what one gives back another can have");
    assert!(fill(&mut first).is_empty(), "what one had once is not kept for it");

    let fragment = a.fragment(LEN).expect("there is room for a message");
    a.connect(&far.name()).expect("there is room for a ring");
    let mut late = region.endpoint(0);
    late.connect(&far.name()).expect("there is room for the ring of one who comes late");
    far.connect(&late.name()).expect("the other section has room");
    a.free(fragment);
}
