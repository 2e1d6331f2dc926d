//! Several threads of each rank call MPI at once.

use crate::buffer::Buffer;
use crate::check::{Case, Context, Needs, Outcome};
use crate::comm::{ANY_SOURCE, Mode};
use crate::request::wait_all;
use crate::universe::int;

pub(super) const CASES: &[Case] = &[
    Case::needing(Needs::Threads, "threads/own-communicators", "a communicator a thread", own),
    Case::needing(Needs::Threads, "threads/shared-communicator", "told apart by tags", shared),
    Case::needing(Needs::Threads, "threads/waiting", "blocked threads hinder no others", waiting),
    Case::needing(Needs::Threads, "threads/storm", "all threads to those of rank 0", storm),
];

/// Exchanges `count` messages of random sizes with ranks at all distances, tagged `tag`.
fn exchange(ctx: &Context, count: usize, tag: i32) {
    let size = |number| ctx.common_random(number as u64).size(100_000);
    for distance in ctx.distances() {
        let (to, from) = (ctx.comm.after(distance), ctx.comm.before(distance));
        for batch in (0..count).collect::<Vec<_>>().chunks(8) {
            let receives =
                batch.iter().map(|&n| ctx.comm.start_receive(Buffer::new(size(n)), from, tag)).collect();
            let sends = batch
                .iter()
                .map(|&n| {
                    let buffer = ctx.outgoing(to, n, size(n));
                    ctx.comm.start_send(Mode::Standard, buffer, to, tag)
                })
                .collect();
            for (&number, (buffer, status)) in batch.iter().zip(wait_all(receives)) {
                ctx.check(&buffer, status, from, tag, number, size(number));
            }
            wait_all(sends);
        }
    }
}

/// One context a thread, each with a duplicate of the communicator.
fn contexts(ctx: &Context) -> Vec<Context> {
    (0..ctx.threads()).map(|lane| ctx.on(ctx.comm.duplicate(), lane)).collect()
}

fn own(ctx: &Context) -> Outcome {
    let parts = contexts(ctx);
    std::thread::scope(|scope| {
        for part in &parts {
            scope.spawn(|| {
                exchange(part, ctx.rounds(20, 1200), 1);
                part.comm.barrier();
            });
        }
    });
    Outcome::Done
}

fn shared(ctx: &Context) -> Outcome {
    std::thread::scope(|scope| {
        for tag in 0..int(ctx.threads()) {
            scope.spawn(move || exchange(ctx, ctx.rounds(20, 1200), tag));
        }
    });
    Outcome::Done
}

fn waiting(ctx: &Context) -> Outcome {
    let parts = contexts(ctx);
    let (first, others) = parts.split_first().expect("two threads or more");
    let (to, from) = (ctx.comm.after(1), ctx.comm.before(1));
    std::thread::scope(|scope| {
        // Blocks in MPI from the first moment, for a message that comes last.
        scope.spawn(|| {
            let mut buffer = Buffer::new(5000);
            let status = first.comm.receive(&mut buffer, from, 9);
            first.check(&buffer, status, from, 9, 0, 5000);
        });
        let busy: Vec<_> =
            others.iter().map(|part| scope.spawn(|| exchange(part, ctx.rounds(20, 600), 1))).collect();
        for thread in busy {
            thread.join().expect("a panic has ended the job already");
        }
        first.comm.send(Mode::Standard, first.outgoing(to, 0, 5000).payload(), to, 9);
    });
    Outcome::Done
}

fn storm(ctx: &Context) -> Outcome {
    let count = ctx.rounds(20, 2000);
    let parts = contexts(ctx);
    let size = |from: i32, number| ctx.random_of(from, number as u64).size(3000);
    std::thread::scope(|scope| {
        for part in &parts {
            scope.spawn(move || {
                let me = part.comm.rank();
                if me == 0 {
                    let mut next = vec![0; part.comm.size()];
                    for _ in 0..count * (part.comm.size() - 1) {
                        let mut buffer = Buffer::new(3000);
                        let status = part.comm.receive(&mut buffer, ANY_SOURCE, 2);
                        let from = status.source;
                        let number = next[from as usize];
                        next[from as usize] += 1;
                        part.check(&buffer, status, from, 2, number, size(from, number));
                    }
                } else {
                    for number in 0..count {
                        let buffer = part.outgoing(0, number, size(me, number));
                        part.comm.send(Mode::Standard, buffer.payload(), 0, 2);
                    }
                }
            });
        }
    });
    Outcome::Done
}
