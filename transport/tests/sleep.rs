//! Endpoints that sleep whenever there is nothing to do, woken by doorbells alone: nothing is slept through.

mod common;

use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use common::{Region, View, pattern};
use vmshm_transport::parts::claim;
use vmshm_transport::{
    CacheHints, Device, Endpoint, Event, Inbox, MAX_INLINE, Memory, Peer, PeerError, Process,
    Region as Header, SendError,
};

/// One doorbell for each section (the tests have one slot in each).
#[derive(Debug, Default)]
struct Bells {
    rings: [(Mutex<u64>, Condvar); 2],
    sleeps: AtomicU64,
}

impl Bells {
    fn ring(&self, section: u32) {
        let (rings, rung) = &self.rings[section as usize];
        *rings.lock().unwrap() += 1;
        rung.notify_one();
    }

    /// Waits for a ring. The time limit is there to end the test when it has failed.
    fn wait(&self, section: u32) {
        let (rings, rung) = &self.rings[section as usize];
        let patience = Duration::from_secs(60);
        let (mut rings, limit) =
            rung.wait_timeout_while(rings.lock().unwrap(), patience, |rings| *rings == 0).unwrap();
        assert!(!limit.timed_out(), "a wake-up was lost: section {section} has slept for a minute");
        *rings = 0;
        self.sleeps.fetch_add(1, Ordering::Relaxed);
    }
}

/// A member's view with doorbells.
#[derive(Debug, Clone)]
struct Ringing {
    view: View,
    bells: Arc<Bells>,
}

impl Deref for Ringing {
    type Target = View;
    fn deref(&self) -> &View {
        &self.view
    }
}

impl Memory for Ringing {
    fn len(&self) -> u64 {
        Memory::len(&self.view)
    }
    fn load(&self, offset: u64, order: Ordering) -> u64 {
        self.view.load(offset, order)
    }
    fn store(&self, offset: u64, value: u64, order: Ordering) {
        self.view.store(offset, value, order);
    }
    fn fetch_add(&self, offset: u64, value: u64, order: Ordering) -> u64 {
        self.view.fetch_add(offset, value, order)
    }
    fn compare_exchange(&self, offset: u64, current: u64, new: u64) -> Result<u64, u64> {
        self.view.compare_exchange(offset, current, new)
    }
    fn fence(&self, order: Ordering) {
        self.view.fence(order);
    }
    unsafe fn copy_out(&self, offset: u64, to: *mut u8, len: usize) {
        // SAFETY: the caller keeps the contract.
        unsafe { self.view.copy_out(offset, to, len) }
    }
    unsafe fn copy_in(&self, offset: u64, from: *const u8, len: usize) {
        // SAFETY: the caller keeps the contract.
        unsafe { self.view.copy_in(offset, from, len) }
    }
    fn address(&self, offset: u64, len: u64) -> *mut u8 {
        self.view.address(offset, len)
    }
    fn offset_of(&self, address: *const u8, len: u64) -> Option<u64> {
        self.view.offset_of(address, len)
    }
}

impl CacheHints for Ringing {}

impl Device for Ringing {
    fn ring(&self, section: u32, _slot: u32) {
        self.bells.ring(section);
    }
}

fn attach(region: &Region, bells: &Arc<Bells>, section: u32, process: &Process) -> Endpoint<Ringing> {
    let memory = Ringing { view: region.member(section), bells: Arc::clone(bells) };
    let header = Header::read(&memory).expect("a sound region");
    let life = claim(&memory, &header.sections()[section as usize], 0).expect("the slot is free");
    Endpoint::take(memory, header, section, 0, life, process).expect("there is room")
}

const SLEEPER: Process = Process { pid: 1, boot_id: [0; 2], may_sleep: true, rings: true };

fn pair(region: &Region) -> (Endpoint<Ringing>, Endpoint<Ringing>, Arc<Bells>) {
    let bells = Arc::default();
    (attach(region, &bells, 0, &SLEEPER), attach(region, &bells, 1, &SLEEPER), bells)
}

/// Polls until something happens, and sleeps whenever nothing does.
fn next(endpoint: &mut Endpoint<Ringing>, inbox: &mut Inbox) -> Event {
    loop {
        if let Some(event) = endpoint.poll(inbox) {
            return event;
        }
        sleep(endpoint, inbox);
    }
}

fn sleep(endpoint: &mut Endpoint<Ringing>, inbox: &Inbox) {
    if endpoint.fall_asleep(inbox) {
        let section = endpoint.section().number;
        endpoint.memory().bells.wait(section);
        endpoint.wake_up();
    }
}

/// Whether the endpoint falls asleep after some idle polls.
fn settles(endpoint: &mut Endpoint<Ringing>) -> bool {
    let mut inbox = Inbox::new();
    (0..200).any(|_| {
        assert_eq!(endpoint.poll(&mut inbox), None);
        endpoint.fall_asleep(&inbox)
    })
}

const ROUNDS: u64 = if cfg!(vmshm_sanitize) { 5000 } else { 100_000 };

#[test]
fn ping_pong() {
    let region = Region::new(8 << 20, 2, 1);
    let (mut a, mut b, bells) = pair(&region);
    let name = b.name();
    std::thread::scope(|scope| {
        let answering = scope.spawn(move || {
            // A stranger is met by its first message, also in sleep.
            let mut inbox = Inbox::new();
            for n in 0..ROUNDS {
                let event = next(&mut b, &mut inbox);
                let Event::Message { peer, tag: 1, len: 8 } = event else { panic!("{event:?}") };
                assert_eq!(inbox.bytes(8), n.to_le_bytes());
                b.send(peer, 2, &[&(!n).to_le_bytes()]).expect("room");
            }
            b
        });
        let mut inbox = Inbox::new();
        let to_b = a.connect(&name).expect("b is there");
        for n in 0..ROUNDS {
            a.send(to_b, 1, &[&n.to_le_bytes()]).expect("room");
            let event = next(&mut a, &mut inbox);
            assert_eq!(event, Event::Message { peer: to_b, tag: 2, len: 8 });
            assert_eq!(inbox.bytes(8), (!n).to_le_bytes());
        }
        // Only now it leaves.
        answering.join().expect("b has received all");
    });
    let sleeps = bells.sleeps.load(Ordering::Relaxed);
    println!("{sleeps} sleeps");
    assert!(sleeps > 0, "nobody ever slept");
}

/// A sender that sleeps when the ring is full or all its fragments are under way, a receiver that sleeps when nothing comes.
#[test]
fn sleeping_for_credit() {
    let region = Region::new(8 << 20, 2, 1);
    let (mut a, mut b, bells) = pair(&region);
    let to_b = a.connect(&b.name()).expect("b is there");
    let len = |n: u64| if n.is_multiple_of(3) { 2000 } else { n as usize % MAX_INLINE };
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut inbox = Inbox::new();
            for n in 0..ROUNDS {
                let got = match next(&mut b, &mut inbox) {
                    Event::Message { len, .. } => inbox.bytes(len).to_vec(),
                    Event::Fragment { peer, offset, len, .. } => {
                        let mut bytes = vec![0; len];
                        b.memory().read(offset, &mut bytes);
                        b.consume(peer).expect("a lives");
                        bytes
                    }
                    event => panic!("{event:?}"),
                };
                assert!(got == pattern(n, len(n)), "message {n} came out different");
            }
            // The message received last must be acknowledged before it leaves.
            while !b.is_drained() || b.poll(&mut inbox).is_some() {}
        });
        let mut inbox = Inbox::new();
        let mut spare: Vec<_> = (0..4).map(|_| a.fragment(2000).expect("room")).collect();
        let mut lent = std::collections::HashMap::new();
        let mut sent = 0;
        while sent < ROUNDS || !lent.is_empty() {
            while sent < ROUNDS {
                let bytes = pattern(sent, len(sent));
                let posted = if bytes.len() <= MAX_INLINE {
                    a.send(to_b, 0, &[&bytes])
                } else if let Some(fragment) = spare.pop() {
                    a.memory().write(fragment.offset(), &bytes);
                    let token = fragment.offset();
                    let posted = a.send_fragment(to_b, 0, &fragment, bytes.len(), token);
                    match posted {
                        Ok(()) => drop(lent.insert(token, fragment)),
                        Err(_) => spare.push(fragment),
                    }
                    posted
                } else {
                    break;
                };
                match posted {
                    Ok(()) => sent += 1,
                    Err(SendError::Full) => break,
                    Err(error) => panic!("{error}"),
                }
            }
            match a.poll(&mut inbox) {
                Some(Event::Sent { token, .. }) => spare.push(lent.remove(&token).expect("it was under way")),
                Some(event) => panic!("{event:?}"),
                None => sleep(&mut a, &inbox),
            }
        }
    });
    assert!(bells.sleeps.load(Ordering::Relaxed) > 0, "nobody ever slept");
}

#[test]
fn nobody_sleeps_on_news() {
    let region = Region::new(8 << 20, 2, 1);
    let (mut a, mut b, bells) = pair(&region);
    let mut inbox = Inbox::new();
    let to_b = a.connect(&b.name()).expect("b is there");
    let to_a = b.connect(&a.name()).expect("a is there");
    assert!(settles(&mut a), "nothing has happened");
    assert_eq!(*bells.rings[0].0.lock().unwrap(), 0);
    b.send(to_a, 1, &[b"wake up"]).expect("room");
    b.send(to_a, 1, &[b"wake up, I say"]).expect("room");
    assert_eq!(*bells.rings[0].0.lock().unwrap(), 1, "one ring for one sleep");
    a.wake_up();
    assert!(!a.fall_asleep(&inbox), "a message is there");
    for _ in 0..2 {
        assert!(matches!(next(&mut a, &mut inbox), Event::Message { .. }));
    }
    assert!(settles(&mut a));
    a.wake_up();
    a.verdicts().report(
        vmshm_transport::abi::EndpointId(b.name().id),
        b.name().incarnation,
        PeerError::Silent,
    );
    assert!(!a.fall_asleep(&inbox), "news of a peer are there");
    assert_eq!(next(&mut a, &mut inbox), Event::Gone { peer: to_b, why: PeerError::Silent });
    assert!(settles(&mut a));
}

#[test]
fn nobody_sleeps_with_messages_in_the_inbox() {
    let region = Region::new(8 << 20, 2, 1);
    let (mut a, mut b, _bells) = pair(&region);
    let mut inbox = Inbox::new();
    a.connect(&b.name()).expect("b is there");
    let to_a = b.connect(&a.name()).expect("a is there");
    assert!(settles(&mut a), "nothing has happened");
    a.wake_up();
    for _ in 0..6 {
        b.send(to_a, 1, &[b"x"]).expect("room");
    }
    for left in (0..6).rev() {
        assert!(matches!(next(&mut a, &mut inbox), Event::Message { .. }));
        assert!(left == 0 || !a.fall_asleep(&inbox), "{left} messages were left");
    }
    assert!(settles(&mut a));
}

#[test]
fn nobody_sleeps_while_a_peer_cannot_ring() {
    let region = Region::new(8 << 20, 2, 1);
    let bells = Arc::default();
    let mut a = attach(&region, &bells, 0, &SLEEPER);
    let b = attach(&region, &bells, 1, &Process::default());
    assert!(settles(&mut a), "nobody is known yet");
    a.wake_up();
    a.connect(&b.name()).expect("b is there");
    assert!(!settles(&mut a));
    drop(b);
    let mut inbox = Inbox::new();
    while !matches!(a.poll(&mut inbox), Some(Event::Gone { why: PeerError::Left, .. })) {}
    assert!(settles(&mut a), "it has left");
}

#[test]
fn who_never_said_so_never_sleeps() {
    let region = Region::new(8 << 20, 2, 1);
    let mut a = attach(&region, &Arc::default(), 0, &Process { rings: true, ..Process::default() });
    assert!(!settles(&mut a));
}

/// A peer that is told nothing but was given up must not read on: its ring speaks of memory that is used for something else.
#[test]
fn who_was_given_up_reads_no_more() {
    for poll_first in [false, true] {
        let region = Region::new(8 << 20, 2, 1);
        let (mut a, mut b, _) = pair(&region);
        let to_b = a.connect(&b.name()).expect("b is there");
        let to_a = b.connect(&a.name()).expect("a is there");
        let mut inbox = Inbox::new();
        let fragment = a.fragment(2000).expect("room");
        a.memory().write(fragment.offset(), &[1; 2000]);
        a.send_fragment(to_b, 1, &fragment, 2000, 7).expect("room");
        let held = poll_first.then(|| next(&mut b, &mut inbox));
        a.verdicts().report(
            vmshm_transport::abi::EndpointId(b.name().id),
            b.name().incarnation,
            PeerError::Silent,
        );
        assert_eq!(next(&mut a, &mut inbox), Event::Unsent { peer: to_b, token: 7 });
        assert_eq!(next(&mut a, &mut inbox), Event::Gone { peer: to_b, why: PeerError::Silent });
        a.memory().write(fragment.offset(), &[2; 2000]);
        if held.is_some() {
            assert_eq!(b.consume(to_a), Err(PeerError::Closed));
        }
        assert_eq!(next(&mut b, &mut inbox), Event::Gone { peer: to_a, why: PeerError::Closed });
        assert_eq!(b.send(to_a, 1, &[b"?"]), Err(SendError::Gone));
    }
}

/// An endpoint that only waits for a peer that has given it up is told, too.
#[test]
fn who_was_given_up_is_told() {
    let region = Region::new(8 << 20, 2, 1);
    let (mut a, mut b, _) = pair(&region);
    let to_b: Peer = a.connect(&b.name()).expect("b is there");
    let to_a = b.connect(&a.name()).expect("a is there");
    let mut inbox = Inbox::new();
    b.send(to_a, 1, &[b"hello"]).expect("room");
    a.send(to_b, 1, &[b"hello"]).expect("room");
    assert!(matches!(next(&mut a, &mut inbox), Event::Message { .. }));
    assert!(matches!(next(&mut b, &mut inbox), Event::Message { .. }));
    a.verdicts().report(
        vmshm_transport::abi::EndpointId(b.name().id),
        b.name().incarnation,
        PeerError::Silent,
    );
    assert!(matches!(next(&mut a, &mut inbox), Event::Gone { .. }));
    assert_eq!(next(&mut b, &mut inbox), Event::Gone { peer: to_a, why: PeerError::Closed });
}
