//! Prefixes, also with peers that lie about them.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::{Duration, Instant};

use vmshm_transport::Memory;
use vmshm_transport::abi::LINE_PAIR;

use super::*;
use crate::IdleAction;

#[test]
fn messages_with_and_without_prefixes_arrive_whole_whenever_these_are_copied() {
    let ([mut a, mut b], _region) = pair_with(&params(4096, 6));
    let lengths = [1, 1000, 4095, 4096, 4097, 40_000];
    let sources: Vec<_> = (0..300).map(|i| bytes(lengths[i % lengths.len()], i)).collect();
    let mut targets: Vec<_> = sources.iter().map(|source| vec![0; source.len()]).collect();
    let (mut with_prefix, mut complete, mut sources_open) = (0, 0, Vec::new());
    for (n, (source, target)) in sources.iter().zip(&mut targets).enumerate() {
        let exposed = a.expose(source);
        with_prefix += usize::from(exposed.1 != Prefix::default());
        sources_open.push(exposed.0);
        if n % 3 == 0 {
            a.engine.fill();
        }
        b.get(exposed, None, 0, target).unwrap();
        if n % 3 == 1 {
            a.engine.fill();
        }
        // Some are under way together.
        while n % 5 == 4 && b.got.len() <= n {
            a.engine.fill();
            a.progress();
            b.progress();
        }
        if n % 5 == 4 {
            complete += 5;
            sources_open.drain(..).for_each(|id| a.engine.unexpose(id));
        }
    }
    assert_eq!((b.got.len(), complete), (sources.len(), sources.len()));
    assert!(sources == targets);
    assert_eq!((a.violations, b.violations), (0, 0));
    assert!(
        with_prefix > 100 && with_prefix < 300,
        "{with_prefix} of 300 had a prefix: there are 2 at a time for 5 messages"
    );
}

#[test]
fn a_progress_word_says_nothing_of_the_message_before() {
    let ([mut a, mut b], _region) = pair_with(&params(4096, 2));
    let (first, second) = (bytes(4096, 1), bytes(4096, 2));
    let mut target = vec![0; 4096];
    let old = a.expose(&first);
    a.engine.fill();
    b.get(old, None, 0, &mut target).unwrap();
    assert!(target == first && b.got.len() == 1);
    a.engine.unexpose(old.0);
    let new = a.expose(&second);
    assert_eq!(new.1.progress, old.1.progress, "the same word is used again");
    target.fill(0);
    b.get(new, None, 0, &mut target).unwrap();
    b.progress();
    assert_eq!((b.got.len(), b.engine.partial[0].done), (1, 0));
    assert!(target.iter().all(|byte| *byte == 0));
    a.engine.fill();
    b.progress();
    assert!(target == second && b.got.len() == 2 && b.engine.partial.is_empty());
}

#[test]
fn parts_of_a_message_come_from_its_prefix_and_from_chunks() {
    let ([mut a, mut b], _region) = pair_with(&params(4096, 4));
    let source = bytes(20_000, 3);
    for (offset, len) in
        [(0, 20_000), (0, 4096), (100, 50), (4000, 96), (4000, 1000), (4096, 10), (19_999, 1)]
    {
        let exposed = a.expose(&source);
        a.engine.fill();
        let mut target = vec![0; len];
        b.got.clear();
        b.get(exposed, None, offset as u64, &mut target).unwrap();
        while b.got.is_empty() {
            a.progress();
            b.progress();
        }
        assert!(target == source[offset..offset + len], "{len} bytes from {offset} on");
        a.engine.unexpose(exposed.0);
    }
    assert_eq!((a.violations, b.violations), (0, 0));
}

#[test]
fn prefixes_leave_half_of_the_chunks_and_something_for_other_peers_and_come_back() {
    let ([mut a, _b], region) = pair_with(&params(4096, 24));
    let others: Vec<_> = (0..4).map(|_| region.open(1)).collect();
    let peers: Vec<_> = others.iter().map(|other| a.engine.connect(&other.name()).unwrap()).collect();
    let source = bytes(100, 1);
    for _ in 0..3 {
        let mut sources_open = Vec::new();
        let mut with_prefix = |engine: &mut Engine<usize, usize>, peer| {
            // SAFETY: the source outlives the engine's work.
            let expose = || unsafe { engine.expose(peer, source.as_ptr(), source.len()) };
            let new: Vec<_> = std::iter::repeat_with(expose).take(10).collect();
            sources_open.extend(new.iter().map(|(id, _)| *id));
            new.iter().filter(|(_, prefix)| *prefix != Prefix::default()).count()
        };
        assert_eq!(with_prefix(&mut a.engine, a.peer), 9);
        let counts: Vec<_> = peers.iter().map(|peer| with_prefix(&mut a.engine, *peer)).collect();
        assert_eq!(counts, [3, 0, 0, 0]);
        sources_open.iter().for_each(|id| a.engine.unexpose(*id));
        a.engine.fill();
    }
}

#[test]
fn a_sender_that_gives_bytes_one_by_one_is_not_waited_for() {
    let ([a, mut b], _region) = pair_with(&params(64 << 10, 8));
    let mut a = a.engine;
    let source = vec![1; 40_000];
    let target: Vec<_> = source.iter().map(|_| AtomicU8::new(0)).collect();
    // SAFETY: the source outlives the engine's work.
    let (id, prefix) = unsafe { a.expose(a.peer(0).unwrap(), source.as_ptr(), source.len()) };
    // SAFETY: the atomics are as good as bytes, and of these there is no other use than as atomics.
    let bytes = unsafe { std::slice::from_raw_parts_mut(target.as_ptr().cast_mut().cast(), target.len()) };
    a.fill();
    let memory = a.endpoint.memory();
    memory.store(prefix.progress(), 0, Ordering::Release);
    b.get((id, prefix), None, 0, bytes).unwrap();
    let mut partial = b.engine.partial.pop().unwrap();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for (n, byte) in (1..).zip(&target) {
                memory.store(prefix.progress(), n, Ordering::Release);
                while byte.load(Ordering::Relaxed) == 0 && !is_over.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
                if is_over.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        while memory.load(prefix.progress(), Ordering::Relaxed) == 0 {
            std::hint::spin_loop();
        }
        b.engine.read_prefix(&mut partial, 10_000).unwrap();
        is_over.store(true, Ordering::Relaxed);
    });
    assert!(partial.done <= 10_001, "{} bytes in 10000 looks", partial.done);
}

#[test]
fn waiting_for_a_prefix_lets_others_run() {
    let sleep_after = Some(Duration::from_micros(10));
    let ([mut a, mut b], _region) = pair_with(&Params { sleep_after, ..params(4096, 4) });
    let source = bytes(4096, 3);
    let mut target = vec![0; 4096];
    let exposed = a.expose(&source);
    b.get(exposed, None, 0, &mut target).unwrap();
    let since = Instant::now();
    while b.engine.idle(false, true) == IdleAction::Spin {
        assert!(since.elapsed().as_secs() < 60, "it spins for ever");
        b.progress();
    }
    assert!(b.got.is_empty());
    a.engine.fill();
    b.progress();
    assert_eq!(b.got.len(), 1);
    assert_eq!(b.engine.idle(false, true), IdleAction::Spin);
}

#[test]
fn prefixes_that_nobody_asks_for_starve_nobody_in_a_full_section() {
    let ([mut a, mut b], _region) = pair_with(&Params { reserve: 4096, ..params(4096, 100) });
    let source = bytes(40_000, 1);
    let parked: Vec<_> = (0..10).map(|_| a.expose(&source[..4096])).collect();
    assert!(parked.iter().any(|(_, prefix)| *prefix != Prefix::default()));
    let _whole: Vec<_> = std::iter::from_fn(|| a.engine.endpoint.fragment(64 << 10)).collect();
    let mut taken: Vec<_> = std::iter::from_fn(|| a.engine.endpoint.fragment(4096)).collect();
    for _ in 0..3 {
        let mut target = vec![0; source.len()];
        let (exposed, _) = a.expose(&source);
        b.got.clear();
        b.get((exposed, Prefix::default()), None, 0, &mut target).unwrap();
        for _ in 0..100_000 {
            a.progress();
            b.progress();
        }
        assert_eq!(b.got.len(), 1);
        assert!(source == target);
        // Memory that has come back must not be parked either.
        let more = a.expose(&source[..100]);
        assert!(more.1 == Prefix::default());
        a.engine.unexpose(more.0);
        a.engine.unexpose(exposed);
        let fragment = a.engine.fragment(3000).expect("room for a message");
        a.engine.endpoint.free(fragment);
    }
    // A progress word is there, but only one block, which is for messages.
    a.engine.unexpose(parked[0].0);
    a.engine.chunks.take_free().for_each(drop);
    let _spare: Vec<_> = std::iter::from_fn(|| a.engine.endpoint.try_fragment(4096)).collect();
    a.engine.endpoint.free(taken.swap_remove(0));
    assert!(a.expose(&source[..100]).1 == Prefix::default(), "a prefix took the last piece");
}

#[test]
fn a_hostile_prefix_harms_its_own_message_only() {
    let ([mut a, mut b], _region) = pair_with(&params(4096, 4));
    let source = bytes(5000, 3);
    let (id, good) = a.expose(&source);
    a.engine.fill();
    let mut target = vec![7; 6000];
    let section = *b.engine.endpoint.section();
    let end = a.engine.endpoint.section().entry.offset + a.engine.endpoint.section().entry.len;
    let pairs = |offset: u64| u32::try_from(offset / LINE_PAIR).unwrap();
    let wrong = [
        Prefix { data: pairs(section.entry.offset), ..good },
        Prefix { data: pairs(end) - 1, ..good },
        Prefix { data: u32::MAX, ..good },
        Prefix { progress: pairs(section.entry.offset), ..good },
        Prefix { progress: pairs(end), ..good },
        Prefix { progress: u32::MAX, ..good },
    ];
    for prefix in wrong {
        assert_eq!(b.get((id, prefix), None, 0, &mut target[..5000]), Err(Refused::Lost), "{prefix:?}");
        assert!(b.get((id, prefix), None, 4000, &mut target[..1000]).is_err());
    }
    assert!(target.iter().all(|byte| *byte == 7) && b.engine.partial.is_empty());
    let far = Prefix { len: u64::MAX, ..good };
    assert_eq!(
        (far.part(u64::MAX - 10, 10, Params::MAX_MESSAGE), far.part(0, 1 << 40, Params::MAX_MESSAGE)),
        (0, Params::MAX_MESSAGE)
    );
    // It promises more than there is, and says that all of it is there.
    let word = good.progress();
    a.engine.endpoint.memory().store(word, u64::MAX, Ordering::Release);
    b.get((id, Prefix { len: u64::MAX, ..good }), None, 0, &mut target[..5000]).unwrap();
    assert_eq!(b.got.len(), 1);
    assert!(target[..4096] == source[..4096] && target[5000..].iter().all(|byte| *byte == 7));
    // It goes back on its word.
    a.engine.endpoint.memory().store(word, 0, Ordering::Release);
    b.get((id, good), None, 0, &mut target[..4096]).unwrap();
    b.progress();
    assert_eq!(b.got.len(), 1);
    assert_eq!(b.engine.partial.len(), 1);
}

#[test]
fn a_chunk_before_the_end_of_the_prefix_has_no_place() {
    let ([mut a, mut b], _region) = pair_with(&params(4096, 4));
    let source = bytes(8192, 3);
    let mut target = vec![0; 8192];
    let exposed = a.expose(&source);
    b.get(exposed, None, 0, &mut target).unwrap();
    let chunk = crate::rendezvous::REQUEST + 1;
    assert!(b.engine.place(b.peer, chunk, 10).is_none());
    a.engine.fill();
    assert_eq!(b.engine.place(b.peer, chunk, 10), Some(target[4096..].as_mut_ptr()));
    assert!(target[..4096] == source[..4096]);
}

#[test]
fn what_a_lost_sender_has_promised_comes_back() {
    let ([mut a, mut b], _region) = pair_with(&params(4096, 4));
    let source = bytes(4096, 3);
    let mut target = vec![0; 4096];
    let exposed = a.expose(&source);
    b.get(exposed, None, 0, &mut target).unwrap();
    assert!(b.engine.take_loss(b.peer).is_none());
    drop(a);
    b.await_loss();
    assert_eq!((b.not_got.len(), b.got.len()), (1, 0));
    assert!(b.engine.partial.is_empty());
    assert_eq!(b.engine.take_loss(b.peer), Some(PeerError::Left), "something was missed");
    assert_eq!(b.get(exposed, None, 0, &mut target), Err(Refused::Lost));
}
