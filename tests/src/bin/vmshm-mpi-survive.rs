//! Kills its own processes one after another, in the midst of communication, until one is left: each time the others must learn of
//! it as `MPI_ERR_PROC_FAILED` (or that somebody who did has revoked the communicator), shrink, and go on.
//!
//! `mpirun -np 21 --with-ft ulfm vmshm-mpi-survive` kills 20. The last one ends without `MPI_Finalize`, in which Open MPI 5.0.7
//! sometimes hangs after losses, over its own shared memory as well.

use std::io::Write;

use clap::Parser;
use vmshm_tests::buffer::Buffer;
use vmshm_tests::collective::Op;
use vmshm_tests::comm::{Comm, Mode, Rank};
use vmshm_tests::failure::End;
use vmshm_tests::payload::{Key, Random};
use vmshm_tests::universe::{Universe, abort_on_panic};

/// Kills processes of a job that survives it; run it under mpirun --with-ft ulfm.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Determines who is killed
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// The work of the others when a process is killed.
#[derive(Clone, Copy, Debug)]
enum Meanwhile {
    /// They wait for a message of that process.
    Receiving,
    /// They send it a long one.
    Sending,
    /// They are in a barrier with it.
    Barrier,
}

const WORK: [Meanwhile; 3] = [Meanwhile::Receiving, Meanwhile::Sending, Meanwhile::Barrier];
/// Beyond what is sent before the receiver has asked for it.
const LONG: usize = 1_000_000;

fn main() {
    let arguments = Arguments::parse();
    let universe = Universe::start(false).expect("MPI starts");
    let mut comm = Comm::world().duplicate();
    let number = comm.rank();
    abort_on_panic(move |message| eprintln!("process {number}: {message}"));
    let mut random = Random::new(Key::new(arguments.seed, &[]));
    let kills = comm.size() - 1;
    for kill in 0..kills {
        let victim = Rank::try_from(random.below(comm.size())).expect("ranks are numbers of 32 bits");
        let work = WORK[kill % WORK.len()];
        if comm.rank() == victim {
            // The others have done what they did together.
            comm.ranks().filter(|&rank| rank != victim).for_each(|rank| {
                comm.receive(&mut Buffer::new(0), rank, 8);
            });
            // SAFETY: the process ends here.
            unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
        }
        comm.send(Mode::Standard, &[], victim, 8);
        let end = meet_loss(&comm, victim, work);
        match work {
            Meanwhile::Receiving | Meanwhile::Sending => {
                assert_eq!(end, End::ProcFailed, "{work:?} when rank {victim} was killed");
                // Others may still learn it by themselves.
                comm.agree();
            }
            Meanwhile::Barrier => {
                assert!(matches!(end, End::ProcFailed | End::Revoked), "{work:?}: {end:?}");
                // Others may wait for someone who waits for nobody lost.
                comm.revoke();
            }
        }
        let left = comm.shrink();
        assert_eq!(left.size(), comm.size() - 1, "those who are left");
        // Its freeing would wait for what was begun with the victim.
        std::mem::forget(std::mem::replace(&mut comm, left));
        exchange(&comm, kill as u64);
        let mut seen = vec![i64::from(end == End::ProcFailed)];
        seen = comm.all_reduce(&seen, Op::Sum);
        assert!(seen[0] > 0, "nobody learned that a process has failed");
        if comm.rank() == 0 {
            println!(
                "kill {} of {kills}, {work:?}: {} of {} survivors got MPI_ERR_PROC_FAILED, all went on",
                kill + 1,
                seen[0],
                comm.size()
            );
        }
    }
    println!("kills: {kills} survived");
    // Nothing is left to do about an error.
    let _ = std::io::stdout().flush();
    std::mem::forget(universe);
    std::process::exit(0);
}

/// Works with the victim until that fails.
fn meet_loss(comm: &Comm, victim: Rank, work: Meanwhile) -> End {
    let code = match work {
        Meanwhile::Receiving => comm.start_receive(Buffer::new(LONG), victim, 7).end().2,
        Meanwhile::Sending => comm.start_send(Mode::Standard, Buffer::new(LONG), victim, 7).end().2,
        Meanwhile::Barrier => comm.try_barrier(),
    };
    End::of(code)
}

/// Messages of all kinds around the communicator.
fn exchange(comm: &Comm, round: u64) {
    let (to, from) = (comm.after(1), comm.before(1));
    for size in [8, 5000, LONG] {
        let key = |rank: Rank| Key::new(round, &[u64::from(rank.unsigned_abs()), size as u64]);
        let landing = comm.start_receive(Buffer::new(size), from, 1);
        comm.send(Mode::Standard, &key(comm.rank()).bytes(size), to, 1);
        let (buffer, _) = landing.wait();
        assert!(key(from).compare(buffer.payload()).is_ok(), "{size} bytes from {from} are others");
    }
}
