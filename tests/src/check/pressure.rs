//! Receivers that are slow: nothing may be lost, and nothing may stand still.

use std::time::Duration;

use crate::buffer::Buffer;
use crate::check::{Case, Context, Needs, Outcome};
use crate::comm::{Mode, Rank};
use crate::request::{Pending, wait_all};
use crate::universe::int;

pub(super) const CASES: &[Case] = &[
    Case::needing(Needs::TwoRanks, "pressure/flood-blocking", "small messages to a sleeper", |ctx| {
        flood(ctx, ctx.rounds(400, 30_000), 200, true)
    }),
    Case::needing(Needs::TwoRanks, "pressure/flood-nonblocking", "all sizes to a sleeper", |ctx| {
        flood(ctx, ctx.rounds(60, 1500), 60_000, false)
    }),
    Case::needing(Needs::TwoRanks, "pressure/flood-large", "large messages to a sleeper", |ctx| {
        flood(ctx, ctx.rounds(4, 24), 4 << 20, false)
    }),
    Case::new("pressure/all-asleep", "everyone floods and sleeps before it receives", all_asleep),
    Case::new("pressure/naps", "receivers that stop again and again", naps),
    Case::new("pressure/many-posted", "thousands of receives posted, sent in any order", many_posted),
];

fn nap(ctx: &Context) {
    std::thread::sleep(Duration::from_millis(if ctx.quick() { 30 } else { 250 }));
}

fn size(ctx: &Context, from: Rank, number: usize, limit: usize) -> usize {
    ctx.random_of(from, number as u64).size(limit)
}

fn start(ctx: &Context, to: Rank, number: usize, limit: usize) -> Pending {
    let size = size(ctx, ctx.comm.rank(), number, limit);
    ctx.comm.start_send(Mode::Standard, ctx.outgoing(to, number, size), to, 1)
}

fn receive(ctx: &Context, from: Rank, number: usize, limit: usize) {
    let size = size(ctx, from, number, limit);
    let mut buffer = Buffer::new(size);
    let status = ctx.comm.receive(&mut buffer, from, 1);
    ctx.check(&buffer, status, from, 1, number, size);
}

/// Even ranks send, the odd ones behind them sleep and then receive; then the other way round.
fn flood(ctx: &Context, count: usize, limit: usize, blocking: bool) -> Outcome {
    let (me, pairs) = (ctx.comm.rank(), int(ctx.comm.size() / 2));
    for turn in 0..2 {
        let peer = me ^ 1;
        if me < pairs * 2 && me % 2 == turn {
            if blocking {
                for number in 0..count {
                    let buffer = ctx.outgoing(peer, number, size(ctx, me, number, limit));
                    ctx.comm.send(Mode::Standard, buffer.payload(), peer, 1);
                }
            } else {
                wait_all((0..count).map(|number| start(ctx, peer, number, limit)).collect());
            }
        } else if me < pairs * 2 {
            nap(ctx);
            (0..count).for_each(|number| receive(ctx, peer, number, limit));
        }
        ctx.comm.barrier();
    }
    Outcome::Done
}

fn all_asleep(ctx: &Context) -> Outcome {
    for (limit, count) in [(100, ctx.rounds(200, 5000)), (80_000, ctx.rounds(20, 400))] {
        for distance in ctx.distances() {
            let (to, from) = (ctx.comm.after(distance), ctx.comm.before(distance));
            let sends = (0..count).map(|number| start(ctx, to, number, limit)).collect();
            nap(ctx);
            (0..count).for_each(|number| receive(ctx, from, number, limit));
            wait_all(sends);
        }
    }
    Outcome::Done
}

fn naps(ctx: &Context) -> Outcome {
    let (count, limit) = (ctx.rounds(60, 3000), 10_000);
    let distance = ctx.distances()[0];
    let (to, from) = (ctx.comm.after(distance), ctx.comm.before(distance));
    let mut sends: Vec<_> = (0..count).map(|number| start(ctx, to, number, limit)).collect();
    let mut random = ctx.random_of(ctx.comm.rank(), u64::MAX);
    for number in 0..count {
        if random.below(40) == 0 {
            std::thread::sleep(Duration::from_millis(random.below(10) as u64));
        }
        receive(ctx, from, number, limit);
    }
    wait_all(std::mem::take(&mut sends));
    Outcome::Done
}

fn many_posted(ctx: &Context) -> Outcome {
    let (count, limit) = (ctx.rounds(200, 6000), 2000);
    for distance in ctx.distances() {
        let (to, from, me) = (ctx.comm.after(distance), ctx.comm.before(distance), ctx.comm.rank());
        let receives = (0..count)
            .map(|n| ctx.comm.start_receive(Buffer::new(size(ctx, from, n, limit)), from, int(n)))
            .collect();
        let mut order: Vec<usize> = (0..count).collect();
        ctx.random_of(me, u64::MAX - 1).shuffle(&mut order);
        let sends = order
            .into_iter()
            .map(|n| {
                let buffer = ctx.outgoing(to, n, size(ctx, me, n, limit));
                ctx.comm.start_send(Mode::Standard, buffer, to, int(n))
            })
            .collect();
        for (number, (buffer, status)) in wait_all(receives).into_iter().enumerate() {
            let size = size(ctx, from, number, limit);
            ctx.check(&buffer, status, from, int(number), number, size);
        }
        wait_all(sends);
    }
    Outcome::Done
}
