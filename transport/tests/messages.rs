//! Messages arrive as they were sent: sizes, orders, wrap-around, back-pressure, leaving and coming back.

mod common;

use std::collections::{HashMap, VecDeque};
use std::mem::offset_of;
use std::sync::atomic::Ordering;

use common::{Region, View, connection, pattern, send, wait};
use proptest::prelude::*;
use vmshm_transport::abi::ring::{
    CONNECTION_LEN, ConnectionHeader, KIND_INLINE, POLLED, SLOT, STAMP, Stamp, Told,
};
use vmshm_transport::{
    Amount, Endpoint, Event, Fragment, Inbox, MAX_INLINE, Memory, Peer, PeerError, SendError, Traffic,
};
use zerocopy::{FromZeros, IntoBytes};

fn pair(region: &Region, sections: (u32, u32)) -> (Endpoint<View>, Endpoint<View>, Peer, Peer) {
    let mut a = region.endpoint(sections.0);
    let mut b = region.endpoint(sections.1);
    let to_b = a.connect(&b.name()).expect("b is there");
    let to_a = b.connect(&a.name()).expect("a is there");
    (a, b, to_b, to_a)
}

/// The bytes of a received message; a fragment is consumed.
fn take(endpoint: &mut Endpoint<View>, inbox: &mut Inbox, event: Event) -> Option<(Peer, u8, Vec<u8>)> {
    match event {
        Event::Message { peer, tag, len } => Some((peer, tag, inbox.bytes(len).to_vec())),
        Event::Fragment { peer, tag, offset, len } => {
            let mut bytes = vec![0; len];
            endpoint.memory().read(offset, &mut bytes);
            endpoint.consume(peer).expect("the sender lives");
            Some((peer, tag, bytes))
        }
        _ => None,
    }
}

#[test]
fn every_size_around_the_edges_arrives_whole() {
    let region = Region::new(8 << 20, 2, 4);
    let (mut a, mut b, to_b, _) = pair(&region, (0, 1));
    let mut inbox = Inbox::new();
    let edges = [
        23,
        24,
        25,
        55,
        56,
        57,
        119,
        120,
        121,
        MAX_INLINE - 1,
        MAX_INLINE,
        MAX_INLINE + 1,
        4096,
        65_536,
        65_537,
        1 << 20,
    ];
    for (n, len) in (0..=9).chain(edges).enumerate() {
        let bytes = pattern(n as u64, len);
        let fragment = send(&mut a, to_b, n as u8, &bytes).expect("there is room");
        let event = wait(&mut b, &mut inbox);
        let (_, tag, got) = take(&mut b, &mut inbox, event).expect("a message");
        assert_eq!(tag, n as u8);
        assert!(got == bytes, "{len} bytes came out different");
        if let Some(fragment) = fragment {
            assert_eq!(wait(&mut a, &mut inbox), Event::Sent { peer: to_b, token: fragment.offset() });
            a.free(fragment);
        }
    }
}

#[test]
fn parts_are_joined() {
    let region = Region::new(8 << 20, 2, 4);
    let (mut a, mut b, to_b, _) = pair(&region, (0, 1));
    let mut inbox = Inbox::new();
    let bytes = pattern(1, 300);
    for (first, second) in [(0, 0), (0, 56), (14, 22), (56, 56), (57, 111), (150, 300)] {
        a.send(to_b, 1, &[&bytes[..first], &[], &bytes[first..second]]).expect("room");
        let event = wait(&mut b, &mut inbox);
        assert_eq!(take(&mut b, &mut inbox, event).expect("a message").2, bytes[..second]);
    }
}

/// Payloads that are full of the stamps of messages to come, on their very places in the ring.
#[test]
fn no_payload_is_taken_for_a_message() {
    let region = Region::new(8 << 20, 2, 4);
    let (mut a, mut b, to_b, _) = pair(&region, (0, 1));
    let mut inbox = Inbox::new();
    let slots = (4096 - CONNECTION_LEN) / SLOT;
    let mut position = 0;
    let lengths = [0, 3, 24, 200, 25, 1000, 56, 1, 500, MAX_INLINE, 88, 90, 777];
    for len in lengths.iter().copied().cycle().take(5000) {
        let mut bytes = Vec::new();
        for word in 0..len.div_ceil(8) as u64 {
            let next = position + (STAMP + word * 8) / SLOT + slots;
            let stamp = Stamp { sequence: Stamp::sequence_at(next), len: 5, kind: KIND_INLINE, tag: 9 };
            bytes.extend(stamp.pack().to_le_bytes());
        }
        bytes.truncate(len);
        a.send(to_b, 1, &[&bytes]).expect("there is room");
        let event = wait(&mut b, &mut inbox);
        let (_, tag, got) = take(&mut b, &mut inbox, event).expect("a message");
        assert!(tag == 1 && got == bytes, "{} bytes came instead of {len}, tag {tag}", got.len());
        for _ in 0..8 {
            assert_eq!(b.poll(&mut inbox), None, "at position {position}");
        }
        position += (STAMP + len as u64).div_ceil(SLOT);
    }
}

#[test]
fn a_stranger_is_met_when_it_sends() {
    let region = Region::new(8 << 20, 3, 4);
    let mut a = region.endpoint(0);
    let mut b = region.endpoint(2);
    let to_b = a.connect(&b.name()).expect("b is there");
    a.send(to_b, 9, &[b"hello"]).expect("room");
    let mut inbox = Inbox::new();
    let Event::Message { peer, tag: 9, len: 5 } = wait(&mut b, &mut inbox) else { panic!("a message") };
    b.send(peer, 8, &[b"and back"]).expect("room");
    assert_eq!(wait(&mut a, &mut inbox), Event::Message { peer: to_b, tag: 8, len: 8 });
}

#[test]
fn processes_of_one_section_talk_too() {
    let region = Region::new(8 << 20, 1, 4);
    let (mut a, mut b, to_b, to_a) = pair(&region, (0, 0));
    let mut inbox = Inbox::new();
    a.send(to_b, 1, &[b"x"]).expect("room");
    assert_eq!(wait(&mut b, &mut inbox), Event::Message { peer: to_a, tag: 1, len: 1 });
}

#[test]
fn a_full_ring_refuses_and_loses_nothing() {
    let region = Region::new(8 << 20, 2, 4);
    let (mut a, mut b, to_b, _) = pair(&region, (0, 1));
    let mut inbox = Inbox::new();
    let mut sent = 0u64;
    let mut received = 0u64;
    for _ in 0..50 {
        while a.send(to_b, 0, &[&sent.to_le_bytes()]).is_ok() {
            sent += 1;
        }
        assert_eq!(a.send(to_b, 0, &[&[]]), Err(SendError::Full));
        while received < sent {
            let event = wait(&mut b, &mut inbox);
            let (_, _, bytes) = take(&mut b, &mut inbox, event).expect("a message");
            assert_eq!(bytes, received.to_le_bytes());
            received += 1;
        }
        assert_eq!(b.poll(&mut inbox), None);
    }
    assert!(sent >= 50 * 60);
    assert_eq!(a.send(to_b, 0, &[&[0; MAX_INLINE + 1]]), Err(SendError::TooLong(MAX_INLINE + 1)));
}

#[test]
fn a_rendezvous_is_pulled_and_finished() {
    let region = Region::new(64 << 20, 2, 4);
    let (mut a, mut b, to_b, to_a) = pair(&region, (0, 1));
    let mut inbox = Inbox::new();
    let bytes = pattern(3, 10 << 20);
    let buffer = a.fragment(bytes.len()).expect("room in the section");
    a.memory().write(buffer.offset(), &bytes);
    let offset = a.expose(buffer.ptr(), bytes.len() as u64).expect("it lies in our section");
    assert_eq!(a.expose(bytes.as_ptr(), 10), None, "ordinary memory is not exposed");
    a.offer(to_b, 5, offset, bytes.len() as u64, 0xc00c1e).expect("room");
    let Event::Offer { peer, tag: 5, offer } = wait(&mut b, &mut inbox) else { panic!("an offer") };
    assert_eq!((peer, offer.len), (to_a, bytes.len() as u64));
    let mut got = vec![0u8; bytes.len()];
    for (n, piece) in got.chunks_mut(1_000_003).enumerate() {
        let from = offer.offset + n as u64 * 1_000_003;
        // SAFETY: the piece is valid for writes of its length.
        unsafe { b.get(peer, from, piece.as_mut_ptr(), piece.len()) }.expect("a lives");
    }
    assert!(got == bytes);
    b.finish(peer, 6, &offer).expect("room");
    assert_eq!(wait(&mut a, &mut inbox), Event::Done { peer: to_b, tag: 6, cookie: 0xc00c1e });
}

#[test]
fn get_keeps_to_the_peers_section_and_put_to_open_regions() {
    let region = Region::new(8 << 20, 2, 4);
    let (mut a, b, to_b, _) = pair(&region, (0, 1));
    let own = a.section().entry.offset;
    let end = b.section().entry.offset + b.section().entry.len;
    let mut byte = [0u8; 16];
    for offset in [0, own, end - 15, end, u64::MAX - 3, u64::MAX] {
        // SAFETY: the array is valid for writes of its length.
        let got = unsafe { a.get(to_b, offset, byte.as_mut_ptr(), 16) };
        assert!(matches!(got, Err(PeerError::Protocol(_))), "offset {offset}: {got:?}");
    }
    // SAFETY: the array is valid for reads of its length.
    let put = unsafe { a.put(to_b, end - 16, byte.as_ptr(), 16) };
    assert!(put.is_err(), "the region is not open");

    let region = Region::open(8 << 20, 2, 4);
    let (mut a, mut b, to_b, _) = pair(&region, (0, 1));
    let target = b.fragment(64).expect("room");
    // SAFETY: the array is valid for reads of its length.
    unsafe { a.put(to_b, target.offset(), b"0123456789abcdef".as_ptr(), 16) }.expect("the region is open");
    b.memory().read(target.offset(), &mut byte);
    assert_eq!(&byte, b"0123456789abcdef");
    let word = target.offset() + 32;
    assert_eq!(a.fetch_add(to_b, word, 5), Ok(0));
    assert_eq!(a.fetch_add(to_b, word, 5), Ok(5));
    assert_eq!(a.compare_exchange(to_b, word, 10, 77), Ok(10));
    assert_eq!(a.compare_exchange(to_b, word, 10, 78), Ok(77));
    assert!(a.fetch_add(to_b, word + 4, 1).is_err(), "not aligned");
}

#[test]
fn traffic_is_counted_by_the_way_that_it_takes() {
    let region = Region::open(16 << 20, 2, 4);
    let (mut a, mut b, to_b, to_a) = pair(&region, (0, 1));
    let mut inbox = Inbox::new();
    assert_eq!(a.traffic(to_b), Traffic::default());
    let (mut inline, mut fragments) = (Amount::default(), Amount::default());
    for len in 0..=MAX_INLINE {
        let bytes = pattern(7, len);
        // Some messages together: they are read together, too.
        for copy in 0..if len < 60 { 5 } else { 1 } {
            let (header, payload) = bytes.split_at(len.min([0, 3, 14, 23, 40][copy]));
            a.send(to_b, 1, &[header, payload]).expect("room");
            inline.count += 1;
            inline.bytes += (STAMP + len as u64).next_multiple_of(SLOT);
        }
        let fragment = a.fragment(len + 1).expect("room");
        a.send_fragment(to_b, 1, &fragment, len + 1, 0).expect("room");
        fragments.count += 1;
        fragments.bytes += len as u64 + 1;
        while a.traffic(to_b).fragments_sent != b.traffic(to_a).fragments_received {
            let event = b.poll(&mut inbox);
            event.and_then(|event| take(&mut b, &mut inbox, event));
        }
        assert!(matches!(wait(&mut a, &mut inbox), Event::Sent { .. }));
        a.free(fragment);
    }
    let mut byte = [0; 3];
    let target = a.fragment(64).expect("room").offset();
    // SAFETY: the array is valid for reads and writes of its length.
    unsafe {
        b.get(to_a, target, byte.as_mut_ptr(), 3).expect("a lives");
        b.put(to_a, target, byte.as_ptr(), 3).expect("the region is open");
    }
    b.fetch_add(to_a, target, 1).expect("the region is open");
    let (gets, puts) = (Amount { count: 1, bytes: 3 }, Amount { count: 2, bytes: 11 });
    let sent = Traffic { inline_sent: inline, fragments_sent: fragments, ..Traffic::default() };
    assert_eq!(a.traffic(to_b), sent);
    let received =
        Traffic { inline_received: inline, fragments_received: fragments, gets, puts, ..Traffic::default() };
    assert_eq!(b.traffic(to_a), received);
    // The host is told, in the block of the connection.
    for _ in 0..200 {
        b.poll(&mut inbox);
    }
    let mut told = Told::new_zeroed();
    let at = connection(b.memory(), &b, &a) + offset_of!(ConnectionHeader, told) as u64;
    b.memory().read(at, told.as_mut_bytes());
    let want = Told {
        inline: inline.count,
        fragments: fragments.count,
        fragment_bytes: fragments.bytes,
        gets: 1,
        get_bytes: 3,
        puts: 2,
        put_bytes: 11,
    };
    assert_eq!(told, want);
}

#[test]
fn a_peer_that_leaves_is_reported_after_its_messages() {
    let region = Region::new(8 << 20, 2, 4);
    let (mut a, mut b, to_b, to_a) = pair(&region, (0, 1));
    let mut inbox = Inbox::new();
    b.send(to_a, 1, &[b"farewell"]).expect("room");
    assert!(!b.is_drained());
    assert_eq!(wait(&mut a, &mut inbox), Event::Message { peer: to_b, tag: 1, len: 8 });
    assert_eq!(a.poll(&mut inbox), None);
    assert!(b.is_drained());
    drop(b);
    // A sender meets a full ring in the end, and then the truth.
    let fragment = a.fragment(2000).expect("room");
    a.send_fragment(to_b, 1, &fragment, 2000, 42).expect("room");
    while a.send(to_b, 1, &[b"anyone there?"]) != Err(SendError::Gone) {}
    assert_eq!(wait(&mut a, &mut inbox), Event::Unsent { peer: to_b, token: 42 });
    assert_eq!(wait(&mut a, &mut inbox), Event::Gone { peer: to_b, why: PeerError::Left });
    assert_eq!(a.poll(&mut inbox), None);
}

#[test]
fn an_acknowledgement_that_another_wrote_over_is_not_believed() {
    let region = Region::new(8 << 20, 2, 4);
    let (mut a, mut b, to_b, to_a) = pair(&region, (0, 1));
    let mut inbox = Inbox::new();
    b.send(to_a, 1, &[b"so that a knows b's side"]).expect("room");
    assert!(matches!(wait(&mut a, &mut inbox), Event::Message { .. }));
    let fragment = a.fragment(2000).expect("room");
    a.send_fragment(to_b, 1, &fragment, 2000, 42).expect("room");
    let host = region.host();
    let connection = connection(&host, &b, &a);
    assert_eq!(
        host.load(connection + offset_of!(ConnectionHeader, incarnation) as u64, Ordering::Relaxed),
        1
    );
    drop(b);
    // The work of a sibling of b that gets its memory.
    host.zero(connection, CONNECTION_LEN);
    host.store(connection + offset_of!(ConnectionHeader, consumed) as u64, 1, Ordering::Relaxed);
    assert_eq!(wait(&mut a, &mut inbox), Event::Unsent { peer: to_b, token: 42 });
    assert_eq!(wait(&mut a, &mut inbox), Event::Gone { peer: to_b, why: PeerError::Left });
}

#[test]
fn a_reborn_peer_is_another_peer() {
    let region = Region::new(8 << 20, 2, 4);
    let (mut a, b, to_b, _) = pair(&region, (0, 1));
    let mut inbox = Inbox::new();
    let old = b.name();
    drop(b);
    let mut b = region.endpoint(1);
    assert_eq!(b.name().id, old.id, "the slot is used again");
    assert_ne!(b.name().incarnation, old.incarnation);
    let to_new = a.connect(&b.name()).expect("the new one is there");
    assert_ne!(to_new, to_b);
    assert_eq!(wait(&mut a, &mut inbox), Event::Gone { peer: to_b, why: PeerError::Left });
    a.send(to_new, 3, &[b"welcome"]).expect("room");
    let Event::Message { peer, tag: 3, .. } = wait(&mut b, &mut inbox) else { panic!("a message") };
    b.send(peer, 4, &[b"thanks"]).expect("room");
    assert_eq!(wait(&mut a, &mut inbox), Event::Message { peer: to_new, tag: 4, len: 6 });
    assert!(a.connect(&old).is_err(), "the old life is over");
}

#[test]
fn lives_that_are_forgotten_leave_nothing_behind() {
    let region = Region::new(8 << 20, 2, 4);
    let mut a = region.endpoint(0);
    let mut inbox = Inbox::new();
    let mut first = None;
    for life in 0..1000u64 {
        let mut b = region.endpoint(1);
        let to_a = b.connect(&a.name()).expect("a is there");
        b.send(to_a, 1, &[&life.to_le_bytes()]).expect("room");
        let Event::Message { peer, len: 8, .. } = wait(&mut a, &mut inbox) else { panic!("a message") };
        assert_eq!(inbox.bytes(8), life.to_le_bytes());
        assert_eq!(*first.get_or_insert(peer), peer, "life {life} has a number of its own");
        // Nobody lives on by it.
        a.forget(peer);
        let fragment = a.fragment(2000).expect("room");
        a.send_fragment(peer, 1, &fragment, 2000, life).expect("room");
        drop(b);
        assert_eq!(wait(&mut a, &mut inbox), Event::Unsent { peer, token: life });
        a.free(fragment);
        assert_eq!(wait(&mut a, &mut inbox), Event::Gone { peer, why: PeerError::Left });
        a.forget(peer);
    }
    // One that somebody still knows is not mistaken for the next.
    let (known, b) = (first.expect("there were some"), region.endpoint(1));
    assert_eq!(a.connect(&b.name()), Ok(known));
    drop(b);
    while a.poll(&mut inbox) != Some(Event::Gone { peer: known, why: PeerError::Left }) {}
    let b = region.endpoint(1);
    assert_ne!(a.connect(&b.name()), Ok(known));
}

#[test]
fn strangers_for_whom_there_is_no_memory_are_met_later_and_cost_little_until_then() {
    let region = Region::new(16 << 20, 2, 64);
    let mut a = region.endpoint(0);
    let mut inbox = Inbox::new();
    let strangers: Vec<_> = (0..4).map(|_| region.endpoint(1)).collect();
    let mut taken: Vec<_> = [64 << 10, 4096, 2000, 128]
        .iter()
        .flat_map(|len| std::iter::from_fn(|| a.fragment(*len)).collect::<Vec<_>>())
        .collect();
    let mut strangers: Vec<_> = strangers
        .into_iter()
        .map(|mut stranger| {
            let to_a = stranger.connect(&a.name()).expect("a is there");
            stranger.send(to_a, 1, &[b"hello"]).expect("room");
            stranger
        })
        .collect();
    let polls = 10_000;
    let loads = a.memory().loads();
    (0..polls).for_each(|_| assert_eq!(a.poll(&mut inbox), None));
    let each = (a.memory().loads() - loads) as f64 / f64::from(polls);
    assert!(each < 20.0, "{each} words a poll");
    taken.drain(..).for_each(|fragment| a.free(fragment));
    for _ in &strangers {
        assert!(matches!(wait(&mut a, &mut inbox), Event::Message { tag: 1, len: 5, .. }));
    }
    strangers.clear();
}

#[test]
fn what_was_not_acknowledged_in_one_life_is_not_in_the_next() {
    // Which section's activity is looked at next depends on the polls before.
    (0..4).for_each(unacknowledged_life);
}

fn unacknowledged_life(polls: usize) {
    let region = Region::new(8 << 20, 2, 4);
    let (mut a, mut b, _, to_a) = pair(&region, (0, 1));
    let mut inbox = Inbox::new();
    for _ in 0..polls {
        assert_eq!(a.poll(&mut inbox), None);
    }
    for _ in 0..5 {
        b.send(to_a, 1, &[b"old"]).expect("room");
    }
    // Without an idle poll, so that nothing is acknowledged yet.
    for _ in 0..5 {
        assert!(matches!(wait(&mut a, &mut inbox), Event::Message { tag: 1, .. }));
    }
    drop(b);
    let mut b = region.endpoint(1);
    let to_a = b.connect(&a.name()).expect("a is there");
    b.send(to_a, 2, &[b"new"]).expect("room");
    while !matches!(wait(&mut a, &mut inbox), Event::Message { tag: 2, .. }) {}
    for _ in 0..200 {
        let event = a.poll(&mut inbox);
        assert!(matches!(event, None | Some(Event::Gone { why: PeerError::Left, .. })), "{event:?}");
        b.is_drained();
        assert_eq!(b.poll(&mut inbox), None, "an honest peer was given up");
    }
    assert!(b.is_drained());
    for n in 0..300u32 {
        while b.send(to_a, 3, &[&n.to_le_bytes()]).is_err() {
            assert!(a.poll(&mut inbox).is_none_or(|event| matches!(event, Event::Message { tag: 3, .. })));
        }
    }
}

#[test]
fn memory_comes_back_when_endpoints_leave() {
    let region = Region::new(4 << 20, 2, 4);
    for _ in 0..100 {
        let (mut a, b, ..) = pair(&region, (0, 1));
        let whole: Vec<Fragment> = std::iter::from_fn(|| a.fragment(40_000)).collect();
        assert!(whole.len() > 20, "only {} fragments", whole.len());
        drop((a, b));
    }
}

#[test]
fn free_memory_serves_any_length() {
    let region = Region::new(2 << 20, 2, 4);
    let mut a = region.endpoint(0);
    let all = |a: &mut Endpoint<View>, len| std::iter::from_fn(|| a.fragment(len)).collect::<Vec<_>>();
    for round in 0..3 {
        for len in [200, 30_000, 3000, 65_536, 70_000, 10_000, 1000] {
            let lent = all(&mut a, len);
            assert!(lent.len() * len > 300_000, "round {round}: only {} times {len} bytes", lent.len());
            lent.into_iter().for_each(|fragment| a.free(fragment));
        }
    }
}

#[test]
fn a_section_has_only_so_many_slots() {
    let region = Region::new(8 << 20, 2, 4);
    let all: Vec<_> = (0..4).map(|_| region.endpoint(1)).collect();
    let fifth = Endpoint::attach(region.member(1), 1).map(|_| ());
    assert!(fifth.unwrap_err().to_string().contains("all 4 endpoint slots of section 1 are taken"));
    drop(all);
    region.endpoint(1);
}

#[test]
fn sixty_three_silent_peers_do_not_hide_the_one_that_speaks() {
    let region = Region::new(64 << 20, 4, 16);
    let mut centre = region.endpoint(0);
    let mut others: Vec<_> = (0..63).map(|n| region.endpoint((n + 1) / 16)).collect();
    let mut inbox = Inbox::new();
    let mut peers = Vec::new();
    for other in &mut others {
        let to = other.connect(&centre.name()).expect("the centre is there");
        other.send(to, 0, &[b"hello"]).expect("room");
        peers.push(to);
    }
    for _ in 0..63 {
        assert!(matches!(wait(&mut centre, &mut inbox), Event::Message { tag: 0, .. }));
    }
    for round in 0..500usize {
        let n = round * 37 % 63;
        others[n].send(peers[n], 1, &[&round.to_le_bytes()]).expect("room");
        let Event::Message { tag: 1, len: 8, .. } = wait(&mut centre, &mut inbox) else {
            panic!("a message")
        };
        assert_eq!(inbox.bytes(8), round.to_le_bytes());
    }
}

/// Sends fragments of 2 KiB, and takes new memory only when none has come back.
#[derive(Default)]
struct Stream {
    free: Vec<Fragment>,
    flying: HashMap<u64, Fragment>,
    sent: u64,
}

impl Stream {
    /// Fragments that were ever made.
    fn made(&self) -> usize {
        self.free.len() + self.flying.len()
    }

    fn send(&mut self, from: &mut Endpoint<View>, to: Peer) -> bool {
        let Some(fragment) = self.free.pop().or_else(|| from.fragment(2048)) else { return false };
        self.sent += 1;
        match from.send_fragment(to, 1, &fragment, 2048, self.sent) {
            Ok(()) => self.flying.insert(self.sent, fragment).is_none(),
            Err(_) => {
                self.free.push(fragment);
                false
            }
        }
    }

    fn come_back(&mut self, token: u64) {
        self.free.push(self.flying.remove(&token).expect("it was under way"));
    }
}

/// An endpoint that forwards what it gets from a peer that never stops to two that take it at once, and waits for another that is slow,
/// has only so many fragments under way as the rings hold, and does not fall behind.
#[test]
fn fragments_come_back_to_who_always_finds_a_message() {
    const ROUNDS: usize = if cfg!(miri) { 50 } else { 1000 };
    const BATCH: usize = 32;
    for inline in [false, true] {
        for with_slow_peer in [false, true] {
            let region = Region::new(64 << 20, 5, 4);
            let (mut a, mut b, a_to_b, _) = pair(&region, (0, 1));
            let [mut slow, mut c, mut d] = [2, 3, 4].map(|section| region.endpoint(section));
            let [to_slow, to_c, to_d] = [&mut slow, &mut c, &mut d].map(|other| {
                other.connect(&b.name()).expect("b is there");
                b.connect(&other.name()).expect("it is there")
            });
            let (mut ours, mut forwarded) = (Stream::default(), Stream::default());
            if with_slow_peer {
                assert!(forwarded.send(&mut b, to_slow));
            }
            let [mut inbox, mut of_a, mut of_c, mut of_d] = [(); 4].map(|()| Inbox::new());
            let (mut owed, mut arrived) = (VecDeque::new(), 0);
            for _ in 0..ROUNDS {
                while let Some(event) = a.poll(&mut of_a) {
                    let Event::Sent { token, .. } = event else { panic!("{event:?}") };
                    ours.come_back(token);
                }
                while if inline { a.send(a_to_b, 1, &[b"x"]).is_ok() } else { ours.send(&mut a, a_to_b) } {}
                // The work of a program that takes a batch at a time.
                let (mut is_message, mut messages) = (false, 0);
                while messages < BATCH {
                    let found = if is_message { b.poll_more(&mut inbox) } else { b.poll(&mut inbox) };
                    let Some(event) = found else { break };
                    is_message = matches!(event, Event::Message { .. });
                    if let Event::Sent { token, .. } = event {
                        forwarded.come_back(token);
                        continue;
                    }
                    assert!(take(&mut b, &mut inbox, event).is_some());
                    messages += 1;
                    owed.extend([to_c, to_d]);
                }
                while let Some(to) = owed.front().copied()
                    && forwarded.send(&mut b, to)
                {
                    owed.pop_front();
                }
                for (end, inbox) in [(&mut c, &mut of_c), (&mut d, &mut of_d)] {
                    for _ in 0..4 * BATCH {
                        let event = end.poll(inbox);
                        arrived += usize::from(event.and_then(|event| take(end, inbox, event)).is_some());
                    }
                }
            }
            let case = format!("inline {inline}, slow peer {with_slow_peer}");
            assert!(forwarded.made() < 4 * BATCH, "{case}: {} fragments taken", forwarded.made());
            assert!(arrived > ROUNDS * BATCH, "{case}: {arrived} arrived in {ROUNDS} rounds");
        }
    }
}

/// Each poll finds a fragment that has come back, and the count that says that there is news was lost.
#[test]
fn a_message_without_its_notice_is_found_between_fragments_that_come_back() {
    let region = Region::new(8 << 20, 3, 4);
    let (mut a, mut b, to_b, _) = pair(&region, (0, 1));
    let mut silent = region.endpoint(2);
    let to_silent = a.connect(&silent.name()).expect("it is there");
    let to_a = silent.connect(&a.name()).expect("a is there");
    let mut inbox = Inbox::new();
    a.send(to_silent, 1, &[b"so that it knows a's side"]).expect("room");
    assert!(matches!(wait(&mut silent, &mut inbox), Event::Message { .. }));
    for _ in 0..1000 {
        assert_eq!(a.poll(&mut inbox), None);
    }
    // It believes that a looks, and says nothing.
    let host = region.host();
    let hot = connection(&host, &a, &silent) + offset_of!(ConnectionHeader, polled) as u64;
    host.store(hot, POLLED, Ordering::Relaxed);
    silent.send(to_a, 2, &[b"hello"]).expect("room");
    let mut stream = Stream::default();
    for _ in 0..1000 {
        assert!(stream.send(&mut a, to_b));
        let event = wait(&mut b, &mut inbox);
        assert!(take(&mut b, &mut inbox, event).is_some());
        match a.poll(&mut inbox) {
            Some(Event::Sent { token, .. }) => stream.come_back(token),
            Some(Event::Message { peer, tag: 2, len: 5 }) if peer == to_silent => return,
            event => assert_eq!(event, None),
        }
    }
    panic!("it was never heard");
}

/// Next step of a proptest case.
#[derive(Debug, Clone)]
enum Step {
    Send { from: usize, to: usize, len: usize },
    Receive { at: usize, most: usize },
}

fn step(endpoints: usize) -> impl Strategy<Value = Step> {
    let len = prop_oneof![
        4 => 0..200usize,
        2 => prop::sample::select(vec![0, 23, 24, 25, 56, 57, 112, MAX_INLINE - 1, MAX_INLINE, MAX_INLINE + 1, 4096]),
        1 => 0..70_000usize,
    ];
    prop_oneof![
        3 => (0..endpoints, 0..endpoints, len).prop_map(|(from, to, len)| Step::Send { from, to, len }),
        2 => (0..endpoints, 0..40usize).prop_map(|(at, most)| Step::Receive { at, most }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 2 } else { 200 }, ..ProptestConfig::default() })]

    /// Any order of sends and receives between four endpoints delivers every message once, whole and in order.
    #[test]
    fn any_order_of_steps_delivers_all(steps in prop::collection::vec(step(4), 1..400)) {
        let region = Region::new(16 << 20, 2, 4);
        let mut all: Vec<_> = (0..4).map(|n| region.endpoint(n % 2)).collect();
        let names: Vec<_> = all.iter().map(Endpoint::name).collect();
        let mut peers: HashMap<(usize, usize), Peer> = HashMap::new();
        let mut who: Vec<HashMap<Peer, usize>> = vec![HashMap::new(); 4];
        for from in 0..4 {
            for to in (0..4).filter(|to| *to != from) {
                let peer = all[from].connect(&names[to]).expect("it is there");
                peers.insert((from, to), peer);
                who[from].insert(peer, to);
            }
        }
        let mut under_way: HashMap<(usize, usize), VecDeque<Vec<u8>>> = HashMap::new();
        let mut fragments: Vec<HashMap<u64, Fragment>> = (0..4).map(|_| HashMap::new()).collect();
        let mut inboxes = [(); 4].map(|()| Inbox::new());
        let mut seed = 0;
        let all_steps = steps.into_iter().chain((0..40).map(|n| Step::Receive { at: n % 4, most: usize::MAX }));
        for step in all_steps {
            match step {
                Step::Send { from, to, len } if from != to => {
                    seed += 1;
                    let bytes = pattern(seed, len);
                    match send(&mut all[from], peers[&(from, to)], 1, &bytes) {
                        Ok(fragment) => {
                            fragments[from].extend(fragment.map(|f| (f.offset(), f)));
                            under_way.entry((from, to)).or_default().push_back(bytes);
                        }
                        Err(error) => prop_assert_eq!(error, SendError::Full),
                    }
                }
                Step::Send { .. } => {}
                Step::Receive { at, most } => {
                    let mut idle = 0;
                    let inbox = &mut inboxes[at];
                    for _ in 0..most {
                        let Some(event) = all[at].poll(inbox) else {
                            idle += 1;
                            if idle > 20 { break }
                            continue;
                        };
                        if let Event::Sent { token, .. } = event {
                            let fragment = fragments[at].remove(&token).expect("it was under way");
                            all[at].free(fragment);
                            continue;
                        }
                        let (peer, _, bytes) = take(&mut all[at], inbox, event).expect("a message");
                        let expected = under_way.get_mut(&(who[at][&peer], at)).and_then(VecDeque::pop_front);
                        prop_assert!(expected == Some(bytes));
                    }
                }
            }
        }
        prop_assert!(under_way.values().all(VecDeque::is_empty));
        prop_assert!(fragments.iter().all(HashMap::is_empty));
    }
}
