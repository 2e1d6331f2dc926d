//! Known traffic between rank 0 and each other rank, and what the MPI library has counted of it: performance variables, one line
//! for each that is not 0.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use vmshm_tests::buffer::Buffer;
use vmshm_tests::comm::{ANY_SOURCE, ANY_TAG, Comm, Mode};
use vmshm_tests::payload::Key;
use vmshm_tests::pvar::Variables;
use vmshm_tests::universe::{Universe, abort_on_panic};

/// Shows which way messages take; run it under mpirun.
#[derive(Debug, Parser)]
struct Arguments {
    /// Messages that rank 0 sends to each other rank, and each of those answers
    #[arg(long, default_value_t = 8)]
    messages: u64,
    /// Bytes of each
    #[arg(long, default_value_t = 1 << 20)]
    bytes: usize,
    /// In memory of MPI_Alloc_mem
    #[arg(long)]
    alloc_mem: bool,
    /// Seconds that all ranks go on to poll at the end, so that the host can look at the region
    #[arg(long, default_value_t = 0)]
    linger: u64,
    /// Beginning of the variables' names
    #[arg(long, default_value = "btl_vmshm_")]
    variables: String,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // Dropped behind all that needs it.
    let _universe = match Universe::start(false) {
        Ok(universe) => universe,
        Err(error) => {
            eprintln!("vmshm-mpi-traffic: {error}");
            return ExitCode::from(2);
        }
    };
    let world = Comm::world();
    let rank = world.rank();
    abort_on_panic(move |message| eprintln!("rank {rank}: {message}"));
    // The first collective operation may send messages of its own.
    world.barrier();
    let variables = Variables::of(&world, &arguments.variables);
    world.barrier();
    for other in 1..world.size() as i32 {
        match rank {
            0 => exchange(&world, &arguments, other, true),
            _ if rank == other => exchange(&world, &arguments, 0, false),
            _ => {}
        }
    }
    let end = Instant::now() + Duration::from_secs(arguments.linger);
    while Instant::now() < end {
        assert!(world.look(ANY_SOURCE, ANY_TAG).is_none(), "a message that nobody has sent");
    }
    let mut lines = String::new();
    for (name, values) in variables.read() {
        for (peer, value) in values.iter().enumerate().filter(|(_, value)| **value > 0) {
            writeln!(lines, "traffic {rank} {peer} {name} {value}").expect("memory");
        }
    }
    // Whole: ranks write to the same terminal.
    print!("{lines}");
    ExitCode::SUCCESS
}

/// Messages there and back.
fn exchange(world: &Comm, arguments: &Arguments, other: i32, is_first: bool) {
    let make = if arguments.alloc_mem { Buffer::from_mpi } else { Buffer::new };
    let (mut sent, mut received) = (make(arguments.bytes), make(arguments.bytes));
    for number in 0..arguments.messages {
        let key = |from: i32| Key::new(number, &[from as u64]);
        let mut send = || {
            key(world.rank()).fill(sent.payload_mut());
            world.send(Mode::Standard, sent.payload(), other, 0);
        };
        if is_first {
            send();
        }
        world.receive(&mut received, other, 0);
        key(other).compare(received.payload()).expect("the peer's message");
        if !is_first {
            send();
        }
    }
}
