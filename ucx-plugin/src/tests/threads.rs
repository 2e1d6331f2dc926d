//! Several contexts, workers and threads in one process.

use std::sync::{Arc, Barrier};
use std::thread;

use super::ucp::{Context, Worker};

const THREADS: u64 = 4;
const ROUNDS: usize = 60;
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
