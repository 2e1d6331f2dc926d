//! Receives from anyone and of any tag.

use std::time::Duration;

use crate::buffer::Buffer;
use crate::check::{Case, Context, Outcome};
use crate::comm::{ANY_SOURCE, ANY_TAG, Mode, Rank, Tag};
use crate::request::{Pending, wait_all};

pub(super) const CASES: &[Case] = &[
    Case::new("wildcards/any-source", "from anyone, with a given tag", any_source),
    Case::new("wildcards/any-tag", "any tag, from a given rank", any_tag),
    Case::new("wildcards/beside-exact", "posted wildcards beside exact receives", beside_exact),
    Case::new("wildcards/storm", "all to one, received in the order of each sender", storm),
    Case::new("wildcards/queue", "a long queue of unexpected messages, taken from its end", queue),
];

/// Size of message `number`, which both sides compute.
fn size(ctx: &Context, from: Rank, to: Rank, number: usize, limit: usize) -> usize {
    ctx.random_of(from, (to as u64) << 32 | number as u64).size(limit)
}

/// Tag of message `number`: three tags in turn, so that tags repeat.
fn tag(number: usize) -> Tag {
    [7, 11, 7, 13][number % 4]
}

fn start(ctx: &Context, to: Rank, number: usize, limit: usize, tag: Tag) -> Pending {
    let size = size(ctx, ctx.comm.rank(), to, number, limit);
    ctx.comm.start_send(Mode::Standard, ctx.outgoing(to, number, size), to, tag)
}

fn any_source(ctx: &Context) -> Outcome {
    let (me, limit) = (ctx.comm.rank(), 70_000);
    for number in 0..ctx.rounds(4, 150) {
        let sends = ctx.comm.ranks().map(|to| start(ctx, to, number, limit, 5)).collect();
        let mut seen = vec![0; ctx.comm.size()];
        for _ in ctx.comm.ranks() {
            let mut buffer = Buffer::new(limit);
            let status = ctx.comm.receive(&mut buffer, ANY_SOURCE, 5);
            let from = status.source;
            seen[from as usize] += 1;
            ctx.check(&buffer, status, from, 5, number, size(ctx, from, me, number, limit));
        }
        ctx.ensure(seen.iter().all(|&times| times == 1), || {
            format!("round {number}: messages from each rank: {seen:?}")
        });
        wait_all(sends);
        // Keeps the rounds apart: they have one tag.
        ctx.comm.barrier();
    }
    Outcome::Done
}

fn any_tag(ctx: &Context) -> Outcome {
    let (me, limit, count) = (ctx.comm.rank(), 40_000, ctx.rounds(30, 500));
    for distance in ctx.distances() {
        let (to, from) = (ctx.comm.after(distance), ctx.comm.before(distance));
        let sends = (0..count).map(|n| start(ctx, to, n, limit, tag(n))).collect();
        for number in 0..count {
            let mut buffer = Buffer::new(limit);
            let status = ctx.comm.receive(&mut buffer, from, ANY_TAG);
            let size = size(ctx, from, me, number, limit);
            ctx.check(&buffer, status, from, tag(number), number, size);
        }
        wait_all(sends);
    }
    Outcome::Done
}

/// Posts, for each of several messages, one receive of four kinds; the first posted that matches
/// must get the message.
fn beside_exact(ctx: &Context) -> Outcome {
    for distance in ctx.distances() {
        let (to, from) = (ctx.comm.after(distance), ctx.comm.before(distance));
        for round in 0..ctx.rounds(4, 150) {
            let count = 16;
            let mut random = ctx.common_random(round as u64);
            // Only this sender sends, and message n has tag n: whatever matches must be number n.
            let receives: Vec<_> = (0..count)
                .map(|n| {
                    let (source, tag) = match random.below(4) {
                        0 => (from, n),
                        1 => (ANY_SOURCE, n),
                        2 => (from, ANY_TAG),
                        _ => (ANY_SOURCE, ANY_TAG),
                    };
                    ctx.comm.start_receive(Buffer::new(5000), source, tag)
                })
                .collect();
            ctx.comm.barrier();
            let me = ctx.comm.rank();
            let size = |from, to, n: Tag| size(ctx, from, to, round * 16 + n as usize, 5000);
            let sends = (0..count)
                .map(|n| {
                    let number = round * 16 + n as usize;
                    let buffer = ctx.outgoing(to, number, size(me, to, n));
                    ctx.comm.start_send(Mode::Standard, buffer, to, n)
                })
                .collect();
            for (n, (buffer, status)) in (0..count).zip(wait_all(receives)) {
                let number = round * 16 + n as usize;
                ctx.check(&buffer, status, from, n, number, size(from, me, n));
            }
            wait_all(sends);
            ctx.comm.barrier();
        }
    }
    Outcome::Done
}

fn storm(ctx: &Context) -> Outcome {
    let (me, limit) = (ctx.comm.rank(), 3000);
    let count = ctx.rounds(60, 6000);
    let all = ctx.comm.size();
    let roots = if all <= 4 { all } else { 3 };
    for root in 0..roots {
        let root = ctx.comm.ranks().end - 1 - (root * (all - 1) / roots.max(1)) as Rank;
        if me != root {
            let mut under_way = Vec::new();
            for number in 0..count {
                under_way.push(start(ctx, root, number, limit, tag(number)));
                if under_way.len() == 64 {
                    wait_all(std::mem::take(&mut under_way));
                }
            }
            wait_all(under_way);
        } else {
            // Lets the queue of unexpected messages grow first.
            std::thread::sleep(Duration::from_millis(20));
            let mut next = vec![0; all];
            for _ in 0..count * (all - 1) {
                let mut buffer = Buffer::new(limit);
                let status = ctx.comm.receive(&mut buffer, ANY_SOURCE, ANY_TAG);
                let from = status.source;
                let number = next[from as usize];
                next[from as usize] += 1;
                let size = size(ctx, from, me, number, limit);
                ctx.check(&buffer, status, from, tag(number), number, size);
            }
        }
        ctx.comm.barrier();
    }
    Outcome::Done
}

fn queue(ctx: &Context) -> Outcome {
    let (me, limit, count) = (ctx.comm.rank(), 600, ctx.rounds(100, 2000));
    for distance in ctx.distances() {
        let (to, from) = (ctx.comm.after(distance), ctx.comm.before(distance));
        let sends = (0..count).map(|n| start(ctx, to, n, limit, Tag::try_from(n).unwrap_or(0))).collect();
        ctx.comm.barrier();
        // From the newest to the oldest: each receive searches the whole queue.
        for number in (0..count).rev() {
            let tag = Tag::try_from(number).unwrap_or(0);
            let mut buffer = Buffer::new(limit);
            let status = ctx.comm.receive(&mut buffer, from, tag);
            ctx.check(&buffer, status, from, tag, number, size(ctx, from, me, number, limit));
        }
        wait_all(sends);
    }
    Outcome::Done
}
