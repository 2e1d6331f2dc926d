//! The rendezvous without prefixes, also with peers that do not keep to it.

use zerocopy::IntoBytes;

use super::*;
use crate::rendezvous::{LEAST, MAX_REQUESTS, REQUEST, Request};

const CHUNK: u8 = REQUEST + 1;

fn plain(chunk_size: usize, window: usize) -> ([Side; 2], TestRegion) {
    pair_with(&Params { sends_prefix: false, ..params(chunk_size, window) })
}

/// As [`Side::get`] of a source without a prefix.
fn get(side: &mut Side, source: u64, offset: u64, to: &mut [u8]) {
    side.get((source, Prefix::default()), None, offset, to).unwrap();
}

#[test]
fn many_gets_of_all_lengths_arrive_whole_with_few_chunks() {
    let ([mut a, mut b], _region) = plain(4096, 3);
    let lengths = [1, 4095, 4096, 4097, 40_000, 100_000];
    // More than are active at a time, and more than the ring holds.
    let sources: Vec<_> = (0..100).map(|i| bytes(lengths[i % lengths.len()], i)).collect();
    let mut targets: Vec<_> = sources.iter().map(|source| vec![0; source.len()]).collect();
    let numbers: Vec<_> = sources.iter().map(|source| a.expose(source)).collect();
    assert!(numbers.iter().all(|(_, prefix)| *prefix == Prefix::default()), "prefixes are off");
    for ((number, _), target) in numbers.iter().zip(&mut targets) {
        get(&mut b, *number, 0, target);
    }
    while b.got.len() < targets.len() {
        a.progress();
        b.progress();
    }
    assert!(sources == targets);
    assert_eq!((a.violations, b.violations), (0, 0));
    assert!(b.engine.state(b.peer.index()).gets.is_empty());
    // The first three lengths fill their one chunk or less: they were not held up by the long ones.
    let first_long = b.got.iter().position(|done| *done == targets[5].as_ptr().addr()).unwrap();
    let last_short = b.got.iter().position(|done| *done == targets[14].as_ptr().addr()).unwrap();
    assert!(last_short < first_long);
    assert!(a.engine.sources.has_for(a.peer));
    numbers.iter().for_each(|(number, _)| a.engine.unexpose(*number));
    assert!(!a.engine.sources.has_for(a.peer));
}

#[test]
fn one_that_does_not_read_starves_nobody() {
    let ([mut a, mut b], region) = plain(4096, 4);
    let mut engine = Engine::new(region.open(1), a.engine.params().clone()).unwrap();
    let to_c = a.engine.connect(&engine.endpoint().name()).unwrap();
    let peer = engine.connect(&a.engine.endpoint().name()).unwrap();
    let mut c = Side::new(engine, peer);
    let source = bytes(100_000, 5);
    let (mut unread, mut target) = (vec![0; source.len()], vec![0; source.len()]);
    let (for_b, _) = a.expose(&source);
    // SAFETY: the source outlives the engine's work.
    let (for_c, _) = unsafe { a.engine.expose(to_c, source.as_ptr(), source.len()) };
    // It asks, and looks at nothing any more.
    get(&mut b, for_b, 0, &mut unread);
    for _ in 0..1000 {
        a.progress();
    }
    assert!(a.engine.is_blocked, "all chunks are with b");
    get(&mut c, for_c, 0, &mut target);
    for _ in 0..100_000 {
        a.progress();
        c.progress();
    }
    assert_eq!(c.got.len(), 1);
    assert!(source == target);
}

#[test]
fn a_part_of_a_source_can_be_had() {
    let ([mut a, mut b], _region) = plain(4096, 2);
    let source = bytes(50_000, 3);
    let mut target = vec![0; 20_000];
    let (number, _) = a.expose(&source);
    get(&mut b, number, 12_345, &mut target);
    while b.got.is_empty() {
        a.progress();
        b.progress();
    }
    assert_eq!(target, source[12_345..32_345]);
}

#[test]
fn nothing_but_what_is_exposed_to_the_peer_can_be_had() {
    let ([mut a, _b], _region) = plain(4096, 2);
    let source = bytes(1000, 1);
    let (ended, _) = a.expose(&source);
    a.engine.unexpose(ended);
    let (number, _) = a.expose(&source);
    assert_ne!(number, ended, "a slot's next use has another number");
    let good = Request { source: number, offset: 0, len: 1000 };
    let wrong = [
        Request { source: ended, ..good },
        Request { source: number + 1, ..good },
        Request { source: u64::MAX, ..good },
        Request { len: 1001, ..good },
        Request { len: 0, ..good },
        Request { offset: 1, ..good },
        Request { offset: u64::MAX, ..good },
        Request { offset: u64::MAX, len: u64::MAX, ..good },
    ];
    let peer = a.peer;
    for request in wrong {
        assert!(!a.engine.accept(peer, request.as_bytes()), "{request:?}");
    }
    assert!(!a.engine.accept(peer, &good.as_bytes()[1..]));
    let keyed = [good.as_bytes(), &[0; 8]].concat();
    assert!(!a.engine.accept(peer, &keyed), "it has no key");
    assert!(!a.engine.accept(peer, &keyed[..28]));
    assert!(a.engine.state(peer.index()).requests.is_empty());
    assert!(a.engine.accept(peer, good.as_bytes()));
}

#[test]
fn no_more_can_be_requested_than_is_exposed() {
    let ([mut a, _b], _region) = plain(4096, 2);
    let (source, peer) = (bytes(100_000, 1), a.peer);
    let longest = |a: &mut Side, request: Request| {
        let taken = (0..10_000).take_while(|_| a.engine.accept(peer, request.as_bytes())).count();
        assert!(a.engine.state(peer.index()).requests.len() <= source.len() / LEAST as usize + 1);
        a.engine.state(peer.index()).requests.clear();
        taken
    };
    let whole = Request { source: a.expose(&source).0, offset: 0, len: 100_000 };
    assert_eq!(longest(&mut a, whole), 1);
    let byte = Request { source: a.expose(&source).0, offset: 7, len: 1 };
    assert_eq!(longest(&mut a, byte), source.len() / LEAST as usize + 1);
    // As Open MPI may ask: the last part is short.
    let (number, _) = a.expose(&source);
    for offset in (0..100_000).step_by(99) {
        let part = Request { source: number, offset, len: (100_000 - offset).min(99) };
        assert!(a.engine.accept(peer, part.as_bytes()), "{part:?}");
    }
}

#[test]
fn chunks_that_were_not_requested_have_no_place() {
    let ([mut a, mut b], _region) = plain(4096, 2);
    let mut target = vec![0; 100];
    let (engine, peer) = (&mut b.engine, b.peer);
    assert!(engine.place(peer, CHUNK, 10).is_none());
    let source = bytes(100, 1);
    let (number, _) = a.expose(&source);
    let local = target.as_mut_ptr();
    let get =
        Get { source: number, key: None, offset: 0, prefix: Prefix::default(), local, len: 100, done: 1 };
    // SAFETY: the target outlives the engine's work.
    assert!(unsafe { engine.get(peer, get) }.unwrap().is_none());
    assert!(engine.place(peer, CHUNK, 101).is_none());
    assert!(engine.place(peer, CHUNK, 0).is_none());
    assert!(engine.place(peer, CHUNK + 1, 10).is_none());
    assert_eq!(engine.place(peer, CHUNK, 60), Some(local));
    assert!(engine.state(peer.index()).gets.landed(CHUNK, 60).is_none());
    assert!(engine.place(peer, CHUNK, 41).is_none());
    assert_eq!(engine.place(peer, CHUNK, 40), Some(local.wrapping_add(60)));
    assert_eq!(engine.state(peer.index()).gets.drain().count(), 1);
}

#[test]
fn a_stranger_that_sends_chunks_or_requests_breaks_the_rules() {
    let ([mut a, _b], region) = plain(4096, 2);
    let mut stranger = region.open(1);
    let to_a = stranger.connect(&a.engine.endpoint().name()).unwrap();
    let fragment = stranger.fragment(4096).unwrap();
    stranger.send_fragment(to_a, CHUNK, &fragment, 4096, 1).unwrap();
    stranger.send(to_a, REQUEST, &[&[0xff; 24]]).unwrap();
    stranger.send(to_a, REQUEST, &[&[0xff; 7]]).unwrap();
    stranger
        .finish(to_a, TAG, &vmshm_transport::abi::ring::Descriptor { offset: 0, len: 0, cookie: 0 })
        .unwrap();
    for _ in 0..1000 {
        a.progress();
    }
    assert_eq!((a.violations, a.lost.len()), (4, 0));
    assert_eq!(a.send(8, 1), Some(Ok(true)), "others notice nothing");
}

#[test]
fn every_peer_that_shows_the_key_gets_a_source_and_may_come_again() {
    let ([mut a, mut b], region) = plain(4096, 3);
    let mut engine = Engine::new(region.open(1), a.engine.params().clone()).unwrap();
    // The owner need not have met it.
    let peer = engine.connect(&a.engine.endpoint().name()).unwrap();
    let mut c = Side::new(engine, peer);
    let source = bytes(50_000, 9);
    let key = 0x1234_5678_9abc_def0;
    // SAFETY: the source outlives the engine's work.
    let number = unsafe { a.engine.expose_to_all(key, source.as_ptr(), source.len()) };
    for round in 0..3 {
        let mut targets = [vec![0; 50_000], vec![0; 50_000], vec![0; 1]];
        let [first, second, byte] = &mut targets;
        b.got.clear();
        c.got.clear();
        b.get((number, Prefix::default()), Some(key), 0, first).unwrap();
        b.get((number, Prefix::default()), Some(key), 49_999, byte).unwrap();
        c.get((number, Prefix::default()), Some(key), 0, second).unwrap();
        while b.got.len() < 2 || c.got.is_empty() {
            a.progress();
            b.progress();
            c.progress();
        }
        assert!(targets[0] == source && targets[1] == source && targets[2][0] == source[49_999], "{round}");
    }
    assert_eq!((a.violations, b.violations, c.violations), (0, 0, 0));
    assert!(!a.engine.sources.has_for(a.peer), "a peer that leaves is no loss for it");
    // Without the key, or with another one, there is nothing.
    let request = Request { source: number, offset: 0, len: 1 };
    let peer = a.peer;
    assert!(!a.engine.accept(peer, request.as_bytes()));
    for wrong in [0, key + 1, u64::MAX] {
        assert!(!a.engine.accept(peer, &[request.as_bytes(), &wrong.to_ne_bytes()].concat()), "{wrong:#x}");
    }
    a.engine.unexpose(number);
    assert!(!a.engine.accept(peer, &[request.as_bytes(), &key.to_ne_bytes()].concat()));
}

#[test]
fn requests_for_keyed_sources_fill_no_memory() {
    let ([mut a, mut b], _region) = plain(4096, 2);
    let source = bytes(100_000, 9);
    // SAFETY: the source outlives the engine's work.
    let number = unsafe { a.engine.expose_to_all(5, source.as_ptr(), source.len()) };
    let mut target = [0];
    let asked = std::iter::repeat_with(|| b.get((number, Prefix::default()), Some(5), 0, &mut target));
    assert_eq!(asked.take_while(Result::is_ok).count(), MAX_REQUESTS, "an honest peer stops by itself");
    let request = Request { source: number, offset: 0, len: 100_000 };
    let bytes = [request.as_bytes(), &5u64.to_ne_bytes()].concat();
    let peer = a.peer;
    let taken = (0..10 * MAX_REQUESTS).take_while(|_| a.engine.accept(peer, &bytes)).count();
    assert!((MAX_REQUESTS..=MAX_REQUESTS + 1).contains(&taken), "{taken} of a peer that does not");
}
