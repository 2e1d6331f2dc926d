//! Memory that outlives messages leaves room for messages, and a process keeps what it holds for them.

mod common;

use common::{Region, View};
use vmshm_transport::collective::BLOCK;
use vmshm_transport::{Endpoint, Fragment, Purpose};

/// Lengths of messages.
const LENGTHS: [usize; 5] = [2048, 4096, 8192, 16 << 10, 32 << 10];

/// An endpoint in section 0 that holds memory for a message of each length.
fn holder(region: &Region) -> Endpoint<View> {
    let mut endpoint = region.endpoint(0);
    for len in LENGTHS {
        let fragment = endpoint.fragment(len).expect("an empty section");
        endpoint.free(fragment);
    }
    endpoint.reserve_fragments();
    endpoint
}

/// Takes until there is no more.
fn all(endpoint: &mut Endpoint<View>, len: usize, purpose: Purpose) -> Vec<Fragment> {
    std::iter::from_fn(|| endpoint.fragment_for(len, purpose)).collect()
}

/// Sends a message of each length, one after another.
fn can_send(endpoint: &mut Endpoint<View>) -> bool {
    LENGTHS.into_iter().chain(LENGTHS).all(|len| {
        let fragment = endpoint.fragment(len);
        let is_there = fragment.is_some();
        fragment.into_iter().for_each(|fragment| endpoint.free(fragment));
        is_there
    })
}

#[test]
fn communicators_that_are_kept_leave_messages_their_memory() {
    let region = Region::new(8 << 20, 2, 8);
    let (mut a, mut b, far) = (holder(&region), holder(&region), region.endpoint(1));
    // More than there is room for; then windows, as small as that of a communicator, and what else there is.
    let blocks: Vec<_> = (0..400).map_while(|_| a.fragment_for(BLOCK, Purpose::Small)).collect();
    assert!(blocks.len() > 40, "only {} communicators", blocks.len());
    let mut kept = Vec::new();
    for len in [1 << 20, 64 << 10, 4096, 128] {
        kept.extend(all(&mut b, len, Purpose::Large));
        kept.extend(all(&mut b, len, Purpose::Small));
        kept.extend(all(&mut a, len, Purpose::Small));
    }
    assert!(a.fragment_for(BLOCK, Purpose::Small).is_none());
    assert!(can_send(&mut a) && can_send(&mut b), "messages find no memory");
    let mut late = region.endpoint(0);
    late.connect(&far.name()).expect("there is room for the ring of one who comes late");
    // However many messages of one length are under way, there is room for the others.
    let short = all(&mut a, 2048, Purpose::Message);
    assert!(
        LENGTHS[1..].iter().all(|len| a.fragment(*len).is_some()),
        "beside {} short messages",
        short.len()
    );
}

#[test]
fn what_is_held_for_messages_is_not_lost_by_asking_for_too_much() {
    let region = Region::new(4 << 20, 2, 4);
    let (mut a, mut b) = (holder(&region), region.endpoint(0));
    for purpose in [Purpose::Message, Purpose::Large, Purpose::Small, Purpose::Connection] {
        assert!(a.fragment_for(2 << 20, purpose).is_none() && a.fragment_for(4 << 20, purpose).is_none());
        let taken = all(&mut b, 64 << 10, Purpose::Message);
        assert!(can_send(&mut a), "after {purpose:?}");
        taken.into_iter().for_each(|fragment| b.free(fragment));
    }
}

#[test]
fn what_messages_do_not_hold_serves_everything() {
    let region = Region::new(8 << 20, 2, 4);
    let (mut a, mut b) = (holder(&region), region.endpoint(0));
    for _ in 0..3 {
        let messages = all(&mut a, 2048, Purpose::Message);
        assert!(messages.len() > 1500, "only {} messages", messages.len());
        messages.into_iter().for_each(|fragment| a.free(fragment));
        let kept = all(&mut a, 40_000, Purpose::Large);
        assert!(kept.len() * 43_648 > 2 << 20, "only {} blocks", kept.len());
        kept.into_iter().for_each(|fragment| a.free(fragment));
        assert!(a.fragment_for(1 << 20, Purpose::Large).map(|fragment| a.free(fragment)).is_some());
        let others = all(&mut b, 64 << 10, Purpose::Large);
        assert!(others.len() > 40, "only {} blocks of another process", others.len());
        others.into_iter().for_each(|fragment| b.free(fragment));
        assert!(b.fragment_for(1 << 20, Purpose::Large).map(|fragment| b.free(fragment)).is_some());
    }
}

#[test]
fn eager_messages_of_many_processes_leave_three_quarters() {
    let region = Region::new(32 << 20, 2, 64);
    let mut processes: Vec<_> = (0..63).map(|_| region.endpoint(0)).collect();
    processes.iter_mut().for_each(|process| process.reserve_eager(1 << 20));
    // What an engine cannot start without.
    assert!(processes.iter_mut().all(|process| process.fragment(32 << 10).is_some()));
    let kept = all(&mut region.endpoint(0), 64 << 10, Purpose::Large);
    assert!(kept.len() > 40, "only {} chunks are left", kept.len());
}

#[test]
fn a_communicator_takes_43_kib() {
    let region = Region::new(32 << 20, 2, 4);
    let mut a = region.endpoint(0);
    let blocks = all(&mut a, BLOCK, Purpose::Large);
    let all = a.section().entry.len as usize / 16 * 15;
    assert!(all / blocks.len() < 44 << 10, "{} blocks in {all} bytes", blocks.len());
}
