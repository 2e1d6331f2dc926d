//! Collective operations among threads, each with its own view of one region.

mod common;

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use common::{Region, View, pattern};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use vmshm_transport::collective::{
    BLOCK, CollError, Combine, Given, Group, Late, MAX_CHUNK, MIN_CHUNK, MIN_CHUNKS, Pause, Rank, chunks_len,
};
use vmshm_transport::{Fragment, Memory};

/// Lets others run, and gives up where nothing ever comes.
#[derive(Default)]
struct Patience(u64);

impl Pause for Patience {
    fn pause(&mut self, member: usize) -> Result<(), CollError> {
        self.0 += 1;
        if self.0 > 5_000_000 {
            return Err(CollError::PeerLost(member));
        }
        thread::yield_now();
        Ok(())
    }
}

/// Appends one history to another, element by element: neither commutative nor blind to any mix-up. The result of joining
/// members 0..n in order is a polynomial of their values.
struct Horner {
    /// Bytes that must not be cut, a multiple of [`NUMBER`].
    element: usize,
}

const HORNER: Horner = Horner { element: NUMBER };

const NUMBER: usize = 8;
const BASE: u64 = 0x9e37_79b9_7f4a_7c15;

/// An element is (value, weight) in 32 bits each: (v1, w1) + (v2, w2) = (v1 * w2 + v2, w1 * w2).
fn join(left: u64, right: u64) -> u64 {
    let (v1, w1, v2, w2) = (left as u32, (left >> 32) as u32, right as u32, (right >> 32) as u32);
    u64::from(v1.wrapping_mul(w2).wrapping_add(v2)) | u64::from(w1.wrapping_mul(w2)) << 32
}

impl Combine for Horner {
    fn element(&self) -> usize {
        self.element
    }
    unsafe fn join(&mut self, left: *const u8, inout: *mut u8, len: usize) {
        assert_eq!(len % self.element, 0);
        for at in (0..len).step_by(NUMBER) {
            // SAFETY: at + 8 <= len.
            unsafe {
                let result = join(
                    left.add(at).cast::<u64>().read_unaligned(),
                    inout.add(at).cast::<u64>().read_unaligned(),
                );
                inout.add(at).cast::<u64>().write_unaligned(result);
            }
        }
    }
    unsafe fn join_to(&mut self, left: *const u8, right: *const u8, out: *mut u8, len: usize) {
        // SAFETY: the caller keeps the same contract.
        unsafe {
            right.copy_to_nonoverlapping(out, len);
            self.join(left, out, len);
        }
    }
}

/// Operand of the member with this number.
fn data_of(seed: u64, member: usize, len: usize) -> Vec<u8> {
    pattern(seed.wrapping_mul(BASE) ^ member as u64, len)
}

fn joined(seed: u64, members: usize, len: usize) -> Vec<u8> {
    let mut out = data_of(seed, members - 1, len);
    for member in (0..members - 1).rev() {
        // SAFETY: both have len bytes.
        unsafe { { HORNER }.join(data_of(seed, member, len).as_ptr(), out.as_mut_ptr(), len) };
    }
    out
}

/// A member's state beside the group.
struct Own {
    memory: View,
    /// Memory of its section for operands, [`AREA`] bytes.
    area: u64,
    /// Its chunks.
    chunks: u64,
    post: Post,
}

/// Messages that are under way, from each member to each.
type Post = Arc<Mutex<HashMap<(usize, usize), VecDeque<Vec<u8>>>>>;

/// A member's messages in one operation.
struct Messages<'a, G> {
    me: usize,
    post: &'a Post,
    given: G,
    /// Members that send us something.
    from: Vec<usize>,
}

impl<G: Fn(usize) -> Given> Late for Messages<'_, G> {
    fn send(&mut self, member: usize) {
        let (from, len) = (self.given)(member);
        // SAFETY: what is given is valid for reads of its length.
        let message = unsafe { std::slice::from_raw_parts(from, len) }.to_vec();
        self.post.lock().unwrap().entry((self.me, member)).or_default().push_back(message);
    }
    fn receive(&mut self, member: usize, _told: usize) {
        self.from.push(member);
    }
}

impl<G> Messages<'_, G> {
    /// The message of a member, which may not have been sent yet.
    fn get(&self, member: usize) -> Vec<u8> {
        loop {
            let message = self.post.lock().unwrap().get_mut(&(member, self.me)).and_then(VecDeque::pop_front);
            match message {
                Some(message) => return message,
                None => thread::yield_now(),
            }
        }
    }
}

const AREA: usize = 4 << 20;

/// An operand or a result, in the section or not.
struct Buffer {
    at: *mut u8,
    len: usize,
    _heap: Vec<u8>,
}

impl Buffer {
    /// In the section if it fits there behind `used`.
    fn new(own: &Own, used: &mut usize, content: &[u8], random: &mut StdRng) -> Self {
        // Half of them at a multiple of 16, as it must be to be lent.
        let (begin, len) = (used.next_multiple_of(16) + 8 * random.random_range(0..12), content.len());
        let mut heap = Vec::new();
        let at = if random.random_bool(0.6) && begin + len <= AREA {
            *used = begin + len;
            own.memory.write(own.area + begin as u64, content);
            own.memory.address(own.area + begin as u64, len as u64)
        } else {
            heap = content.to_vec();
            heap.as_mut_ptr()
        };
        Self { at, len, _heap: heap }
    }

    /// Its content; afterwards something else is there, which nobody may see.
    fn take(&self) -> Vec<u8> {
        // SAFETY: it has so many bytes, and no operation uses it now.
        unsafe {
            let bytes = std::slice::from_raw_parts(self.at, self.len).to_vec();
            self.at.write_bytes(0xaa, self.len);
            bytes
        }
    }
}

/// Makes a group of so many members in two sections, and runs `work` in each.
fn group(size: usize, chunk: usize, work: impl Fn(&mut Group<View>, &Own) + Sync) {
    group_to_leave(size, chunk, |mut group, own| work(&mut group, &own));
}

/// The same for members that leave.
fn group_to_leave(size: usize, chunk: usize, work: impl Fn(Group<View>, Own) + Sync) {
    let region = Region::new(256 << 20, 2, 16);
    let mut endpoints: Vec<_> = (0..size).map(|member| region.endpoint(member as u32 % 2)).collect();
    let mut members = Vec::new();
    let post = Post::default();
    let (mut chunks, mut areas): (Vec<Fragment>, Vec<Fragment>) = (Vec::new(), Vec::new());
    for (number, endpoint) in endpoints.iter_mut().enumerate() {
        let (section, tag) = (*endpoint.section(), 100 + number as u64);
        let block = endpoint.fragment(BLOCK).expect("memory");
        // The content before must not matter.
        endpoint.memory().write(block.offset(), &pattern(7, BLOCK));
        Group::prepare(endpoint.memory(), block.offset(), tag);
        let (slot, incarnation) = (section.slot(endpoint.slot()), endpoint.name().incarnation);
        members.push(Rank { section, block: block.offset(), tag, slot, incarnation });
        chunks.push(endpoint.fragment(chunks_len(chunk, MIN_CHUNKS)).expect("memory"));
        areas.push(endpoint.fragment(AREA).expect("memory"));
    }
    thread::scope(|scope| {
        for (me, endpoint) in endpoints.iter().enumerate() {
            let (members, work, memory) = (members.clone(), &work, endpoint.memory().clone());
            let (mine, area, post) = (chunks[me].offset(), areas[me].offset(), Arc::clone(&post));
            scope.spawn(move || {
                let mut group = Group::new(memory.clone(), me, members, 20).expect("sound blocks");
                assert!(
                    group
                        .add_chunks(mine, chunk, MIN_CHUNKS << me, &mut Patience::default())
                        .expect("chunks")
                );
                work(group, Own { memory, area, chunks: mine, post });
            });
        }
    });
}

/// One operation, chosen by the seed, with its result checked.
fn operate(group: &mut Group<View>, own: &Own, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    // Each chooses for itself where its operands lie.
    let mut choice = StdRng::seed_from_u64(seed ^ (group.me() as u64 + 1) << 32);
    let mut used = 0;
    let mut buffer = |content: &[u8]| Buffer::new(own, &mut used, content, &mut choice);
    let pause = &mut Patience::default();
    let (size, me) = (group.size(), group.me());
    let root = random.random_range(0..size);
    let longest = [16, 300, 5000, 40_000, 200_000][random.random_range(0..5)];
    // Of those in threes, the members' shares begin anywhere.
    let element = NUMBER * [1, 3][random.random_range(0..2)];
    let len = random.random_range(1..=longest) / element * element + element;
    let in_place = random.random_bool(0.5);
    let mine = data_of(seed, me, len);
    // SAFETY: in all operations the buffers have the length that is given.
    unsafe {
        match random.random_range(0..9u32) {
            0 => group.barrier(pause).expect("barrier"),
            1 => {
                let data = buffer(&if me == root { mine } else { vec![0; len] });
                group.broadcast(root, data.at, len, pause).expect("broadcast");
                assert!(data.take() == data_of(seed, root, len), "broadcast of {len}, seed {seed}");
            }
            2 => {
                let length = |member: usize| data_of(seed ^ 1, member, 2)[0] as usize * len / 255;
                let out: Vec<Buffer> = (0..size).map(|member| buffer(&vec![0; length(member)])).collect();
                let own = if in_place { None } else { Some(buffer(&mine[..length(me)])) };
                if own.is_none() {
                    out[me].at.copy_from(mine.as_ptr(), length(me));
                }
                let from = own.as_ref().unwrap_or(&out[me]).at;
                let part = |member: usize| {
                    let stays = in_place && member == me;
                    (if stays { std::ptr::null_mut() } else { out[member].at }, out[member].len)
                };
                group.all_gather(from, length(me), part, pause).expect("all_gather");
                let out: Vec<_> = out.iter().map(Buffer::take).collect();
                own.iter().for_each(|own| drop(own.take()));
                for (member, out) in out.iter().enumerate() {
                    let wanted = &data_of(seed, member, len)[..length(member)];
                    assert!(out == wanted, "all_gather of {len}, seed {seed}");
                }
            }
            3 => {
                let (mine, out) = (buffer(&mine), buffer(&vec![0; len * size]));
                let part = |member: usize| out.at.add(member * len);
                group.gather(root, mine.at, len, part, pause).expect("gather");
                let (out, _) = (out.take(), mine.take());
                for member in (0..size).filter(|member| me == root && *member != me) {
                    let found = &out[member * len..][..len];
                    assert!(found == data_of(seed, member, len), "gather of {len}, seed {seed}");
                }
            }
            4 => {
                let all = buffer(&if me == root { data_of(seed, 99, len * size) } else { vec![] });
                let part = buffer(&vec![0; len]);
                group.scatter(root, all.at, part.at, len, pause).expect("scatter");
                let (part, _) = (part.take(), all.take());
                let wanted = &data_of(seed, 99, len * size)[me * len..][..len];
                assert!(me == root || part == wanted, "scatter of {len}, seed {seed}");
            }
            5 => {
                let (all, out) = (buffer(&data_of(seed, me, len * size)), buffer(&vec![0; len * size]));
                group.all_to_all(all.at, out.at, len, pause).expect("all_to_all");
                let (out, _) = (out.take(), all.take());
                for member in (0..size).filter(|member| *member != me) {
                    let wanted = &data_of(seed, member, len * size)[me * len..][..len];
                    assert!(out[member * len..][..len] == *wanted, "all_to_all of {len}, seed {seed}");
                }
            }
            8 => {
                // Everybody knows all lengths here, but each member tells the group of its own only.
                let route = random.random_range(0..3u32);
                let length = |from: usize, to: usize| {
                    let flows = from != to && [to == root, from == root, true][route as usize];
                    let draw = data_of(seed ^ 3, from * size + to, 2);
                    if flows && draw[0] > 60 { draw[1] as usize * len / 255 } else { 0 }
                };
                let part = |from: usize, to: usize| data_of(seed ^ 4, from * size + to, length(from, to));
                let given: Vec<Buffer> = (0..size).map(|member| buffer(&part(me, member))).collect();
                let taken: Vec<Buffer> =
                    (0..size).map(|member| buffer(&vec![0; length(member, me)])).collect();
                let from = |member: usize| (given[member].at.cast_const(), given[member].len);
                let to = |member: usize| (taken[member].at, taken[member].len);
                let mut late = Messages { me, post: &own.post, given: from, from: Vec::new() };
                let only = (route == 0).then_some(root);
                group.exchange_vector(only, from, to, &mut late, pause).expect("exchange_vector");
                given.iter().for_each(|given| drop(given.take()));
                for (member, taken) in taken.iter().enumerate() {
                    let got = taken.take();
                    let got = if late.from.contains(&member) { late.get(member) } else { got };
                    assert!(got == part(member, me), "exchange_vector of {len}, route {route}, seed {seed}");
                }
            }
            kind @ 6.. => {
                let mine = buffer(&mine);
                let out = if in_place { None } else { Some(buffer(&vec![0; len])) };
                let to = out.as_ref().unwrap_or(&mine);
                let join = &mut Horner { element };
                if kind == 6 {
                    group.reduce(root, mine.at, to.at, len, join, pause).expect("reduce");
                } else {
                    group.all_reduce(mine.at, to.at, len, join, pause).expect("all_reduce");
                }
                let (to, _) = (to.take(), mine.take());
                if kind == 7 || me == root {
                    let wanted = joined(seed, size, len);
                    assert!(to == wanted, "{kind}: {len} in place {in_place}, seed {seed}");
                }
            }
        }
    }
}

#[test]
fn any_sequence_of_operations_gives_what_it_should() {
    for size in [1, 2, 3, 5, 9, 13] {
        for chunk in [MIN_CHUNK, 32 << 10] {
            let seed = rand::random::<u64>() >> 20;
            println!("{size} members, chunks of {chunk}, seed {seed}");
            group(size, chunk, |group, own| {
                for round in 0..60 {
                    operate(group, own, seed + round);
                }
            });
        }
    }
}

#[test]
fn a_member_that_runs_ahead_waits_for_its_readers() {
    group(3, MIN_CHUNK, |group, _| {
        for round in 0..2000u64 {
            let mut value = if group.me() == 1 { round } else { 0 };
            if group.me() == 2 && round % 64 == 0 {
                thread::yield_now();
            }
            // SAFETY: a word has eight bytes.
            unsafe {
                let data = (&raw mut value).cast();
                group.broadcast(1, data, 8, &mut Patience::default()).expect("broadcast");
            }
            assert_eq!(value, round);
        }
    });
}

#[test]
fn who_takes_part_with_another_length_is_found_out() {
    group(2, MIN_CHUNK, |group, _| {
        let mut data = [0u8; 64];
        let len = if group.me() == 0 { 64 } else { 32 };
        // SAFETY: the data has 64 bytes.
        let result = unsafe { group.broadcast(0, data.as_mut_ptr(), len, &mut Patience::default()) };
        match group.me() {
            0 => assert_eq!(result, Ok(())),
            _ => assert_eq!(result, Err(CollError::LengthMismatch { rank: 0, expected: 32, found: 64 })),
        }
    });
}

/// Writes at a member's next step what it would if it had lent these bytes.
fn lend(group: &Group<View>, step: u64, offset: u64, len: u64) {
    let head = group.rank(group.me()).block + 256 + step * 27 % 64 * 128;
    group.memory().store_words(head + 16, [offset, len]);
    group.memory().store(head, step << 21 | 0x1f_ffff, Ordering::Release);
}

#[test]
fn memory_that_a_member_cannot_lend_is_not_read() {
    let len = 3 * MIN_CHUNK;
    let gate = std::sync::Barrier::new(2);
    group(2, MIN_CHUNK, |group, own| {
        // The meeting took two steps.
        let step = 3;
        let section = group.rank(0).section.entry;
        let ranges = [
            (section.offset - 1, len as u64),
            (section.offset + section.len - len as u64 + 1, len as u64),
            (group.rank(1).section.entry.offset + 4096, len as u64),
            (u64::MAX - 5, len as u64),
            (own.area, len as u64 + 1),
            (own.area, u64::MAX),
        ];
        for (offset, lent) in ranges {
            gate.wait();
            if group.me() == 0 {
                lend(group, step, offset, lent);
            }
            gate.wait();
            let mut data = vec![0u8; 2 * len];
            let data = data.as_mut_ptr();
            let mut results = Vec::new();
            if group.me() == 1 {
                let pause = &mut Patience::default();
                // SAFETY: the data has twice `len` bytes, the result in the second half.
                unsafe {
                    results = vec![
                        group.broadcast(0, data, len, pause),
                        group.all_gather(data, 0, |member| (data, if member == 0 { len } else { 0 }), pause),
                        group.reduce(1, data, data.add(len), len, &mut { HORNER }, pause),
                        group.gather(1, data, len, |_| data.add(len), pause),
                    ];
                }
            }
            for result in results {
                let expected = match lent == len as u64 {
                    true => CollError::OutsideSection { rank: 0, offset, len },
                    false => CollError::LengthMismatch { rank: 0, expected: len, found: lent as usize },
                };
                assert_eq!(result, Err(expected), "{lent} bytes at {offset}");
            }
        }
    });
}

/// Notes what is to be sent and received.
#[derive(Default)]
struct Notes(Vec<usize>, Vec<usize>);

impl Late for Notes {
    fn send(&mut self, member: usize) {
        self.0.push(member);
    }
    fn receive(&mut self, member: usize, _told: usize) {
        self.1.push(member);
    }
}

#[test]
fn what_a_slot_has_no_room_for_is_left_to_messages() {
    group(3, MIN_CHUNK, |group, _| {
        let (me, mut late) = (group.me(), Notes::default());
        // Of a table's slot of 8 KiB the first and the last part get some, in the order in which they are dealt.
        let lengths = [0, MIN_CHUNK, 100];
        let data = pattern(5, MIN_CHUNK);
        let mut got = vec![0u8; MIN_CHUNK];
        let given = |member: usize| (data.as_ptr(), if me == 0 { lengths[member] } else { 0 });
        let at = got.as_mut_ptr();
        let taken = |member: usize| (at, if me != 0 && member == 0 { lengths[me] } else { 0 });
        // SAFETY: both have 8 KiB.
        unsafe { group.exchange_vector(None, given, taken, &mut late, &mut Patience::default()) }
            .expect("exchange");
        match me {
            0 => assert_eq!((late.0, late.1), (vec![1], vec![])),
            1 => assert_eq!((late.0, late.1), (vec![], vec![0])),
            _ => {
                assert_eq!((late.0, late.1), (vec![], vec![]));
                assert!(got[..100] == data[..100]);
            }
        }
    });
}

#[test]
fn a_part_of_another_length_keeps_no_other_from_coming() {
    // Member 1's gift to member 0, and what that expects: in a slot, by a message, and both ways round.
    let cases = [
        (100, 90),
        (90, 100),
        (4000, 5000),
        (MIN_CHUNK + 9, MIN_CHUNK + 8),
        (MIN_CHUNK + 9, 10),
        (10, MIN_CHUNK + 9),
    ];
    for size in [2, 3] {
        group(size, MIN_CHUNK, |group, _| {
            let me = group.me();
            for (long, short) in cases {
                for only in [None, Some(0)] {
                    let mut late = Notes::default();
                    let data = pattern(7, 2 * MIN_CHUNK);
                    let mut got = vec![0u8; 2 * MIN_CHUNK];
                    let other = if short < MIN_CHUNK { 50 } else { MIN_CHUNK + 50 };
                    let given = |to: usize| match (me, to) {
                        (1, 0) => (data.as_ptr(), long),
                        (2, 0) => (data.as_ptr(), other),
                        _ => (std::ptr::null(), 0),
                    };
                    let at = got.as_mut_ptr();
                    let taken = |from: usize| match (me, from) {
                        (0, 1) => (at, short),
                        (0, 2) => (at, other),
                        _ => (std::ptr::null_mut(), 0),
                    };
                    // SAFETY: both have two chunks; of what is taken the second part takes the first one's place.
                    let result = unsafe {
                        group.exchange_vector(only, given, taken, &mut late, &mut Patience::default())
                    };
                    let expected = CollError::LengthMismatch { rank: 1, expected: short, found: long };
                    assert_eq!(result, if me == 0 { Err(expected) } else { Ok(()) });
                    let late_from = |from: usize, len| (from < size && len > MIN_CHUNK - 48).then_some(from);
                    let wanted: Vec<_> = match me {
                        0 => [late_from(1, long), late_from(2, other)].into_iter().flatten().collect(),
                        _ => Vec::new(),
                    };
                    assert_eq!(late.1, wanted, "{long} bytes for {short}");
                    if me == 0 && size == 3 && !wanted.contains(&2) {
                        assert!(got[..other] == data[..other]);
                    }
                    group.barrier(&mut Patience::default()).expect("barrier");
                }
            }
        });
    }
}

#[test]
fn a_table_that_lies_is_not_followed() {
    let (len, gate) = (100, std::sync::Barrier::new(3));
    group(3, MIN_CHUNK, |group, own| {
        // The meeting took two steps.
        let mut step = 3;
        let (block, section) = (group.rank(0).block, group.rank(0).section.entry);
        let outside = |offset| CollError::OutsideSection { rank: 0, offset, len };
        let length = |found| CollError::LengthMismatch { rank: 0, expected: len, found };
        let lies = [
            // A slot's length, an offset, a part's length, and what is to be found out.
            (48 + 8, section.offset - 8, 100, outside(section.offset - 8)),
            (48 + 8, section.offset + section.len - 99, 100, outside(section.offset + section.len - 99)),
            (48 + 8, u64::MAX, 100, outside(u64::MAX)),
            (48 + 8, group.rank(1).section.entry.offset + 4096, 100, {
                outside(group.rank(1).section.entry.offset + 4096)
            }),
            (48 + 8, own.area, 101, length(101)),
            (48 + 8, 0, 99, length(99)),
            (48 + 8, own.area, u64::MAX, length(usize::MAX)),
            (47, own.area, 100, length(47)),
            (MIN_CHUNK as u64 + 1, own.area, 100, length(MIN_CHUNK + 1)),
        ];
        for (slot, offset, told, expected) in lies {
            gate.wait();
            if group.me() == 0 {
                let body = block + 256 + 64 * 128 + step % 8 * 4096;
                group.memory().store_words(body + 16, [offset, told]);
                group.memory().store(
                    block + 256 + step * 27 % 64 * 128,
                    step << 21 | slot,
                    Ordering::Release,
                );
            }
            gate.wait();
            if group.me() == 1 {
                let (mut data, mut late) = ([0u8; 100], Notes::default());
                let at = data.as_mut_ptr();
                let (given, taken) =
                    (|_| (std::ptr::null(), 0), |member| (at, if member == 0 { len } else { 0 }));
                let pause = &mut Patience::default();
                // SAFETY: the data has so many bytes.
                let result = unsafe { group.exchange_vector(None, given, taken, &mut late, pause) };
                assert_eq!(result, Err(expected), "slot of {slot}, {told} bytes at {offset}");
                let is_late = slot == 48 + 8 && offset == 0;
                assert_eq!(late.1, if is_late { vec![0] } else { vec![] });
            }
            // A step is over all the same where only the length is another.
            step += u64::from(matches!(expected, CollError::LengthMismatch { .. }));
        }
    });
}

#[test]
fn operands_are_not_joined_where_they_may_not_be_read_as_numbers() {
    let len = 3 * MIN_CHUNK;
    let gate = std::sync::Barrier::new(2);
    group(2, MIN_CHUNK, |group, _| {
        let offset = group.rank(0).section.entry.offset + 4096 + 8;
        if group.me() == 0 {
            lend(group, 3, offset, len as u64);
        }
        gate.wait();
        if group.me() == 1 {
            let (mine, mut out) = (vec![0; len], vec![0; len]);
            let pause = &mut Patience::default();
            // SAFETY: both have `len` bytes.
            let result =
                unsafe { group.reduce(1, mine.as_ptr(), out.as_mut_ptr(), len, &mut { HORNER }, pause) };
            assert_eq!(result, Err(CollError::OutsideSection { rank: 0, offset, len }));
        }
    });
}

#[test]
fn what_is_lent_is_not_copied() {
    let (len, all) = (3 * MIN_CHUNK, chunks_len(MIN_CHUNK, MIN_CHUNKS));
    for is_lent in [false, true] {
        group(2, MIN_CHUNK, |group, own| {
            let me = group.me();
            let (data, mut heap) = (data_of(1, 0, len), vec![0; len]);
            if me == 0 {
                own.memory.write(own.area, &data);
                heap.copy_from_slice(&data);
                own.memory.zero(own.chunks, all as u64);
            }
            let lent = me == 0 && is_lent;
            let at = if lent { own.memory.address(own.area, len as u64) } else { heap.as_mut_ptr() };
            // SAFETY: both have so many bytes.
            unsafe { group.broadcast(0, at, len, &mut Patience::default()) }.expect("broadcast");
            let mut copy = vec![0; all];
            own.memory.read(own.chunks, &mut copy);
            if me == 0 {
                assert_eq!(
                    copy.iter().all(|byte| *byte == 0),
                    is_lent,
                    "the chunks of who has lent {is_lent}"
                );
            } else {
                assert!(heap == data, "what came where it was lent {is_lent}");
            }
        });
    }
}

/// Looks away for some time after it has lent something.
#[derive(Default)]
struct Absent(Patience);

impl Pause for Absent {
    fn pause(&mut self, member: usize) -> Result<(), CollError> {
        self.0.pause(member)
    }

    fn exposed(&self, _: usize) {
        thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn who_has_lent_something_need_not_be_looking_when_its_reader_leaves() {
    let len = 3 * MIN_CHUNK;
    group_to_leave(2, MIN_CHUNK, |mut group, own| {
        let (block, at) = (group.rank(1).block, own.memory.address(own.area, len as u64));
        // SAFETY: the area is longer.
        unsafe { group.broadcast(0, at, len, &mut Absent::default()) }.expect("broadcast");
        if group.me() == 1 {
            assert!(group.leave().is_released(&own.memory));
            // The memory is that of another group's block now.
            Group::prepare(&own.memory, block, 777);
        }
    });
}

#[test]
fn who_fails_lets_go_those_who_have_lent_it_something() {
    let len = 3 * MIN_CHUNK;
    group_to_leave(2, MIN_CHUNK, |mut group, own| {
        let (me, at) = (group.me(), own.memory.address(own.area, len as u64));
        let mine = len - 8 * me;
        // SAFETY: the area is longer.
        let result = unsafe { group.broadcast(0, at, mine, &mut Patience::default()) };
        if me == 1 {
            assert_eq!(result, Err(CollError::LengthMismatch { rank: 0, expected: mine, found: len }));
            group.abort(0);
        } else {
            assert_eq!(result, Ok(()));
        }
    });
}

/// Waits for all but member 0, which is lost.
struct WithoutFirst;

impl Pause for WithoutFirst {
    fn pause(&mut self, member: usize) -> Result<(), CollError> {
        thread::yield_now();
        if member == 0 { Err(CollError::PeerLost(0)) } else { Ok(()) }
    }
}

#[test]
fn who_has_lent_something_waits_for_all_who_live() {
    let len = 3 * MIN_CHUNK;
    group(3, MIN_CHUNK, |group, own| {
        let at = own.memory.address(own.area, len as u64);
        match group.me() {
            1 => {
                own.memory.write(own.area, &vec![7; len]);
                // SAFETY: the area is longer.
                let result = unsafe { group.broadcast(1, at, len, &mut WithoutFirst) };
                assert_eq!(result, Err(CollError::PeerLost(0)));
                own.memory.write(own.area, &vec![8; len]);
            }
            2 => {
                thread::sleep(Duration::from_millis(100));
                // SAFETY: the area is longer.
                unsafe { group.broadcast(1, at, len, &mut WithoutFirst) }.expect("broadcast");
                let mut found = vec![0; len];
                own.memory.read(own.area, &mut found);
                assert!(found.iter().all(|byte| *byte == 7), "what came after the operation was read");
            }
            _ => {}
        }
    });
}

#[test]
fn who_claims_to_have_finished_with_everything_harms_only_itself() {
    let len = 3 * MIN_CHUNK;
    group(2, MIN_CHUNK, |group, own| {
        if group.me() == 1 {
            own.memory.store(group.rank(1).block + 128, u64::MAX, Ordering::Release);
            return;
        }
        let mut heap = vec![1; len];
        for at in [own.memory.address(own.area, len as u64), heap.as_mut_ptr()] {
            for _ in 0..200 {
                // SAFETY: both have so many bytes.
                unsafe { group.broadcast(0, at, len, &mut Patience::default()) }.expect("broadcast");
            }
        }
    });
}

#[test]
fn members_that_were_told_different_things_find_out() {
    group(2, MIN_CHUNK, |group, _| {
        let me = group.me();
        let result = group.add_chunks(0, MIN_CHUNK << me, MIN_CHUNKS, &mut Patience::default());
        assert_eq!(result, Err(CollError::Disagreement(1 - me)));
    });
}

#[test]
fn what_is_longer_than_the_room_for_it_is_cut() {
    group(2, MIN_CHUNK, |group, _| {
        let (mine, mut all) = ([7u8; 32], [[0u8; 32]; 2]);
        let me = group.me();
        let parts = all.each_mut().map(|part| part.as_mut_ptr());
        // SAFETY: no part is longer than 32 bytes.
        unsafe {
            let part = |member| (parts[member], if member == me { 16 } else { 32 });
            group.all_gather(mine.as_ptr(), 32, part, &mut Patience::default()).expect("allgather");
        }
        assert_eq!(all[me], *[[7u8; 16], [0; 16]].as_flattened());
        assert_eq!(all[1 - me], [7; 32]);
    });
}

#[test]
fn who_has_given_up_is_not_waited_for() {
    group_to_leave(2, MIN_CHUNK, |mut group, _| {
        let pause = &mut Patience::default();
        group.barrier(pause).expect("barrier");
        if group.me() == 1 {
            return group.abort(15);
        }
        assert_eq!(group.barrier(pause), Err(CollError::Aborted { rank: 1, why: 15 }));
    });
}

/// Does not wait.
struct Impatience;

impl Pause for Impatience {
    fn pause(&mut self, member: usize) -> Result<(), CollError> {
        Err(CollError::PeerLost(member))
    }
}

#[test]
fn who_is_lost_is_not_waited_for() {
    group(3, MIN_CHUNK, |group, _| {
        if group.me() == 0 {
            assert_eq!(group.barrier(&mut Impatience), Err(CollError::PeerLost(1)));
        }
    });
}

#[test]
fn blocks_outside_of_their_sections_are_refused() {
    let region = Region::new(8 << 20, 2, 4);
    let endpoint = region.endpoint(0);
    let other = *region.endpoint(1).section();
    let inside = endpoint.section().entry.offset + (1 << 20);
    let with = |section, block| {
        let (slot, incarnation) = (endpoint.section().slot(endpoint.slot()), endpoint.name().incarnation);
        let member = Rank { section, block, tag: 1, slot, incarnation };
        Group::new(endpoint.memory().clone(), 0, vec![member], 1).is_some()
    };
    assert!(with(*endpoint.section(), inside));
    assert!(!with(other, inside));
    assert!(!with(*endpoint.section(), inside + 8));
    assert!(!with(*endpoint.section(), u64::MAX - 63));
}

#[test]
fn chunks_of_nonsensical_length_are_refused() {
    let region = Region::new(32 << 20, 1, 4);
    let endpoint = region.endpoint(0);
    let block = endpoint.section().entry.offset + (1 << 20);
    for (chunk, is_sound) in [
        (0, false),
        (4096, false),
        (MIN_CHUNK, true),
        (MIN_CHUNK + 64, false),
        (MAX_CHUNK, true),
        (2 * MAX_CHUNK, false),
        (usize::MAX & !4095, false),
    ] {
        Group::prepare(endpoint.memory(), block, 1);
        let (section, incarnation) = (*endpoint.section(), endpoint.name().incarnation);
        let member = Rank { section, block, tag: 1, slot: section.slot(endpoint.slot()), incarnation };
        let mut group = Group::new(endpoint.memory().clone(), 0, vec![member], 1).expect("a sound block");
        let chunks = endpoint.section().entry.offset + (2 << 20);
        let are_there = group.add_chunks(chunks, chunk, MIN_CHUNKS, &mut Patience::default());
        assert_eq!(are_there, Ok(is_sound), "chunks of {chunk} bytes");
    }
}

#[test]
fn what_was_said_last_stays_until_it_is_read() {
    let gate = std::sync::Barrier::new(2);
    group(2, MIN_CHUNK, |group, own| {
        let memory = &own.memory;
        let mut value = 5u64;
        let data = (&raw mut value).cast();
        let me = group.me();
        if me == 0 {
            // SAFETY: a word has eight bytes.
            unsafe { group.broadcast(0, data, 8, &mut Patience::default()).expect("broadcast") };
            let mut pending = take(group).leave();
            assert!(!pending.is_released(memory), "nobody has read it");
            gate.wait();
            gate.wait();
            assert!(pending.is_released(memory), "the reader has finished");
        } else {
            gate.wait();
            // SAFETY: a word has eight bytes.
            unsafe { group.broadcast(0, data, 8, &mut Patience::default()).expect("broadcast") };
            let mut pending = take(group).leave();
            assert!(pending.is_released(memory), "nothing was said");
            gate.wait();
        }
    });
}

/// Takes a group out of a place that is not used any more.
fn take(group: &mut Group<View>) -> Group<View> {
    let nobody = Group::new(View::clone(group.memory()), 0, vec![group.rank(0)], 1).expect("sound");
    std::mem::replace(group, nobody)
}
