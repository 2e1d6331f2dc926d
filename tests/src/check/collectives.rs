//! Collective operations against a result that each rank computes by itself.

use crate::buffer::Buffer;
use crate::check::{Case, Context, Needs, Outcome};
use crate::collective::{Number, OPS, Op};
use crate::comm::{Mode, Rank};
use crate::universe::{class, int};

pub(super) const CASES: &[Case] = &[
    Case::new("collectives/barrier", "nobody leaves before all have come", barrier),
    Case::new("collectives/bcast", "from every root", broadcast),
    Case::new("collectives/reduce", "to every root: sum, maximum, minimum", reduce),
    Case::new("collectives/allreduce", "sum, maximum, minimum of three types", all_reduce),
    Case::new("collectives/scan", "inclusive and exclusive", scan),
    Case::new("collectives/reduce-scatter", "a block for each", reduce_scatter),
    Case::new("collectives/allgather", "equal and varying parts", all_gather),
    Case::new("collectives/gather-scatter", "varying parts, every root", gather_scatter),
    Case::new("collectives/alltoall", "equal and varying parts", all_to_all),
    Case::needing(
        Needs::TwoRanks,
        "collectives/too-long",
        "a part longer than its place is an error for its taker alone",
        too_long,
    ),
    Case::needing(
        Needs::TwoRanks,
        "collectives/lengths-differ",
        "a bcast of another length is an error of the program, and nobody is lost",
        lengths_differ,
    ),
    Case::new("collectives/overlapping", "nonblocking, beside messages on the same ranks", overlapping),
];

const BYTES: [usize; 8] = [1, 7, 100, 1000, 4099, 33_000, 80_000, 600_000];
const TOO_LONG: [(usize, usize); 5] =
    [(100, 90), (4000, 10), (4100, 4000), (300_000, 200_000), (300_000, 1000)];
const NUMBERS: [usize; 6] = [1, 5, 100, 1025, 9000, 40_000];

fn roots(ctx: &Context) -> Vec<Rank> {
    let all: Vec<Rank> = ctx.comm.ranks().collect();
    if all.len() <= 8 { all } else { vec![0, all[all.len() / 2], all[all.len() - 1]] }
}

/// The numbers that `rank` puts into operation `number`.
fn numbers<T: Number>(ctx: &Context, rank: Rank, number: usize, length: usize) -> Vec<T> {
    let mut random = ctx.random_of(rank, number as u64);
    (0..length).map(|_| T::from_bits(random.next_u64())).collect()
}

/// The result that an operation over `ranks` must give.
fn combined<T: Number>(
    ctx: &Context,
    ranks: std::ops::Range<Rank>,
    number: usize,
    length: usize,
    op: Op,
) -> Vec<T> {
    let mut parts = ranks.map(|rank| numbers::<T>(ctx, rank, number, length));
    let Some(mut all) = parts.next() else { return vec![T::default(); length] };
    for part in parts {
        for (a, b) in all.iter_mut().zip(part) {
            *a = T::combine(op, *a, b);
        }
    }
    all
}

/// Bytes that `rank` puts into part `number`.
fn bytes(ctx: &Context, rank: Rank, number: usize, length: usize) -> Vec<u8> {
    ctx.key(rank, 0, number).bytes(length)
}

/// A length that `rank` alone has; every fifth is 0.
fn varying(ctx: &Context, rank: Rank, number: usize) -> usize {
    let mut random = ctx.random_of(rank, number as u64);
    if random.below(5) == 0 { 0 } else { random.size(40_000) }
}

fn barrier(ctx: &Context) -> Outcome {
    for number in 0..ctx.rounds(4, 300) {
        let last = int(number % ctx.comm.size());
        if ctx.comm.rank() == last {
            // Comes only after all others have told that their barrier has not let them go.
            for from in ctx.comm.ranks().filter(|&from| from != last) {
                ctx.comm.receive(&mut Buffer::new(0), from, 1);
            }
            ctx.comm.start_barrier().wait();
        } else {
            let mut waiting = ctx.comm.start_barrier();
            for _ in 0..10 {
                let early = waiting.test().is_some();
                ctx.ensure(!early, || format!("left the barrier before rank {last} came"));
            }
            ctx.comm.send(Mode::Standard, &[], last, 1);
            waiting.wait();
        }
        ctx.comm.barrier();
    }
    Outcome::Done
}

fn broadcast(ctx: &Context) -> Outcome {
    for round in 0..ctx.rounds(1, 20) {
        for root in roots(ctx) {
            for size in BYTES {
                let wanted = bytes(ctx, root, round, size);
                let mut data = if ctx.comm.rank() == root { wanted.clone() } else { vec![0; size] };
                ctx.comm.broadcast(&mut data, root);
                ctx.check_equal(&wanted, &data, || format!("bcast of {size} bytes from {root}"));
            }
        }
    }
    Outcome::Done
}

fn reduce(ctx: &Context) -> Outcome {
    for root in roots(ctx) {
        for round in 0..ctx.rounds(1, 6) {
            reduce_to::<i64>(ctx, root, round);
            reduce_to::<f64>(ctx, root, round);
        }
    }
    Outcome::Done
}

fn reduce_to<T: Number>(ctx: &Context, root: Rank, round: usize) {
    for length in NUMBERS {
        for op in OPS {
            let mine = numbers::<T>(ctx, ctx.comm.rank(), round, length);
            let got = ctx.comm.reduce(&mine, op, root);
            if ctx.comm.rank() == root {
                let wanted = combined::<T>(ctx, ctx.comm.ranks(), round, length, op);
                ctx.check_numbers(&wanted, &got, || format!("reduce {op:?} of {length}"));
            }
        }
    }
}

fn all_reduce(ctx: &Context) -> Outcome {
    for round in 0..ctx.rounds(1, 10) {
        all_reduce_of::<i32>(ctx, round);
        all_reduce_of::<i64>(ctx, round);
        all_reduce_of::<f64>(ctx, round);
    }
    Outcome::Done
}

fn all_reduce_of<T: Number>(ctx: &Context, round: usize) {
    for length in NUMBERS {
        for op in OPS {
            let mine = numbers::<T>(ctx, ctx.comm.rank(), round, length);
            let got = ctx.comm.all_reduce(&mine, op);
            let wanted = combined::<T>(ctx, ctx.comm.ranks(), round, length, op);
            ctx.check_numbers(&wanted, &got, || format!("allreduce {op:?} of {length}"));
        }
    }
}

fn scan(ctx: &Context) -> Outcome {
    let me = ctx.comm.rank();
    for round in 0..ctx.rounds(1, 10) {
        for length in NUMBERS {
            for op in OPS {
                let mine = numbers::<i64>(ctx, me, round, length);
                let wanted = combined::<i64>(ctx, 0..me + 1, round, length, op);
                let got = ctx.comm.scan(&mine, op);
                ctx.check_numbers(&wanted, &got, || format!("scan {op:?} of {length}"));
                let wanted = combined::<i64>(ctx, 0..me, round, length, op);
                let got = ctx.comm.exclusive_scan(&mine, op);
                ctx.check_numbers(&wanted, &got, || format!("exscan {op:?} of {length}"));
            }
        }
    }
    Outcome::Done
}

fn reduce_scatter(ctx: &Context) -> Outcome {
    let (me, size) = (ctx.comm.rank() as usize, ctx.comm.size());
    for round in 0..ctx.rounds(1, 10) {
        for block in [1, 10, 1000, 7001] {
            for op in OPS {
                let mine = numbers::<i64>(ctx, ctx.comm.rank(), round, block * size);
                let all = combined::<i64>(ctx, ctx.comm.ranks(), round, block * size, op);
                let got = ctx.comm.reduce_scatter(&mine, op);
                let wanted = &all[me * block..(me + 1) * block];
                ctx.check_numbers(wanted, &got, || format!("reduce-scatter {op:?} of {block}"));
            }
        }
    }
    Outcome::Done
}

fn all_gather(ctx: &Context) -> Outcome {
    let me = ctx.comm.rank();
    for round in 0..ctx.rounds(1, 15) {
        for size in BYTES.map(|size| size * 4 / ctx.comm.size().max(4)) {
            let got = ctx.comm.all_gather(&bytes(ctx, me, round, size));
            let parts = ctx.comm.ranks().map(|rank| bytes(ctx, rank, round, size));
            let wanted = parts.collect::<Vec<_>>().concat();
            ctx.check_equal(&wanted, &got, || format!("allgather of {size} bytes"));
        }
        let lengths: Vec<_> = ctx.comm.ranks().map(|rank| varying(ctx, rank, round)).collect();
        let mine = bytes(ctx, me, round, lengths[me as usize]);
        let parts = ctx.comm.ranks().map(|rank| bytes(ctx, rank, round, lengths[rank as usize]));
        let wanted = parts.collect::<Vec<_>>().concat();
        let got = ctx.comm.all_gather_varying(&mine, &lengths);
        ctx.check_equal(&wanted, &got, || format!("allgatherv of {lengths:?} bytes"));
    }
    Outcome::Done
}

fn gather_scatter(ctx: &Context) -> Outcome {
    let me = ctx.comm.rank();
    for root in roots(ctx) {
        for round in 0..ctx.rounds(2, 40) {
            let lengths: Vec<_> = ctx.comm.ranks().map(|rank| varying(ctx, rank, round)).collect();
            let part = |rank: Rank| bytes(ctx, rank, round, lengths[rank as usize]);
            let all = || ctx.comm.ranks().map(part).collect::<Vec<_>>().concat();
            let got = ctx.comm.gather(&part(me), &lengths, root);
            if me == root {
                ctx.check_equal(&all(), &got, || format!("gatherv of {lengths:?} bytes"));
            }
            let dealt = if me == root { all() } else { vec![] };
            let got = ctx.comm.scatter(&dealt, &lengths, root);
            ctx.check_equal(&part(me), &got, || format!("scatterv of {lengths:?} from {root}"));
        }
    }
    Outcome::Done
}

fn all_to_all(ctx: &Context) -> Outcome {
    let me = ctx.comm.rank();
    let block = |from, to, round, size| ctx.key(from, to, round).bytes(size);
    let row = |parts: Vec<Vec<u8>>| parts.concat();
    for round in 0..ctx.rounds(1, 15) {
        for size in BYTES.map(|size| size * 4 / ctx.comm.size().max(4)) {
            let mine = row(ctx.comm.ranks().map(|to| block(me, to, round, size)).collect());
            let wanted = row(ctx.comm.ranks().map(|from| block(from, me, round, size)).collect());
            let got = ctx.comm.all_to_all(&mine);
            ctx.check_equal(&wanted, &got, || format!("alltoall of {size} bytes"));
        }
        let length = |from: Rank, to: Rank| varying(ctx, from, round * 1000 + to as usize);
        let lengths: Vec<_> = ctx.comm.ranks().map(|to| length(me, to)).collect();
        let expected: Vec<_> = ctx.comm.ranks().map(|from| length(from, me)).collect();
        let out = ctx.comm.ranks().map(|to| block(me, to, round, length(me, to)));
        let mine = row(out.collect());
        let back = ctx.comm.ranks().map(|from| block(from, me, round, length(from, me)));
        let wanted = row(back.collect());
        let got = ctx.comm.all_to_all_varying(&mine, &lengths, &expected);
        ctx.check_equal(&wanted, &got, || format!("alltoallv of {expected:?} bytes"));
    }
    Outcome::Done
}

/// Rank 0 of a pair expects less than it gets. (With more members Open MPI's own functions leave others waiting.)
fn too_long(ctx: &Context) -> Outcome {
    let pair = ctx.comm.split(ctx.comm.rank().unsigned_abs() as usize / 2, ctx.comm.rank());
    let me = pair.rank().unsigned_abs() as usize;
    if pair.size() != 2 {
        return Outcome::Done;
    }
    for (round, (long, short)) in TOO_LONG.into_iter().cycle().take(4 * TOO_LONG.len()).enumerate() {
        let back = BYTES[round % BYTES.len()];
        let (lengths, expected) = if me == 0 { ([0, back], [0, short]) } else { ([long, 0], [back, 0]) };
        let of = |rank: usize, len| ctx.key(int(rank), int(1 - rank), round).bytes(len);
        // With room for all that is sent: Open MPI 4.1 itself writes behind the place.
        let mut out = vec![0; long.max(back)];
        let code = pair.try_all_to_all_varying(&of(me, lengths[1 - me]), &lengths, &expected, &mut out);
        if me == 0 {
            ctx.ensure(code != 0 && class(code) == mpi::ffi::MPI_ERR_TRUNCATE, || {
                format!(
                    "{long} bytes where {short} were expected: expected MPI_ERR_TRUNCATE, got code {code}"
                )
            });
        } else {
            ctx.ensure(code == 0, || format!("sent {long} bytes where {short} were expected: code {code}"));
            ctx.check_equal(&of(0, back), &out[..back], || format!("alltoallv of {back} bytes"));
        }
        // The members are not out of step.
        pair.barrier();
    }
    for (varying, apart) in [(true, true), (true, false), (false, true), (false, false)] {
        let code = pair.try_gather_too_much(varying, apart);
        ctx.ensure((code != 0) == (me == 0), || format!("rank 0 gave itself too much: code {code}"));
        for value in [1, 2] {
            let mut data = [if me == 0 { value } else { 0 }];
            pair.broadcast(&mut data, 0);
            ctx.check_equal(&[value], &data, || "broadcast after a gather that failed".into());
        }
    }
    Outcome::Done
}

/// Rank 0 of a pair expects less than rank 1 gives. Afterwards the communicator may be of no more use, as long as that is said.
fn lengths_differ(ctx: &Context) -> Outcome {
    for (long, short) in [(24, 8), (100, 90), (1000, 16)] {
        let pair = ctx.comm.split(ctx.comm.rank().unsigned_abs() as usize / 2, ctx.comm.rank());
        if pair.size() != 2 {
            continue;
        }
        let is_truncated = |code| code != 0 && class(code) == mpi::ffi::MPI_ERR_TRUNCATE;
        let mut data = vec![0; if pair.rank() == 0 { short } else { long }];
        let code = pair.try_broadcast(&mut data, 1);
        let is_right = if pair.rank() == 0 { is_truncated(code) } else { code == 0 };
        ctx.ensure(is_right, || format!("{long} bytes where {short} were expected: code {code}"));
        for _ in 0..2 {
            let code = pair.try_barrier();
            ctx.ensure(code == 0 || is_truncated(code), || {
                format!("a barrier after a bcast of {long} bytes where {short} were expected: code {code}")
            });
        }
    }
    ctx.comm.barrier();
    Outcome::Done
}

fn overlapping(ctx: &Context) -> Outcome {
    let me = ctx.comm.rank();
    let (to, from) = (ctx.comm.after(1), ctx.comm.before(1));
    for round in 0..ctx.rounds(2, 60) {
        let root = int(round % ctx.comm.size());
        let size = BYTES[round % BYTES.len()];
        let key = ctx.key(root, 0, round);
        let mut buffer = Buffer::new(size);
        if me == root {
            key.fill(buffer.payload_mut());
        }
        let spreading = ctx.comm.start_broadcast(buffer, root);
        let waiting = ctx.comm.start_barrier();
        let landing = ctx.comm.start_receive(Buffer::new(size), from, 6);
        let number = round + 1_000_000;
        ctx.comm.start_send(Mode::Standard, ctx.outgoing(to, number, size), to, 6).wait();
        let (buffer, status) = landing.wait();
        ctx.check(&buffer, status, from, 6, number, size);
        let (buffer, _) = spreading.wait();
        ctx.check_bytes(&buffer, key, size, || format!("ibcast of {size} bytes from {root}"));
        waiting.wait();
    }
    Outcome::Done
}
