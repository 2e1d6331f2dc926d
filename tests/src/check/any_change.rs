//! Changes of other processes' memory chosen at random: functions, operations, numbers, datatypes on both sides, ways to
//! synchronise. The memory as it must be afterwards is computed by every rank from the seed.

use crate::check::one_sided::{is_alone, on_both, on_ours};
use crate::check::{Case, Context, Outcome};
use crate::comm::Rank;
use crate::datatype::Datatype;
use crate::payload::Random;
use crate::predefined::{OPERATIONS, OTHERS, PAIRS};
use crate::reduction::Reduction;
use crate::window::{Change, Elements, Epoch, Window};

pub(super) const CASES: &[Case] = &[
    Case::new("any-change/together", "everyone changes the same numbers at the same time", |ctx| {
        on_both(ctx, |ctx, make| together(ctx, &|length| make(&ctx.comm, length)))
    }),
    Case::new("any-change/alone", "what is fetched and left under an exclusive lock", |ctx| {
        on_both(ctx, |ctx, make| alone(ctx, &|length| make(&ctx.comm, length)))
    }),
    Case::new("any-change/every", "every operation on every datatype is done, or is an error", |ctx| {
        on_ours(ctx, every)
    }),
    Case::new("any-change/mixed", "elements of several datatypes are moved, or are an error", |ctx| {
        on_ours(ctx, mixed)
    }),
    Case::new("any-change/shared", "the same, and loads and stores, on windows of shared memory", shared),
];

/// Numbers in each process's memory.
const NUMBERS: usize = 200;

type Make<'a> = &'a dyn Fn(usize) -> Result<Window, String>;

/// So many numbers in one of the shapes that they can have in memory: the datatype, and how many of it.
fn shape(random: &mut Random, number: &Datatype, numbers: usize) -> (Datatype, usize) {
    match random.below(6) {
        kind if kind < 2 || !numbers.is_multiple_of(4) => (number.same(), numbers),
        2 => (Datatype::contiguous(4, number), numbers / 4),
        3 => (Datatype::vector(2, 1, 3, number), numbers / 2),
        4 => (Datatype::indexed(&[(3, 1), (0, 2), (5, 1)], number), numbers / 4),
        _ => (Datatype::resized(2 * number.extent(), number), numbers),
    }
}

/// One change, as all ranks know it.
struct Planned {
    how: Change,
    target: Rank,
    /// Packed.
    operands: Vec<u8>,
    origin: (Datatype, usize),
    result: (Datatype, usize),
    there: (Datatype, usize),
    /// In the target's memory, bytes.
    offset: usize,
}

impl Planned {
    fn new(ctx: &Context, random: &mut Random, reduction: &Reduction) -> Planned {
        let ways =
            [Change::Accumulate, Change::Requested, Change::Fetch, Change::FetchRequested, Change::One];
        let how = ways[random.below(ways.len())];
        Planned::by(how, ctx, random, reduction)
    }

    fn by(how: Change, ctx: &Context, random: &mut Random, reduction: &Reduction) -> Planned {
        let numbers = if how == Change::One { 1 } else { [1, 3, 4, 8, 32][random.below(5)] };
        let mut some = || shape(random, &reduction.datatype, numbers);
        let (origin, result, there) = (some(), some(), some());
        let room = NUMBERS * reduction.datatype.extent() - there.0.span(there.1);
        let offset = random.below(room / reduction.datatype.extent() + 1) * reduction.datatype.extent();
        Planned {
            how,
            target: random.below(ctx.comm.size()) as Rank,
            operands: reduction.operands(random, numbers),
            origin,
            result,
            there,
            offset,
        }
    }

    fn fetches(&self) -> bool {
        !matches!(self.how, Change::Accumulate | Change::Requested)
    }

    /// The operands as the origin has them, and room for what is fetched.
    fn memory(&self) -> (Elements, Elements) {
        let elements = |(datatype, count): &(Datatype, usize)| Elements {
            datatype: datatype.same(),
            count: *count,
            memory: vec![0; datatype.span(*count)],
        };
        let (mut origin, result) = (elements(&self.origin), elements(&self.result));
        origin.datatype.unpack(origin.count, &self.operands, &mut origin.memory);
        (origin, result)
    }

    fn place(&self) -> (usize, usize, &Datatype) {
        (self.offset, self.there.1, &self.there.0)
    }

    /// The elements there in `memory`, packed.
    fn look(&self, memory: &[u8]) -> Vec<u8> {
        self.there.0.pack(self.there.1, &memory[self.offset..])
    }

    /// Puts packed numbers there.
    fn store(&self, packed: &[u8], memory: &mut [u8]) {
        self.there.0.unpack(self.there.1, packed, &mut memory[self.offset..]);
    }
}

/// Runs `work` in one of the epochs in which everyone may access everyone.
fn in_epoch<'d>(ctx: &Context, window: &Window, which: usize, work: impl FnOnce(&Epoch<'_, 'd>)) {
    let all: Vec<Rank> = ctx.comm.ranks().collect();
    match which {
        0 => window.fenced(work),
        1 => window.among(&all, &all, work),
        _ => window.locked_all(work),
    }
    // Nobody looks at its memory before all have ended.
    ctx.comm.barrier();
}

fn together(ctx: &Context, make: Make<'_>) -> Result<(), String> {
    let me = ctx.comm.rank();
    for round in 0..ctx.rounds(12, 120) as u64 {
        let mut common = ctx.common_random(round);
        let reduction = Reduction::of_numbers(&mut common, is_alone());
        let which = common.below(3);
        let count = 1 + common.below(20);
        let window = make(NUMBERS * reduction.datatype.extent())?;
        let fresh = |rank: Rank| reduction.in_memory(&mut ctx.random_of(rank, round << 8), NUMBERS);
        window.locked(me, true, |_| window.write(0, &fresh(me)));
        ctx.comm.barrier();
        let plans = |rank: Rank| -> Vec<Planned> {
            let mut random = ctx.random_of(rank, round << 8 | 1);
            (0..count).map(|_| Planned::new(ctx, &mut random, &reduction)).collect()
        };
        let mine = plans(me);
        let mut memory: Vec<_> = mine.iter().map(Planned::memory).collect();
        in_epoch(ctx, &window, which, |epoch| {
            for (plan, (origin, result)) in mine.iter().zip(&mut memory) {
                epoch.change(plan.how, reduction.raw(), origin, result, plan.target, plan.place());
            }
        });
        let mut wanted = fresh(me);
        for plan in ctx.comm.ranks().flat_map(plans).filter(|plan| plan.target == me) {
            let numbers = plan.operands.len() / reduction.datatype.size();
            let joined = reduction.joined(&[plan.operands.clone(), plan.look(&wanted)], numbers);
            plan.store(&joined, &mut wanted);
        }
        let got = window.locked(me, false, |_| window.read(0, wanted.len()));
        ctx.check_equal(&wanted, &got, || {
            format!("{}, {count} changes a rank, epoch {which}, round {round}", reduction.name)
        });
        // Nobody goes on to the next window's epochs while others look at this one.
        ctx.comm.barrier();
    }
    Ok(())
}

fn alone(ctx: &Context, make: Make<'_>) -> Result<(), String> {
    for round in 0..ctx.rounds(6, 60) as u64 {
        let mut common = ctx.common_random(round);
        let reduction = Reduction::of_numbers(&mut common, is_alone());
        let length = NUMBERS * reduction.datatype.extent();
        let window = make(length)?;
        let mut random = ctx.random_of(ctx.comm.rank(), round);
        for _ in 0..20 {
            turn(ctx, &window, &mut random, &reduction);
        }
        swaps(ctx, &window, &mut random);
        ctx.comm.barrier();
    }
    Ok(())
}

/// One change under an exclusive lock, of numbers that are new; what is fetched, and all that is left.
fn turn(ctx: &Context, window: &Window, random: &mut Random, reduction: &Reduction) {
    let plan = Planned::new(ctx, random, reduction);
    let (origin, mut result) = plan.memory();
    let numbers = plan.operands.len() / reduction.datatype.size();
    // The operation itself, or one of the two that there are for this alone.
    let kind = random.below(4);
    let op = if kind < 2 { reduction.replacing(kind == 0) } else { reduction.raw() };
    // There is no accumulate that changes nothing.
    let plan = Planned { how: if kind == 0 { Change::Fetch } else { plan.how }, ..plan };
    let name = || format!("{} ({kind}) by {:?}: {:?}", reduction.name, plan.how, plan.there);
    let fresh = reduction.in_memory(random, NUMBERS);
    window.locked(plan.target, true, |epoch| {
        epoch.write_now(&fresh, plan.target, 0);
        let mut wanted = fresh.clone();
        let before = plan.look(&wanted);
        epoch.change(plan.how, op, &origin, &mut result, plan.target, plan.place());
        epoch.flush(plan.target);
        let after = match kind {
            0 => before.clone(),
            1 => plan.operands.clone(),
            _ => reduction.joined(&[plan.operands.clone(), before.clone()], numbers),
        };
        plan.store(&after, &mut wanted);
        let got = epoch.read_now(plan.target, 0, wanted.len());
        let equal = |wanted: &[u8], got: &[u8], stride, name: &dyn Fn() -> String| {
            ctx.check_equal(&reduction.meaning(wanted, stride), &reduction.meaning(got, stride), name);
        };
        equal(&wanted, &got, reduction.datatype.extent(), &name);
        if plan.fetches() {
            let fetched = result.datatype.pack(result.count, &result.memory);
            let name = || format!("what was fetched: {}", name());
            equal(&before, &fetched, reduction.datatype.size(), &name);
        }
    });
}

fn every(ctx: &Context) -> Result<(), String> {
    let largest = PAIRS.iter().chain(&OTHERS).map(|of| of.datatype().extent()).max().unwrap_or(0);
    let window = Window::allocate(&ctx.comm, NUMBERS * largest)?;
    let mut random = ctx.random_of(ctx.comm.rank(), 0);
    for of in PAIRS.iter().chain(&OTHERS) {
        for op in OPERATIONS {
            let reduction = Reduction::predefined(of, op);
            if reduction.is_defined() {
                (0..ctx.rounds(1, 20)).for_each(|_| turn(ctx, &window, &mut random, &reduction));
            } else {
                undefined(ctx, &window, &mut random, &reduction);
            }
        }
    }
    ctx.comm.barrier();
    Ok(())
}

/// An operation that is not defined for its datatype is an error, and changes nothing.
fn undefined(ctx: &Context, window: &Window, random: &mut Random, reduction: &Reduction) {
    for how in [Change::Accumulate, Change::Fetch, Change::One] {
        let plan = Planned::by(how, ctx, random, reduction);
        let (origin, mut result) = plan.memory();
        window.locked(plan.target, true, |epoch| {
            let before = epoch.read_now(plan.target, 0, 512);
            let done =
                epoch.try_change(how, reduction.raw(), &origin, &mut result, plan.target, plan.place());
            ctx.ensure(done.is_err(), || format!("{} was done by {how:?}", reduction.name));
            epoch.flush(plan.target);
            let after = epoch.read_now(plan.target, 0, 512);
            ctx.check_equal(&before, &after, || format!("{} by {how:?}", reduction.name));
        });
    }
}

fn mixed(ctx: &Context) -> Result<(), String> {
    let reduction = Reduction::predefined(&OTHERS[0], OPERATIONS[2]);
    let record = || Datatype::record(&[(0, 1, &Datatype::i32()), (8, 1, &Datatype::f64())], 24);
    let window = Window::allocate(&ctx.comm, 1000)?;
    let (me, to) = (ctx.comm.rank(), ctx.comm.after(1));
    let bytes = |number: usize| ctx.key(me, to, number).bytes(3 * 24);
    for (number, how) in [Change::Accumulate, Change::Fetch].into_iter().enumerate() {
        let elements = |memory: Vec<u8>| Elements { datatype: record(), count: 3, memory };
        let (first, second) = (bytes(2 * number), bytes(2 * number + 1));
        let packed = |memory: &[u8]| record().pack(3, memory);
        window.locked(to, true, |epoch| {
            epoch.write_now(&first, to, 8);
            let origin = elements(second.clone());
            let mut result = elements(vec![0; 3 * 24]);
            let place = (8, 3, &record());
            let sum = epoch.try_change(how, reduction.raw(), &origin, &mut result, to, place);
            ctx.ensure(sum.is_err(), || format!("records were added by {how:?}"));
            epoch.flush(to);
            ctx.check_equal(&first, &epoch.read_now(to, 8, 3 * 24), || format!("left by {how:?}"));
            epoch.change(how, reduction.replacing(false), &origin, &mut result, to, place);
            epoch.flush(to);
            let mut wanted = first.clone();
            record().unpack(3, &packed(&second), &mut wanted);
            ctx.check_equal(&wanted, &epoch.read_now(to, 8, 3 * 24), || format!("replaced by {how:?}"));
            if how == Change::Fetch {
                ctx.check_equal(&packed(&first), &packed(&result.memory), || "fetched records".into());
                epoch.change(how, reduction.replacing(true), &origin, &mut result, to, place);
                ctx.check_equal(&packed(&second), &packed(&result.memory), || "records left".into());
            }
        });
        ctx.comm.barrier();
    }
    Ok(())
}

/// Swaps with the right number and with a wrong one, of all lengths.
fn swaps(ctx: &Context, window: &Window, random: &mut Random) {
    for datatype in [Datatype::byte(), Datatype::i32(), Datatype::i64()] {
        let size = datatype.size();
        let target = random.below(ctx.comm.size()) as Rank;
        let offset = random.below(NUMBERS / size) * size;
        let new = random.next_u64().to_ne_bytes();
        window.locked(target, true, |epoch| {
            let before = epoch.read_now(target, offset, size);
            let wrong: Vec<u8> = before.iter().map(|byte| !byte).collect();
            for expected in [&wrong, &before] {
                let mut found = vec![0; size];
                epoch.swap_now(&datatype, expected, &new[..size], &mut found, target, offset);
                ctx.check_equal(&before, &found, || format!("found by a swap of {size} bytes"));
                let left = epoch.read_now(target, offset, size);
                let wanted = if *expected == before { &new[..size] } else { &before[..] };
                ctx.check_equal(wanted, &left, || format!("left by a swap of {size} bytes"));
            }
        });
    }
}

fn shared(ctx: &Context) -> Outcome {
    for apart in [false, true] {
        let make = |length| Window::shared(&ctx.comm, length, apart);
        for work in [stores as fn(&Context, Make<'_>) -> _, together, alone] {
            if let Err(error) = work(ctx, &make) {
                return Outcome::Skipped(format!("this MPI makes no window here: {error}"));
            }
        }
    }
    Outcome::Done
}

/// Everyone stores to everyone's memory as to its own.
fn stores(ctx: &Context, make: Make<'_>) -> Result<(), String> {
    let (me, size) = (ctx.comm.rank() as usize, ctx.comm.size());
    for part in [1, 7, 4096] {
        let window = make(part * size)?;
        window.locked_all(|_: &Epoch<'_, '_>| {
            for to in ctx.comm.ranks() {
                let (base, length) = window.query(to);
                // Parts that are apart may be rounded up to pages.
                ctx.ensure(length >= part * size, || format!("rank {to}'s memory has {length} bytes"));
                let bytes = ctx.key(me as Rank, to, part).bytes(part);
                // SAFETY: the parts of the memory are disjoint, and this one lies within.
                unsafe { base.add(me * part).copy_from_nonoverlapping(bytes.as_ptr(), part) };
            }
            window.sync();
            ctx.comm.barrier();
            window.sync();
            for from in ctx.comm.ranks() {
                let wanted = ctx.key(from, me as Rank, part).bytes(part);
                ctx.check_equal(&wanted, &window.read(from as usize * part, part), || {
                    format!("{part} bytes stored by rank {from}")
                });
            }
        });
    }
    Ok(())
}
