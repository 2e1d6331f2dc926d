//! Dynamic windows: memory that is attached and detached while others access some of it.

use mpi::ffi;

use crate::buffer::Buffer;
use crate::check::one_sided::{as_numbers, is_alone};
use crate::check::{Case, Context, Outcome};
use crate::comm::Rank;
use crate::universe::{SUCCESS, class};
use crate::window::{Touch, Window};

pub(super) const CASES: &[Case] = &[
    Case::new("dynamic/coming-and-going", "pieces are attached and detached beside those accessed", |ctx| {
        on_ours(ctx, coming_and_going)
    }),
    Case::new("dynamic/not-attached", "what is not attached is an error, and harms nothing", |ctx| {
        on_ours(ctx, not_attached)
    }),
    Case::new("dynamic/attach", "memory is attached once, and detached as it was attached", |ctx| {
        on_ours(ctx, attach)
    }),
    Case::new("dynamic/list", "everyone pushes nodes of its own to a list", |ctx| on_ours(ctx, list)),
    Case::new("dynamic/addresses", "a datatype that holds the addresses, from MPI_BOTTOM on", |ctx| {
        on_ours(ctx, addresses)
    }),
];

/// Runs `body` where no component but vmshm's makes dynamic windows.
fn on_ours(ctx: &Context, body: fn(&Context, &Window) -> Result<(), String>) -> Outcome {
    if !is_alone() {
        return Outcome::Skipped("OMPI_MCA_osc is not vmshm alone".into());
    }
    let made = Window::dynamic(&ctx.comm, 64).and_then(|mut window| {
        window.by_address();
        body(ctx, &window)?;
        // Nobody frees what others still access.
        ctx.comm.barrier();
        Ok(())
    });
    if let Err(error) = made {
        ctx.fail(&format!("no dynamic window: {error}"));
    }
    Outcome::Done
}

fn address(memory: &mut Buffer) -> usize {
    memory.payload_mut().as_mut_ptr().expose_provenance()
}

/// The numbers that all ranks tell.
fn tell(ctx: &Context, number: usize) -> Vec<usize> {
    as_numbers(&ctx.comm.all_gather(&(number as i64).to_ne_bytes())).into_iter().map(|n| n as usize).collect()
}

fn must(ctx: &Context, what: &str, code: i32) {
    ctx.ensure(code == SUCCESS, || format!("{what}: {}", crate::universe::explain(code)));
}

fn coming_and_going(ctx: &Context, window: &Window) -> Result<(), String> {
    let (me, size) = (ctx.comm.rank(), ctx.comm.size());
    let mut random = ctx.random_of(me, 0);
    let mut others: Vec<Buffer> = Vec::new();
    for round in 0..ctx.rounds(20, 200) {
        let part = 1 + ctx.common_random(round as u64).below(3000);
        let mut mine = Buffer::new(part * size);
        let start = address(&mut mine);
        must(ctx, "attach", window.attach(mine.payload_mut().as_mut_ptr(), part * size));
        let starts = tell(ctx, start);
        let all: Vec<Rank> = ctx.comm.ranks().collect();
        let data: Vec<_> = all.iter().map(|to| ctx.key(me, *to, round).bytes(part)).collect();
        // While others access this piece, some more come and some go.
        let mut stir = || {
            if others.len() > 5 || (random.below(2) == 0 && !others.is_empty()) {
                let mut gone = others.swap_remove(random.below(others.len()));
                must(ctx, "detach", window.detach(gone.payload_mut().as_ptr()));
            } else {
                let mut new = Buffer::new(random.below(500));
                let length = new.len();
                must(ctx, "attach", window.attach(new.payload_mut().as_mut_ptr(), length));
                others.push(new);
            }
        };
        let parts = || all.iter().zip(&data).zip(&starts);
        match round % 3 {
            0 => window.locked_all(|epoch| {
                for ((to, bytes), start) in parts() {
                    stir();
                    epoch.write_now(bytes, *to, start + me as usize * part);
                    let back = epoch.read_now(*to, start + me as usize * part, part);
                    ctx.check_equal(bytes, &back, || format!("{part} bytes got back from rank {to}"));
                }
            }),
            1 => window.fenced(|epoch| {
                for ((to, bytes), start) in parts() {
                    stir();
                    epoch.put(bytes, *to, start + me as usize * part);
                }
            }),
            _ => window.among(&all, &all, |epoch| {
                for ((to, bytes), start) in parts() {
                    stir();
                    epoch.put(bytes, *to, start + me as usize * part);
                }
            }),
        }
        ctx.comm.barrier();
        for from in ctx.comm.ranks() {
            let got = &mine.payload()[from as usize * part..][..part];
            ctx.check_equal(&ctx.key(from, me, round).bytes(part), got, || {
                format!("{part} bytes put by rank {from}")
            });
        }
        must(ctx, "detach", window.detach(mine.payload().as_ptr()));
        if let Err(wrong) = mine.guards_intact() {
            ctx.fail(&format!("an access went beyond its piece: {wrong}"));
        }
    }
    Ok(())
}

const TOUCHES: [Touch; 5] = [Touch::Put, Touch::Get, Touch::Add, Touch::FetchAndAdd, Touch::Swap];

fn not_attached(ctx: &Context, window: &Window) -> Result<(), String> {
    let (mut memory, mut detached) = (Buffer::new(64), Buffer::new(64));
    must(ctx, "attach", window.attach(memory.payload_mut().as_mut_ptr(), 64));
    must(ctx, "attach", window.attach(detached.payload_mut().as_mut_ptr(), 64));
    must(ctx, "detach", window.detach(detached.payload().as_ptr()));
    let (starts, gone) = (tell(ctx, address(&mut memory)), tell(ctx, address(&mut detached)));
    for to in ctx.comm.ranks() {
        let (start, gone) = (starts[to as usize], gone[to as usize]);
        window.locked_all(|epoch| {
            for how in TOUCHES {
                for wrong in [0, 4096, start - 8, start - 1, start + 57, start + 64, gone, 1 << 47] {
                    let error = epoch.touch(how, to, wrong).err().map(class);
                    ctx.ensure(error == Some(ffi::MPI_ERR_RMA_RANGE), || {
                        format!(
                            "{how:?} at {wrong:#x} of rank {to}, which has {start:#x}: error class {error:?}"
                        )
                    });
                }
                for right in [start, start + 8, start + 56] {
                    let error = epoch.touch(how, to, right).err().map(class);
                    ctx.ensure(error.is_none(), || {
                        format!(
                            "{how:?} at {right:#x} of rank {to}, which has {start:#x}: error class {error:?}"
                        )
                    });
                }
            }
        });
    }
    ctx.comm.barrier();
    ctx.check_equal(&[0; 64], memory.payload(), || "left by additions of 0".into());
    must(ctx, "detach", window.detach(memory.payload().as_ptr()));
    Ok(())
}

fn attach(ctx: &Context, window: &Window) -> Result<(), String> {
    let mut memory = Buffer::new(1000);
    let start = memory.payload_mut().as_mut_ptr();
    let at = |offset: usize| start.wrapping_add(offset);
    for _ in 0..3 {
        must(ctx, "attach", window.attach(at(100), 100));
        for (offset, length) in [(100, 100), (0, 101), (199, 10), (120, 5), (0, 1000)] {
            let error = class(window.attach(at(offset), length));
            ctx.ensure(error == ffi::MPI_ERR_RMA_ATTACH, || {
                format!("{length} bytes at {offset} attached over 100 at 100: error class {error}")
            });
        }
        must(ctx, "attach before", window.attach(at(0), 100));
        must(ctx, "attach behind", window.attach(at(200), 800));
        must(ctx, "attach nothing", window.attach(at(150), 0));
        let error = class(window.detach(at(101)));
        ctx.ensure(error == ffi::MPI_ERR_BASE, || format!("detached within a piece: error class {error}"));
        // Pieces that follow each other are as one.
        let starts = tell(ctx, start.expose_provenance());
        let to = ctx.comm.after(1);
        let bytes = ctx.key(ctx.comm.rank(), to, 0).bytes(1000);
        window.fenced(|epoch| epoch.put(&bytes, to, starts[to as usize]));
        let wanted = ctx.key(ctx.comm.before(1), ctx.comm.rank(), 0).bytes(1000);
        ctx.check_equal(&wanted, memory.payload(), || "put to three pieces".into());
        for offset in [0, 150, 100, 200] {
            must(ctx, "detach", window.detach(at(offset)));
        }
        let error = class(window.detach(at(100)));
        ctx.ensure(error == ffi::MPI_ERR_BASE, || format!("detached twice: error class {error}"));
        ctx.comm.barrier();
    }
    Ok(())
}

/// Where a node is: its owner's rank in the upper bits, and its address.
fn pointer(rank: Rank, address: usize) -> i64 {
    i64::from(rank + 1) << 48 | address as i64
}

fn target(pointer: i64) -> (Rank, usize) {
    ((pointer >> 48) as Rank - 1, (pointer & ((1 << 48) - 1)) as usize)
}

fn list(ctx: &Context, window: &Window) -> Result<(), String> {
    let me = ctx.comm.rank();
    let mut head = Buffer::new(8);
    must(ctx, "attach", window.attach(head.payload_mut().as_mut_ptr(), 8));
    let head_at = tell(ctx, address(&mut head))[0];
    let count = ctx.rounds(20, 200);
    // A node: where the next one is, and a number.
    let mut nodes: Vec<Buffer> = Vec::new();
    window.locked_all(|epoch| {
        for number in 0..count as i64 {
            let mut node = Buffer::new(16);
            node.payload_mut()[8..].copy_from_slice(&(i64::from(me) * 1_000_000 + number).to_ne_bytes());
            let new = pointer(me, address(&mut node));
            must(ctx, "attach", window.attach(node.payload_mut().as_mut_ptr(), 16));
            let mut next = 0_i64;
            loop {
                epoch.write_now(&next.to_ne_bytes(), me, target(new).1);
                match epoch.compare_and_swap(next, new, 0, head_at) {
                    found if found == next => break,
                    found => next = found,
                }
            }
            nodes.push(node);
        }
        ctx.comm.barrier();
        let mut found = Vec::new();
        let mut next = epoch.fetch_and_add(0, 0, head_at);
        while next != 0 && found.len() <= count * ctx.comm.size() {
            let (owner, at) = target(next);
            let node = as_numbers(&epoch.read_now(owner, at, 16));
            found.push(node[1]);
            next = node[0];
        }
        found.sort_unstable();
        let all =
            ctx.comm.ranks().flat_map(|rank| (0..count as i64).map(move |n| i64::from(rank) * 1_000_000 + n));
        ctx.check_numbers(&all.collect::<Vec<i64>>(), &found, || "nodes of the list".into());
        ctx.comm.barrier();
    });
    for node in nodes.iter().chain([&head]) {
        must(ctx, "detach", window.detach(node.payload().as_ptr()));
    }
    Ok(())
}

fn addresses(ctx: &Context, window: &Window) -> Result<(), String> {
    let mut memory = Buffer::new(100);
    must(ctx, "attach", window.attach(memory.payload_mut().as_mut_ptr(), 100));
    let starts = tell(ctx, address(&mut memory));
    let to = ctx.comm.after(1);
    let places: Vec<usize> = [7, 99, 0, 8, 9, 50].iter().map(|at| starts[to as usize] + at).collect();
    window.fenced(|epoch| epoch.put_at_addresses(&[1, 2, 3, 4, 5, 6], to, &places));
    let mut wanted = [0; 100];
    for (at, byte) in [7, 99, 0, 8, 9, 50].into_iter().zip(1..) {
        wanted[at] = byte;
    }
    ctx.check_equal(&wanted, memory.payload(), || "put by addresses".into());
    must(ctx, "detach", window.detach(memory.payload().as_ptr()));
    Ok(())
}
