//! Messages of every size around the edges of the protocols.

use crate::buffer::Buffer;
use crate::check::{Case, Context, Outcome};
use crate::comm::Mode;
use crate::request::wait_all;

pub(super) const CASES: &[Case] = &[
    Case::new("sizes/expected", "receive posted first, sizes around every edge", expected),
    Case::new("sizes/unexpected", "message sent first, sizes around every edge", unexpected),
    Case::new("sizes/random", "random sizes up to 256 KiB, several under way", random),
    Case::new("sizes/large", "around 1 MiB, and a few MiB", large),
    Case::new("sizes/alignments", "buffers at every offset in a cache line", alignments),
];

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// Sizes at which a protocol may change, and their neighbours. A quick run takes every `step`th of
/// the long ranges, but always the edges themselves.
fn edges(quick: bool) -> Vec<usize> {
    let step = if quick { 23 } else { 1 };
    let mut sizes = vec![0, 1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 23, 24, 25, 31, 32, 33];
    sizes.extend(40..=72);
    sizes.extend([111, 112, 113, 127, 128, 129, 191, 192, 193, 255, 256, 257, 511, 512, 513]);
    sizes.extend((895..=1025).step_by(step));
    for middle in [2 * KIB, 4 * KIB, 8 * KIB, 16 * KIB, 32 * KIB, 64 * KIB, 128 * KIB] {
        sizes.extend([middle - 1, middle, middle + 1]);
    }
    for middle in [4 * KIB, 32 * KIB] {
        sizes.extend((middle - 100..=middle + 100).step_by(step));
        // The rest for the payload once a header shares the fragment.
        sizes.extend([8, 14, 16, 24, 32, 40, 48, 56, 64].map(|header| middle - header));
    }
    sizes.sort_unstable();
    sizes.dedup();
    sizes
}

fn expected(ctx: &Context) -> Outcome {
    for _ in 0..ctx.rounds(1, 6) {
        for distance in ctx.distances() {
            for (number, &size) in edges(ctx.quick()).iter().enumerate() {
                expected_one(ctx, distance, number, size);
            }
        }
    }
    Outcome::Done
}

fn expected_one(ctx: &Context, distance: usize, number: usize, size: usize) {
    let (to, from) = (ctx.comm.after(distance), ctx.comm.before(distance));
    let landing = ctx.comm.start_receive(Buffer::new(size), from, 1);
    ctx.comm.send(Mode::Standard, ctx.outgoing(to, number, size).payload(), to, 1);
    let (buffer, status) = landing.wait();
    ctx.check(&buffer, status, from, 1, number, size);
}

fn unexpected(ctx: &Context) -> Outcome {
    let sizes: Vec<(usize, usize)> = edges(ctx.quick()).into_iter().enumerate().collect();
    for _ in 0..ctx.rounds(1, 4) {
        for distance in ctx.distances() {
            let (to, from) = (ctx.comm.after(distance), ctx.comm.before(distance));
            for batch in sizes.chunks(16) {
                let send = |&(number, size)| {
                    let buffer = ctx.outgoing(to, number, size);
                    ctx.comm.start_send(Mode::Standard, buffer, to, 2)
                };
                let sends = batch.iter().map(send).collect();
                // Behind the barrier all have been sent and none was expected.
                ctx.comm.barrier();
                for &(number, size) in batch {
                    let mut buffer = Buffer::new(size);
                    let status = ctx.comm.receive(&mut buffer, from, 2);
                    ctx.check(&buffer, status, from, 2, number, size);
                }
                wait_all(sends);
            }
        }
    }
    Outcome::Done
}

fn random(ctx: &Context) -> Outcome {
    for distance in ctx.distances() {
        let (to, from) = (ctx.comm.after(distance), ctx.comm.before(distance));
        for round in 0..ctx.rounds(8, 100) {
            let mut random = ctx.common_random(round as u64);
            let sizes: Vec<usize> = (0..random.below(24) + 1).map(|_| random.size(256 * KIB)).collect();
            let receives: Vec<_> =
                sizes.iter().map(|&size| ctx.comm.start_receive(Buffer::new(size + 3), from, 3)).collect();
            let sends = sizes
                .iter()
                .enumerate()
                .map(|(number, &size)| {
                    let buffer = ctx.outgoing(to, number, size);
                    ctx.comm.start_send(Mode::Standard, buffer, to, 3)
                })
                .collect();
            for (number, (buffer, status)) in wait_all(receives).into_iter().enumerate() {
                ctx.check(&buffer, status, from, 3, number, sizes[number]);
            }
            wait_all(sends);
        }
    }
    Outcome::Done
}

fn large(ctx: &Context) -> Outcome {
    let sizes = [MIB - 1, MIB, MIB + 1, 2 * MIB, 3 * MIB + 4097, 5 * MIB + 11, 8 * MIB - 3];
    let sizes = if ctx.quick() { &sizes[..4] } else { &sizes[..] };
    for _ in 0..ctx.rounds(1, 6) {
        for distance in ctx.distances() {
            for (number, &size) in sizes.iter().enumerate() {
                expected_one(ctx, distance, number, size);
            }
        }
    }
    Outcome::Done
}

fn alignments(ctx: &Context) -> Outcome {
    let step = if ctx.quick() { 13 } else { 1 };
    for distance in ctx.distances() {
        let (to, from) = (ctx.comm.after(distance), ctx.comm.before(distance));
        for size in [1, 16, 60, 113, 1000, 5000, 70_000] {
            for offset in (0..64).step_by(step) {
                // The two ends of one message differ in their alignment.
                let landing = Buffer::at_offset(size, 63 - offset);
                let landing = ctx.comm.start_receive(landing, from, 4);
                let mut buffer = Buffer::at_offset(size, offset);
                ctx.key(ctx.comm.rank(), to, offset).fill(buffer.payload_mut());
                ctx.comm.send(Mode::Standard, buffer.payload(), to, 4);
                let (buffer, status) = landing.wait();
                ctx.check(&buffer, status, from, 4, offset, size);
            }
        }
    }
    Outcome::Done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_edges_are_there_even_in_a_quick_run() {
        for quick in [false, true] {
            let sizes = edges(quick);
            for edge in [0, 1, 7, 8, 9, 40, 72, 112, 512, 895, 4096, 4096 - 64, 32768, 65537] {
                assert!(sizes.contains(&edge), "{edge} in the list for quick = {quick}");
            }
        }
        assert!(edges(true).len() * 3 < edges(false).len());
    }
}
