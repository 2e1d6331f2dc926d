//! One message of more than 4 GiB.

use crate::buffer::Buffer;
use crate::check::{Case, Context, Needs, Outcome};
use crate::comm::Mode;
use crate::datatype::Datatype;

pub(super) const CASES: &[Case] = &[Case::needing(
    Needs::Huge,
    "huge/contiguous",
    "more than 4 GiB from rank 0 to the last (needs 9 GiB of memory)",
    contiguous,
)];

/// MPI counts are 32-bit: elements of an odd size near 1 MiB.
const ELEMENT: usize = (1 << 20) + 3;
const COUNT: usize = 4099;

fn contiguous(ctx: &Context) -> Outcome {
    let element = Datatype::contiguous(ELEMENT, &Datatype::byte());
    let (size, last) = (ELEMENT * COUNT, ctx.comm.ranks().end - 1);
    let key = ctx.key(0, last, 0);
    if ctx.comm.rank() == 0 {
        let mut buffer = Buffer::new(size);
        key.fill(buffer.payload_mut());
        ctx.comm.send_typed(Mode::Standard, buffer.payload(), (COUNT, &element), last, 1);
    } else if ctx.comm.rank() == last {
        let mut buffer = Buffer::new(size);
        let status = ctx.comm.receive_typed(&mut buffer, (COUNT, &element), 0, 1);
        ctx.check(&buffer, status, 0, 1, 0, size);
    }
    ctx.comm.barrier();
    Outcome::Done
}
