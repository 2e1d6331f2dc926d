//! Looking at messages before receiving them, and cancelling receives.

use crate::buffer::Buffer;
use crate::check::{Case, Context, Outcome};
use crate::comm::{ANY_SOURCE, ANY_TAG, Mode};
use crate::request::wait_all;

pub(super) const CASES: &[Case] = &[
    Case::new("probing/probe", "Probe, then a receive of just the right size", probe),
    Case::new("probing/iprobe", "Iprobe until something is there", iprobe),
    Case::new("probing/mprobe", "Mprobe and Mrecv", mprobe),
    Case::new("probing/improbe", "Improbe and Imrecv, received in another order", improbe),
    Case::new("probing/cancel", "a cancelled receive takes no message", cancel),
];

const SIZES: [usize; 9] = [0, 1, 60, 113, 1000, 4090, 5000, 70_000, 400_000];

fn sends(ctx: &Context, to: i32) -> Vec<crate::request::Pending> {
    let send = |(number, &size): (usize, &usize)| {
        let buffer = ctx.outgoing(to, number, size);
        ctx.comm.start_send(Mode::Standard, buffer, to, 20 + crate::universe::int(number))
    };
    SIZES.iter().enumerate().map(send).collect()
}

fn probe(ctx: &Context) -> Outcome {
    each(ctx, |from, tag| ctx.comm.probe(from, tag), false)
}

fn iprobe(ctx: &Context) -> Outcome {
    let look = |from, tag| {
        loop {
            if let Some(status) = ctx.comm.look(from, tag) {
                return status;
            }
            std::thread::yield_now();
        }
    };
    each(ctx, look, true)
}

/// Receives what `find` finds, exactly and with wildcards, in order or from the last to the first.
fn each(ctx: &Context, find: impl Fn(i32, i32) -> crate::request::Status, backwards: bool) -> Outcome {
    for round in 0..ctx.rounds(2, 60) {
        for distance in ctx.distances() {
            let (to, from) = (ctx.comm.after(distance), ctx.comm.before(distance));
            let sends = sends(ctx, to);
            let mut numbers: Vec<usize> = (0..SIZES.len()).collect();
            if backwards {
                numbers.reverse();
            }
            for number in numbers {
                let tag = 20 + crate::universe::int(number);
                let wild = if backwards { tag } else { ANY_TAG };
                let (source, wanted) = if round % 2 == 0 { (from, tag) } else { (ANY_SOURCE, wild) };
                let found = find(source, wanted);
                let told = (found.source, found.tag, found.bytes);
                ctx.ensure(told == (from, tag, SIZES[number]), || {
                    format!("probe for message {number} from rank {from} found {found:?}")
                });
                let mut buffer = Buffer::new(found.bytes);
                let status = ctx.comm.receive(&mut buffer, found.source, found.tag);
                ctx.check(&buffer, status, from, tag, number, SIZES[number]);
            }
            wait_all(sends);
            // The next messages may come from another rank, and wildcards would see them.
            ctx.comm.barrier();
        }
    }
    Outcome::Done
}

fn mprobe(ctx: &Context) -> Outcome {
    for _ in 0..ctx.rounds(2, 60) {
        for distance in ctx.distances() {
            let (to, from) = (ctx.comm.after(distance), ctx.comm.before(distance));
            let sends = sends(ctx, to);
            for (number, &size) in SIZES.iter().enumerate() {
                let (message, found) = ctx.comm.claim(ANY_SOURCE, ANY_TAG);
                let mut buffer = Buffer::new(found.bytes);
                let status = message.receive(&mut buffer);
                let tag = 20 + crate::universe::int(number);
                ctx.check(&buffer, status, from, tag, number, size);
            }
            wait_all(sends);
            ctx.comm.barrier();
        }
    }
    Outcome::Done
}

fn improbe(ctx: &Context) -> Outcome {
    for _ in 0..ctx.rounds(2, 60) {
        for distance in ctx.distances() {
            let (to, from) = (ctx.comm.after(distance), ctx.comm.before(distance));
            let sends = sends(ctx, to);
            let mut claimed = Vec::new();
            while claimed.len() < SIZES.len() {
                claimed.extend(ctx.comm.try_claim(from, ANY_TAG));
                std::thread::yield_now();
            }
            // The newest first: what was claimed no longer obeys any order.
            let receives: Vec<_> = claimed
                .into_iter()
                .rev()
                .map(|(message, found)| message.start_receive(Buffer::new(found.bytes)))
                .collect();
            let received = wait_all(receives);
            for (number, (buffer, status)) in (0..SIZES.len()).rev().zip(received) {
                let tag = 20 + crate::universe::int(number);
                ctx.check(&buffer, status, from, tag, number, SIZES[number]);
            }
            wait_all(sends);
        }
    }
    Outcome::Done
}

fn cancel(ctx: &Context) -> Outcome {
    for round in 0..ctx.rounds(3, 100) {
        for distance in ctx.distances() {
            let (to, from) = (ctx.comm.after(distance), ctx.comm.before(distance));
            for (number, &size) in SIZES.iter().enumerate() {
                let source = if round % 2 == 0 { from } else { ANY_SOURCE };
                let mut unwanted = ctx.comm.start_receive(Buffer::new(size), source, 4);
                unwanted.cancel();
                let (buffer, status) = unwanted.wait();
                ctx.ensure(status.cancelled, || "a receive without sender not cancelled".into());
                ctx.ensure(buffer.payload().iter().all(|&byte| byte == 0), || {
                    "a cancelled receive changed its buffer".into()
                });
                // Now there is a sender: the message goes to the next receive.
                ctx.comm.barrier();
                let sending = ctx.comm.start_send(Mode::Standard, ctx.outgoing(to, number, size), to, 4);
                let mut buffer = Buffer::new(size);
                let status = ctx.comm.receive(&mut buffer, from, 4);
                ctx.check(&buffer, status, from, 4, number, size);
                sending.wait();
                ctx.comm.barrier();
            }
        }
    }
    Outcome::Done
}
