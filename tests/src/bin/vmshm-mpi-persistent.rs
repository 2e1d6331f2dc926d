//! Persistent operations that came with MPI 4, each started several times with other content: messages in partitions that become
//! ready in any order, broadcasts and reductions.

use std::process::ExitCode;

use vmshm_tests::buffer::Buffer;
use vmshm_tests::collective::Op;
use vmshm_tests::comm::Comm;
use vmshm_tests::payload::Key;
use vmshm_tests::universe::{Universe, abort_on_panic};

/// Bytes of a partition, and how many there are.
const SHAPES: [(usize, usize); 5] = [(1, 1), (8, 7), (1000, 16), (4096, 5), (100_000, 12)];
const ROUNDS: u64 = 4;

fn main() -> ExitCode {
    abort_on_panic(|message| eprintln!("vmshm-mpi-persistent: {message}"));
    let universe = match Universe::start(false) {
        Ok(universe) => universe,
        Err(message) => {
            eprintln!("vmshm-mpi-persistent: {message}");
            return ExitCode::FAILURE;
        }
    };
    let world = Comm::world();
    for (n, (len, partitions)) in SHAPES.into_iter().enumerate() {
        in_partitions(&world, n as i32, len, partitions);
    }
    for size in [0, 1, 64, 5000, 300_000] {
        broadcast(&world, size);
        all_reduce(&world, size);
    }
    if world.rank() == 0 {
        println!("persistent: all is well");
    }
    drop(universe);
    ExitCode::SUCCESS
}

fn key(rank: i32, round: u64, size: usize) -> Key {
    Key::new(round, &[u64::from(rank.unsigned_abs()), size as u64])
}

fn compare(found: &[u8], key: &Key, what: &str) {
    let compared = key.compare(found);
    assert!(compared.is_ok(), "{what}: {compared:?}");
}

/// To the next process, from the one before.
fn in_partitions(world: &Comm, tag: i32, len: usize, partitions: usize) {
    let (to, from, size) = (world.after(1), world.before(1), len * partitions);
    let mut landing = world.partitioned_receive(Buffer::new(size), partitions, from, tag);
    let mut message = world.partitioned_send(Buffer::new(size), partitions, to, tag);
    for round in 0..ROUNDS {
        let bytes = key(world.rank(), round, size).bytes(size);
        message.buffer().payload_mut().copy_from_slice(&bytes);
        landing.start();
        message.start();
        for n in 0..partitions {
            message.ready(if round % 2 == 0 { n } else { partitions - 1 - n });
        }
        while !landing.has_come(partitions / 2) {}
        message.wait();
        landing.wait();
        compare(landing.buffer().payload(), &key(from, round, size), "partitions");
    }
}

fn broadcast(world: &Comm, size: usize) {
    let root = world.ranks().end - 1;
    let mut operation = world.persistent_broadcast(Buffer::new(size), root);
    for round in 0..ROUNDS {
        let bytes = key(world.rank(), round, size).bytes(size);
        operation.buffer().payload_mut().copy_from_slice(&bytes);
        operation.start();
        operation.wait();
        compare(operation.buffer().payload(), &key(root, round, size), "broadcast");
    }
}

fn all_reduce(world: &Comm, size: usize) {
    let mine = vec![world.rank() as u8 + 1; size].leak();
    let mut operation = world.persistent_all_reduce(mine, Buffer::new(size), Op::Sum);
    let sum = world.ranks().map(|rank| rank as u8 + 1).sum::<u8>();
    for _ in 0..ROUNDS {
        operation.buffer().payload_mut().fill(0);
        operation.start();
        operation.wait();
        assert!(operation.buffer().payload().iter().all(|byte| *byte == sum), "sums of {size} bytes");
    }
}
