//! Starts processes while the program runs (`MPI_Comm_spawn`), and checks the messages between
//! parents and children.
//!
//! `mpirun -np 1 --oversubscribe vmshm-mpi-spawn --children 2`

use std::process::ExitCode;

use clap::Parser;
use vmshm_tests::buffer::Buffer;
use vmshm_tests::collective::Op;
use vmshm_tests::comm::{Comm, Mode};
use vmshm_tests::payload::Key;
use vmshm_tests::request::wait_all;
use vmshm_tests::universe::{Universe, abort_on_panic, int};

/// Spawns MPI processes and checks the messages between them; run it under mpirun.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Processes to start in each round
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    children: u16,
    /// How often to start them anew
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,
    /// Determines all payloads
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

const SIZES: [usize; 9] = [0, 1, 64, 113, 1000, 4097, 33_000, 70_000, 1_500_001];

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let universe = match Universe::start(false) {
        Ok(universe) => universe,
        Err(error) => {
            eprintln!("vmshm-mpi-spawn: {error}");
            return ExitCode::from(2);
        }
    };
    let world = Comm::world();
    let parent = Comm::parent();
    let who = if parent.is_some() { "child" } else { "parent" };
    let rank = world.rank();
    abort_on_panic(move |message| eprintln!("{who} {rank}: {message}"));
    let failures = match parent {
        Some(parent) => meet(arguments.seed, parent, true),
        None => raise(&arguments, &world),
    };
    drop(universe);
    if failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The parents' part: starts the children and meets them, round after round.
fn raise(arguments: &Arguments, world: &Comm) -> i64 {
    let program = std::env::current_exe().expect("a program knows its own path");
    let program = program.to_str().expect("the program's path is UTF-8").to_string();
    let mut failures = 0;
    for round in 0..u64::from(arguments.rounds) {
        let seed = (arguments.seed + round).to_string();
        let count = usize::from(arguments.children);
        let children = match world.spawn(&program, &["--seed", &seed], count) {
            Ok(children) => children,
            Err(error) => panic!("could not start {count} processes: {error}"),
        };
        assert_eq!(children.remote_size(), count, "processes started");
        failures += meet(arguments.seed + round, children, false);
        if world.rank() == 0 {
            let state = if failures == 0 { "ok" } else { "FAILED" };
            println!("round {round}: {} parents, {count} children: {state}", world.size());
        }
    }
    if world.rank() == 0 {
        let rounds = i64::from(arguments.rounds);
        let failed = failures.min(rounds);
        println!("spawn: {} passed, {failed} failed", rounds - failed);
    }
    failures
}

/// The part of both sides: messages between the groups, then within the merged group. Gives the number
/// of wrong messages that anyone found.
fn meet(seed: u64, across: Comm, is_child: bool) -> i64 {
    let side = u64::from(is_child);
    let mut wrong = 0;
    let me = across.rank();
    let key = |from_side: u64, from: i32, to: i32, size: usize| {
        let bits = |rank: i32| u64::from(rank.unsigned_abs());
        Key::new(seed, &[from_side, bits(from), bits(to), size as u64])
    };
    for (tag, &size) in (0..).zip(&SIZES) {
        let receives =
            across.ranks().map(|from| across.start_receive(Buffer::new(size), from, tag)).collect();
        let sends = across
            .ranks()
            .map(|to| {
                let buffer = Buffer::holding(&key(side, me, to, size).bytes(size));
                across.start_send(Mode::Standard, buffer, to, tag)
            })
            .collect();
        for (from, (buffer, status)) in across.ranks().zip(wait_all(receives)) {
            let result = key(1 - side, from, me, size).compare(buffer.payload());
            if result.is_err() || status.bytes != size || buffer.guards_intact().is_err() {
                wrong += 1;
                let who = if is_child { "child" } else { "parent" };
                eprintln!("{who} {me}: {size} bytes from {from} of the others: {result:?}, {status:?}");
            }
        }
        wait_all(sends);
    }
    let merged = across.merge(is_child);
    wrong += within(&merged, seed);
    let all = merged.all_reduce(&[wrong], Op::Sum)[0];
    // Freed, not disconnected: with an external PMIx, Open MPI 4.1 waits for ever in the disconnection
    // of a merged communicator, over any transport. That of the intercommunicator works.
    drop(merged);
    across.disconnect();
    all
}

/// Messages around the merged group, and a broadcast from each of its members.
fn within(all: &Comm, seed: u64) -> i64 {
    let mut wrong = 0;
    let key = |from: i32, size: usize| Key::new(seed, &[9, u64::from(from.unsigned_abs()), size as u64]);
    let (next, last) = (all.after(1), all.before(1));
    for size in SIZES {
        let landing = all.start_receive(Buffer::new(size), last, 1);
        all.send(Mode::Standard, &key(all.rank(), size).bytes(size), next, 1);
        let (buffer, _) = landing.wait();
        if let Err(mismatch) = key(last, size).compare(buffer.payload()) {
            wrong += 1;
            eprintln!("merged rank {}: {size} bytes from {last}: {mismatch}", all.rank());
        }
    }
    for root in all.ranks() {
        let mut data = if root == all.rank() { key(root, 5000).bytes(5000) } else { vec![0; 5000] };
        all.broadcast(&mut data, root);
        if let Err(mismatch) = key(root, 5000).compare(&data) {
            wrong += 1;
            eprintln!("merged rank {}: broadcast from {root}: {mismatch}", all.rank());
        }
    }
    let ranks = all.all_gather(&int(all.rank() as usize).to_le_bytes());
    let expected: Vec<u8> = all.ranks().flat_map(i32::to_le_bytes).collect();
    wrong + i64::from(ranks != expected)
}
