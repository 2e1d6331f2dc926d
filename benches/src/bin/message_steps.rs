//! Passes messages to and fro, each asked for only when it is certainly there: then no instruction of a call is spent on
//! waiting, and callgrind can count what a message costs: `cargo xtask bench --count`. No time is measured.

use std::hint::spin_loop;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};

use clap::Parser;
use vmshm_benches::osu::{Buffer, Mpi, Origin, SharedCount, seed};

/// Passes messages to and fro, so that their instructions can be counted.
#[derive(Debug, Parser)]
struct Options {
    /// Bytes of a message
    #[arg(long, default_value_t = 8, value_name = "BYTES")]
    size: u32,
    /// Messages from each process
    #[arg(long, default_value_t = 1000, value_name = "N")]
    messages: u32,
    /// Messages that are sent before the first of them is asked for
    #[arg(long, default_value_t = 1, value_name = "N")]
    burst: u32,
    /// Times that each process asks for a message when there is none
    #[arg(long, default_value_t = 0, value_name = "N")]
    polls: u32,
}

fn wait(count: &AtomicU64, wanted: u64) {
    while count.load(Ordering::Acquire) < wanted {
        spin_loop();
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    let mpi = match Mpi::pair("message_steps") {
        Ok(mpi) => mpi,
        Err(code) => return code,
    };
    let size = options.size as usize;
    let (out, landing) = (Buffer::new(size, Origin::Heap), Buffer::new(size, Origin::Heap));
    let (me, peer) = (mpi.rank(), 1 - mpi.rank());
    // Told past MPI's messages, so that MPI does not see one before it is asked to.
    let sent = SharedCount::new(&mpi);
    let mut told = 0;
    mpi.barrier();
    for _ in 0..options.polls {
        if mpi.probe() {
            mpi.abort("there is a message that nobody sent");
        }
    }
    // The first message waits until the peer has done its polls, which are to find none.
    mpi.barrier();
    for turn in 0..options.messages {
        for sender in [0, 1] {
            told += 1;
            if me == sender {
                // SAFETY: blocking calls only: MPI does not use the buffer now.
                unsafe { out.write(size, seed(me, turn)) };
                for _ in 0..options.burst {
                    mpi.send(&out, size, peer);
                }
                sent.get().store(told, Ordering::Release);
                told += 1;
                wait(sent.get(), told);
            } else {
                wait(sent.get(), told);
                for _ in 0..options.burst {
                    mpi.receive(&landing, size, peer);
                }
                // SAFETY: the receive has ended: MPI does not use the buffer now.
                let checked = unsafe { landing.check(size, seed(peer, turn)) };
                mpi.expect(checked, || format!("message of {size} bytes in turn {turn}"));
                told += 1;
                sent.get().store(told, Ordering::Release);
            }
        }
    }
    mpi.barrier();
    ExitCode::SUCCESS
}
