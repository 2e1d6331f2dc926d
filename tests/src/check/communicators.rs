//! Several communicators at once: their messages never mix.

use crate::buffer::Buffer;
use crate::check::{Case, Context, Needs, Outcome};
use crate::comm::{ANY_SOURCE, ANY_TAG, Comm, Mode};
use crate::request::wait_all;

pub(super) const CASES: &[Case] = &[
    Case::new("communicators/duplicates", "one tag on many duplicates, received in any order", many),
    Case::new("communicators/split", "groups by remainder, with ranks turned around", split),
    Case::new("communicators/come-and-go", "made, used and freed again and again", come_and_go),
    Case::new("communicators/alone", "messages to oneself on COMM_SELF", alone),
    Case::needing(Needs::TwoRanks, "communicators/bridge", "between two groups", bridge),
];

const SIZES: [usize; 6] = [0, 3, 70, 1000, 5000, 90_000];

fn many(ctx: &Context) -> Outcome {
    let count = if ctx.quick() { 5 } else { 24 };
    let parts: Vec<Context> = (0..count).map(|i| ctx.on(ctx.comm.duplicate(), i)).collect();
    for distance in ctx.distances() {
        let (to, from) = (ctx.comm.after(distance), ctx.comm.before(distance));
        for round in 0..ctx.rounds(1, 30) {
            let size = |i: usize| SIZES[(i + round) % SIZES.len()];
            let sends = parts
                .iter()
                .enumerate()
                .map(|(i, part)| {
                    let buffer = part.outgoing(to, round, size(i));
                    part.comm.start_send(Mode::Standard, buffer, to, 3)
                })
                .collect();
            let mut order: Vec<usize> = (0..count).collect();
            ctx.random_of(ctx.comm.rank(), round as u64).shuffle(&mut order);
            for i in order {
                let mut buffer = Buffer::new(size(i));
                let source = if i % 2 == 0 { from } else { ANY_SOURCE };
                let tag = if i % 3 == 0 { ANY_TAG } else { 3 };
                let status = parts[i].comm.receive(&mut buffer, source, tag);
                parts[i].check(&buffer, status, from, 3, round, size(i));
            }
            wait_all(sends);
        }
        // Wildcards are used above: the next distance has another sender.
        ctx.comm.barrier();
    }
    Outcome::Done
}

/// A small exchange with the neighbours on any communicator.
fn exchange(ctx: &Context, rounds: usize) {
    let (to, from) = (ctx.comm.after(1), ctx.comm.before(1));
    for number in 0..rounds {
        let size = SIZES[number % SIZES.len()];
        let landing = ctx.comm.start_receive(Buffer::new(size), from, 3);
        ctx.comm.send(Mode::Standard, ctx.outgoing(to, number, size).payload(), to, 3);
        let (buffer, status) = landing.wait();
        ctx.check(&buffer, status, from, 3, number, size);
    }
}

fn split(ctx: &Context) -> Outcome {
    let rounds = ctx.rounds(6, 60);
    for modulus in 1..=ctx.comm.size().min(4) {
        let color = ctx.comm.rank() as usize % modulus;
        let part = ctx.comm.split(color, -ctx.comm.rank());
        let members = (0..ctx.comm.size()).filter(|rank| rank % modulus == color);
        let mine = members.rev().position(|rank| rank == ctx.comm.rank() as usize);
        ctx.ensure(mine == usize::try_from(part.rank()).ok(), || {
            format!("split by {modulus}: rank {} instead of {mine:?}", part.rank())
        });
        let part = ctx.on(part, modulus * 8 + color);
        exchange(&part, rounds);
        // The whole group's messages at the same time as the parts'.
        exchange(ctx, 3);
        exchange(&part, 3);
    }
    Outcome::Done
}

fn come_and_go(ctx: &Context) -> Outcome {
    for number in 0..ctx.rounds(10, 400) {
        let part = ctx.on(ctx.comm.duplicate(), number % 900);
        exchange(&part, 3);
    }
    Outcome::Done
}

fn alone(ctx: &Context) -> Outcome {
    let part = ctx.on(Comm::alone(), 0);
    for _ in 0..ctx.rounds(2, 50) {
        exchange(&part, SIZES.len());
    }
    let part = ctx.on(Comm::alone().duplicate(), 1);
    exchange(&part, SIZES.len());
    Outcome::Done
}

fn bridge(ctx: &Context) -> Outcome {
    let half = ctx.comm.size() / 2;
    let me = ctx.comm.rank() as usize;
    let low = me < half;
    let group = ctx.comm.split(usize::from(low), ctx.comm.rank());
    let leader = if low { crate::universe::int(half) } else { 0 };
    let across = group.bridge(0, &ctx.comm, leader, 9);
    // The world ranks keep the payloads apart.
    let world = |rank: i32| if low { rank + crate::universe::int(half) } else { rank };
    for number in 0..ctx.rounds(6, 60) {
        let size = SIZES[number % SIZES.len()];
        let sends = across
            .ranks()
            .map(|to| {
                let buffer = ctx.outgoing(world(to), number, size);
                across.start_send(Mode::Standard, buffer, to, 3)
            })
            .collect();
        for from in across.ranks() {
            let mut buffer = Buffer::new(size);
            let mut status = across.receive(&mut buffer, from, 3);
            ctx.ensure(status.source == from, || format!("{status:?} instead of rank {from}"));
            status.source = world(from);
            ctx.check(&buffer, status, world(from), 3, number, size);
        }
        wait_all(sends);
    }
    let both = across.merge(!low);
    let expected = ctx.comm.rank();
    ctx.ensure(both.rank() == expected && both.size() == ctx.comm.size(), || {
        format!("merged as rank {} of {}", both.rank(), both.size())
    });
    exchange(&ctx.on(both, 77), SIZES.len());
    Outcome::Done
}
