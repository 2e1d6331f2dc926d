//! The protocol of collective operations under a model checker: every interleaving, and every reordering that the memory
//! model allows. In these models a block has fewer slots, so that all are soon used again.
//!
//! Run with `RUSTFLAGS="--cfg loom" cargo test --release --no-default-features --test loom_collective`.
#![cfg(loom)]

use std::collections::HashMap;

use loom::sync::atomic::{AtomicU64, Ordering, fence};
use loom::thread;
use std::sync::Arc;
use vmshm_transport::abi::region::RegionHeader;
use vmshm_transport::abi::section::{STATE_GONE, STATE_LIVE, SectionLayout, SlotState};
use vmshm_transport::collective::{BLOCK, CollError, Group, Late, Pause, Rank, SLOTS};
use vmshm_transport::{CacheHints, Device, Memory, Section};

/// Bytes of a head, and of what the models use of it.
const HEAD: u64 = 128;
const USED: u64 = 32;

/// A slot's word of a life.
fn life(incarnation: u64, state: u8) -> u64 {
    SlotState { incarnation, state }.pack()
}

/// Two blocks, of which only the words are there that the models need.
struct Words(HashMap<u64, AtomicU64>);

impl Words {
    fn new(members: &[Rank]) -> Self {
        let mut words = HashMap::new();
        for member in members {
            let heads =
                (0..SLOTS).flat_map(|slot| (0..USED).step_by(8).map(move |at| (slot + 2) * HEAD + at));
            let all = [0, HEAD].into_iter().chain(heads);
            words.extend(all.map(|at| (member.block + at, AtomicU64::new(0))));
            words.insert(member.slot, AtomicU64::new(life(member.incarnation, STATE_LIVE)));
        }
        Self(words)
    }

    fn word(&self, offset: u64) -> &AtomicU64 {
        self.0.get(&offset).unwrap_or_else(|| panic!("the model has no word at {offset:#x}"))
    }
}

impl CacheHints for Words {}

impl Device for Words {}

impl Memory for Words {
    fn len(&self) -> u64 {
        1 << 20
    }
    fn load(&self, offset: u64, order: Ordering) -> u64 {
        self.word(offset).load(order)
    }
    fn store(&self, offset: u64, value: u64, order: Ordering) {
        self.word(offset).store(value, order);
    }
    fn fetch_add(&self, _: u64, _: u64, _: Ordering) -> u64 {
        unreachable!("no word has two writers")
    }
    fn compare_exchange(&self, _: u64, _: u64, _: u64) -> Result<u64, u64> {
        unreachable!("no word has two writers")
    }
    fn fence(&self, order: Ordering) {
        fence(order);
    }
    unsafe fn copy_out(&self, offset: u64, to: *mut u8, len: usize) {
        assert!(len % 8 == 0);
        for at in (0..len).step_by(8) {
            let word = self.load(offset + at as u64, Ordering::Relaxed);
            // SAFETY: the caller vouches for `len` bytes.
            unsafe { to.add(at).cast::<u64>().write_unaligned(word) };
        }
    }
    unsafe fn copy_in(&self, offset: u64, from: *const u8, len: usize) {
        assert!(len % 8 == 0);
        for at in (0..len).step_by(8) {
            // SAFETY: the caller vouches for `len` bytes.
            let word = unsafe { from.add(at).cast::<u64>().read_unaligned() };
            self.store(offset + at as u64, word, Ordering::Relaxed);
        }
    }
    fn address(&self, _: u64, _: u64) -> *mut u8 {
        std::ptr::null_mut()
    }
    fn offset_of(&self, _: *const u8, _: u64) -> Option<u64> {
        None
    }
}

/// Lets the other thread run.
struct Turn;

impl Pause for Turn {
    fn pause(&mut self, _: usize) -> Result<(), CollError> {
        thread::yield_now();
        Ok(())
    }
}

fn members() -> Vec<Rank> {
    let header = RegionHeader::new([7; 16], 1 << 20, 4096, 2, 4);
    let member = |number| {
        let entry = header.new_entry(number);
        let layout = SectionLayout::new(entry.len, 2, 4).unwrap();
        let block = (entry.offset + entry.len - BLOCK as u64) & !127;
        let section = Section { number, entry, layout };
        Rank { section, block, tag: 5 + u64::from(number), slot: section.slot(0), incarnation: 3 }
    };
    vec![member(0), member(1)]
}

type Model = Group<Arc<Words>>;

/// Runs `work` in two threads, as members 0 and 1 of a group.
fn model(work: fn(Model, Arc<Words>)) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.max_branches = 20_000;
    builder.check(move || {
        let members = members();
        let words = Arc::new(Words::new(&members));
        for member in &members {
            Group::prepare(&words, member.block, member.tag);
        }
        let group = |me| Group::new(Arc::clone(&words), me, members.clone(), 1).expect("sound");
        let (zero, one) = (group(0), group(1));
        let others = Arc::clone(&words);
        let other = thread::spawn(move || work(one, others));
        work(zero, words);
        other.join().unwrap();
    });
}

fn broadcast(group: &mut Model, root: usize, value: u64) -> u64 {
    let mut data = if group.me() == root { value } else { 0 };
    // SAFETY: a word has eight bytes.
    unsafe { group.broadcast(root, (&raw mut data).cast(), 8, &mut Turn).expect("honest members") };
    data
}

#[test]
fn a_slot_is_not_used_again_before_it_was_read() {
    model(|mut group, _| {
        for value in 1..=SLOTS + 2 {
            assert_eq!(broadcast(&mut group, 0, value), value);
        }
    });
}

#[test]
fn what_each_says_reaches_the_other() {
    model(|mut group, _| {
        for round in 1..=3u64 {
            let mine = round * 10 + group.me() as u64;
            let mut theirs = 0u64;
            let part = (&raw mut theirs).cast::<u8>();
            // SAFETY: both are words.
            let done = unsafe { group.all_gather((&raw const mine).cast(), 8, |_| (part, 8), &mut Turn) };
            done.expect("honest members");
            assert_eq!(theirs, round * 10 + 1 - group.me() as u64);
        }
    });
}

#[test]
fn a_barrier_orders_what_comes_before_it_and_after_it() {
    model(|mut group, words| {
        // The tags serve as each member's own data: nothing else reads them here.
        let members = members();
        let (me, other) = (group.me(), 1 - group.me());
        for round in 1..=2u64 {
            words.store(members[me].block, round * 100, Ordering::Relaxed);
            group.barrier(&mut Turn).expect("honest members");
            assert_eq!(words.load(members[other].block, Ordering::Relaxed), round * 100);
            group.barrier(&mut Turn).expect("honest members");
        }
    });
}

#[test]
fn operations_of_all_kinds_follow_each_other() {
    model(|mut group, _| {
        assert_eq!(broadcast(&mut group, 1, 7), 7);
        group.barrier(&mut Turn).expect("honest members");
        assert_eq!(broadcast(&mut group, 0, 8), 8);
        assert_eq!(broadcast(&mut group, 0, 9), 9);
        group.barrier(&mut Turn).expect("honest members");
        assert_eq!(broadcast(&mut group, 1, 10), 10);
    });
}

#[test]
fn memory_that_was_left_is_not_used_before_the_last_reader_has_finished() {
    model(|mut group, words| {
        let (me, members) = (group.me(), members());
        assert_eq!(broadcast(&mut group, 0, 7), 7);
        group.barrier(&mut Turn).expect("honest members");
        assert_eq!(broadcast(&mut group, 1, 8), 8);
        let mut pending = group.leave();
        while !pending.is_released(&words) {
            thread::yield_now();
        }
        // Now it is others': they write what they like, but for the tag.
        for at in [HEAD, 2 * HEAD, 2 * HEAD + 16, 3 * HEAD, 3 * HEAD + 16, 4 * HEAD + 16] {
            words.store(members[me].block + at, 0, Ordering::Relaxed);
        }
    });
}

#[test]
fn who_only_gives_is_not_overtaken() {
    model(|mut group, _| {
        // The values of a reduction are read where they lie, which a model can't watch; its steps are these.
        for round in 1..=SLOTS + 1 {
            let mut got = 0u64;
            let part = (&raw mut got).cast::<u8>();
            // SAFETY: both are words.
            let done = unsafe { group.gather(0, (&raw const round).cast(), 8, |_| part, &mut Turn) };
            done.expect("honest members");
            assert!(group.me() != 0 || got == round);
        }
    });
}

#[test]
fn what_a_dead_members_memory_has_become_is_not_taken_for_its_own() {
    model(|mut group, words| {
        if group.me() == 1 {
            broadcast(&mut group, 1, 7);
            // It dies, and another process takes its memory.
            let dead = members()[1];
            words.store(dead.slot, life(dead.incarnation, STATE_GONE), Ordering::Release);
            words.fence(Ordering::Release);
            words.store(dead.block + 2 * HEAD + (27 % SLOTS) * HEAD + 16, 99, Ordering::Relaxed);
            return;
        }
        let mut value = 0u64;
        // SAFETY: a word has eight bytes.
        let done = unsafe { group.broadcast(1, (&raw mut value).cast(), 8, &mut Turn) };
        assert!(matches!((done, value), (Ok(()), 7) | (Err(CollError::PeerLost(1)), _)), "{done:?}, {value}");
    });
}

/// Counts the parts that come as messages.
struct Messages(u64);

impl Late for Messages {
    fn send(&mut self, _: usize) {}
    fn receive(&mut self, _: usize, _: usize) {
        self.0 += 1;
    }
}

#[test]
fn parts_of_any_lengths_are_said_to_be_where_they_are() {
    model(|mut group, _| {
        let me = group.me();
        // A word in the slot, what is too long for one, of another length each time, or nothing: so that the second comes
        // to where the first was.
        for round in 1..=SLOTS + 2 {
            let len = [8, 5000 + round as usize, 0][(round as usize + 2) % 3];
            let (given, mut got) = (round, 0u64);
            let to = (&raw mut got).cast::<u8>();
            let from = |_| ((&raw const given).cast::<u8>(), if me == 0 { len } else { 0 });
            let part = |_| (to, if me == 1 { len } else { 0 });
            let mut late = Messages(0);
            // SAFETY: both are words, and of more than a slot has room for nothing is touched.
            let done = unsafe { group.exchange_vector(Some(1), from, part, &mut late, &mut Turn) };
            done.expect("honest members");
            if me == 1 {
                assert_eq!((got, late.0), (if len == 8 { round } else { 0 }, u64::from(len > 8)));
            }
        }
    });
}
