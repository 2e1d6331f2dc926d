//! A program that never calls `MPI_Init`: two sessions that overlap, each with a communicator of all processes, and a third one
//! after MPI has ended with the second.

use std::process::ExitCode;

use vmshm_tests::buffer::Buffer;
use vmshm_tests::collective::Op;
use vmshm_tests::comm::{Comm, Mode};
use vmshm_tests::payload::Key;
use vmshm_tests::session::Session;
use vmshm_tests::universe::abort_on_panic;

const SIZES: [usize; 7] = [0, 1, 64, 1000, 4097, 70_000, 1_500_001];

fn main() -> ExitCode {
    abort_on_panic(|message| eprintln!("vmshm-mpi-sessions: {message}"));
    let mut rank = 0;
    // One after the other, and then anew in the same process.
    for round in 0..2 {
        let first = Session::open();
        let one = first.comm(c"mpi://WORLD", "one");
        exchange(&one, round);
        let second = Session::open();
        let two = second.comm(c"mpi://WORLD", "two");
        exchange(&one, 10 + round);
        exchange(&two, 20 + round);
        // The second goes on without the first.
        drop(one);
        drop(first);
        exchange(&two, 30 + round);
        rank = two.rank();
        drop(two);
        drop(second);
        if rank == 0 {
            println!("round {round}: two sessions: ok");
        }
    }
    if rank == 0 {
        println!("sessions: all is well");
    }
    ExitCode::SUCCESS
}

/// Messages of all sizes around the communicator, and collective operations.
fn exchange(comm: &Comm, seed: u64) {
    let (to, from) = (comm.after(1), comm.before(1));
    let key = |rank: i32, size: usize| Key::new(seed, &[u64::from(rank.unsigned_abs()), size as u64]);
    for size in SIZES {
        let landing = comm.start_receive(Buffer::new(size), from, 1);
        comm.send(Mode::Standard, &key(comm.rank(), size).bytes(size), to, 1);
        let (buffer, status) = landing.wait();
        assert_eq!((status.source, status.bytes), (from, size), "what came from {from}");
        let compared = key(from, size).compare(buffer.payload());
        assert!(compared.is_ok(), "{size} bytes from {from}: {compared:?}");
        let root = comm.before(comm.rank().unsigned_abs() as usize);
        let mut data = if comm.rank() == root { key(root, size).bytes(size) } else { vec![0; size] };
        comm.broadcast(&mut data, root);
        let compared = key(root, size).compare(&data);
        assert!(compared.is_ok(), "{size} bytes broadcast by {root}: {compared:?}");
    }
    let sum = comm.all_reduce(&[i64::from(comm.rank()) + 1], Op::Sum)[0];
    let size = comm.size() as i64;
    assert_eq!(sum, size * (size + 1) / 2, "the sum over all");
}
