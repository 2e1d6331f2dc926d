//! All ways to send and to complete.

use crate::buffer::Buffer;
use crate::check::{Case, Context, Outcome};
use crate::comm::{Attached, MODES, Mode};
use crate::request::{Completion, Persistent, complete_some, wait_all};

pub(super) const CASES: &[Case] = &[
    Case::new("modes/standard", "Send and Isend", |ctx| mode(ctx, Mode::Standard)),
    Case::new("modes/synchronous", "Ssend and Issend", |ctx| mode(ctx, Mode::Synchronous)),
    Case::new("modes/synchronous-waits", "Issend ends no sooner than its receive begins", waits),
    Case::new("modes/buffered", "Bsend and Ibsend", |ctx| mode(ctx, Mode::Buffered)),
    Case::new("modes/ready", "Rsend and Irsend, receive posted before", |ctx| mode(ctx, Mode::Ready)),
    Case::new("modes/persistent", "Send_init, Recv_init, Startall with changing content", persistent),
    Case::new("modes/completion", "Waitany, Waitsome, Testany, Testsome, Testall", completion),
    Case::new("modes/sendrecv", "Sendrecv and Sendrecv_replace", sendrecv),
    Case::new("modes/allocated", "buffers from MPI_Alloc_mem on one side or both", allocated),
];

const SIZES: [usize; 10] = [0, 1, 8, 65, 500, 1020, 4090, 33_000, 70_000, 300_001];

fn mode(ctx: &Context, mode: Mode) -> Outcome {
    let _attached = (mode == Mode::Buffered).then(|| Attached::room_for(4, 300_001));
    for round in 0..ctx.rounds(2, 60) {
        for distance in ctx.distances() {
            let (to, from) = (ctx.comm.after(distance), ctx.comm.before(distance));
            for (index, size) in SIZES.into_iter().enumerate() {
                for blocking in [true, false] {
                    let number = (round * SIZES.len() + index) * 2 + usize::from(blocking);
                    let landing = ctx.comm.start_receive(Buffer::new(size), from, 1);
                    if mode == Mode::Ready {
                        // Tells the sender that the receive has been posted.
                        ctx.comm.send(Mode::Standard, &[], from, 2);
                        ctx.comm.receive(&mut Buffer::new(0), to, 2);
                    }
                    let buffer = ctx.outgoing(to, number, size);
                    if blocking {
                        ctx.comm.send(mode, buffer.payload(), to, 1);
                    } else {
                        ctx.comm.start_send(mode, buffer, to, 1).wait();
                    }
                    let (buffer, status) = landing.wait();
                    ctx.check(&buffer, status, from, 1, number, size);
                    if mode == Mode::Buffered {
                        // Nobody gets so far ahead that its attached buffer is full.
                        ctx.comm.barrier();
                    }
                }
            }
        }
    }
    Outcome::Done
}

fn waits(ctx: &Context) -> Outcome {
    for distance in ctx.distances() {
        let (to, from) = (ctx.comm.after(distance), ctx.comm.before(distance));
        for (number, size) in SIZES.into_iter().enumerate() {
            let buffer = ctx.outgoing(to, number, size);
            let mut sending = ctx.comm.start_send(Mode::Synchronous, buffer, to, 1);
            for _ in 0..20 {
                let early = sending.test().is_some();
                ctx.ensure(!early, || {
                    format!("Issend of {size} bytes to rank {to} ended before any receive began")
                });
                if early {
                    break;
                }
            }
            // Nobody receives before all have looked.
            ctx.comm.barrier();
            let mut buffer = Buffer::new(size);
            let status = ctx.comm.receive(&mut buffer, from, 1);
            ctx.check(&buffer, status, from, 1, number, size);
            sending.wait();
        }
    }
    Outcome::Done
}

fn persistent(ctx: &Context) -> Outcome {
    let distance = ctx.distances()[0];
    let (to, from) = (ctx.comm.after(distance), ctx.comm.before(distance));
    for mode in MODES {
        // Open MPI 4.1 itself sends wrong bytes when a buffered persistent send of more than the
        // eager limit is started a second time.
        let sizes = if mode == Mode::Buffered { &SIZES[..5] } else { &SIZES[..] };
        let _attached = (mode == Mode::Buffered).then(|| Attached::room_for(2 * sizes.len(), 300_001));
        let mut receives: Vec<Persistent> =
            sizes.iter().map(|&size| ctx.comm.persistent_receive(Buffer::new(size), from, 1)).collect();
        let mut sends: Vec<Persistent> =
            sizes.iter().map(|&size| ctx.comm.persistent_send(mode, Buffer::new(size), to, 1)).collect();
        for round in 0..ctx.rounds(4, 100) {
            for (index, send) in sends.iter_mut().enumerate() {
                let key = ctx.key(ctx.comm.rank(), to, round * sizes.len() + index);
                key.fill(send.buffer().payload_mut());
            }
            Persistent::start_all(&mut receives);
            if mode == Mode::Ready {
                ctx.comm.barrier();
            }
            if round % 2 == 0 {
                Persistent::start_all(&mut sends);
            } else {
                sends.iter_mut().for_each(Persistent::start);
            }
            for (index, receive) in receives.iter_mut().enumerate() {
                let status = receive.wait();
                let number = round * sizes.len() + index;
                ctx.check(receive.buffer(), status, from, 1, number, sizes[index]);
            }
            for send in &mut sends {
                send.wait();
            }
            if mode == Mode::Buffered {
                ctx.comm.barrier();
            }
        }
    }
    Outcome::Done
}

fn completion(ctx: &Context) -> Outcome {
    use Completion::{TestAll, TestAny, TestSome, WaitAny, WaitSome};
    for (label, way) in [WaitAny, WaitSome, TestAny, TestSome, TestAll].into_iter().enumerate() {
        for distance in ctx.distances() {
            let (to, from) = (ctx.comm.after(distance), ctx.comm.before(distance));
            for round in 0..ctx.rounds(1, 20) {
                let count = 20;
                let size = |number: usize| SIZES[(number + round) % SIZES.len()];
                let mut receives: Vec<_> = (0..count)
                    .map(|n| ctx.comm.start_receive(Buffer::new(size(n)), from, n as i32 % 100))
                    .collect();
                // Tags in another order than the receives, so that they end in any order.
                let mut order: Vec<usize> = (0..count).collect();
                ctx.random_of(ctx.comm.rank(), label as u64).shuffle(&mut order);
                let sends = order
                    .into_iter()
                    .map(|n| {
                        let buffer = ctx.outgoing(to, n, size(n));
                        ctx.comm.start_send(Mode::Standard, buffer, to, n as i32 % 100)
                    })
                    .collect();
                let mut seen = vec![0; count];
                while receives.iter().any(|receive| !receive.is_done()) {
                    for ended in complete_some(way, &mut receives) {
                        seen[ended] += 1;
                    }
                    std::thread::yield_now();
                }
                ctx.ensure(seen.iter().all(|&times| times == 1), || {
                    format!("{way:?} reported the requests this often: {seen:?}")
                });
                for (number, mut receive) in receives.into_iter().enumerate() {
                    let status = receive.test().expect("ended above");
                    let tag = number as i32 % 100;
                    ctx.check(&receive.into_buffer(), status, from, tag, number, size(number));
                }
                wait_all(sends);
            }
        }
    }
    Outcome::Done
}

fn sendrecv(ctx: &Context) -> Outcome {
    for round in 0..ctx.rounds(2, 60) {
        for distance in ctx.distances() {
            let (to, from) = (ctx.comm.after(distance), ctx.comm.before(distance));
            for (index, size) in SIZES.into_iter().enumerate() {
                let number = round * SIZES.len() + index;
                let outgoing = ctx.outgoing(to, number, size);
                let mut buffer = Buffer::new(size + 9);
                let status = ctx.comm.exchange(outgoing.payload(), to, &mut buffer, from, 1);
                ctx.check(&buffer, status, from, 1, number, size);
                let mut buffer = outgoing;
                let status = ctx.comm.replace(&mut buffer, to, from, 2);
                ctx.check(&buffer, status, from, 2, number, size);
            }
        }
    }
    Outcome::Done
}

fn allocated(ctx: &Context) -> Outcome {
    for distance in ctx.distances() {
        let (to, from) = (ctx.comm.after(distance), ctx.comm.before(distance));
        for size in SIZES.into_iter().chain([1 << 20, 3_000_001]) {
            for sides in 0..4 {
                let [sender, receiver] = [sides & 1 != 0, sides & 2 != 0];
                let make = |from_mpi| if from_mpi { Buffer::from_mpi(size) } else { Buffer::new(size) };
                for number in 0..ctx.rounds(1, 8) {
                    let landing = ctx.comm.start_receive(make(receiver), from, 1);
                    let mut buffer = make(sender);
                    ctx.key(ctx.comm.rank(), to, number).fill(buffer.payload_mut());
                    let sending = ctx.comm.start_send(Mode::Standard, buffer, to, 1);
                    let (buffer, status) = landing.wait();
                    ctx.check(&buffer, status, from, 1, number, size);
                    sending.wait();
                }
            }
        }
    }
    Outcome::Done
}
