//! Derived datatypes: what lies in the gaps stays untouched, what is sent arrives in order.

use crate::buffer::Buffer;
use crate::check::{Case, Context, Outcome};
use crate::comm::Mode;
use crate::datatype::Datatype;

pub(super) const CASES: &[Case] = &[
    Case::new("datatypes/vector", "equally spaced blocks", |ctx| run(ctx, &vectors())),
    Case::new("datatypes/indexed", "blocks at irregular places, also out of order", |ctx| {
        run(ctx, &indexed(ctx))
    }),
    Case::new("datatypes/record", "fields of several types", |ctx| run(ctx, &records())),
    Case::new("datatypes/resized", "elements that interleave, and with wide gaps", |ctx| {
        run(ctx, &resized())
    }),
    Case::new("datatypes/nested", "vectors of records, parts of matrices", |ctx| run(ctx, &nested())),
];

/// A datatype, how many of it make a message, and whether it consists of bytes alone: only then
/// may the other side use bytes.
struct Layout {
    name: String,
    datatype: Datatype,
    count: usize,
    of_bytes: bool,
}

impl Layout {
    fn new(name: impl Into<String>, datatype: Datatype, count: usize, of_bytes: bool) -> Layout {
        Layout { name: name.into(), datatype, count, of_bytes }
    }
}

fn vectors() -> Vec<Layout> {
    let byte = Datatype::byte();
    let mut layouts = Vec::new();
    for (count, length, stride) in
        [(1, 1, 1), (3, 1, 2), (10, 7, 9), (100, 40, 64), (1000, 8, 64), (4000, 65, 100)]
    {
        for elements in [1, 3] {
            let name = format!("vector of {count} blocks of {length} every {stride}");
            let vector = Datatype::vector(count, length, stride, &byte);
            layouts.push(Layout::new(name, vector, elements, true));
        }
    }
    let column = Datatype::vector(600, 1, 700, &Datatype::f64());
    layouts.push(Layout::new("column of a matrix of doubles", column, 1, false));
    layouts.push(Layout::new("nothing", Datatype::vector(0, 0, 0, &byte), 5, true));
    layouts
}

fn indexed(ctx: &Context) -> Vec<Layout> {
    let byte = Datatype::byte();
    let mut layouts = Vec::new();
    for (label, blocks) in [3, 20, 300].into_iter().enumerate() {
        let mut random = ctx.common_random(label as u64);
        let mut at = 0;
        let mut parts: Vec<_> = (0..blocks)
            .map(|_| {
                let part = (at, random.size(2000));
                at += part.1 + random.below(100);
                part
            })
            .collect();
        parts[0].1 = parts[0].1.max(1);
        let name = format!("{blocks} irregular blocks");
        layouts.push(Layout::new(name, Datatype::indexed(&parts, &byte), 2, true));
        random.shuffle(&mut parts);
        let name = format!("{blocks} irregular blocks out of order");
        layouts.push(Layout::new(name, Datatype::indexed(&parts, &byte), 1, true));
    }
    let whole = Datatype::indexed(&[(0, 3), (5, 1), (9, 10)], &Datatype::i32());
    layouts.push(Layout::new("irregular integers", whole, 50, false));
    layouts
}

fn record() -> Datatype {
    let fields = [(0, 1, &Datatype::byte()), (4, 2, &Datatype::i32()), (16, 3, &Datatype::f64())];
    Datatype::record(&fields, 48)
}

fn records() -> Vec<Layout> {
    let (byte, backwards) = (Datatype::byte(), [(24, 1, &Datatype::i64()), (0, 5, &Datatype::i32())]);
    let mut layouts: Vec<_> = [1, 2, 40, 90, 2000, 20_000]
        .into_iter()
        .map(|count| Layout::new("record with gaps", record(), count, false))
        .collect();
    let backwards = Datatype::record(&backwards, 32);
    layouts.push(Layout::new("record with its last field first", backwards, 700, false));
    let bytes = Datatype::record(&[(3, 4, &byte), (9, 1, &byte), (11, 30, &byte)], 50);
    layouts.push(Layout::new("record of bytes", bytes, 900, true));
    layouts
}

fn resized() -> Vec<Layout> {
    let byte = Datatype::byte();
    let comb = || Datatype::vector(50, 1, 4, &byte);
    vec![
        Layout::new("interleaved combs", Datatype::resized(1, &comb()), 4, true),
        Layout::new("combs with wide gaps", Datatype::resized(1000, &comb()), 100, true),
        Layout::new("one byte a line", Datatype::resized(64, &byte), 5000, true),
        Layout::new("integers a page apart", Datatype::resized(4096, &Datatype::i32()), 60, false),
    ]
}

fn nested() -> Vec<Layout> {
    let byte = Datatype::byte();
    let part = Datatype::subarray([300, 400], [100, 37], [20, 333], &byte);
    let doubles = Datatype::subarray([64, 64], [62, 62], [1, 1], &Datatype::f64());
    let records = Datatype::vector(20, 3, 5, &record());
    let twice = Datatype::contiguous(7, &Datatype::vector(5, 3, 6, &byte));
    vec![
        Layout::new("part of a matrix", part, 2, true),
        Layout::new("inner points of a grid", doubles, 1, false),
        Layout::new("vector of records", records, 3, false),
        Layout::new("row of vectors", twice, 400, true),
        Layout::new("contiguous", Datatype::contiguous(1000, &byte), 300, true),
    ]
}

fn run(ctx: &Context, layouts: &[Layout]) -> Outcome {
    for round in 0..ctx.rounds(1, 6) {
        for distance in ctx.distances() {
            for layout in layouts {
                let ends = if layout.of_bytes { [true, false].as_slice() } else { &[true] };
                for &typed_send in ends {
                    for &typed_receive in ends {
                        for expected in [true, false] {
                            transfer(ctx, layout, distance, round, [typed_send, typed_receive, expected]);
                        }
                    }
                }
            }
        }
    }
    Outcome::Done
}

fn transfer(
    ctx: &Context,
    layout: &Layout,
    distance: usize,
    number: usize,
    [typed_send, typed_receive, expected]: [bool; 3],
) {
    let (to, from, me) = (ctx.comm.after(distance), ctx.comm.before(distance), ctx.comm.rank());
    let Layout { name, datatype, count, .. } = layout;
    let byte = Datatype::byte();
    let (size, span) = (datatype.size() * count, datatype.span(*count));
    // Memory as the sender has it, gaps and all, and the message that it makes.
    let memory = |from, to| ctx.key(from, to, number).bytes(if typed_send { span } else { size });
    let message = |from, to| {
        let memory = memory(from, to);
        if typed_send { datatype.pack(*count, &memory) } else { memory }
    };
    let what = |typed| if typed { (*count, datatype) } else { (size, &byte) };

    let mut room = Buffer::new(if typed_receive { span } else { size });
    let mut landing = None;
    if expected {
        landing = Some(ctx.comm.start_receive_typed(room, what(typed_receive), from, 1));
        room = Buffer::new(0);
    }
    let outgoing = Buffer::holding(&memory(me, to));
    let sending = ctx.comm.start_send_typed(Mode::Standard, outgoing, what(typed_send), to, 1);
    let (buffer, status) = match landing {
        Some(landing) => landing.wait(),
        None => {
            let status = ctx.comm.receive_typed(&mut room, what(typed_receive), from, 1);
            (room, status)
        }
    };
    let describe = || {
        let side = |typed| if typed { name } else { "bytes" };
        format!(
            "{count} × {name}, sent as {}, received as {}, from rank {from}, {size} bytes",
            side(typed_send),
            side(typed_receive)
        )
    };
    let arrived = message(from, me);
    let mut wanted = vec![0; buffer.len()];
    if typed_receive {
        datatype.unpack(*count, &arrived, &mut wanted);
    } else {
        wanted = arrived;
    }
    ctx.check_equal(&wanted, buffer.payload(), describe);
    let intact = buffer.guards_intact();
    ctx.ensure(intact.is_ok(), || format!("{}: wrote outside: {intact:?}", describe()));
    ctx.ensure(status.bytes == size, || format!("{}: MPI counts {}", describe(), status.bytes));
    sending.wait();
}
