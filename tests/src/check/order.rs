//! Messages of one sender on one communicator never overtake each other.

use crate::buffer::Buffer;
use crate::check::{Case, Context, Outcome};
use crate::comm::{ANY_SOURCE, ANY_TAG, Attached, Mode, Rank};
use crate::request::{Pending, wait_all};

pub(super) const CASES: &[Case] = &[
    Case::new("order/same-tag", "small and large messages of one tag", same_tag),
    Case::new("order/mixed-modes", "all modes of sending mixed", mixed_modes),
    Case::new("order/posted-early", "many receives posted before the first message", posted_early),
    Case::new("order/two-tags", "two tags received alternately, each in its order", two_tags),
];

const LIMIT: usize = 200_000;

/// Sizes leap between the protocols, so that a fast one could overtake a slow one.
fn size(ctx: &Context, from: Rank, number: usize) -> usize {
    let mut random = ctx.random_of(from, number as u64);
    [random.below(64), random.below(5000), random.below(50_000), random.below(LIMIT)][random.below(4)]
}

fn start(ctx: &Context, mode: Mode, to: Rank, number: usize, tag: i32) -> Pending {
    let size = size(ctx, ctx.comm.rank(), number);
    ctx.comm.start_send(mode, ctx.outgoing(to, number, size), to, tag)
}

fn same_tag(ctx: &Context) -> Outcome {
    let count = ctx.rounds(20, 60);
    for distance in ctx.distances() {
        let (to, from) = (ctx.comm.after(distance), ctx.comm.before(distance));
        for round in 0..ctx.rounds(1, 20) {
            let numbers = round * count..(round + 1) * count;
            let sends = numbers.clone().map(|n| start(ctx, Mode::Standard, to, n, 1)).collect();
            for number in numbers {
                let mut buffer = Buffer::new(LIMIT);
                let (source, tag) = if number % 3 == 0 { (from, ANY_TAG) } else { (from, 1) };
                let status = ctx.comm.receive(&mut buffer, source, tag);
                ctx.check(&buffer, status, from, 1, number, size(ctx, from, number));
            }
            wait_all(sends);
        }
    }
    Outcome::Done
}

fn mixed_modes(ctx: &Context) -> Outcome {
    let count = ctx.rounds(20, 60);
    let _attached = Attached::room_for(count, LIMIT);
    let modes = [Mode::Standard, Mode::Synchronous, Mode::Buffered];
    for distance in ctx.distances() {
        let (to, from) = (ctx.comm.after(distance), ctx.comm.before(distance));
        for round in 0..ctx.rounds(1, 10) {
            let numbers = round * count..(round + 1) * count;
            let sends = numbers.clone().map(|n| start(ctx, modes[n % 3], to, n, 1)).collect();
            for number in numbers {
                let mut buffer = Buffer::new(LIMIT);
                let status = ctx.comm.receive(&mut buffer, from, 1);
                ctx.check(&buffer, status, from, 1, number, size(ctx, from, number));
            }
            wait_all(sends);
            ctx.comm.barrier();
        }
    }
    Outcome::Done
}

fn posted_early(ctx: &Context) -> Outcome {
    let count = ctx.rounds(20, 60);
    for distance in ctx.distances() {
        let (to, from) = (ctx.comm.after(distance), ctx.comm.before(distance));
        for round in 0..ctx.rounds(1, 20) {
            let numbers = round * count..(round + 1) * count;
            let receives = numbers
                .clone()
                .map(|n| {
                    let source = if n % 2 == 0 { from } else { ANY_SOURCE };
                    ctx.comm.start_receive(Buffer::new(LIMIT), source, 1)
                })
                .collect();
            ctx.comm.barrier();
            let sends = numbers.clone().map(|n| start(ctx, Mode::Standard, to, n, 1)).collect();
            for (number, (buffer, status)) in numbers.zip(wait_all(receives)) {
                ctx.check(&buffer, status, from, 1, number, size(ctx, from, number));
            }
            wait_all(sends);
            ctx.comm.barrier();
        }
    }
    Outcome::Done
}

fn two_tags(ctx: &Context) -> Outcome {
    let count = ctx.rounds(20, 60);
    for distance in ctx.distances() {
        let (to, from) = (ctx.comm.after(distance), ctx.comm.before(distance));
        for round in 0..ctx.rounds(1, 20) {
            // Even numbers have tag 0 and are received last, odd ones tag 1 and first.
            let numbers = round * count..(round + 1) * count;
            let sends =
                numbers.clone().map(|n| start(ctx, Mode::Standard, to, n, i32::from(n % 2 == 1))).collect();
            for parity in [1, 0] {
                for number in numbers.clone().filter(|n| n % 2 == parity) {
                    let tag = i32::from(parity == 1);
                    let mut buffer = Buffer::new(LIMIT);
                    let status = ctx.comm.receive(&mut buffer, from, tag);
                    ctx.check(&buffer, status, from, tag, number, size(ctx, from, number));
                }
            }
            wait_all(sends);
        }
    }
    Outcome::Done
}
