//! Operations that move data between all members of a communicator, each planned by all members alike, then prepared, run and
//! checked apart, so that many can follow each other without a check between them.

use std::ffi::{c_int, c_void};
use std::ptr;

use mpi::ffi;

use crate::buffer::Buffer;
use crate::check::Context;
use crate::comm::Comm;
use crate::datatype::Datatype;
use crate::payload::Random;
use crate::reduction::in_place;
use crate::universe::{int, succeed};

/// The bytes of untouched memory.
pub(super) const BLANK: u8 = 0x5a;

/// An operation of MPI's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Barrier,
    Bcast,
    Gather,
    Gatherv,
    Scatter,
    Scatterv,
    Allgather,
    Allgatherv,
    Alltoall,
    Alltoallv,
}

impl Kind {
    /// All that move data.
    pub(super) const MOVES: [Kind; 9] = [
        Kind::Bcast,
        Kind::Gather,
        Kind::Gatherv,
        Kind::Scatter,
        Kind::Scatterv,
        Kind::Allgather,
        Kind::Allgatherv,
        Kind::Alltoall,
        Kind::Alltoallv,
    ];

    /// Whether each part has a length and a place of its own.
    fn varies(self) -> bool {
        matches!(self, Kind::Gatherv | Kind::Scatterv | Kind::Allgatherv | Kind::Alltoallv)
    }

    /// Whether a root gives each its part: then what stays in place stays where it is given, else where it is got.
    fn deals(self) -> bool {
        matches!(self, Kind::Scatter | Kind::Scatterv)
    }
}

/// The way of a message: from the first rank to the second, or to all if that is not a matter of the operation.
type Pair = (usize, usize);

/// An operation as all members know it.
#[derive(Debug)]
pub(super) struct Plan {
    kind: Kind,
    /// Distinguishes its data from that of others.
    number: usize,
    root: usize,
    in_place: bool,
    /// Bytes of a number, of which all data consist.
    number_size: usize,
    /// All lengths are multiples of so many numbers.
    group: usize,
    size: usize,
    /// How many numbers each rank gives each, by giver.
    lengths: Vec<usize>,
}

/// A length in bytes: often none, few, around what goes as a body (4 KiB) or as a chunk (32 KiB); seldom many.
fn length(random: &mut Random) -> usize {
    match random.below(16) {
        0..=3 => 0,
        4..=8 => 1 + random.below(64),
        9 | 10 => 4096 - 24 + random.below(49),
        11 => random.below(4096),
        12 | 13 => (32 << 10) - 24 + random.below(49),
        14 => random.below(48 << 10),
        _ if random.below(4) == 0 => random.below(320 << 10),
        _ => random.below(200),
    }
}

/// How many 64-bit words an operation moves for each rank: often few, seldom many.
pub(super) fn words(random: &mut Random) -> usize {
    let most = [4, 32, 256, 1200, 6000, 40_000][random.below(6)];
    (random.below(most) / 4 + 1) * 4
}

impl Plan {
    /// One of a kind among `size` ranks; all give the same generator.
    pub(super) fn new(random: &mut Random, kind: Kind, number: usize, size: usize) -> Plan {
        let root = random.below(size);
        let in_place = random.below(3) == 0;
        let number_size = [1, 4, 8][random.below(3)];
        // Open MPI 4.1's coll/tuned multiplies the counts of what MPI_Allgatherv gets by the size of the datatype that is given,
        // and members whose sizes differ take different algorithms: all their elements are of one number.
        let group = if kind == Kind::Allgatherv { 1 } else { [1, 2, 4][random.below(3)] };
        let whole = |bytes: usize| bytes / (number_size * group) * group;
        let lengths = if !kind.varies() || random.below(10) == 0 {
            vec![whole(words(random) * 8).max(group); size * size]
        } else {
            Plan::varying(random, size, in_place && kind == Kind::Alltoallv).into_iter().map(whole).collect()
        };
        Plan { kind, number, root, in_place, number_size, group, size, lengths }
    }

    /// A length in bytes for each pair. Some ranks give nothing, some get nothing; now and then nobody gives anything.
    fn varying(random: &mut Random, size: usize, is_symmetric: bool) -> Vec<usize> {
        let all_silent = random.below(12) == 0;
        let mut silent = || (0..size).map(|_| all_silent || random.below(6) == 0).collect::<Vec<bool>>();
        let (giver_silent, taker_silent) = (silent(), silent());
        let mut lengths = vec![0; size * size];
        for from in 0..size {
            for to in 0..size {
                let drawn = length(random);
                lengths[from * size + to] = match (giver_silent[from], taker_silent[to]) {
                    _ if is_symmetric && to < from => lengths[to * size + from],
                    (false, false) => drawn,
                    _ => 0,
                };
            }
        }
        lengths
    }

    fn length(&self, (from, to): Pair) -> usize {
        self.lengths[from * self.size + to]
    }

    /// The packed bytes that travel.
    fn data(&self, ctx: &Context, pair: Pair) -> Vec<u8> {
        let length = self.length(pair) * self.number_size;
        ctx.key(int(pair.0), int(pair.1), self.number).bytes(length)
    }

    /// The parts that rank `me` gives, and those that it gets.
    fn parts(&self, me: usize) -> (Vec<Pair>, Vec<Pair>) {
        let root = self.root;
        let each = |pair: fn(usize, usize) -> Pair, with: usize| {
            (0..self.size).map(|rank| pair(rank, with)).collect()
        };
        let at_root = |parts: Vec<Pair>| if me == root { parts } else { vec![] };
        let (from, to) = (|rank, with| (rank, with), |rank, with| (with, rank));
        match self.kind {
            Kind::Barrier => (vec![], vec![]),
            Kind::Bcast => (vec![], vec![(root, 0)]),
            Kind::Gather | Kind::Gatherv => (vec![(me, root)], at_root(each(from, root))),
            Kind::Scatter | Kind::Scatterv => (at_root(each(to, root)), vec![(root, me)]),
            Kind::Allgather | Kind::Allgatherv => (vec![(me, 0)], each(from, 0)),
            Kind::Alltoall | Kind::Alltoallv => (each(to, me), each(from, me)),
        }
    }
}

/// A datatype for numbers of `size` bytes, in one of the layouts that such data can have, and how many of them are one of it.
fn layout(random: &mut Random, size: usize, group: usize) -> (Datatype, usize) {
    let number = match size {
        1 => Datatype::byte(),
        4 => Datatype::i32(),
        _ => Datatype::i64(),
    };
    match random.below(7) {
        0 | 1 => (number, 1),
        2 => (Datatype::contiguous(group, &number), group),
        3 => (Datatype::vector(group, 1, 3, &number), group),
        4 => {
            let fields = [(0, 1, &number), (3 * size, group - 1, &number)];
            (Datatype::record(&fields, (group + 4) * size), group)
        }
        // Without gaps, but not in the order of memory.
        5 => (Datatype::indexed(&[(1, group - 1), (0, 1)], &number), group),
        _ => (Datatype::resized(3 * size, &number), 1),
    }
}

/// Blank memory from the heap or from MPI, which others may be able to read where it is.
pub(super) fn blank(random: &mut Random, length: usize) -> Buffer {
    blank_aligned(random, length, 8)
}

fn blank_aligned(random: &mut Random, length: usize, alignment: usize) -> Buffer {
    let mut memory = match random.below(4) {
        0 => Buffer::new(length),
        1 => Buffer::at_offset(length, alignment * random.below(8)),
        2 => Buffer::from_mpi(length),
        _ => Buffer::from_mpi_at(length, alignment * random.below(1000)),
    };
    memory.payload_mut().fill(BLANK);
    memory
}

/// Parts of a rank's memory that it gives to an operation, or gets from it.
#[derive(Debug)]
struct Side {
    datatype: Datatype,
    /// Elements of each part.
    counts: Vec<c_int>,
    /// Where each part begins, in elements.
    places: Vec<c_int>,
    memory: Buffer,
    /// The memory as it must be afterwards.
    expected: Vec<u8>,
}

impl Side {
    fn new(random: &mut Random, plan: &Plan, parts: &[Pair]) -> Side {
        let (datatype, numbers) = layout(random, plan.number_size, plan.group);
        let counts: Vec<usize> = parts.iter().map(|&pair| plan.length(pair) / numbers).collect();
        let mut order: Vec<usize> = (0..parts.len()).collect();
        let mut places = vec![0; parts.len()];
        let mut end = 0;
        if plan.kind.varies() {
            random.shuffle(&mut order);
        }
        for part in order {
            end += if plan.kind.varies() { random.below(4) } else { 0 };
            places[part] = end;
            end += counts[part];
        }
        let beyond = if plan.kind.varies() { random.below(4) } else { 0 };
        let memory = blank_aligned(random, datatype.span(end + beyond), plan.number_size);
        let expected = memory.payload().to_vec();
        let as_ints = |numbers: Vec<usize>| numbers.into_iter().map(int).collect();
        Side { datatype, counts: as_ints(counts), places: as_ints(places), memory, expected }
    }

    /// Puts packed data where a part belongs: what the operation is to give.
    fn expect(&mut self, part: usize, packed: &[u8]) {
        let at = self.places[part] as usize * self.datatype.extent();
        // A part of no elements may lie behind the end.
        if let Some(memory) = self.expected.get_mut(at..) {
            self.datatype.unpack(self.counts[part] as usize, packed, memory);
        }
    }

    /// The same, already before the operation.
    fn hold(&mut self, part: usize, packed: &[u8]) {
        self.expect(part, packed);
        let at = self.places[part] as usize * self.datatype.extent();
        if let Some(memory) = self.memory.payload_mut().get_mut(at..) {
            self.datatype.unpack(self.counts[part] as usize, packed, memory);
        }
    }

    /// Its arguments in a call of MPI.
    fn arguments(&mut self) -> Arguments {
        let data: *mut c_void = self.memory.payload_mut().as_mut_ptr().cast();
        let Some((&count, &place)) = self.counts.first().zip(self.places.first()) else {
            return Arguments { data, ..Arguments::nothing() };
        };
        Arguments {
            data,
            first: data.wrapping_byte_add(place as usize * self.datatype.extent()),
            count,
            counts: self.counts.as_ptr(),
            places: self.places.as_ptr(),
            datatype: self.datatype.raw(),
        }
    }
}

/// One side's arguments.
#[derive(Clone, Copy)]
struct Arguments {
    data: *mut c_void,
    /// The first part, for operations that have only one on this side.
    first: *mut c_void,
    count: c_int,
    counts: *const c_int,
    places: *const c_int,
    datatype: ffi::MPI_Datatype,
}

impl Arguments {
    /// For a side that does not matter: nobody may look at any of it.
    fn nothing() -> Arguments {
        Arguments {
            data: ptr::null_mut(),
            first: ptr::null_mut(),
            count: 0,
            counts: ptr::null(),
            places: ptr::null(),
            // SAFETY: a constant of the MPI library.
            datatype: unsafe { ffi::RSMPI_DATATYPE_NULL },
        }
    }

    fn in_place() -> Arguments {
        Arguments { data: in_place(), first: in_place(), ..Arguments::nothing() }
    }
}

/// One rank's part in an operation.
#[derive(Debug)]
pub(super) struct Movement {
    plan: Plan,
    from: Side,
    to: Side,
    /// Whether one of the sides is `MPI_IN_PLACE`.
    stays: bool,
}

impl Movement {
    /// Fills the memory; `mine` chooses what each rank may choose for itself.
    pub(super) fn prepare(ctx: &Context, plan: Plan, mine: &mut Random) -> Movement {
        let me = ctx.comm.rank() as usize;
        let (gives, gets) = plan.parts(me);
        let (mut from, mut to) = (Side::new(mine, &plan, &gives), Side::new(mine, &plan, &gets));
        let stays = plan.in_place
            && match plan.kind {
                Kind::Barrier | Kind::Bcast => false,
                Kind::Gather | Kind::Gatherv | Kind::Scatter | Kind::Scatterv => me == plan.root,
                Kind::Allgather | Kind::Allgatherv | Kind::Alltoall | Kind::Alltoallv => true,
            };
        for (part, &pair) in gets.iter().enumerate() {
            let before = match plan.kind {
                Kind::Bcast if me == plan.root => Some(pair),
                Kind::Gather | Kind::Gatherv | Kind::Allgather | Kind::Allgatherv
                    if stays && pair.0 == me =>
                {
                    Some(pair)
                }
                Kind::Alltoall | Kind::Alltoallv if stays => Some((pair.1, pair.0)),
                _ => None,
            };
            if let Some(before) = before {
                to.hold(part, &plan.data(ctx, before));
            }
            if !(stays && plan.kind.deals()) {
                to.expect(part, &plan.data(ctx, pair));
            }
        }
        if !stays || plan.kind.deals() {
            gives.iter().enumerate().for_each(|(part, &pair)| from.hold(part, &plan.data(ctx, pair)));
        }
        Movement { plan, from, to, stays }
    }

    /// The call itself.
    pub(super) fn run(&mut self, comm: &Comm) {
        let (mut from, mut to) = (self.from.arguments(), self.to.arguments());
        if self.stays {
            *(if self.plan.kind.deals() { &mut to } else { &mut from }) = Arguments::in_place();
        }
        let (root, raw) = (int(self.plan.root), comm.raw());
        // SAFETY: the memory has the parts that are named, as the datatypes say.
        succeed(unsafe {
            match self.plan.kind {
                Kind::Barrier => ffi::MPI_Barrier(raw),
                Kind::Bcast => ffi::MPI_Bcast(to.data, to.count, to.datatype, root, raw),
                Kind::Gather => {
                    let (count, datatype) = (from.count, from.datatype);
                    ffi::MPI_Gather(from.data, count, datatype, to.data, to.count, to.datatype, root, raw)
                }
                Kind::Gatherv => ffi::MPI_Gatherv(
                    from.first,
                    from.count,
                    from.datatype,
                    to.data,
                    to.counts,
                    to.places,
                    to.datatype,
                    root,
                    raw,
                ),
                Kind::Scatter => {
                    let (count, datatype) = (from.count, from.datatype);
                    ffi::MPI_Scatter(from.data, count, datatype, to.data, to.count, to.datatype, root, raw)
                }
                Kind::Scatterv => ffi::MPI_Scatterv(
                    from.data,
                    from.counts,
                    from.places,
                    from.datatype,
                    to.first,
                    to.count,
                    to.datatype,
                    root,
                    raw,
                ),
                Kind::Allgather => {
                    let (count, datatype) = (from.count, from.datatype);
                    ffi::MPI_Allgather(from.data, count, datatype, to.data, to.count, to.datatype, raw)
                }
                Kind::Allgatherv => ffi::MPI_Allgatherv(
                    from.first,
                    from.count,
                    from.datatype,
                    to.data,
                    to.counts,
                    to.places,
                    to.datatype,
                    raw,
                ),
                Kind::Alltoall => {
                    let (count, datatype) = (from.count, from.datatype);
                    ffi::MPI_Alltoall(from.data, count, datatype, to.data, to.count, to.datatype, raw)
                }
                Kind::Alltoallv => ffi::MPI_Alltoallv(
                    from.data,
                    from.counts,
                    from.places,
                    from.datatype,
                    to.data,
                    to.counts,
                    to.places,
                    to.datatype,
                    raw,
                ),
            }
        });
    }

    /// Looks at all memory of this rank: what arrived, what lies between, and what was given.
    pub(super) fn check(&self, ctx: &Context) {
        for (side, name) in [(&self.from, "given"), (&self.to, "got")] {
            let what = || {
                let Plan { kind, number, root, size, number_size, .. } = self.plan;
                format!(
                    "{kind:?} {number}, {size} ranks, root {root}, in place {}: what is {name}, {:?} elements of {} times \
                     {number_size} bytes in {}, at {:?}",
                    self.plan.in_place,
                    side.counts,
                    side.datatype.size() / number_size,
                    side.datatype.extent(),
                    side.places,
                )
            };
            ctx.check_equal(&side.expected, side.memory.payload(), what);
            ctx.ensure(side.memory.guards_intact().is_ok(), || format!("{}: written outside", what()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::payload::Key;

    const SIZE: usize = 3;

    fn plans(kind: Kind) -> Vec<Plan> {
        let mut random = Random::new(Key::new(1, &[]));
        (0..1000).map(|number| Plan::new(&mut random, kind, number, SIZE)).collect()
    }

    #[test]
    fn varying_lengths_are_of_all_sorts() {
        let plans = plans(Kind::Alltoallv);
        let some = |holds: fn(&Plan) -> bool| assert!(plans.iter().any(holds));
        let bytes = |plan: &Plan, pair: usize| plan.lengths[pair] * plan.number_size;
        some(|plan| plan.lengths.iter().all(|&length| length == 0));
        some(|plan| {
            plan.lengths[..SIZE].iter().all(|&length| length == 0)
                && plan.lengths[SIZE..].iter().any(|&length| length > 0)
        });
        for range in [1..8, 8..64, 4050..4096, 4097..4130, 32_700..32_768, 32_769..32_800, 200_000..330_000] {
            let within = |plan: &Plan| (0..SIZE * SIZE).any(|pair| range.contains(&bytes(plan, pair)));
            assert!(plans.iter().any(within), "no length in {range:?}");
        }
        assert!(plans.iter().any(|plan| bytes(plan, 0) % 8 != 0));
    }

    #[test]
    fn lengths_are_symmetric_where_data_are_exchanged_in_place() {
        for plan in plans(Kind::Alltoallv).iter().filter(|plan| plan.in_place) {
            for (from, to) in [(0, 1), (0, 2), (1, 2)] {
                assert_eq!(plan.length((from, to)), plan.length((to, from)));
            }
        }
    }

    #[test]
    fn operations_that_do_not_vary_have_one_length_and_it_is_not_zero() {
        for plan in plans(Kind::Gather) {
            assert!(plan.lengths[0] > 0 && plan.lengths.iter().all(|&length| length == plan.lengths[0]));
        }
    }
}
