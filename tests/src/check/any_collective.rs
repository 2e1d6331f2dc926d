//! Collective operations chosen at random: operations, datatypes, lengths, roots, in place or not, on communicators of all
//! shapes. What each must give is computed by every rank from the seed.

use std::ffi::{c_int, c_void};

use mpi::ffi;

use crate::buffer::Buffer;
use crate::check::{Case, Context, Needs, Outcome};
use crate::comm::{Comm, Rank};
use crate::datatype::Datatype;
use crate::payload::Random;
use crate::reduction::{Reduction, in_place};
use crate::universe::{int, succeed};

pub(super) const CASES: &[Case] = &[
    Case::new("any-collective/moves", "bcast, gather, scatter, allgather(v), alltoall of any types", moves),
    Case::new("any-collective/reductions", "reduce and allreduce, any operation on any type", reductions),
    Case::new(
        "any-collective/padded",
        "reduce and allreduce of records that are copied with their padding",
        padded,
    ),
    Case::new("any-collective/short-lived", "on communicators that are freed at once", short_lived),
    Case::needing(Needs::Threads, "any-collective/threads", "on a communicator for each thread", threads),
];

/// What untouched memory holds.
const BLANK: u8 = 0x5a;

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
    // Who is in which part must not matter for what is random.
    let _ = random.next_u64();
    context
}

/// Elements of 64 bits in all, in one of the shapes that such data can have: the datatype, and how many of it.
fn shape(random: &mut Random, words: usize) -> (Datatype, usize) {
    let word = Datatype::i64();
    match random.below(6) {
        0 | 1 => (word, words),
        2 => (Datatype::contiguous(4, &word), words / 4),
        3 => (Datatype::vector(2, 1, 3, &word), words / 2),
        4 => (Datatype::record(&[(0, 1, &word), (24, 1, &word)], 40), words / 2),
        _ => (Datatype::resized(24, &word), words),
    }
}

/// Blank memory from the heap or from MPI, which others may be able to read where it is.
fn blank(random: &mut Random, length: usize) -> Buffer {
    let mut memory = match random.below(4) {
        0 => Buffer::new(length),
        1 => Buffer::at_offset(length, 8 * random.below(8)),
        2 => Buffer::from_mpi(length),
        _ => Buffer::from_mpi_at(length, 8 * random.below(1000)),
    };
    memory.payload_mut().fill(BLANK);
    memory
}

fn address(memory: &mut Buffer) -> *mut c_void {
    memory.payload_mut().as_mut_ptr().cast()
}

/// Memory for `parts` parts, each so many elements of a datatype.
struct Area {
    datatype: Datatype,
    count: usize,
    memory: Buffer,
}

impl Area {
    fn new(random: &mut Random, parts: usize, words: usize) -> Area {
        let (datatype, count) = shape(random, words);
        let memory = blank(random, datatype.span(count * parts));
        Area { datatype, count, memory }
    }

    fn part(&self, number: usize) -> std::ops::RangeFrom<usize> {
        number * self.count * self.datatype.extent()..
    }

    fn put(&mut self, number: usize, packed: &[u8]) {
        let (part, count) = (self.part(number), self.count);
        self.datatype.unpack(count, packed, &mut self.memory.payload_mut()[part]);
    }

    fn address(&mut self) -> *mut c_void {
        address(&mut self.memory)
    }

    fn count(&self) -> c_int {
        int(self.count)
    }
}

/// How many 64-bit words an operation moves for each rank: often few, seldom many.
fn words(random: &mut Random) -> usize {
    let most = [4, 32, 256, 1200, 6000, 40_000][random.below(6)];
    (random.below(most) / 4 + 1) * 4
}

fn moves(ctx: &Context) -> Outcome {
    for lane in 0..ctx.rounds(3, 20) {
        let mut random = ctx.common_random(lane as u64);
        let ctx = &shaped(ctx, lane, &mut random);
        for number in 0..10 {
            // All ranks draw from the same generator, each for all of them.
            let mut random = ctx.common_random(1000 + number as u64);
            let words = words(&mut random);
            let root = random.below(ctx.comm.size());
            let mine = &mut ctx.random_of(ctx.comm.rank(), number as u64);
            let which = random.below(6);
            move_once(ctx, which, number, words, root, random.below(2) == 0, mine);
        }
    }
    Outcome::Done
}

/// One operation that moves data; `mine` chooses what each rank may choose for itself.
fn move_once(
    ctx: &Context,
    which: usize,
    number: usize,
    words: usize,
    root: usize,
    wants_in_place: bool,
    mine: &mut Random,
) {
    let (comm, size, me) = (&ctx.comm, ctx.comm.size(), ctx.comm.rank() as usize);
    let is_root = me == root;
    let data = |from: usize, to: usize, words: usize| ctx.key(int(from), int(to), number).bytes(words * 8);
    let name = ["bcast", "allgather", "allgatherv", "gather", "scatter", "alltoall"][which];
    let parts = if which == 0 { 1 } else { size };
    let mut out = Area::new(mine, 1, words);
    let mut to = Area::new(mine, parts, words);
    let raw = comm.raw();
    let root_c = int(root);
    let checked = |expected: &Area, got: &Area| {
        let what = || {
            format!(
                "{name} of {words} words, root {root}, in place {wants_in_place}, operation {number}, {size} ranks"
            )
        };
        ctx.check_equal(expected.memory.payload(), got.memory.payload(), what);
        ctx.ensure(got.memory.guards_intact().is_ok(), what);
    };
    let copy_of = |area: &Area| Area {
        datatype: Datatype::resized(area.datatype.extent(), &area.datatype),
        count: area.count,
        memory: Buffer::holding(area.memory.payload()),
    };
    // SAFETY: in each call the buffers have the elements that are named.
    unsafe {
        match which {
            0 => {
                let mut expected = copy_of(&to);
                expected.put(0, &data(root, 0, words));
                if is_root {
                    to.put(0, &data(root, 0, words));
                }
                let (count, kind) = (to.count(), to.datatype.raw());
                succeed(ffi::MPI_Bcast(to.address(), count, kind, root_c, raw));
                checked(&expected, &to);
            }
            1 => {
                let mut expected = copy_of(&to);
                (0..size).for_each(|rank| expected.put(rank, &data(rank, 0, words)));
                out.put(0, &data(me, 0, words));
                if wants_in_place {
                    to.put(me, &data(me, 0, words));
                }
                let from = if wants_in_place { in_place() } else { out.address() };
                let (count, kind) = (to.count(), to.datatype.raw());
                let (out_count, out_kind) = (out.count(), out.datatype.raw());
                succeed(ffi::MPI_Allgather(from, out_count, out_kind, to.address(), count, kind, raw));
                checked(&expected, &to);
            }
            2 => {
                // Parts of different lengths, some empty, in reverse order and with gaps between them.
                let length = |rank: usize| match ctx.random_of(int(rank), 77 + number as u64).below(4) {
                    0 => 0,
                    part => words / 4 * part,
                };
                let kind = Datatype::resized(if wants_in_place { 8 } else { 16 }, &Datatype::i64());
                let counts: Vec<c_int> = (0..size).map(|rank| int(length(rank))).collect();
                let places: Vec<c_int> = (0..size).map(|rank| int((size - 1 - rank) * (words + 3))).collect();
                let mut to = blank(mine, size * (words + 3) * kind.extent());
                let mut expected = to.payload().to_vec();
                for (rank, &place) in places.iter().enumerate() {
                    let at = place as usize * kind.extent();
                    let packed = data(rank, 0, length(rank));
                    kind.unpack(length(rank), &packed, &mut expected[at..]);
                    if rank == me && wants_in_place {
                        kind.unpack(length(rank), &packed, &mut to.payload_mut()[at..]);
                    }
                }
                let mut out = blank(mine, length(me) * 8);
                out.payload_mut().copy_from_slice(&data(me, 0, length(me)));
                let from = if wants_in_place { in_place() } else { address(&mut out) };
                let target = address(&mut to);
                let (count, word) = (int(length(me)), Datatype::i64());
                let (counts, places) = (counts.as_ptr(), places.as_ptr());
                succeed(ffi::MPI_Allgatherv(
                    from,
                    count,
                    word.raw(),
                    target,
                    counts,
                    places,
                    kind.raw(),
                    raw,
                ));
                ctx.check_equal(&expected, to.payload(), || {
                    format!(
                        "{name} of {words} words, in place {wants_in_place}, operation {number}, {size} ranks"
                    )
                });
            }
            3 => {
                let mut expected = copy_of(&to);
                out.put(0, &data(me, root, words));
                if is_root {
                    (0..size).for_each(|rank| expected.put(rank, &data(rank, root, words)));
                    if wants_in_place {
                        to.put(me, &data(me, root, words));
                    }
                }
                let from = if wants_in_place && is_root { in_place() } else { out.address() };
                let (count, kind) = (to.count(), to.datatype.raw());
                let (out_count, out_kind) = (out.count(), out.datatype.raw());
                succeed(ffi::MPI_Gather(from, out_count, out_kind, to.address(), count, kind, root_c, raw));
                checked(&expected, &to);
            }
            4 => {
                // Here the larger area is what the root sends.
                let mut expected = copy_of(&out);
                if is_root {
                    (0..size).for_each(|rank| to.put(rank, &data(root, rank, words)));
                }
                let stays = wants_in_place && is_root;
                if !stays {
                    expected.put(0, &data(root, me, words));
                }
                let (count, kind) = (to.count(), to.datatype.raw());
                let (out_count, out_kind) = (out.count(), out.datatype.raw());
                let target = if stays { in_place() } else { out.address() };
                succeed(ffi::MPI_Scatter(
                    to.address(),
                    count,
                    kind,
                    target,
                    out_count,
                    out_kind,
                    root_c,
                    raw,
                ));
                checked(&expected, &out);
            }
            _ => {
                let mut expected = copy_of(&to);
                (0..size).for_each(|rank| expected.put(rank, &data(rank, me, words)));
                let mut out = Area::new(mine, size, words);
                for rank in 0..size {
                    out.put(rank, &data(me, rank, words));
                    if wants_in_place {
                        to.put(rank, &data(me, rank, words));
                    }
                }
                let from = if wants_in_place { in_place() } else { out.address() };
                let (count, kind) = (to.count(), to.datatype.raw());
                let (out_count, out_kind) = (out.count(), out.datatype.raw());
                succeed(ffi::MPI_Alltoall(from, out_count, out_kind, to.address(), count, kind, raw));
                checked(&expected, &to);
            }
        }
    }
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
    /// What a function writes with its elements, though the datatype does not name it.
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
        // Whoever is slow reads what members that have freed theirs said last.
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
                    let mut random = lane.common_random(9000 + number as u64);
                    let (words, which) = (words(&mut random), random.below(6));
                    let root = random.below(lane.comm.size());
                    let mine = &mut lane.random_of(lane.comm.rank(), number as u64);
                    move_once(lane, which, 10_000 + number, words, root, random.below(2) == 0, mine);
                }
            });
        }
    });
    Outcome::Done
}
