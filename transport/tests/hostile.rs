//! A hostile peer: its section is overwritten with random and with crafted bytes while traffic runs.
//!
//! Nobody crashes, nobody hangs, nobody reads outside the region, and the others are not disturbed.

mod common;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::{Region, View, pattern, send};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use vmshm_transport::abi::ring::{CONNECTION_LEN, KIND_INLINE, KIND_PADDED, Stamp};
use vmshm_transport::abi::section::{CHUNK, STATE_LIVE, SlotState};
use vmshm_transport::{Endpoint, Event, Glance, Inbox, MAX_EAGER, MAX_INLINE, Memory, Peer, Section};

const LENGTH: Duration = Duration::from_millis(1500);

/// Two honest endpoints exchange verified messages; the victim between them is only required to survive.
fn honest(mut me: Endpoint<View>, friend: Peer, stop: &AtomicBool, verified: &AtomicU64) -> Endpoint<View> {
    let mut inbox = Inbox::new();
    let (mut sent, mut received) = (0u64, 0u64);
    let mut fragment = None;
    while !stop.load(Ordering::Relaxed) {
        let len = sent as usize * 37 % 1500;
        if fragment.is_none()
            && sent < received + 20
            && let Ok(flying) = send(&mut me, friend, 7, &pattern(sent, len))
        {
            fragment = flying;
            sent += 1;
        }
        match me.poll(&mut inbox) {
            Some(Event::Sent { token, peer }) if peer == friend => {
                let landed = fragment.take().expect("one was under way");
                assert_eq!(landed.offset(), token);
                me.free(landed);
            }
            Some(Event::Message { peer, len, tag }) if peer == friend => {
                assert_eq!(tag, 7);
                assert!(
                    inbox.bytes(len) == pattern(received, received as usize * 37 % 1500),
                    "message {received}"
                );
                received += 1;
                verified.fetch_add(1, Ordering::Relaxed);
            }
            Some(Event::Fragment { peer, offset, len, .. }) => {
                let mut bytes = vec![0; len];
                me.memory().read(offset, &mut bytes);
                let consumed = me.consume(peer);
                if peer == friend {
                    consumed.expect("the friend lives");
                    assert!(bytes == pattern(received, received as usize * 37 % 1500), "fragment {received}");
                    received += 1;
                    verified.fetch_add(1, Ordering::Relaxed);
                }
            }
            Some(Event::Gone { peer, why }) => assert_ne!(peer, friend, "an honest peer was given up: {why}"),
            Some(Event::Offer { peer, offer, .. }) if peer != friend => {
                let mut bytes = vec![0; offer.len.min(10_000) as usize];
                // SAFETY: the vector is valid for writes of its length.
                let _ = unsafe { me.get(peer, offer.offset, bytes.as_mut_ptr(), bytes.len()) };
                let _ = me.finish(peer, 0, &offer);
            }
            None if cfg!(vmshm_sanitize) => std::thread::yield_now(),
            _ => {}
        }
    }
    // Given back, so that it leaves only when the friend has stopped too.
    me
}

/// An honest endpoint whose own section is being overwritten: it must not crash, whatever it then says.
fn victim(mut me: Endpoint<View>, friends: &[Peer], stop: &AtomicBool) {
    let mut inbox = Inbox::new();
    let mut n = 0;
    while !stop.load(Ordering::Relaxed) {
        n += 1;
        for friend in friends {
            let _ = me.send(*friend, 1, &[&[n as u8; 200][..n % 200]]);
            if n % 50 == 0
                && let Some(fragment) = me.fragment(3000)
            {
                let _ = me.send_fragment(*friend, 1, &fragment, 3000, 0);
            }
        }
        if let Some(Event::Fragment { peer, .. }) = me.poll(&mut inbox) {
            let _ = me.consume(peer);
        }
    }
}

fn run(attack: impl Fn(&View, &Section, &mut SmallRng) + Sync) {
    let region = Region::new(16 << 20, 3, 4);
    let mut a = region.endpoint(0);
    let mut b = region.endpoint(1);
    let mut v = region.endpoint(2);
    let (to_a, to_b) = (b.connect(&a.name()).unwrap(), a.connect(&b.name()).unwrap());
    let (v_a, v_b) = (v.connect(&a.name()).unwrap(), v.connect(&b.name()).unwrap());
    a.connect(&v.name()).unwrap();
    b.connect(&v.name()).unwrap();
    let section = *v.section();
    let host = region.host();
    let stop = AtomicBool::new(false);
    let verified = AtomicU64::new(0);
    let seed = rand::rng().random();
    println!("seed {seed}");
    std::thread::scope(|scope| {
        let a = scope.spawn(|| honest(a, to_b, &stop, &verified));
        let b = scope.spawn(|| honest(b, to_a, &stop, &verified));
        scope.spawn(|| victim(v, &[v_a, v_b], &stop));
        scope.spawn(|| {
            let mut rng = SmallRng::seed_from_u64(seed);
            let end = Instant::now() + LENGTH;
            while Instant::now() < end {
                attack(&host, &section, &mut rng);
            }
            let after = verified.load(Ordering::Relaxed);
            // The honest pair must still be at work after the attack, not only before it.
            let patience = Instant::now() + Duration::from_secs(20);
            while verified.load(Ordering::Relaxed) < after + 100 && Instant::now() < patience {
                std::thread::yield_now();
            }
            let moved = verified.load(Ordering::Relaxed) - after;
            stop.store(true, Ordering::Relaxed);
            assert!(moved >= 100, "traffic between honest peers stopped: {moved} messages after the attack");
        });
        let ended = (a.join(), b.join());
        assert!(ended.0.is_ok() && ended.1.is_ok(), "an honest endpoint panicked");
    });
}

/// Where the control words of a small section lie, and the first lines of its chunks.
fn interesting(section: &Section, rng: &mut SmallRng) -> u64 {
    let relative = match rng.random_range(0..5) {
        0 => section.layout.slot(rng.random_range(0..section.layout.endpoints)) + rng.random_range(0..18) * 8,
        1 => {
            section.layout.activity_line(rng.random_range(0..section.layout.total_endpoints))
                + rng.random_range(0..8) * 8
        }
        2 => section.layout.owner(rng.random_range(0..section.layout.chunks)),
        3 => section.layout.chunk(rng.random_range(0..4)) + rng.random_range(0..16) * 8,
        _ => section.layout.chunk(rng.random_range(0..3)) + rng.random_range(0..CHUNK / 8) * 8,
    };
    section.entry.offset + relative
}

#[test]
fn random_bytes() {
    run(|host, section, rng| host.store(interesting(section, rng), rng.random(), Ordering::Relaxed));
}

#[test]
fn crafted_words() {
    run(|host, section, rng| {
        let edge = [
            0,
            1,
            7,
            8,
            63,
            64,
            CHUNK,
            section.entry.len,
            section.entry.len - 1,
            section.entry.len - 64,
            section.entry.offset,
            section.entry.offset + section.entry.len - 8,
            u64::MAX,
            u64::MAX - 7,
            1 << 63,
            host.len(),
            host.len() - 1,
        ];
        let value = match rng.random_range(0..4) {
            0 => edge[rng.random_range(0..edge.len())],
            1 => SlotState { incarnation: rng.random_range(0..4), state: rng.random_range(0..6) }.pack(),
            2 => {
                let len =
                    [0, 24, 56, MAX_INLINE as u16, MAX_INLINE as u16 + 1, u16::MAX][rng.random_range(0..6)];
                Stamp {
                    sequence: rng.random_range(0..200),
                    len,
                    kind: rng.random_range(0..8),
                    tag: rng.random(),
                }
                .pack()
            }
            _ => section.entry.offset + rng.random_range(0..section.entry.len),
        };
        host.store(interesting(section, rng), value, Ordering::Relaxed);
    });
}

/// Plausible rings full of plausible lies: right sequence numbers, wrong everything else.
#[test]
fn crafted_messages() {
    run(|host, section, rng| {
        let slot = section.entry.offset + section.layout.slot(0);
        let life = SlotState { incarnation: rng.random_range(1..6), state: STATE_LIVE };
        host.store(slot, life.pack(), Ordering::Relaxed);
        let directory = section.layout.chunk(0);
        host.store(slot + 8, directory, Ordering::Relaxed);
        let connection = section.layout.chunk(1);
        for peer in 0..2u64 {
            let block = connection + peer * (CONNECTION_LEN + 124 * 32);
            host.store(section.entry.offset + directory + peer * 4 * 8, block, Ordering::Relaxed);
            let at = section.entry.offset + block;
            let slots = [8, 16, 124, 1 << 16, 1 << 31, 7][rng.random_range(0..6)];
            host.store(at, 1, Ordering::Relaxed);
            host.store(at + 8, life.incarnation, Ordering::Relaxed);
            host.store(at + 16, (peer * 4) | (slots << 32), Ordering::Relaxed);
            host.store(at + 64, rng.random_range(0..200), Ordering::Relaxed);
            for position in 0..124u64 {
                let kind = rng.random_range(1..6);
                let len =
                    if [KIND_INLINE, KIND_PADDED].contains(&kind) { rng.random_range(0..1000) } else { 24 };
                let stamp = Stamp { sequence: position as u32 + 1, len, kind, tag: 0 };
                let body = at + CONNECTION_LEN + position * 32;
                let inside = section.entry.offset + rng.random_range(0..section.entry.len);
                host.store(body + 8, if rng.random() { inside } else { rng.random() }, Ordering::Relaxed);
                host.store(
                    body + 16,
                    if rng.random() { rng.random_range(0..5000) } else { rng.random() },
                    Ordering::Relaxed,
                );
                host.store(body, stamp.pack(), Ordering::Release);
            }
        }
        for word in 0..8 {
            let line = section.layout.activity_line(rng.random_range(0..8));
            host.fetch_add(section.entry.offset + line + word * 8, 1, Ordering::Release);
        }
    });
}

/// Descriptors that lie about eager messages, which are taken at a glance: what leaves the sender's section ends the connection.
#[test]
fn crafted_descriptors_at_a_glance() {
    let mut rng = SmallRng::seed_from_u64(2);
    let (mut taken, mut refused) = (0, 0);
    for _ in 0..500 {
        let region = Region::new(4 << 20, 2, 2);
        let (mut a, mut v) = (region.endpoint(0), region.endpoint(1));
        let (host, section) = (region.host(), *v.section());
        let v_a = v.connect(&a.name()).unwrap();
        a.connect(&v.name()).unwrap();
        v.reserve_eager(64 << 10);
        let mut inbox = Inbox::new();
        v.send(v_a, 1, &[b"first"]).unwrap();
        while !matches!(a.poll(&mut inbox), Some(Event::Message { .. })) {}
        v.send_eager(v_a.index(), 1, &[1; 14], &[2; 2000]).expect("there is room");
        let slot = section.entry.offset + section.layout.chunk(1) + CONNECTION_LEN + 32;
        assert_eq!(host.load(slot + 16, Ordering::Relaxed), 2014);
        let edges =
            [0, 1, section.entry.offset - 64, section.entry.offset, host.len() - 8, host.len(), u64::MAX];
        let inside = section.entry.offset + rng.random_range(0..section.entry.len);
        let offset = if rng.random() { inside } else { edges[rng.random_range(0..edges.len())] };
        let len = [0, 1, 2014, MAX_EAGER as u64, MAX_EAGER as u64 + 1, 1 << 32, u64::MAX];
        let len = len[rng.random_range(0..len.len())];
        host.store(slot + 8, offset, Ordering::Relaxed);
        host.store(slot + 16, len, Ordering::Relaxed);
        let found = (0..1000).find_map(|_| match a.glance(&mut inbox) {
            Glance::Long => match a.take_long(&mut inbox, |_, _| true) {
                Some(_) => Some(inbox.seen(0).map(|(_, bytes)| bytes.len() as u64)),
                None => match a.poll(&mut inbox)? {
                    Event::Fragment { offset, len, .. } => {
                        assert!(section.contains(offset, len as u64) && len > MAX_EAGER);
                        Some(Some(len as u64))
                    }
                    Event::Gone { .. } => Some(None),
                    _ => None,
                },
            },
            Glance::Around | Glance::More => match a.poll(&mut inbox) {
                Some(Event::Gone { .. }) => Some(None),
                _ => None,
            },
            _ => None,
        });
        match found.expect("it is taken or refused") {
            Some(found) => {
                assert!(found == len && section.contains(offset, len));
                taken += 1;
            }
            None => {
                assert!(!section.contains(offset, len));
                refused += 1;
            }
        }
    }
    assert!(taken > 20 && refused > 20, "{taken} taken, {refused} refused");
}

/// Every word of the header and the table, set to hostile numbers, is refused or harmless, never followed.
#[test]
fn hostile_headers() {
    let mut rng = SmallRng::seed_from_u64(1);
    for round in 0..20_000 {
        let region = if round % 100 == 0 { Some(Region::new(1 << 20, 3, 4)) } else { None };
        thread_local!(static KEEP: std::cell::RefCell<Option<Region>> = const { std::cell::RefCell::new(None) });
        KEEP.with_borrow_mut(|keep| {
            if region.is_some() {
                *keep = region;
            }
            let region = keep.as_ref().expect("made in round 0");
            let host = region.host();
            let word = rng.random_range(0..(256 + 3 * 128) / 8) * 8;
            let before = host.load(word, Ordering::Relaxed);
            let value = match rng.random_range(0..3) {
                0 => rng.random(),
                1 => [0, 1, u64::MAX, 1 << 63, 4096, 1 << 20, (1 << 20) + 4096, 1 << 40]
                    [rng.random_range(0..8)],
                _ => before ^ 1 << rng.random_range(0..64),
            };
            host.store(word, value, Ordering::Relaxed);
            if let Ok(read) = vmshm_transport::Region::read(&host) {
                for section in read.sections() {
                    assert!(section.contains(section.slot(section.layout.endpoints - 1), 256));
                    assert!(section.absolute(section.layout.chunk(section.layout.chunks), 0).is_some());
                }
                let _ = Endpoint::attach(region.host(), 1).map(drop);
            }
            host.store(word, before, Ordering::Relaxed);
        });
    }
}
