//! One-sided communication with fences and with locks.

use std::time::{Duration, Instant};

use crate::buffer::Buffer;
use crate::check::{Case, Context, Needs, Outcome};
use crate::collective::{Number, Op};
use crate::comm::{Comm, Mode, Rank};
use crate::universe::{SUCCESS, int};
use crate::window::{Unequal, Window};

pub(super) const CASES: &[Case] = &[
    Case::new("one-sided/fence-put", "everyone puts to everyone", |ctx| on_both(ctx, fence_put)),
    Case::new("one-sided/fence-get", "everyone gets from everyone", |ctx| on_both(ctx, fence_get)),
    Case::new("one-sided/fence-accumulate", "everyone adds to everyone", |ctx| {
        on_both(ctx, fence_accumulate)
    }),
    Case::new("one-sided/lock-put-get", "put and get back under a lock", |ctx| on_both(ctx, lock_put_get)),
    Case::new("one-sided/full", "put and get back where MPI_Alloc_mem has taken much", |ctx| {
        let _taken: Vec<_> = (0..64).map(|_| Buffer::from_mpi(256 << 10)).collect();
        on_both(ctx, lock_put_get)
    }),
    Case::new("one-sided/fetch-and-op", "a counter that all count up", |ctx| on_both(ctx, counter)),
    Case::new("one-sided/compare-and-swap", "a counter kept by swapping", |ctx| on_both(ctx, swap)),
    Case::new("one-sided/exclusive", "read, change and write under an exclusive lock", |ctx| {
        on_both(ctx, exclusive)
    }),
    Case::needing(Needs::TwoRanks, "one-sided/polled", "who looks at a flag gets its messages too", |ctx| {
        on_ours(ctx, polled)
    }),
    Case::new("one-sided/downwards", "elements that follow each other downwards", |ctx| {
        on_ours(ctx, downwards)
    }),
    Case::new("one-sided/too-many", "more operands than numbers change nothing", |ctx| {
        on_ours(ctx, too_many)
    }),
    Case::new("one-sided/too-few", "numbers without operands are left as they are", |ctx| {
        on_ours(ctx, too_few)
    }),
    Case::new("one-sided/hints", "not all want the parts of a shared window apart", |ctx| {
        on_ours(ctx, hints)
    }),
];

const SIZES: [usize; 7] = [1, 8, 70, 1000, 4096, 40_000, 300_000];

pub(super) type MakeWindow = fn(&Comm, usize) -> Result<Window, String>;

/// Runs `body` on windows over the program's memory and over memory from MPI.
///
/// Whether there can be a window at all is decided by MPI's one-sided components, not by the
/// transport: the one that `run` chooses in Open MPI 4.1 does not serve several threads.
pub(super) fn on_both(ctx: &Context, body: fn(&Context, MakeWindow) -> Result<(), String>) -> Outcome {
    let all = [Window::over_heap as MakeWindow, Window::allocate, Window::dynamic];
    // Other components' dynamic windows are not what these tests are about.
    for make in &all[..if is_alone() { 3 } else { 2 }] {
        if let Err(error) = body(ctx, *make) {
            return Outcome::Skipped(format!("this MPI makes no window here: {error}"));
        }
    }
    Outcome::Done
}

/// Runs `body` where the user asks for windows of vmshm's component. Some components of Open MPI 4.1 do not stand the same: `sm`
/// looks for no messages while a flag is polled, and checks no lengths.
pub(super) fn on_ours(ctx: &Context, body: fn(&Context) -> Result<(), String>) -> Outcome {
    if !std::env::var("OMPI_MCA_osc").is_ok_and(|components| components.starts_with("vmshm")) {
        return Outcome::Skipped("OMPI_MCA_osc does not begin with vmshm".into());
    }
    match body(ctx) {
        Ok(()) => Outcome::Done,
        Err(error) => Outcome::Skipped(format!("this MPI makes no window here: {error}")),
    }
}

/// Whether the user wants windows of no other component.
pub(super) fn is_alone() -> bool {
    std::env::var("OMPI_MCA_osc").is_ok_and(|components| components == "vmshm")
}

/// Block size a rank, so that a window of all ranks' blocks stays below a few MiB.
fn blocks(ctx: &Context) -> Vec<usize> {
    let limit = (4 << 20) / ctx.comm.size();
    SIZES.into_iter().filter(|&size| size <= limit).collect()
}

fn fence_put(ctx: &Context, make: MakeWindow) -> Result<(), String> {
    let me = ctx.comm.rank();
    for size in blocks(ctx) {
        let window = make(&ctx.comm, size * ctx.comm.size())?;
        for round in 0..ctx.rounds(1, 10) {
            let data: Vec<_> = ctx.comm.ranks().map(|to| ctx.key(me, to, round).bytes(size)).collect();
            window.fenced(|epoch| {
                for (to, block) in ctx.comm.ranks().zip(&data) {
                    epoch.put(block, to, me as usize * size);
                }
            });
            for from in ctx.comm.ranks() {
                let got = window.read(from as usize * size, size);
                let wanted = ctx.key(from, me, round).bytes(size);
                ctx.check_equal(&wanted, &got, || format!("put of {size} bytes by rank {from}"));
            }
        }
    }
    Ok(())
}

fn fence_get(ctx: &Context, make: MakeWindow) -> Result<(), String> {
    let me = ctx.comm.rank();
    for size in blocks(ctx) {
        let window = make(&ctx.comm, size * ctx.comm.size())?;
        for round in 0..ctx.rounds(1, 10) {
            for to in ctx.comm.ranks() {
                window.write(to as usize * size, &ctx.key(me, to, round).bytes(size));
            }
            let mut data: Vec<_> = ctx.comm.ranks().map(|_| vec![0; size]).collect();
            window.fenced(|epoch| {
                for (from, block) in ctx.comm.ranks().zip(&mut data) {
                    epoch.get(block, from, me as usize * size);
                }
            });
            for (from, got) in ctx.comm.ranks().zip(&data) {
                let wanted = ctx.key(from, me, round).bytes(size);
                ctx.check_equal(&wanted, got, || format!("get of {size} bytes from rank {from}"));
            }
        }
    }
    Ok(())
}

/// The window's memory as numbers.
pub(super) fn as_numbers(bytes: &[u8]) -> Vec<i64> {
    let words = bytes.chunks_exact(8);
    words.map(|word| i64::from_ne_bytes(word.try_into().expect("8 bytes"))).collect()
}

fn fence_accumulate(ctx: &Context, make: MakeWindow) -> Result<(), String> {
    let me = ctx.comm.rank();
    for length in [1, 9, 130, 5000] {
        let window = make(&ctx.comm, length * 8)?;
        for op in [Op::Sum, Op::Max] {
            window.write(0, &vec![0; length * 8]);
            let numbers = |from, to: i32| -> Vec<i64> {
                let mut random = ctx.random_of(from, to as u64);
                (0..length).map(|_| i64::from_bits(random.next_u64())).collect()
            };
            let data: Vec<_> = ctx.comm.ranks().map(|to| numbers(me, to)).collect();
            window.fenced(|epoch| {
                for (to, numbers) in ctx.comm.ranks().zip(&data) {
                    epoch.accumulate(numbers, op, to, 0);
                }
            });
            let mut wanted = vec![0; length];
            for from in ctx.comm.ranks() {
                for (all, one) in wanted.iter_mut().zip(numbers(from, me)) {
                    *all = Number::combine(op, *all, one);
                }
            }
            let got = as_numbers(&window.read(0, length * 8));
            ctx.check_numbers(&wanted, &got, || format!("accumulate {op:?} of {length}"));
            // Nobody clears its memory while others still compare theirs: no matter, but nobody
            // adds before all have cleared.
            ctx.comm.barrier();
        }
    }
    Ok(())
}

fn lock_put_get(ctx: &Context, make: MakeWindow) -> Result<(), String> {
    let me = ctx.comm.rank();
    for size in blocks(ctx) {
        let window = make(&ctx.comm, size * ctx.comm.size())?;
        for round in 0..ctx.rounds(1, 10) {
            for distance in ctx.distances() {
                let (to, from) = (ctx.comm.after(distance), ctx.comm.before(distance));
                let number = round * 10 + distance;
                let data = ctx.key(me, to, number).bytes(size);
                let place = me as usize * size;
                window.locked(to, true, |epoch| epoch.put(&data, to, place));
                let back = window.locked(to, false, |epoch| epoch.read_now(to, place, size));
                ctx.check_equal(&data, &back, || format!("{size} bytes put to rank {to}, got back"));
                ctx.comm.barrier();
                let place = from as usize * size;
                let got = window.locked(me, false, |_| window.read(place, size));
                let wanted = ctx.key(from, me, number).bytes(size);
                ctx.check_equal(&wanted, &got, || format!("{size} bytes put by rank {from}"));
                ctx.comm.barrier();
            }
        }
    }
    Ok(())
}

/// Where the counter lies: also on the last rank, so that it is remote for all others.
fn keepers(ctx: &Context) -> Vec<i32> {
    let mut keepers = vec![0, int(ctx.comm.size() - 1)];
    keepers.dedup();
    keepers
}

fn counter(ctx: &Context, make: MakeWindow) -> Result<(), String> {
    let window = make(&ctx.comm, 64)?;
    for keeper in keepers(ctx) {
        let count = ctx.rounds(20, 2000);
        let mine = window
            .locked_all(|epoch| (0..count).map(|_| epoch.fetch_and_add(1, keeper, 8)).collect::<Vec<i64>>());
        ctx.ensure(mine.is_sorted_by(|a, b| a < b), || format!("tickets not rising: {mine:?}"));
        // Everyone's tickets together are 0, 1, 2 and so on, each once.
        let tickets: Vec<u8> = mine.iter().flat_map(|ticket| ticket.to_ne_bytes()).collect();
        let mut all = as_numbers(&ctx.comm.all_gather(&tickets));
        all.sort_unstable();
        let wanted: Vec<i64> = (0..).take(all.len()).collect();
        ctx.check_numbers(&wanted, &all, || format!("tickets from rank {keeper}"));
    }
    Ok(())
}

fn swap(ctx: &Context, make: MakeWindow) -> Result<(), String> {
    let window = make(&ctx.comm, 64)?;
    for keeper in keepers(ctx) {
        let count = ctx.rounds(5, 300);
        window.locked_all(|epoch| {
            let mut seen = 0;
            for _ in 0..count {
                loop {
                    let before = epoch.compare_and_swap(seen, seen + 1, keeper, 16);
                    if before == seen {
                        break;
                    }
                    seen = before;
                }
            }
        });
        ctx.comm.barrier();
        let got = window.locked(keeper, false, |epoch| epoch.read_now(keeper, 16, 8));
        let wanted = [i64::from(int(count * ctx.comm.size()))];
        ctx.check_numbers(&wanted, &as_numbers(&got), || format!("swaps at rank {keeper}"));
        ctx.comm.barrier();
    }
    Ok(())
}

fn exclusive(ctx: &Context, make: MakeWindow) -> Result<(), String> {
    let window = make(&ctx.comm, 4096)?;
    for keeper in keepers(ctx) {
        let count = ctx.rounds(5, 200);
        for _ in 0..count {
            window.locked(keeper, true, |epoch| {
                let mut numbers = as_numbers(&epoch.read_now(keeper, 0, 4096));
                ctx.ensure(numbers.iter().all(|&n| n == numbers[0]), || {
                    format!("rank {keeper}'s numbers differ though each writer held the lock")
                });
                numbers.iter_mut().for_each(|number| *number += 1);
                let bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_ne_bytes()).collect();
                epoch.write_now(&bytes, keeper, 0);
            });
        }
        ctx.comm.barrier();
        let got = window.locked(keeper, false, |epoch| epoch.read_now(keeper, 0, 4096));
        let wanted = [i64::from(int(count * ctx.comm.size())); 512];
        ctx.check_numbers(&wanted, &as_numbers(&got), || format!("sums at rank {keeper}"));
        ctx.comm.barrier();
    }
    Ok(())
}

/// Longest time to look at a flag.
const PATIENCE: Duration = Duration::from_secs(20);

fn polled(ctx: &Context) -> Result<(), String> {
    let me = ctx.comm.rank();
    let window = Window::allocate(&ctx.comm, 8)?;
    let size = 3_000_001;
    for (number, poller) in ctx.comm.ranks().flat_map(|rank| [rank; 2]).enumerate() {
        let sender = (poller + 1) % int(ctx.comm.size());
        window.locked(me, true, |_| window.write(0, &[0; 8]));
        ctx.comm.barrier();
        if me == poller {
            let landing = ctx.comm.start_receive(Buffer::new(size), sender, 1);
            let start = Instant::now();
            let is_late = || start.elapsed() > PATIENCE;
            if number % 2 == 0 {
                while window.locked(me, false, |epoch| epoch.read_now(me, 0, 8)) == [0; 8] && !is_late() {}
            } else {
                window.locked_all(|epoch| while epoch.read_requested(me, 0) == 0 && !is_late() {});
            }
            ctx.ensure(!is_late(), || format!("nothing came in {PATIENCE:?} while a flag was looked at"));
            let (buffer, status) = landing.wait();
            ctx.check(&buffer, status, sender, 1, number, size);
        } else if me == sender {
            ctx.comm.send(Mode::Standard, ctx.outgoing(poller, number, size).payload(), poller, 1);
            window.locked(poller, false, |epoch| epoch.accumulate(&[1_i64], Op::Sum, poller, 0));
        }
        ctx.comm.barrier();
    }
    Ok(())
}

fn downwards(ctx: &Context) -> Result<(), String> {
    let (me, to) = (ctx.comm.rank(), ctx.comm.after(1));
    let window = Window::allocate(&ctx.comm, 5 * 8)?;
    window.fenced(|epoch| epoch.put_downwards(&[1, 2, 3, 4], to, 3 * 8));
    let got = as_numbers(&window.read(0, 5 * 8));
    ctx.check_numbers(&[4, 3, 2, 1, 0], &got, || format!("put downwards, at rank {me}"));
    Ok(())
}

fn too_many(ctx: &Context) -> Result<(), String> {
    let to = ctx.comm.after(1);
    for how in [Unequal::Put, Unequal::Add, Unequal::FetchAndAdd] {
        let window = Window::allocate(&ctx.comm, 4 * 8)?;
        let mut before = [0];
        let code = window.fenced(|epoch| epoch.give(how, &[1, 2, 3, 4], &mut before, to, (3 * 8, 1)));
        ctx.ensure(code != SUCCESS, || format!("four numbers were given to one ({how:?})"));
        ctx.check_numbers(&[0; 4], &as_numbers(&window.read(0, 4 * 8)), || format!("left by {how:?}"));
    }
    Ok(())
}

fn too_few(ctx: &Context) -> Result<(), String> {
    let (to, from) = (ctx.comm.after(1), ctx.comm.before(1));
    let numbers = |rank: Rank, count| (0..count).map(|i| i64::from(rank) * 10_000 + i).collect::<Vec<_>>();
    for (given, count) in [(0, 2), (1, 2), (1000, 2500)] {
        for how in [Unequal::Put, Unequal::Add, Unequal::FetchAndAdd] {
            let name = || format!("{how:?} of {given} to {count}");
            let window = Window::allocate(&ctx.comm, count * 8)?;
            let mine = numbers(ctx.comm.rank(), int(count).into());
            let bytes: Vec<u8> = mine.iter().flat_map(|n| n.to_ne_bytes()).collect();
            window.locked(ctx.comm.rank(), true, |_| window.write(0, &bytes));
            let mut before = vec![0; count];
            let code = window.fenced(|epoch| epoch.give(how, &mine[..given], &mut before, to, (0, count)));
            ctx.ensure(code == SUCCESS, || format!("{}: error {code}", name()));
            let mut wanted = mine.clone();
            for (number, other) in wanted.iter_mut().zip(numbers(from, int(given).into())) {
                *number = if matches!(how, Unequal::Put) { other } else { *number + other };
            }
            ctx.check_numbers(&wanted, &as_numbers(&window.read(0, count * 8)), name);
            if matches!(how, Unequal::FetchAndAdd) {
                ctx.check_numbers(&numbers(to, int(count).into()), &before, name);
            }
        }
    }
    Ok(())
}

fn hints(ctx: &Context) -> Result<(), String> {
    let me = ctx.comm.rank();
    drop(Window::shared(&ctx.comm, 64, false)?);
    let window = match Window::shared(&ctx.comm, 64, me == 0) {
        Ok(window) => window,
        Err(error) => {
            ctx.fail(&format!("no window where only rank 0 wants its part apart: {error}"));
            return Ok(());
        }
    };
    window.locked_all(|_| {
        let (first, _) = window.query(0);
        for rank in ctx.comm.ranks() {
            let (base, length) = window.query(rank);
            ctx.ensure(base.addr() == first.addr() + 64 * rank as usize && length == 64, || {
                format!("{length} bytes of rank {rank} at {base:p}, after {first:p}")
            });
        }
    });
    Ok(())
}
