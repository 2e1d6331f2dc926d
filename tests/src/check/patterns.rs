//! Partners of a message: oneself, neighbours, all, one, anyone.

use crate::buffer::Buffer;
use crate::check::{Case, Context, Outcome};
use crate::comm::{Mode, Rank};
use crate::request::wait_all;

pub(super) const CASES: &[Case] = &[
    Case::new("patterns/self", "each rank to itself", to_self),
    Case::new("patterns/ring", "one message handed around", ring),
    Case::new("patterns/neighbours", "both neighbours at once", neighbours),
    Case::new("patterns/all-to-all", "everyone to everyone at once", all_to_all),
    Case::new("patterns/one-to-all", "one to everyone and back", one_to_all),
    Case::new("patterns/both-ways-large", "several MiB in both directions at once", both_ways),
    Case::new("patterns/random-graph", "random pairs, sizes and tags, early or late", random_graph),
];

const SIZES: [usize; 8] = [0, 1, 64, 500, 1000, 4096, 40_000, 150_000];

fn exchange(ctx: &Context, peers: &[Rank], number: usize, size: usize) {
    let receives = peers.iter().map(|&p| ctx.comm.start_receive(Buffer::new(size), p, 1)).collect();
    let send = |&to: &Rank| {
        let buffer = ctx.outgoing(to, number, size);
        ctx.comm.start_send(Mode::Standard, buffer, to, 1)
    };
    let sends = peers.iter().map(send).collect();
    for (&from, (buffer, status)) in peers.iter().zip(wait_all(receives)) {
        ctx.check(&buffer, status, from, 1, number, size);
    }
    wait_all(sends);
}

fn rounds_of(ctx: &Context, full: usize, peers: &[Rank]) -> Outcome {
    for round in 0..ctx.rounds(1, full) {
        for (index, &size) in SIZES.iter().enumerate() {
            exchange(ctx, peers, round * SIZES.len() + index, size);
        }
    }
    Outcome::Done
}

fn to_self(ctx: &Context) -> Outcome {
    rounds_of(ctx, 200, &[ctx.comm.rank()])
}

fn neighbours(ctx: &Context) -> Outcome {
    rounds_of(ctx, 150, &[ctx.comm.after(1), ctx.comm.before(1)])
}

fn all_to_all(ctx: &Context) -> Outcome {
    let all: Vec<Rank> = ctx.comm.ranks().collect();
    rounds_of(ctx, 150, &all)
}

fn ring(ctx: &Context) -> Outcome {
    let (next, last, size) = (ctx.comm.after(1), ctx.comm.before(1), ctx.comm.size());
    for round in 0..ctx.rounds(3, 300) {
        let bytes = SIZES[round % SIZES.len()];
        // All hand on the very bytes that rank 0 made.
        let key = ctx.key(0, 0, round);
        if ctx.comm.rank() == 0 {
            let mut buffer = Buffer::new(bytes);
            key.fill(buffer.payload_mut());
            let sending = ctx.comm.start_send(Mode::Standard, buffer, next, 2);
            let mut buffer = Buffer::new(bytes);
            ctx.comm.receive(&mut buffer, last, 2);
            ctx.check_bytes(&buffer, key, bytes, || format!("after {size} hops, {bytes} bytes"));
            sending.wait();
        } else {
            let mut buffer = Buffer::new(bytes);
            ctx.comm.receive(&mut buffer, last, 2);
            ctx.comm.send(Mode::Standard, buffer.payload(), next, 2);
            ctx.check_bytes(&buffer, key, bytes, || format!("from rank {last}, {bytes} bytes"));
        }
    }
    Outcome::Done
}

fn one_to_all(ctx: &Context) -> Outcome {
    let all: Vec<Rank> = ctx.comm.ranks().collect();
    let roots = if all.len() <= 4 { all.clone() } else { vec![0, all[all.len() - 1]] };
    for round in 0..ctx.rounds(1, 60) {
        for &root in &roots {
            for (index, &size) in SIZES.iter().enumerate() {
                let number = round * SIZES.len() + index;
                let peers = if ctx.comm.rank() == root { all.clone() } else { vec![root] };
                let peers: Vec<_> = peers.into_iter().filter(|&p| p != ctx.comm.rank()).collect();
                exchange(ctx, &peers, number, size);
            }
        }
    }
    Outcome::Done
}

fn both_ways(ctx: &Context) -> Outcome {
    let size = if ctx.quick() { 1_500_001 } else { 6_000_007 };
    for round in 0..ctx.rounds(1, 8) {
        for distance in ctx.distances() {
            let (to, from) = (ctx.comm.after(distance), ctx.comm.before(distance));
            let numbers = round * 3..round * 3 + 3;
            let receives =
                numbers.clone().map(|_| ctx.comm.start_receive(Buffer::new(size), from, 3)).collect();
            let sends = numbers
                .clone()
                .map(|n| ctx.comm.start_send(Mode::Standard, ctx.outgoing(to, n, size), to, 3))
                .collect();
            for (number, (buffer, status)) in numbers.zip(wait_all(receives)) {
                ctx.check(&buffer, status, from, 3, number, size);
            }
            wait_all(sends);
        }
    }
    Outcome::Done
}

fn random_graph(ctx: &Context) -> Outcome {
    let me = ctx.comm.rank();
    let ranks = ctx.comm.size();
    for round in 0..ctx.rounds(4, 120) {
        let mut random = ctx.common_random(round as u64);
        // (from, to, size, tag) of each message: the same list on all ranks.
        let rank = |n: usize| crate::universe::int(n);
        let edges: Vec<_> = (0..8 * ranks)
            .map(|_| {
                let (from, to) = (rank(random.below(ranks)), rank(random.below(ranks)));
                (from, to, random.size(1 << 20), rank(random.below(3)))
            })
            .collect();
        let late = ctx.random_of(me, round as u64).below(2) == 1;
        let receive = || {
            let mine = edges.iter().filter(|edge| edge.1 == me);
            mine.map(|&(from, _, size, tag)| ctx.comm.start_receive(Buffer::new(size), from, tag))
                .collect::<Vec<_>>()
        };
        let early = if late { None } else { Some(receive()) };
        let sends = (0..)
            .zip(&edges)
            .filter(|(_, edge)| edge.0 == me)
            .map(|(number, &(_, to, size, tag))| {
                let buffer = ctx.outgoing(to, number, size);
                ctx.comm.start_send(Mode::Standard, buffer, to, tag)
            })
            .collect();
        let receives = early.unwrap_or_else(receive);
        let mine = (0..).zip(&edges).filter(|(_, edge)| edge.1 == me);
        for ((number, &(from, _, size, tag)), (buffer, status)) in mine.zip(wait_all(receives)) {
            ctx.check(&buffer, status, from, tag, number, size);
        }
        wait_all(sends);
    }
    Outcome::Done
}
