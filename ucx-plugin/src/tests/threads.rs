//! Several contexts, workers and threads in one process.

use std::ffi::{c_uint, c_void};
use std::ptr::null;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;

use super::ucp::{Context, Worker};
use super::uct::Interface;
use crate::endpoint;
use crate::ucx::*;

const THREADS: u64 = 4;
const ROUNDS: usize = 60;
/// Messages beside which endpoints are made.
const MESSAGES: u64 = 50_000;
/// Endpoints that are made beside them at least.
const ENDPOINTS: u64 = 10;
/// In the ring, in a piece of the section, by rendezvous.
const SIZES: [usize; 4] = [8, 700, 5000, 300_000];

fn pattern(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + seed) as u8).collect()
}

/// Two contexts have two workers each, and two threads share each pair of them.
#[test]
fn contexts_workers_and_threads_do_not_disturb_each_other() {
    let _use = super::beside_others();
    let contexts = [Context::new(), Context::new()];
    let workers = contexts.each_ref().map(|context| [Worker::new(context), Worker::new(context)]);
    let done = Barrier::new(THREADS as usize);
    thread::scope(|scope| {
        for tag in 0..THREADS {
            let (pair, done) = (workers.each_ref().map(|two| &two[tag as usize % 2]), &done);
            scope.spawn(move || exchange(pair, tag, done));
        }
    });
}

/// Sends there and back, as both sides. All threads close their endpoints together: UCX answers a message by one that leads back,
/// which may be another thread's of the same workers, and cancels what is under way by one that is closed.
fn exchange([here, there]: [&Arc<Worker>; 2], tag: u64, done: &Barrier) {
    let (to, back) = (here.connect(&there.address()), there.connect(&here.address()));
    for round in 0..ROUNDS {
        let sent = pattern(round, SIZES[round % SIZES.len()]);
        for (from, worker) in [(&to, there), (&back, here)] {
            let received = worker.receive(tag, sent.len());
            let request = from.send(tag, sent.clone());
            // Both workers must make progress: neither may have another thread at this moment.
            let received = received.wait_with(|| from.worker.progress()).expect("received");
            request.wait_with(|| worker.progress()).expect("sent");
            assert!(received == sent, "thread {tag}, round {round}");
        }
    }
    done.wait();
    assert_eq!((to.failure(), back.failure()), (0, 0));
}

/// An interface that another thread uses now and then, as UCX's thread for wire-up messages does.
struct Shared<'a>(&'a Interface);

// SAFETY: its functions may be called by two threads at a time, which is what is tested.
unsafe impl Sync for Shared<'_> {}

unsafe extern "C" fn count(argument: *mut c_void, _: *mut c_void, _: usize, _: c_uint) -> ucs_status_t {
    // SAFETY: the argument is the test's counter.
    unsafe { &*argument.cast::<AtomicU64>() }.fetch_add(1, Ordering::Relaxed);
    UCS_OK
}

/// One thread sends, receives and makes progress, another one makes endpoints of the same interface and ends them.
#[test]
fn endpoints_are_made_beside_messages() {
    let _use = super::beside_others();
    let (here, there) = (Interface::new(), Interface::new());
    let (received, made) = (AtomicU64::new(0), AtomicU64::new(0));
    there.handle(1, Some(count), (&raw const received).cast_mut().cast());
    let (to, name) = (here.connect(&there.name()).expect("it is there"), there.name());
    let (shared, is_over) = (Shared(&here), AtomicBool::new(false));
    let mut sent = 0;
    thread::scope(|scope| {
        let (shared, name, is_over, made) = (&shared, &name, &is_over, &made);
        let maker = scope.spawn(move || {
            while !is_over.load(Ordering::Relaxed) {
                let endpoint = shared.0.connect(name).expect("it is there");
                // SAFETY: the endpoint is new, and nobody else has it.
                unsafe { endpoint::destroy(endpoint) };
                made.fetch_add(1, Ordering::Relaxed);
            }
        });
        loop {
            // The other thread may begin late.
            let is_made = made.load(Ordering::Relaxed) >= ENDPOINTS || maker.is_finished();
            let is_sending = sent < MESSAGES || !is_made;
            if !is_sending && received.load(Ordering::Relaxed) == sent {
                break;
            }
            // SAFETY: the endpoint is open.
            if is_sending && unsafe { endpoint::am_short(to, 1, sent, null(), 0) } == UCS_OK {
                sent += 1;
            }
            here.progress();
            there.progress();
        }
        is_over.store(true, Ordering::Relaxed);
    });
    let (made, received) = (made.into_inner(), received.into_inner());
    assert!(made >= ENDPOINTS && received == sent, "{made} endpoints, {received} of {sent} messages");
    // SAFETY: nobody uses it any more.
    unsafe { endpoint::destroy(to) };
}
