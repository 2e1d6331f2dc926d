//! An MPI program that allocates in every way there is, and says where its memory lies: what `VMSHM_HEAP=1` must not
//! break. Run it under mpirun with two ranks; it finds libvmshm_heap.so preloaded, or not.

mod forks;
mod piece;

use std::process::{Command, ExitCode};
use std::sync::mpsc;

use clap::Parser;
use piece::{LARGE, Piece};
use vmshm_tests::buffer::Buffer;
use vmshm_tests::comm::Comm;
use vmshm_tests::payload::{Key, Random};
use vmshm_tests::universe::{Universe, abort_on_panic};

/// Allocates, and checks contents and places.
#[derive(Debug, Parser)]
struct Arguments {
    /// Large allocations must lie in ordinary memory
    #[arg(long)]
    ordinary: bool,
    /// Allocations and frees of each thread
    #[arg(long, default_value_t = 20_000)]
    rounds: u64,
    /// Threads that allocate at the same time
    #[arg(long, default_value_t = 4)]
    threads: u64,
    /// Determines sizes and contents
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    forks::register();
    // Before MPI there is no section.
    let mut early: Vec<Piece> = (0..10).map(|i| Piece::new(LARGE + i, 0x11)).collect();
    assert!(early.iter().all(|piece| !piece.is_shared()));

    let universe = match Universe::start(false) {
        Ok(universe) => universe,
        Err(error) => {
            eprintln!("vmshm-heap-check: {error}");
            return ExitCode::from(2);
        }
    };
    let world = Comm::world();
    let rank = world.rank();
    abort_on_panic(move |message| eprintln!("rank {rank}: {message}"));
    let expected = !arguments.ordinary;

    assert_eq!(Piece::new(LARGE, 1).is_shared(), expected, "where a large piece lies");
    assert!(!Piece::new(1000, 1).is_shared(), "small pieces stay");
    assert_eq!(Piece::aligned(1 << 21, LARGE, 2).is_shared(), expected);
    grow(expected);
    drop(early.split_off(5));
    early[0].resize(3 * LARGE);
    messages(&world, expected);
    for _ in 0..100 {
        // Memory that was written to before has to come back as zero.
        drop(Piece::new(LARGE, 0xee));
        drop(Piece::zeroed(LARGE - 100));
    }
    std::thread::scope(|scope| {
        churn(scope, &arguments);
        messages(&world, expected);
        for _ in 0..10 {
            forks::children(expected);
        }
    });
    forks::all(expected);
    assert!(Command::new("true").status().is_ok_and(|status| status.success()));
    exhaust(expected);
    messages(&world, expected);

    // Kept memory is there after the end of MPI, and can be freed; nothing new lies in the section.
    let mut kept: Vec<Piece> = (0..50).map(|i| Piece::new(50_000 + 20_000 * i, i as u8)).collect();
    let (send, receive) = mpsc::channel();
    let writer = std::thread::spawn(move || write_until(&receive));
    drop(universe);
    assert!(!Piece::new(LARGE, 1).is_shared());
    kept.truncate(40);
    kept[0].resize(2 * LARGE);
    assert!(!kept[0].is_shared());
    forks::children(false);
    for piece in &kept {
        piece.check();
    }
    send.send(()).expect("the thread waits for it");
    writer.join().expect("the thread found its memory as it was");
    // Some are freed, the others are left to the process's end.
    kept.truncate(20);
    std::mem::forget(kept);
    println!("rank {rank}: all is well");
    ExitCode::SUCCESS
}

/// Writes to memory of its own all the time, and looks whether it stays.
fn write_until(end: &mpsc::Receiver<()>) {
    let mut piece = Piece::new(3 * LARGE, 0);
    while end.try_recv().is_err() {
        piece.fill(piece.byte.wrapping_add(1));
        piece.check();
    }
}

/// From small to large and back.
fn grow(expected: bool) {
    let mut piece = Piece::new(10, 0x21);
    for len in [100, 5000, 20_000, 100_000, 3 * LARGE, 20 * LARGE, 10 * LARGE, LARGE, 9000, 50] {
        piece.resize(len);
        let is_large = len >= 100_000;
        assert_eq!(piece.is_shared() && is_large, expected && is_large, "a piece of {len} bytes");
    }
    assert!(!piece.is_shared());
}

/// Exchanges large messages with a partner, from and to memory of C's.
fn messages(world: &Comm, expected: bool) {
    let other = world.rank() ^ 1;
    if other as usize >= world.size() {
        return;
    }
    for (round, len) in [20_000, 300_000, 5 * LARGE].into_iter().enumerate() {
        let mine = Piece::new(len, round as u8 + world.rank() as u8 * 16);
        let _ = expected;
        let mut theirs = Buffer::new(len);
        world.exchange(mine.bytes(), other, &mut theirs, other, 7);
        let byte = round as u8 + other as u8 * 16;
        assert!(theirs.payload().iter().all(|found| *found == byte));
    }
}

/// Threads that allocate, resize and free, also what others have allocated.
fn churn<'scope>(scope: &'scope std::thread::Scope<'scope, '_>, arguments: &'scope Arguments) {
    let (senders, receivers): (Vec<_>, Vec<_>) =
        (0..arguments.threads).map(|_| mpsc::channel::<Piece>()).unzip();
    for (number, receiver) in receivers.into_iter().enumerate() {
        let next = senders[(number + 1) % senders.len()].clone();
        scope.spawn(move || {
            let mut random = Random::new(Key::new(arguments.seed, &[number as u64]));
            let mut held: Vec<Piece> = Vec::new();
            for round in 0..arguments.rounds {
                let byte = round as u8;
                let len = if random.below(3) == 0 { random.below(400_000) } else { random.below(40_000) } + 1;
                match random.below(8) {
                    0 | 1 => held.push(Piece::new(len, byte)),
                    2 => held.push(Piece::zeroed(len)),
                    3 => held.push(Piece::aligned(16 << random.below(9), len, byte)),
                    4 => {
                        if let Some(piece) = held.last_mut() {
                            piece.resize(len);
                        }
                    }
                    5 if !held.is_empty() => {
                        let _ = next.send(held.swap_remove(random.below(held.len())));
                    }
                    _ if !held.is_empty() => drop(held.swap_remove(random.below(held.len()))),
                    _ => {}
                }
                if let Ok(piece) = receiver.try_recv() {
                    piece.check();
                }
                if held.len() > 40 {
                    held.truncate(20);
                }
            }
        });
    }
}

/// Takes all there is; what then comes is ordinary memory, and nothing fails.
fn exhaust(expected: bool) {
    if !expected {
        return;
    }
    let mut held = Vec::new();
    while held.last().is_none_or(Piece::is_shared) {
        held.push(Piece::new(8 * LARGE, held.len() as u8));
        assert!(held.len() < 10_000, "the section is never full");
    }
    for len in [20_000, LARGE] {
        held.push(Piece::new(len, 9));
        held.push(Piece::zeroed(len));
    }
    let last = held.len() - 5;
    held[last].resize(9 * LARGE);
}
