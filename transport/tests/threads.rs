//! Endpoints in threads of their own, all talking to all: what the thread sanitizer watches.

mod common;

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{Region, View, pattern, send};
use vmshm_transport::abi::EndpointName;
use vmshm_transport::{Endpoint, Event, Fragment, Inbox, Memory, Peer, SendError};

const MESSAGES: usize = if cfg!(vmshm_sanitize) { 400 } else { 2000 };

fn length(seed: u64) -> usize {
    match seed % 7 {
        0 => (seed * 31 % 40_000) as usize,
        1 => (seed * 31 % 5000) as usize,
        _ => (seed * 31 % 300) as usize,
    }
}

/// Sends to every peer and checks what comes from it, until all have sent and received everything.
fn talk(mut me: Endpoint<View>, names: &[EndpointName], finished: &AtomicUsize) {
    let own = me.name().id;
    let others: Vec<u32> = names.iter().map(|name| name.id).filter(|id| *id != own).collect();
    let mut ids: HashMap<Peer, u32> = HashMap::new();
    let mut peers: Vec<(u32, Peer, usize, Option<Vec<u8>>)> = Vec::new();
    for name in names.iter().filter(|name| name.id != own) {
        let peer = me.connect(name).expect("the peer is there");
        ids.insert(peer, name.id);
        peers.push((name.id, peer, 0, None));
    }
    let mut fragments: HashMap<u64, Fragment> = HashMap::new();
    let mut received: HashMap<u32, usize> = HashMap::new();
    let mut inbox = Inbox::new();
    let seed = |from: u32, to: u32, n: usize| u64::from(from) << 40 | u64::from(to) << 20 | n as u64;
    let mut done = false;
    while finished.load(Ordering::Acquire) < names.len() {
        for (id, peer, sent, next) in &mut peers {
            if *sent == MESSAGES {
                continue;
            }
            let seed = seed(own, *id, *sent);
            let bytes = next.get_or_insert_with(|| pattern(seed, length(seed)));
            match send(&mut me, *peer, 1, bytes) {
                Ok(fragment) => {
                    fragments.extend(fragment.map(|fragment| (fragment.offset(), fragment)));
                    *sent += 1;
                    *next = None;
                }
                Err(SendError::Full) => {}
                Err(error) => panic!("{error}"),
            }
        }
        for _ in 0..20 {
            let bytes = match me.poll(&mut inbox) {
                None => {
                    std::thread::yield_now();
                    break;
                }
                Some(Event::Sent { token, .. }) => {
                    me.free(fragments.remove(&token).expect("it was under way"));
                    continue;
                }
                Some(Event::Message { peer, len, .. }) => (peer, inbox.bytes(len).to_vec()),
                Some(Event::Fragment { peer, offset, len, .. }) => {
                    let mut bytes = vec![0; len];
                    me.memory().read(offset, &mut bytes);
                    me.consume(peer).expect("the sender lives");
                    (peer, bytes)
                }
                Some(event) => panic!("unexpected {event:?}"),
            };
            let from = ids[&bytes.0];
            let n = received.entry(from).or_default();
            let seed = seed(from, own, *n);
            assert!(bytes.1 == pattern(seed, length(seed)), "message {n} from {from} came out different");
            *n += 1;
        }
        let complete = peers.iter().all(|(_, _, sent, _)| *sent == MESSAGES)
            && others.iter().all(|id| received.get(id) == Some(&MESSAGES))
            && fragments.is_empty()
            && me.is_drained();
        if complete && !done {
            done = true;
            finished.fetch_add(1, Ordering::AcqRel);
        }
    }
}

fn all_to_all(sections: u32, per_section: u32) {
    let region = Region::new(64 << 20, sections, per_section);
    let all: VecDeque<_> = (0..sections * per_section).map(|n| region.endpoint(n % sections)).collect();
    let names: Vec<_> = all.iter().map(Endpoint::name).collect();
    let finished = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for endpoint in all {
            scope.spawn(|| talk(endpoint, &names, &finished));
        }
    });
}

#[test]
fn two_sections() {
    all_to_all(2, 1);
}

#[test]
fn one_section() {
    all_to_all(1, 3);
}

#[test]
fn two_sections_of_two() {
    all_to_all(2, 2);
}

/// Processes of one section come and go; the heap and the slots stay whole.
#[test]
fn coming_and_going() {
    let region = Region::new(8 << 20, 2, 4);
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let region = &region;
            scope.spawn(move || {
                for round in 0..MESSAGES / 20 {
                    let mut a = region.endpoint(0);
                    let len = 100 + (round * 7919 + thread * 104_729) % 100_000;
                    let bytes = pattern((round * 3 + thread) as u64, len);
                    let fragment = a.fragment(len).expect("room");
                    a.memory().write(fragment.offset(), &bytes);
                    let mut back = vec![0; len];
                    a.memory().read(fragment.offset(), &mut back);
                    assert!(back == bytes, "another endpoint wrote into our fragment");
                }
            });
        }
    });
    // All of it is free again.
    let mut last = region.endpoint(0);
    let rest: Vec<_> = std::iter::from_fn(|| last.fragment(60_000)).collect();
    assert!(rest.len() as u64 >= last.section().layout.chunks - 2);
}
