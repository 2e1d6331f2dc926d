//! Pairs of ranks: one waits in `MPI_Recv` for a message that comes late, and says what the waiting cost; then both
//! exchange messages with pauses, in which either may have gone to sleep.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use vmshm_tests::buffer::Buffer;
use vmshm_tests::comm::{Comm, Mode};
use vmshm_tests::payload::{Key, Random};
use vmshm_tests::universe::{Universe, abort_on_panic};

/// Waits for messages that come late; run it under mpirun with an even number of ranks.
#[derive(Debug, Parser)]
struct Arguments {
    /// How late the first message comes, seconds
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Messages that are exchanged with pauses afterwards, in each direction
    #[arg(long, default_value_t = 100)]
    rounds: u64,
    /// The longest pause, milliseconds
    #[arg(long, default_value_t = 20)]
    pause: usize,
    /// Determines pauses and payloads
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Processor time of this process, in its own code and in the kernel.
fn processor_time() -> Duration {
    // SAFETY: all zero is a valid value, which the kernel fills.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &raw mut usage);
        usage
    };
    let time = |t: libc::timeval| Duration::from_micros(t.tv_sec as u64 * 1_000_000 + t.tv_usec as u64);
    time(usage.ru_utime) + time(usage.ru_stime)
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let universe = match Universe::start(false) {
        Ok(universe) => universe,
        Err(error) => {
            eprintln!("vmshm-mpi-wait: {error}");
            return ExitCode::from(2);
        }
    };
    let world = Comm::world();
    let rank = world.rank();
    abort_on_panic(move |message| eprintln!("rank {rank}: {message}"));
    assert!(world.size().is_multiple_of(2), "run this with an even number of ranks, not {}", world.size());
    let other = rank ^ 1;
    let first = rank % 2 == 0;

    // Both are there, and have met.
    turn(&world, arguments.seed, u64::MAX, other);
    if first {
        let (begin, before) = (Instant::now(), processor_time());
        receive(&world, arguments.seed, 0, other);
        let (waited, used) = (begin.elapsed(), processor_time() - before);
        println!("waited {:.3} s, processor time {:.3} s", waited.as_secs_f64(), used.as_secs_f64());
    } else {
        // As a rank that computes: no MPI call meanwhile.
        std::thread::sleep(Duration::from_secs(arguments.seconds));
        send(&world, arguments.seed, 0, other);
    }
    let mut random = Random::new(Key::new(arguments.seed, &[rank as u64]));
    for round in 1..=arguments.rounds {
        if round.is_multiple_of(2) == first {
            std::thread::sleep(Duration::from_millis(random.below(arguments.pause + 1) as u64));
        }
        turn(&world, arguments.seed, round, other);
    }
    if first {
        println!("exchanged {} messages in each direction", arguments.rounds);
    }
    drop(universe);
    ExitCode::SUCCESS
}

fn message(seed: u64, from: u64, round: u64) -> Vec<u8> {
    let key = Key::new(seed, &[from, round]);
    key.bytes([8, 100, 5_000, 200_000][(round % 4) as usize])
}

fn send(world: &Comm, seed: u64, round: u64, to: i32) {
    world.send(Mode::Standard, &message(seed, world.rank() as u64, round), to, 1);
}

fn receive(world: &Comm, seed: u64, round: u64, from: i32) {
    let expected = message(seed, from as u64, round);
    let mut buffer = Buffer::new(expected.len());
    world.receive(&mut buffer, from, 1);
    assert!(buffer.payload() == expected, "message {round} from {from} is another");
}

/// One message there and one back.
fn turn(world: &Comm, seed: u64, round: u64, other: i32) {
    if world.rank() % 2 == 0 {
        send(world, seed, round, other);
        receive(world, seed, round, other);
    } else {
        receive(world, seed, round, other);
        send(world, seed, round, other);
    }
}
