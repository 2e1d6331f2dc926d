//! A dead member's memory, rewritten by others, is not taken for its word.

mod common;

use std::sync::atomic::Ordering;
use std::thread;

use common::{Region, View};
use vmshm_transport::Memory;
use vmshm_transport::collective::{
    BLOCK, CollError, Combine, Group, Late, MIN_CHUNK, MIN_CHUNKS, Pause, Rank, chunks_len,
};

/// Lets others run, or does not wait at all.
struct Turn {
    waits: bool,
}

impl Pause for Turn {
    fn pause(&mut self, member: usize) -> Result<(), CollError> {
        thread::yield_now();
        if self.waits { Ok(()) } else { Err(CollError::Aborted { rank: member, why: 0 }) }
    }
}

/// Exclusive or of bytes.
struct Xor;

impl Combine for Xor {
    fn element(&self) -> usize {
        1
    }
    unsafe fn join(&mut self, left: *const u8, inout: *mut u8, len: usize) {
        // SAFETY: both have so many bytes.
        (0..len).for_each(|at| unsafe { *inout.add(at) ^= *left.add(at) });
    }
    unsafe fn join_to(&mut self, left: *const u8, right: *const u8, out: *mut u8, len: usize) {
        // SAFETY: all have so many bytes.
        (0..len).for_each(|at| unsafe { *out.add(at) = *left.add(at) ^ *right.add(at) });
    }
}

/// No part comes as a message.
struct NoMessages;

impl Late for NoMessages {
    fn send(&mut self, _: usize) {}
    fn receive(&mut self, _: usize, _: usize) {
        panic!("nobody has sent a message");
    }
}

const OPERATIONS: [&str; 9] = [
    "barrier",
    "broadcast",
    "reduce",
    "all_reduce",
    "all_gather",
    "gather",
    "scatter",
    "all_to_all",
    "exchange_vector",
];

/// An operation of two members, in which number 0 takes something from number 1.
fn operate(name: &str, group: &mut Group<View>, data: &mut [u8], waits: bool) -> Result<(), CollError> {
    let mut out = vec![0; 2 * data.len()];
    let (data, len, out, me) = (data.as_mut_ptr(), data.len(), out.as_mut_ptr(), group.me());
    let pause = &mut Turn { waits };
    // SAFETY: there are `len` bytes of data, and room for as many of each member.
    unsafe {
        match name {
            "barrier" => group.barrier(pause),
            "broadcast" => group.broadcast(1, data, len, pause),
            "reduce" => group.reduce(0, data, out, len, &mut Xor, pause),
            "all_reduce" => group.all_reduce(data, out, len, &mut Xor, pause),
            "all_gather" => group.all_gather(data, len, |member| (out.add(member * len), len), pause),
            "gather" => group.gather(0, data, len, |_| out, pause),
            "scatter" => group.scatter(1, data, out, len / 2, pause),
            "all_to_all" => group.all_to_all(data, out, len / 2, pause),
            "exchange_vector" => {
                let (given, part) = ((data.cast_const(), len), (out.add(me * len), len));
                group.exchange_vector(None, |_| given, |_| part, &mut NoMessages, pause)
            }
            _ => unreachable!("{name}"),
        }
    }
}

#[test]
fn what_has_become_of_a_dead_members_memory_is_not_its_word() {
    for name in OPERATIONS {
        for len in [16, 320, 3200, 40_000] {
            for lends in [false, true] {
                // Of a slot the stamp alone is as it was, or all that is in its line.
                for kept in [8, 64] {
                    let found = operate_with_the_dead(name, len, lends, kept);
                    let text =
                        format!("{name} of {len} bytes, lent: {lends}, {kept} bytes of each slot are kept");
                    assert_eq!(found, Err(CollError::PeerLost(1)), "{text}");
                }
            }
        }
    }
}

/// Member 0's result of an operation whose member 1 has died after its part of it. Another process has written all of its
/// memory, but for the first so many bytes of each slot for a stamp.
fn operate_with_the_dead(name: &str, len: usize, lends: bool, kept: u64) -> Result<(), CollError> {
    let region = Region::new(4 << 20, 2, 4);
    let [mut mine, mut theirs] = [region.endpoint(0), region.endpoint(1)];
    let parts = [&mut mine, &mut theirs].map(|endpoint| {
        let block = endpoint.fragment(BLOCK).expect("memory").offset();
        Group::prepare(endpoint.memory(), block, 9);
        let chunks = endpoint.fragment(chunks_len(MIN_CHUNK, MIN_CHUNKS)).expect("memory").offset();
        let (section, incarnation) = (*endpoint.section(), endpoint.name().incarnation);
        (Rank { section, block, tag: 9, slot: section.slot(endpoint.slot()), incarnation }, chunks)
    });
    let area = theirs.fragment(len).expect("memory");
    let new = |memory: &View, me| {
        let members = parts.iter().map(|(member, _)| *member).collect();
        Group::new(memory.clone(), me, members, 20).expect("sound blocks")
    };
    let (mut group, mut dying) = (new(mine.memory(), 0), new(theirs.memory(), 1));
    let add_chunks = |group: &mut Group<View>| {
        let chunks = parts[group.me()].1;
        group.add_chunks(chunks, MIN_CHUNK, MIN_CHUNKS, &mut Turn { waits: true }).expect("chunks");
    };
    thread::scope(|scope| {
        scope.spawn(|| add_chunks(&mut dying));
        add_chunks(&mut group);
    });
    let mut heap = vec![1; len];
    let data = match lends {
        // SAFETY: the fragment has so many bytes, and nobody reads them before they are lent.
        true => unsafe { std::slice::from_raw_parts_mut(area.ptr(), len) },
        false => &mut heap[..],
    };
    // It does not live to hear anyone.
    let _ = operate(name, &mut dying, data, false);
    drop((dying, theirs));

    let mut heir = region.endpoint(1);
    let block = parts[1].0.block;
    let is_kept = |at: u64| {
        let within = at.wrapping_sub(block);
        within < 256 + 64 * 128 && within % 128 < kept
    };
    while let Some(fragment) = heir.fragment(64 << 10) {
        let words = (fragment.offset()..fragment.offset() + (64 << 10)).step_by(8);
        words
            .filter(|at| !is_kept(*at))
            .for_each(|at| heir.memory().store(at, 0xeeee_eeee_eeee_eeee, Ordering::Relaxed));
    }
    operate(name, &mut group, &mut vec![2; len], true)
}
