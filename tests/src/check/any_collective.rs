//! Collective operations chosen at random: operations, datatypes, lengths, roots, in place or not, on communicators of all
//! shapes. The result that each must give is computed by every rank from the seed.

use std::ffi::{c_int, c_void};
use std::time::Duration;

use mpi::ffi;

use crate::buffer::Buffer;
use crate::check::movement::{BLANK, Kind, Movement, Plan, blank, words};
use crate::check::{Case, Context, Needs, Outcome};
use crate::comm::{Comm, Rank};
use crate::datatype::Datatype;
use crate::payload::Random;
use crate::reduction::{Reduction, in_place};
use crate::universe::{int, succeed};

pub(super) const CASES: &[Case] = &[
    Case::new(
        "any-collective/moves",
        "bcast, gather(v), scatter(v), allgather(v), alltoall(v) of any types",
        moves,
    ),
    Case::new("any-collective/ahead", "many of them, checked only after the last", ahead),
    Case::new("any-collective/reductions", "reduce and allreduce, any operation on any type", reductions),
    Case::new(
        "any-collective/padded",
        "reduce and allreduce of records that are copied with their padding",
        padded,
    ),
    Case::new("any-collective/short-lived", "on communicators that are freed at once", short_lived),
    Case::needing(Needs::Threads, "any-collective/threads", "on a communicator for each thread", threads),
];

/// A communicator made from another one: the same, reversed, or one of two or three parts.
fn shaped(ctx: &Context, lane: usize, random: &mut Random) -> Context {
    let (size, rank) = (ctx.comm.size(), ctx.comm.rank());
    let comm = match random.below(4) {
        0 => ctx.comm.duplicate(),
        1 => ctx.comm.split(0, -rank),
        2 => ctx.comm.split(rank as usize % 2, rank),
        _ => ctx.comm.split(rank as usize * 3 / size.max(3), -rank),
    };
    let context = ctx.on(comm, lane);
    // The parts' members must not matter for what is random.
    let _ = random.next_u64();
    context
}

fn moves(ctx: &Context) -> Outcome {
    for lane in 0..ctx.rounds(6, 40) {
        let mut random = ctx.common_random(lane as u64);
        let ctx = &shaped(ctx, lane, &mut random);
        for number in 0..20 {
            let mine = &mut ctx.random_of(ctx.comm.rank(), number as u64);
            let mut movement = Movement::prepare(ctx, any_plan(ctx, &Kind::MOVES, number), mine);
            movement.run(&ctx.comm);
            movement.check(ctx);
        }
    }
    Outcome::Done
}

/// An operation of one of the kinds: all ranks draw from the same generator, each for all of them.
fn any_plan(ctx: &Context, kinds: &[Kind], number: usize) -> Plan {
    let mut random = ctx.common_random(1000 + number as u64);
    let kind = kinds[random.below(kinds.len())];
    Plan::new(&mut random, kind, number, ctx.comm.size())
}

fn ahead(ctx: &Context) -> Outcome {
    const KINDS: [Kind; 10] = [
        Kind::Gatherv,
        Kind::Gatherv,
        Kind::Scatterv,
        Kind::Scatterv,
        Kind::Alltoallv,
        Kind::Alltoallv,
        Kind::Bcast,
        Kind::Gather,
        Kind::Scatter,
        Kind::Barrier,
    ];
    for lane in 0..ctx.rounds(12, 100) {
        let mut random = ctx.common_random(lane as u64);
        let ctx = &shaped(ctx, lane, &mut random);
        let mine = &mut ctx.random_of(ctx.comm.rank(), 0);
        let mut movements: Vec<Movement> = (0..5 + random.below(16))
            .map(|number| Movement::prepare(ctx, any_plan(ctx, &KINDS, number), mine))
            .collect();
        for movement in &mut movements {
            if mine.below(8) == 0 {
                // Meanwhile others go on as far as they can.
                std::thread::sleep(Duration::from_micros(mine.below(500) as u64));
            }
            movement.run(&ctx.comm);
        }
        movements.iter().for_each(|movement| movement.check(ctx));
    }
    Outcome::Done
}

fn reductions(ctx: &Context) -> Outcome {
    for lane in 0..ctx.rounds(3, 20) {
        let mut random = ctx.common_random(lane as u64);
        let ctx = &shaped(ctx, lane, &mut random);
        for number in 0..10 {
            reduce_once(ctx, number);
        }
    }
    Outcome::Done
}

fn reduce_once(ctx: &Context, number: usize) {
    let (comm, size, me) = (&ctx.comm, ctx.comm.size(), ctx.comm.rank() as usize);
    let mut random = ctx.common_random(5000 + number as u64);
    let reduction = Reduction::random(&mut random);
    let count = words(&mut random) - random.below(4);
    let (root, to_all, wants_in_place) = (random.below(size), random.below(2) == 0, random.below(2) == 0);
    let operands: Vec<Vec<u8>> = (0..size)
        .map(|rank| reduction.operands(&mut ctx.random_of(int(rank), number as u64), count))
        .collect();
    let datatype = &reduction.datatype;
    let gets = to_all || me == root;
    let mine = &mut ctx.random_of(int(me), 6000 + number as u64);
    let mut out = blank(mine, datatype.span(count));
    datatype.unpack(count, &operands[me], out.payload_mut());
    let mut to = blank(mine, datatype.span(count));
    let stays = wants_in_place && gets;
    if stays {
        datatype.unpack(count, &operands[me], to.payload_mut());
    }
    let mut expected = to.payload().to_vec();
    if gets {
        datatype.unpack(count, &reduction.joined(&operands, count), &mut expected);
    }
    let address = |memory: &mut Buffer| memory.payload_mut().as_mut_ptr().cast();
    let from = if stays { in_place() } else { address(&mut out) };
    let (target, n, kind, op) = (address(&mut to), int(count), datatype.raw(), reduction.raw());
    // SAFETY: both buffers have `count` elements.
    succeed(unsafe {
        match to_all {
            true => ffi::MPI_Allreduce(from, target, n, kind, op, comm.raw()),
            false => ffi::MPI_Reduce(from, target, n, kind, op, int(root), comm.raw()),
        }
    });
    ctx.check_equal(&expected, to.payload(), || {
        let (name, what) = (&reduction.name, if to_all { "allreduce" } else { "reduce" });
        format!("{what}, {name}, {count} of them, root {root}, in place {wants_in_place}, operation {number}, {size} ranks")
    });
}

/// 12 bytes of data, and padding.
#[derive(Clone, Copy)]
#[repr(C)]
struct Padded {
    number: i64,
    index: i32,
    /// Bytes that a function writes with its elements, though the datatype does not name them.
    padding: [u8; 4],
}

impl Padded {
    fn datatype() -> Datatype {
        Datatype::record(&[(0, 1, &Datatype::i64()), (8, 1, &Datatype::i32())], size_of::<Padded>())
    }

    fn joined(self, other: Padded) -> Padded {
        let (number, index) = (self.number.wrapping_add(other.number), self.index.wrapping_mul(other.index));
        Padded { number, index, padding: [0xee; 4] }
    }
}

unsafe extern "C" fn join_padded(
    left: *mut c_void,
    inout: *mut c_void,
    count: *mut c_int,
    _: *mut ffi::MPI_Datatype,
) {
    // SAFETY: MPI gives `count` elements.
    unsafe {
        for element in 0..*count as usize {
            let (left, inout) = (left.cast::<Padded>().add(element), inout.cast::<Padded>().add(element));
            inout.write_unaligned(left.read_unaligned().joined(inout.read_unaligned()));
        }
    }
}

fn padded(ctx: &Context) -> Outcome {
    let (datatype, me) = (Padded::datatype(), ctx.comm.rank());
    // SAFETY: a constant of the MPI library; MPI writes the operation.
    let mut op = unsafe {
        let mut op = std::mem::MaybeUninit::uninit();
        succeed(ffi::MPI_Op_create(Some(join_padded), 1, op.as_mut_ptr()));
        op.assume_init()
    };
    let record = |rank: Rank, count: usize| -> Vec<Padded> {
        let mut random = ctx.random_of(rank, count as u64);
        (0..count)
            .map(|_| random.next_u64())
            .map(|bits| Padded { number: bits as i64, index: (bits >> 32) as i32, padding: [BLANK; 4] })
            .collect()
    };
    // Among them such that leave one record for the last piece of 64 KiB, or of 4 KiB.
    for count in [1, 2, 3, 342, 683, 5461, 5462, 5463, 10_923, 16_384] {
        let mine = record(me, count);
        let mut expected = record(0, count);
        for rank in ctx.comm.ranks().skip(1) {
            expected.iter_mut().zip(record(rank, count)).for_each(|(to, from)| *to = to.joined(from));
        }
        for root in ctx.comm.ranks().map(Some).chain([None]) {
            let mut got = vec![Padded { number: 0, index: 0, padding: [BLANK; 4] }; count];
            let (from, to) = (mine.as_ptr().cast(), got.as_mut_ptr().cast());
            let (n, kind, comm) = (int(count), datatype.raw(), ctx.comm.raw());
            // SAFETY: both have `count` records.
            succeed(unsafe {
                match root {
                    Some(root) => ffi::MPI_Reduce(from, to, n, kind, op, root, comm),
                    None => ffi::MPI_Allreduce(from, to, n, kind, op, comm),
                }
            });
            if root.is_none_or(|root| root == me) {
                let data = |all: &[Padded]| all.iter().map(|r| (r.number, r.index)).collect::<Vec<_>>();
                ctx.ensure(data(&expected) == data(&got), || {
                    format!("{count} padded records, root {root:?}, are not joined as they should be")
                });
            }
        }
    }
    // SAFETY: the operation was created here.
    succeed(unsafe { ffi::MPI_Op_free(&raw mut op) });
    Outcome::Done
}

fn short_lived(ctx: &Context) -> Outcome {
    for lane in 0..ctx.rounds(10, 200) {
        let mut random = ctx.common_random(lane as u64);
        let root: Rank = int(random.below(ctx.comm.size()));
        let length = words(&mut random) * 8;
        let wanted = ctx.key(root, 0, lane).bytes(length);
        let comm: Comm = ctx.comm.duplicate();
        let mut data = if comm.rank() == root { wanted.clone() } else { vec![0; length] };
        comm.broadcast(&mut data, root);
        // A slow member reads what members that have freed theirs said last.
        drop(comm);
        ctx.check_equal(&wanted, &data, || format!("bcast of {length} bytes, then free"));
    }
    Outcome::Done
}

fn threads(ctx: &Context) -> Outcome {
    let lanes: Vec<Context> = (0..ctx.threads()).map(|lane| ctx.on(ctx.comm.duplicate(), lane)).collect();
    std::thread::scope(|scope| {
        for lane in &lanes {
            scope.spawn(|| {
                for number in 0..lane.rounds(20, 100) {
                    reduce_once(lane, number);
                    let mine = &mut lane.random_of(lane.comm.rank(), number as u64);
                    let plan = any_plan(lane, &Kind::MOVES, 10_000 + number);
                    let mut movement = Movement::prepare(lane, plan, mine);
                    movement.run(&lane.comm);
                    movement.check(lane);
                }
            });
        }
    });
    Outcome::Done
}
