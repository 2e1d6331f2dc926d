//! The raw transport between two threads: no MPI, no virtual machine.
//!
//! `cargo bench -p vmshm-benches --bench ring`. Latencies are round trips: one way is half of it.
#![allow(missing_docs, reason = "criterion_group! makes public functions without any")]

use std::collections::VecDeque;
use std::hint::{black_box, spin_loop};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use vmshm_benches::fixture::{Fixture, Node};
use vmshm_transport::{Event, Fragment, MAX_INLINE, Memory, SendError};

const PING: u8 = 1;
const DATA: u8 = 2;
const END: u8 = 3;
const STOP: u8 = 4;

/// Fragments or offers under way at a time.
const WINDOW: usize = 16;

/// Polls until `wanted` returns something.
fn wait<T>(node: &mut Node, mut wanted: impl FnMut(&mut Node, Event) -> Option<T>) -> T {
    let mut idle = 0_u32;
    loop {
        match node.endpoint.poll(&mut node.inbox) {
            Some(Event::Gone { why, .. }) => panic!("the peer is gone: {why}"),
            Some(event) => {
                idle = 0;
                if let Some(found) = wanted(node, event) {
                    return found;
                }
            }
            None => {
                idle += 1;
                // Where both threads share a core, spinning alone would take a time slice.
                if idle.is_multiple_of(1 << 14) { thread::yield_now() } else { spin_loop() }
            }
        }
    }
}

fn wait_for(node: &mut Node, tag: u8) {
    wait(node, |_, event| match event {
        Event::Message { tag: got, .. } if got == tag => Some(()),
        _ => None,
    });
}

/// Two nodes in two sections that have met.
fn pair() -> (Node, Node) {
    let mut fixture = Fixture::new(2, 4);
    let (mut a, mut b) = (fixture.node(0), fixture.node(1));
    a.meet(&b);
    b.meet(&a);
    (a, b)
}

/// The other side: echoes pings, takes data, answers an end with an end.
fn answer(mut node: Node, longest: usize) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut landing = vec![0; longest];
        let peer = node.peer();
        wait(&mut node, |node, event| {
            match event {
                Event::Message { tag: PING, len, .. } => {
                    let Node { endpoint, inbox, .. } = node;
                    while endpoint.send(peer, PING, &[inbox.bytes(len)]) == Err(SendError::Full) {
                        spin_loop();
                    }
                }
                Event::Message { tag: DATA, len, .. } => {
                    black_box(node.inbox.bytes(len));
                }
                Event::Fragment { offset, len, .. } => {
                    node.endpoint.memory().read(offset, &mut landing[..len]);
                    node.endpoint.consume(peer).expect("the peer lives");
                    black_box(&landing);
                }
                Event::Offer { tag, offer, .. } => {
                    let len = usize::try_from(offer.len).expect("an offer of these benches");
                    let to = landing[..len].as_mut_ptr();
                    // SAFETY: the slice has `len` bytes.
                    unsafe { node.endpoint.get(peer, offer.offset, to, len) }.expect("the peer lives");
                    black_box(&landing);
                    while node.endpoint.finish(peer, tag, &offer) == Err(SendError::Full) {
                        spin_loop();
                    }
                }
                Event::Message { tag: END, .. } => node.send(END, &[]),
                Event::Message { tag: STOP, .. } => return Some(()),
                _ => (),
            }
            None
        });
    })
}

fn ping_pong(node: &mut Node, bytes: &[u8], turns: u64) -> Duration {
    let began = Instant::now();
    for _ in 0..turns {
        node.send(PING, bytes);
        wait_for(node, PING);
    }
    began.elapsed()
}

fn latency(c: &mut Criterion) {
    let (mut a, b) = pair();
    let other = answer(b, 1 << 20);
    let mut group = c.benchmark_group("round trip");
    for size in [0, 8, 56, 112, 256, MAX_INLINE] {
        let bytes = vec![7; size];
        group.bench_function(BenchmarkId::from_parameter(size), |bencher| {
            bencher.iter_custom(|turns| ping_pong(&mut a, &bytes, turns));
        });
    }
    group.finish();
    a.send(STOP, &[]);
    other.join().expect("the other side ended well");
}

/// Sends `count` messages of `bytes` and waits until the other side has taken them all.
fn stream(node: &mut Node, pool: &mut VecDeque<Fragment>, bytes: &[u8], count: u64) -> Duration {
    let peer = node.peer();
    let mut under_way: VecDeque<Fragment> = VecDeque::new();
    let began = Instant::now();
    for _ in 0..count {
        if bytes.len() <= MAX_INLINE {
            node.send(DATA, bytes);
            continue;
        }
        let fragment = loop {
            if let Some(fragment) = pool.pop_front() {
                break fragment;
            }
            wait(node, |_, event| matches!(event, Event::Sent { .. }).then_some(()));
            // Fragments of one peer come back in their order.
            pool.extend(under_way.pop_front());
        };
        node.endpoint.memory().write(fragment.offset(), bytes);
        while node.endpoint.send_fragment(peer, DATA, &fragment, bytes.len(), 0) == Err(SendError::Full) {
            spin_loop();
        }
        under_way.push_back(fragment);
    }
    node.send(END, &[]);
    let mut ended = false;
    while !ended || !under_way.is_empty() {
        wait(node, |_, event| match event {
            Event::Message { tag: END, .. } => {
                ended = true;
                Some(())
            }
            Event::Sent { .. } => {
                pool.extend(under_way.pop_front());
                Some(())
            }
            _ => None,
        });
    }
    began.elapsed()
}

fn throughput(c: &mut Criterion) {
    let (mut a, b) = pair();
    let longest = 1 << 20;
    let other = answer(b, longest);
    let mut group = c.benchmark_group("stream");
    for size in [8, 56, 112, 512, MAX_INLINE, 4096, 16_384, 65_536, 262_144, longest] {
        let bytes = vec![7; size];
        let mut pool = VecDeque::new();
        if size > MAX_INLINE {
            pool.extend((0..WINDOW).map(|_| a.endpoint.fragment(size).expect("room for a window")));
        }
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(BenchmarkId::from_parameter(size), |bencher| {
            bencher.iter_custom(|count| stream(&mut a, &mut pool, &bytes, count));
        });
        pool.into_iter().for_each(|fragment| a.endpoint.free(fragment));
    }
    group.finish();
    a.send(STOP, &[]);
    other.join().expect("the other side ended well");
}

/// Offers memory `count` times and waits until all was pulled: one copy instead of two.
fn offers(node: &mut Node, memory: &Fragment, count: u64) -> Duration {
    let (peer, mut open) = (node.peer(), 0);
    let done = |node: &mut Node| {
        wait(node, |_, event| matches!(event, Event::Done { .. }).then_some(()));
    };
    let began = Instant::now();
    for cookie in 0..count {
        if open == WINDOW {
            done(node);
            open -= 1;
        }
        let len = memory.capacity() as u64;
        while node.endpoint.offer(peer, DATA, memory.offset(), len, cookie) == Err(SendError::Full) {
            spin_loop();
        }
        open += 1;
    }
    for _ in 0..open {
        done(node);
    }
    began.elapsed()
}

fn pull(c: &mut Criterion) {
    let (mut a, b) = pair();
    let longest = 4 << 20;
    let other = answer(b, longest);
    let mut group = c.benchmark_group("pull");
    for size in [4096, 65_536, 1 << 20, longest] {
        let memory = a.endpoint.fragment(size).expect("room in the section");
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(BenchmarkId::from_parameter(size), |bencher| {
            bencher.iter_custom(|count| offers(&mut a, &memory, count));
        });
        a.endpoint.free(memory);
    }
    group.finish();
    a.send(STOP, &[]);
    other.join().expect("the other side ended well");
}

criterion_group! {
    name = ring;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = latency, throughput, pull
}
criterion_main!(ring);
