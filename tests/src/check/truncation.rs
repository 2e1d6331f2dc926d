//! Messages that are longer than the receiver has room for.

use std::ffi::c_int;

use mpi::ffi::MPI_ERR_TRUNCATE;

use crate::buffer::Buffer;
use crate::check::{Case, Context, Needs, Outcome};
use crate::comm::Mode;
use crate::datatype::Datatype;
use crate::request::Status;
use crate::universe::class;

pub(super) const CASES: &[Case] = &[
    // Not to oneself: there Open MPI 4.1's own "self" transport writes behind the buffer.
    Case::needing(
        Needs::TwoRanks,
        "truncation/bytes",
        "a message longer than its receive buffer is an error, and writes nothing behind it",
        |ctx| run(ctx, &Datatype::byte()),
    ),
    Case::needing(Needs::TwoRanks, "truncation/elements", "into elements of several bytes", |ctx| {
        run(ctx, &Datatype::contiguous(40, &Datatype::byte()))
    }),
    Case::needing(Needs::TwoRanks, "truncation/gaps", "into elements with gaps", |ctx| {
        run(ctx, &Datatype::vector(3, 5, 8, &Datatype::byte()))
    }),
];

const SIZES: [usize; 10] = [16, 200, 1000, 4000, 8 << 10, 12_000, 33_000, 64 << 10, 70_000, 1 << 20];

/// Longest message that no transport of Open MPI's reads or writes by itself, where it would go beyond the buffer.
const SHORT: usize = 4000;

/// How a receive meets its message.
#[derive(Clone, Copy, Debug)]
enum Way {
    Expected,
    Unexpected,
    Blocking,
    Persistent,
    Claimed,
}

const WAYS: [Way; 5] = [Way::Expected, Way::Unexpected, Way::Blocking, Way::Persistent, Way::Claimed];

/// Whether long messages are carried by vmshm alone: vader with CMA and tcp put them behind the buffer.
fn is_alone() -> bool {
    std::env::var("OMPI_MCA_btl").is_ok_and(|list| {
        list.split(',').any(|btl| btl == "vmshm")
            && list.split(',').all(|btl| btl == "vmshm" || btl == "self")
    })
}

fn run(ctx: &Context, datatype: &Datatype) -> Outcome {
    let longest = match is_alone() {
        true if ctx.quick() => 70_000,
        true => usize::MAX,
        false => SHORT,
    };
    let mut number = 0;
    for distance in ctx.distances() {
        for size in SIZES.into_iter().filter(|size| *size <= longest) {
            for room in [0, size / 4, size - 1] {
                for way in WAYS {
                    transfer(ctx, datatype, distance, number, (size, room / datatype.size()), way);
                    number += 1;
                }
            }
        }
    }
    Outcome::Done
}

/// Sends `size` bytes to one rank, and receives as many from another, with room for `count` elements.
fn transfer(
    ctx: &Context,
    datatype: &Datatype,
    distance: usize,
    number: usize,
    (size, count): (usize, usize),
    way: Way,
) {
    let (to, from) = (ctx.comm.after(distance), ctx.comm.before(distance));
    // Behind the elements there is room for the rest of the message, so that it does no harm if it comes.
    let length = size.div_ceil(datatype.size()) * datatype.extent();
    // Each way meets each kind of memory, and a sender with gaps.
    let turn = number / WAYS.len();
    let make = |from_mpi, length| if from_mpi { Buffer::from_mpi(length) } else { Buffer::new(length) };
    let buffer = make(turn & 1 != 0, length);
    let send = || {
        let message = ctx.key(ctx.comm.rank(), to, number).bytes(size);
        if turn % 5 == 4 {
            let sparse = Datatype::vector(size, 1, 2, &Datatype::byte());
            let mut buffer = Buffer::new(sparse.span(1));
            sparse.unpack(1, &message, buffer.payload_mut());
            ctx.comm.start_send_typed(Mode::Standard, buffer, (1, &sparse), to, 1)
        } else {
            let mut buffer = make(turn & 2 != 0, size);
            buffer.payload_mut().copy_from_slice(&message);
            ctx.comm.start_send(Mode::Standard, buffer, to, 1)
        }
    };
    let what = (count, datatype);
    let (sending, (buffer, status, code)) = match way {
        Way::Expected => {
            let landing = ctx.comm.start_receive_typed(buffer, what, from, 1);
            ctx.comm.barrier();
            (send(), landing.end())
        }
        Way::Unexpected => {
            let sending = send();
            ctx.comm.probe(from, 1);
            (sending, ctx.comm.start_receive_typed(buffer, what, from, 1).end())
        }
        Way::Blocking => {
            let (sending, mut buffer) = (send(), buffer);
            let (status, code) = ctx.comm.try_receive(&mut buffer, what, from, 1);
            (sending, (buffer, status, code))
        }
        Way::Persistent => {
            let mut landing = ctx.comm.persistent_receive_typed(buffer, what, from, 1);
            landing.start();
            let sending = send();
            let (status, code) = landing.end();
            (sending, (landing.into_buffer(), status, code))
        }
        Way::Claimed => {
            let sending = send();
            let (message, _) = ctx.comm.claim(from, 1);
            (sending, message.start_receive_typed(buffer, what).end())
        }
    };
    sending.wait();
    check(ctx, from, number, (size, count, datatype), way, (&buffer, status, code));
}

fn check(
    ctx: &Context,
    from: i32,
    number: usize,
    (size, count, datatype): (usize, usize, &Datatype),
    way: Way,
    (buffer, status, code): (&Buffer, Status, c_int),
) {
    let describe = || {
        let room = count * datatype.size();
        format!("message {number}: {size} bytes from rank {from} into room for {room}, {way:?}")
    };
    let class = (code != 0).then(|| class(code));
    ctx.ensure(class == Some(MPI_ERR_TRUNCATE), || {
        format!("{}: expected MPI_ERR_TRUNCATE, got error class {class:?}", describe())
    });
    // As Open MPI does: what was sent, and as much of it as there is room for.
    ctx.ensure(status.bytes == size, || format!("{}: MPI gave the {status:?}", describe()));
    let message = ctx.key(from, ctx.comm.rank(), number).bytes(size);
    let mut expected = vec![0; buffer.len()];
    datatype.unpack(count, &message, &mut expected);
    ctx.check_equal(&expected, buffer.payload(), describe);
    if let Err(wrong) = buffer.guards_intact() {
        ctx.fail(&format!("{}: wrote outside of the buffer, guard's {wrong}", describe()));
    }
}
