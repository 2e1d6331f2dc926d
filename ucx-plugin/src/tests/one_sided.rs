//! Puts, gets and atomics, on memory of a section, which takes them in place, and on other memory, whose owner does them.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::ucp::{Context, Endpoint, Key, Memory, Op, Worker};

const LEN: usize = 400_000;
/// In the ring, in a piece of the section, in several.
const SIZES: [usize; 5] = [1, 8, 1000, 5000, 100_000];

/// Address where nothing is, as OpenSHMEM takes it for its heap.
const FIXED: usize = 0x7e_ff00_0000;

struct Target {
    worker: Arc<Worker>,
    memory: Memory,
    packed: Vec<u8>,
}

impl Target {
    fn new(in_section: bool) -> Self {
        let context = Context::new();
        let memory = Memory::new(&context, LEN, in_section);
        Self::of(&context, memory, in_section)
    }

    fn of(context: &Arc<Context>, memory: Memory, in_section: bool) -> Self {
        let worker = Worker::new(context);
        assert_eq!(is_in_region(memory.address()), in_section);
        let packed = memory.pack();
        Self { worker, memory, packed }
    }

    fn meet(&self, worker: &Arc<Worker>) -> (Endpoint, Key) {
        let endpoint = worker.connect(&self.worker.address());
        let key = endpoint.unpack(&self.packed);
        (endpoint, key)
    }
}

/// Whether the kernel has mapped the tests' region there.
fn is_in_region(address: u64) -> bool {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().filter(|line| line.contains("memfd:test")).any(|line| {
        let (from, rest) = line.split_once('-').unwrap();
        let (to, _) = rest.split_once(' ').unwrap();
        let number = |text| u64::from_str_radix(text, 16).unwrap();
        (number(from)..number(to)).contains(&address)
    })
}

fn pattern(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 31 + seed) as u8).collect()
}

fn word(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word[..bytes.len()].copy_from_slice(bytes);
    u64::from_ne_bytes(word)
}

fn move_bytes(target: &Target) {
    let worker = Worker::new(&Context::new());
    let (endpoint, key) = target.meet(&worker);
    for (number, len) in SIZES.into_iter().enumerate() {
        let (bytes, at) = (pattern(number, len), number * 37 + 3);
        let remote = target.memory.address() + at as u64;
        let request = endpoint.put(bytes.clone(), remote, &key);
        request.wait_with(|| target.worker.progress()).unwrap();
        endpoint.flush(Some(&target.worker));
        assert!(target.memory.read(at, len) == bytes, "put of {len}");
        let request = endpoint.get(len, remote, &key);
        assert!(request.wait_with(|| target.worker.progress()).unwrap() == bytes, "get of {len}");
    }
    assert_eq!(endpoint.failure(), 0);
}

#[test]
fn bytes_go_to_a_section_and_come_from_there() {
    let _use = super::beside_others();
    move_bytes(&Target::new(true));
}

#[test]
fn memory_of_a_section_lies_where_the_program_wants_it() {
    let _use = super::beside_others();
    for address in [FIXED, FIXED + 0x3000] {
        let context = Context::new();
        let memory = Memory::fixed(&context, LEN, address);
        assert_eq!(memory.address(), address as u64);
        let target = Target::of(&context, memory, true);
        move_bytes(&target);
        // In place: the owner does nothing.
        let worker = Worker::new(&Context::new());
        let (endpoint, key) = target.meet(&worker);
        let word = endpoint.get(8, address as u64, &key).wait_with(|| target.worker.progress()).unwrap();
        endpoint.change(Op::Add, 8, 1, true, address as u64, &key).wait().unwrap();
        let last = address as u64 + LEN as u64 - 8;
        assert_eq!(endpoint.get(8, last, &key).wait().unwrap(), target.memory.read(LEN - 8, 8));
        assert_eq!(u64::from_ne_bytes(word.try_into().unwrap()) + 1, self::word(&target.memory.read(0, 8)));
    }
    assert!(!is_in_region(FIXED as u64), "it was not unmapped");
}

#[test]
fn bytes_go_to_other_memory_and_come_from_there() {
    let _use = super::beside_others();
    move_bytes(&Target::new(false));
}

/// Each operation on a word, beside a word that must stay as it is.
fn change_words(in_section: bool) {
    let target = Target::new(in_section);
    let worker = Worker::new(&Context::new());
    let (endpoint, key) = target.meet(&worker);
    let steps = [
        (Op::Add, 5, 5),
        (Op::Or, 0x1_0000_00f0, 0x1_0000_00f5),
        (Op::And, 0x1_0000_00f1, 0x1_0000_00f1),
        (Op::Xor, 0x11, 0x1_0000_00e0),
        (Op::Swap, 77, 77),
        (Op::CompareAndSwap(78), 1, 77),
        (Op::CompareAndSwap(77), u64::MAX, u64::MAX),
        (Op::Add, 1, 0),
    ];
    for (len, at) in [(4, 8), (4, 12), (8, 24), (8, 4096)] {
        let (remote, mask) = (target.memory.address() + at as u64, u64::MAX >> (64 - 8 * len));
        for fetches in [true, false] {
            let mut found = 0;
            for (op, value, result) in steps {
                let (value, result) = (value & mask, result & mask);
                // UCX posts no other operations without fetching.
                let can_post = !matches!(op, Op::Swap | Op::CompareAndSwap(_));
                let request = endpoint.change(op, len, value, fetches || !can_post, remote, &key);
                let words = request.wait_with(|| target.worker.progress()).unwrap();
                if fetches || !can_post {
                    assert_eq!(word(&words[..len]), found, "{op:?} of {len} fetches");
                }
                endpoint.flush(Some(&target.worker));
                assert_eq!(word(&target.memory.read(at, len)), result, "{op:?} of {len}");
                found = result;
            }
        }
    }
    assert_eq!(word(&target.memory.read(0, 8)), 0);
    assert_eq!(word(&target.memory.read(16, 8)), 0);
    assert_eq!(endpoint.failure(), 0);
}

#[test]
fn words_of_a_section_change() {
    let _use = super::beside_others();
    change_words(true);
}

#[test]
fn words_of_other_memory_change() {
    let _use = super::beside_others();
    change_words(false);
}

/// Several add to one word of 4 bytes, and to the other half of the same 8.
fn add_at_once(in_section: bool) {
    const TIMES: u64 = 2000;
    let (target, is_over) = (Target::new(in_section), AtomicBool::new(false));
    let context = Context::new();
    thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                target.worker.progress();
            }
        });
        let adders: Vec<_> = [0, 0, 4]
            .map(|at| {
                let (target, context) = (&target, &context);
                scope.spawn(move || {
                    let worker = Worker::new(context);
                    let (endpoint, key) = target.meet(&worker);
                    let remote = target.memory.address() + at;
                    for _ in 0..TIMES {
                        endpoint.change(Op::Add, 4, 1, false, remote, &key).wait().unwrap();
                    }
                    endpoint.flush(None);
                })
            })
            .into();
        let results: Vec<_> = adders.into_iter().map(thread::ScopedJoinHandle::join).collect();
        is_over.store(true, Ordering::Relaxed);
        assert!(results.iter().all(Result::is_ok));
    });
    assert_eq!(word(&target.memory.read(0, 4)), 2 * TIMES);
    assert_eq!(word(&target.memory.read(4, 4)), TIMES);
}

#[test]
fn no_change_of_a_section_is_lost() {
    let _use = super::beside_others();
    add_at_once(true);
}

#[test]
fn no_change_of_other_memory_is_lost() {
    let _use = super::beside_others();
    add_at_once(false);
}
