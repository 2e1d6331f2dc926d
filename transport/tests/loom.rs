//! The protocols under a model checker: every interleaving, and every reordering that the memory model allows.
//!
//! Run with `RUSTFLAGS="--cfg loom" cargo test --release --no-default-features --test loom`.
#![cfg(loom)]

use std::collections::HashMap;

use loom::sync::atomic::{AtomicU64, Ordering, fence};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;
use vmshm_transport::abi::EndpointId;
use vmshm_transport::abi::region::RegionHeader;
use vmshm_transport::abi::ring::{KIND_INLINE, Stamp};
use vmshm_transport::abi::section::{
    STATE_ATTACHING, STATE_FREE, STATE_LIVE, SectionLayout, SlotState, chunk_owner,
};
use vmshm_transport::parts::{
    Activity, Consumer, Producer, announce, announced, bump, claim, claim_run, close, free_run, is_closed,
    lives, publish, reap, retract, state,
};
use vmshm_transport::{CacheHints, Device, Endpoint, Event, Inbox, Memory, Region};
use zerocopy::IntoBytes;

/// Memory with only those words that the models need; touching another is a mistake in the model. The header is not under
/// test and is plain.
struct Words {
    header: Vec<u8>,
    len: u64,
    words: HashMap<u64, AtomicU64>,
}

impl Words {
    fn new(len: u64) -> Self {
        let words = (0..len).step_by(8).map(|offset| (offset, AtomicU64::new(0))).collect();
        Self { header: Vec::new(), len, words }
    }

    /// A region, with the first words of the first chunks of its sections.
    fn region(sections: u32, endpoints: u32) -> Self {
        let len = 1 << 20;
        let header = RegionHeader::new([7; 16], len, 4096, sections, endpoints);
        let mut bytes = vec![0; header.table_end as usize];
        bytes[..256].copy_from_slice(header.as_bytes());
        let mut words = HashMap::new();
        let mut add = |from: u64, count: u64| {
            words.extend((0..count).map(|n| (from + n * 8, AtomicU64::new(0))));
        };
        for number in 0..sections {
            let at = RegionHeader::entry_offset(number) as usize;
            let entry = header.new_entry(number);
            bytes[at..at + 128].copy_from_slice(entry.as_bytes());
            let layout = SectionLayout::new(entry.len, sections, endpoints).unwrap();
            let start = entry.offset;
            for slot in 0..endpoints {
                add(start + layout.slot(slot), 25);
            }
            add(start + layout.activity_line(0), u64::from(sections * endpoints) * 8);
            add(start + layout.owner(0), layout.chunks);
            for chunk in 0..3 {
                add(start + layout.chunk(chunk), 16 + 2 * 8);
            }
        }
        Self { header: bytes, len, words }
    }

    fn word(&self, offset: u64) -> &AtomicU64 {
        self.words.get(&offset).unwrap_or_else(|| panic!("the model has no word at {offset:#x}"))
    }

    fn is_there(&self, offset: u64) -> bool {
        self.words.contains_key(&offset)
    }
}

impl CacheHints for Words {}

impl Device for Words {}

impl Memory for Words {
    fn len(&self) -> u64 {
        self.len
    }
    fn load(&self, offset: u64, order: Ordering) -> u64 {
        if let Some(bytes) = self.header.get(offset as usize..offset as usize + 8) {
            return u64::from_le_bytes(bytes.try_into().unwrap());
        }
        self.word(offset).load(order)
    }
    fn store(&self, offset: u64, value: u64, order: Ordering) {
        self.word(offset).store(value, order);
    }
    fn fetch_add(&self, offset: u64, value: u64, order: Ordering) -> u64 {
        self.word(offset).fetch_add(value, order)
    }
    fn compare_exchange(&self, offset: u64, current: u64, new: u64) -> Result<u64, u64> {
        self.word(offset).compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire)
    }
    fn fence(&self, order: Ordering) {
        fence(order);
    }
    unsafe fn copy_out(&self, offset: u64, to: *mut u8, len: usize) {
        for n in 0..len {
            let at = offset + n as u64;
            let byte = match self.header.get(at as usize) {
                Some(byte) => *byte,
                None if at % 8 != 0 && n > 0 => continue,
                None => {
                    let bytes = self.word(at & !7).load(Ordering::Relaxed).to_le_bytes();
                    for (k, byte) in bytes[(at % 8) as usize..].iter().take(len - n).enumerate() {
                        // SAFETY: the caller vouches for `len` bytes, and n + k < len.
                        unsafe { to.add(n + k).write(*byte) };
                    }
                    continue;
                }
            };
            // SAFETY: the caller vouches for `len` bytes.
            unsafe { to.add(n).write(byte) };
        }
    }
    unsafe fn copy_in(&self, offset: u64, from: *const u8, len: usize) {
        assert!(offset.is_multiple_of(8) && len.is_multiple_of(8), "the core writes whole words");
        for n in (0..len).step_by(8) {
            // SAFETY: the caller vouches for `len` bytes.
            let word = unsafe { from.add(n).cast::<u64>().read_unaligned() };
            self.store(offset + n as u64, word, Ordering::Relaxed);
        }
    }
    fn address(&self, _: u64, _: u64) -> *mut u8 {
        std::ptr::null_mut()
    }
    fn offset_of(&self, _: *const u8, _: u64) -> Option<u64> {
        None
    }
    fn zero(&self, offset: u64, len: u64) {
        // The words that no model has are never read.
        for at in (offset..offset + len).step_by(8).filter(|at| self.is_there(*at)) {
            self.store(at, 0, Ordering::Relaxed);
        }
    }
}

fn model(check: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.max_branches = 20_000;
    builder.check(check);
}

const SLOTS: u64 = 64;
const CONSUMED: u64 = 0;

fn receive(memory: &Words, consumer: &mut Consumer) -> Option<Vec<u8>> {
    let stamp = consumer.peek(memory).expect("an honest producer")?;
    let mut bytes = vec![0; 1000];
    consumer.read(memory, stamp, &mut bytes);
    bytes.truncate(stamp.len.into());
    consumer.advance(memory, stamp);
    consumer.acknowledge(memory, CONSUMED);
    Some(bytes)
}

/// Takes the short messages that are there together, two words of each.
fn receive_run(memory: &Words, consumer: &mut Consumer) -> Vec<[u64; 2]> {
    let mut slots = [[0; 32]; 8];
    // SAFETY: the models make consumers with their only memory.
    let count = unsafe { consumer.read_run(memory, &mut slots) };
    if count > 0 {
        consumer.advance_by(memory, count as u64, count as u64);
        consumer.acknowledge(memory, CONSUMED);
    }
    let word = |slot: &[u8; 32], at: usize| u64::from_ne_bytes(slot[at..at + 8].try_into().unwrap());
    slots[..count].iter().map(|slot| [word(slot, 8), word(slot, 16)]).collect()
}

/// Sends short messages with these numbers, each of which has its complement with it.
fn send_short(memory: &Words, producer: &mut Producer, numbers: impl Iterator<Item = u64>) {
    for number in numbers {
        while !producer.has_room(16) {
            producer.learn(memory, CONSUMED).expect("an honest consumer");
            thread::yield_now();
        }
        producer.push(memory, KIND_INLINE, 0, &[&number.to_le_bytes(), &(!number).to_le_bytes()]);
    }
}

/// Five messages through a ring of four slots, taken together as they come: whole, in order.
#[test]
fn run_of_short_messages() {
    model(|| {
        let memory = Arc::new(Words::new(1 << 12));
        let sender = memory.clone();
        let producing = thread::spawn(move || send_short(&sender, &mut Producer::new(SLOTS, 4), 1..=5));
        let mut consumer = Consumer::new(&*memory, SLOTS, 4);
        let mut found = Vec::new();
        while found.len() < 5 {
            let run = receive_run(&memory, &mut consumer);
            if run.is_empty() {
                thread::yield_now();
            }
            found.extend(run);
        }
        assert_eq!(found, [1, 2, 3, 4, 5].map(|number: u64| [number, !number]));
        producing.join().unwrap();
    });
}

/// Slots of a ring in which a few messages go the quick way.
const COUNT: u64 = 46;

/// Memory with such a ring, in which an earlier lap has left what looks like the messages that come, wherever none was zeroed ahead.
fn after_a_lap() -> Arc<Words> {
    let memory = Arc::new(Words::new(1 << 12));
    for position in 4..COUNT {
        let sequence = Stamp::sequence_at(position);
        let stamp = Stamp { sequence, len: 16, kind: KIND_INLINE, tag: 0 };
        memory.store(SLOTS + position * 32, stamp.pack(), Ordering::Relaxed);
    }
    memory
}

/// Short messages that go the quick way: whole, in order, and none of the words is taken for one that an earlier lap left where
/// their stamps will be, each of which looks like it.
#[test]
fn quick_messages_behind_what_looks_like_them() {
    model(|| {
        let memory = after_a_lap();
        let sender = memory.clone();
        let producing = thread::spawn(move || {
            let mut producer = Producer::new(SLOTS, COUNT as u32);
            producer.make_ready(&*sender);
            for number in 1..=5u64 {
                assert!(producer.is_ready());
                producer.push_slot(&*sender, KIND_INLINE, 0, 16, [number, !number, 0]);
            }
        });
        let mut consumer = Consumer::new(&*memory, SLOTS, COUNT as u32);
        let mut found = Vec::new();
        while found.len() < 5 {
            let run = receive_run(&memory, &mut consumer);
            if run.is_empty() {
                thread::yield_now();
            }
            found.extend(run);
        }
        assert_eq!(found, [1, 2, 3, 4, 5].map(|number: u64| [number, !number]));
        producing.join().unwrap();
        assert!(receive_run(&memory, &mut consumer).is_empty());
    });
}

/// Takes the messages of a few slots that are there together.
fn receive_few(memory: &Words, consumer: &mut Consumer) -> Vec<Vec<u8>> {
    let mut slots = [[0; 32]; 16];
    // SAFETY: as in `receive_run`.
    let (count, taken) = unsafe { consumer.read_few(memory, &mut slots, 4) };
    if count > 0 {
        consumer.advance_by(memory, taken, count.into());
        consumer.acknowledge(memory, CONSUMED);
    }
    let mut rest = slots.as_flattened();
    let mut next = || {
        let len = usize::from(Stamp::unpack(u64::from_ne_bytes(rest[..8].try_into().unwrap())).len);
        let bytes = rest[8..8 + len].to_vec();
        rest = &rest[(8 + len).next_multiple_of(32)..];
        bytes
    };
    (0..count).map(|_| next()).collect()
}

/// Messages of two slots behind one of a single slot: the first of them skips a slot, in which an earlier lap has left what looks like the
/// next one. They come whole and in order.
#[test]
fn a_skipped_slot_is_taken_for_no_message() {
    model(|| {
        let memory = after_a_lap();
        let sender = memory.clone();
        let producing = thread::spawn(move || {
            let mut producer = Producer::new(SLOTS, COUNT as u32);
            producer.make_ready(&*sender);
            producer.push_slot(&*sender, KIND_INLINE, 0, 16, [1, !1, 0]);
            for number in 2..=3u8 {
                let sent = producer.push_few(&*sender, KIND_INLINE, 0, &[number; 16], &[!number; 16]);
                assert!(sent && producer.position().is_multiple_of(2));
            }
        });
        let mut consumer = Consumer::new(&*memory, SLOTS, COUNT as u32);
        let mut found = Vec::new();
        while found.len() < 3 {
            let few = receive_few(&memory, &mut consumer);
            if few.is_empty() {
                thread::yield_now();
            }
            found.extend(few);
        }
        let two = |number: u8| [[number; 16], [!number; 16]].concat();
        let one = [1u64, !1].map(u64::to_ne_bytes).concat();
        assert_eq!(found, [one, two(2), two(3)]);
        assert_eq!(consumer.position(), 6);
        producing.join().unwrap();
        assert!(receive_few(&memory, &mut consumer).is_empty());
    });
}

/// A payload whose words look like the stamps that come next is taken for none of them on the next lap.
#[test]
fn run_behind_a_payload_that_looks_like_it() {
    model(|| {
        let memory = Arc::new(Words::new(1 << 12));
        let sender = memory.clone();
        let producing = thread::spawn(move || {
            let mut producer = Producer::new(SLOTS, 5);
            let stamp = |position| {
                let sequence = Stamp::sequence_at(position);
                Stamp { sequence, len: 8, kind: KIND_INLINE, tag: 0 }.pack()
            };
            let mut payload = vec![0; 24 + 64];
            for (word, bytes) in payload[24..].chunks_exact_mut(8).enumerate() {
                bytes.copy_from_slice(&stamp(6 + word as u64 / 4).to_le_bytes());
            }
            producer.push(&*sender, KIND_INLINE, 0, &[&payload]);
            send_short(&sender, &mut producer, 1..=4);
        });
        let mut consumer = Consumer::new(&*memory, SLOTS, 5);
        while receive(&memory, &mut consumer).is_none() {
            thread::yield_now();
        }
        let mut found = Vec::new();
        while found.len() < 4 {
            let run = receive_run(&memory, &mut consumer);
            if run.is_empty() {
                thread::yield_now();
            }
            found.extend(run);
        }
        assert_eq!(found, [1, 2, 3, 4].map(|number: u64| [number, !number]));
        producing.join().unwrap();
    });
}

/// Three messages through a ring of three slots, which holds two at a time: whole, in order, none overwritten before it was read.
#[test]
fn ring_and_acknowledgement() {
    model(|| {
        let memory = Arc::new(Words::new(1 << 12));
        let sender = memory.clone();
        let producing = thread::spawn(move || {
            let mut producer = Producer::new(SLOTS, 3);
            for message in 1..=3u64 {
                while !producer.has_room(16) {
                    producer.learn(&*sender, CONSUMED).expect("an honest consumer");
                    thread::yield_now();
                }
                let (half, other) = (message.to_le_bytes(), (!message).to_le_bytes());
                producer.push(&*sender, KIND_INLINE, 0, &[&half, &other]);
            }
        });
        let mut consumer = Consumer::new(&*memory, SLOTS, 3);
        for message in 1..=3u64 {
            let bytes = loop {
                match receive(&memory, &mut consumer) {
                    Some(bytes) => break bytes,
                    None => thread::yield_now(),
                }
            };
            assert_eq!(bytes[..8], message.to_le_bytes());
            assert_eq!(bytes[8..], (!message).to_le_bytes());
        }
        producing.join().unwrap();
    });
}

/// A message of three slots is seen whole or not at all, also where it wraps around.
#[test]
fn long_message() {
    model(|| {
        let memory = Arc::new(Words::new(1 << 12));
        let sender = memory.clone();
        let producing = thread::spawn(move || {
            let mut producer = Producer::new(SLOTS, 5);
            producer.push(&*sender, KIND_INLINE, 0, &[]);
            producer.push(&*sender, KIND_INLINE, 0, &[]);
            producer.push(&*sender, KIND_INLINE, 0, &[]);
            while !producer.has_room(64) {
                producer.learn(&*sender, CONSUMED).expect("an honest consumer");
                thread::yield_now();
            }
            producer.push(&*sender, KIND_INLINE, 0, &[&[0xab; 64]]);
        });
        let mut consumer = Consumer::new(&*memory, SLOTS, 5);
        for expected in [0, 0, 0, 64] {
            let bytes = loop {
                match receive(&memory, &mut consumer) {
                    Some(bytes) => break bytes,
                    None => thread::yield_now(),
                }
            };
            assert_eq!(bytes, vec![0xab; expected]);
        }
        producing.join().unwrap();
    });
}

/// A reader that sees the count sees the message; and the count is there when the sender is done.
#[test]
fn activity_words() {
    model(|| {
        let memory = Arc::new(Words::region(2, 2));
        let region = Region::read(&*memory).unwrap();
        let section = region.sections()[0];
        let ring = section.entry.offset + section.layout.heap;
        let sender = memory.clone();
        let senders = thread::spawn(move || {
            Producer::new(ring, 3).push(&*sender, KIND_INLINE, 0, &[b"x"]);
            bump(&*sender, &section, 1, EndpointId(2));
        });
        let mut activity = Activity::new(&section, EndpointId(2));
        assert_eq!(activity.look(&*memory), u32::MAX, "the first look sees everything as new");
        let consumer = Consumer::new(&*memory, ring, 3);
        let mut found = consumer.peek(&*memory).unwrap().is_some();
        let changed = activity.look(&*memory);
        if changed != 0 {
            assert_eq!(changed, 1 << 1);
            assert!(consumer.peek(&*memory).unwrap().is_some(), "the count came before its message");
            found = true;
        }
        senders.join().unwrap();
        found |= activity.look(&*memory) != 0 || consumer.peek(&*memory).unwrap().is_some();
        assert!(found);
    });
}

/// Two processes want one slot: one gets it, in a new incarnation.
#[test]
fn claim_is_exclusive() {
    model(|| {
        let memory = Arc::new(Words::region(1, 1));
        let section = Region::read(&*memory).unwrap().sections()[0];
        let other = memory.clone();
        let rival = thread::spawn(move || claim(&*other, &section, 0));
        let mine = claim(&*memory, &section, 0);
        let theirs = rival.join().unwrap();
        assert!(mine.is_some() != theirs.is_some());
        let won = mine.or(theirs).unwrap();
        assert_eq!(won, 1);
        assert!(publish(&*memory, &section, 0, won));
    });
}

/// Two processes take back what a dead one held, while a new one moves in: it keeps what it takes.
#[test]
fn reaping_spares_the_next_life() {
    model(|| {
        let memory = Arc::new(Words::region(1, 2));
        let section = {
            let mut section = Region::read(&*memory).unwrap().sections()[0];
            section.layout.chunks = 2;
            section
        };
        let dead = claim(&*memory, &section, 0).unwrap();
        assert_eq!(claim_run(&*memory, &section, chunk_owner(0, dead), 1, 0), Some(0));
        let ended = SlotState { incarnation: dead, state: STATE_ATTACHING };
        let other = memory.clone();
        let reaper = thread::spawn(move || reap(&*other, &section, 0, ended, true));
        reap(&*memory, &section, 0, ended, true);
        let next = claim(&*memory, &section, 0).map(|incarnation| {
            let owner = chunk_owner(0, incarnation);
            let chunk = claim_run(&*memory, &section, owner, 2, 0);
            (incarnation, chunk)
        });
        reaper.join().unwrap();
        if let Some((incarnation, chunk)) = next {
            assert_eq!(incarnation, dead + 1);
            if let Some(chunk) = chunk {
                // Still ours: nobody else can take it.
                assert_eq!(claim_run(&*memory, &section, chunk_owner(1, 9), 1, chunk), None);
            }
        } else {
            assert_eq!(state(&*memory, &section, 0).state, STATE_FREE);
        }
    });
}

/// Two processes want runs of chunks from the same place: no chunk goes to both, and none is lost.
#[test]
fn chunks_have_one_owner() {
    model(|| {
        let memory = Arc::new(Words::region(1, 2));
        let section = {
            let mut section = Region::read(&*memory).unwrap().sections()[0];
            section.layout.chunks = 3;
            section
        };
        let other = memory.clone();
        let rival = thread::spawn(move || claim_run(&*other, &section, chunk_owner(1, 1), 2, 0));
        let mine = claim_run(&*memory, &section, chunk_owner(0, 1), 2, 0);
        let theirs = rival.join().unwrap();
        assert!(!(mine.is_some() && theirs.is_some()), "there are only three");
        if let Some(first) = mine {
            free_run(&*memory, &section, chunk_owner(0, 1), first, 2);
        }
        if let Some(first) = theirs {
            free_run(&*memory, &section, chunk_owner(1, 1), first, 2);
        }
        assert_eq!(claim_run(&*memory, &section, chunk_owner(0, 1), 3, 0), Some(0));
    });
}

/// Whole endpoints: a stranger connects and sends while the other polls; the message is found, by whatever way.
#[test]
fn a_message_meets_a_poll() {
    model(|| {
        let memory = Arc::new(Words::region(2, 1));
        let mut a = Endpoint::attach(Shared(memory.clone()), 0).unwrap();
        let mut b = Endpoint::attach(Shared(memory.clone()), 1).unwrap();
        let name = a.name();
        let sending = thread::spawn(move || {
            let to_a = b.connect(&name).unwrap();
            b.send(to_a, 1, &[b"one"]).unwrap();
            b
        });
        let mut inbox = Box::new(Inbox::new());
        let mut got = a.poll(&mut inbox);
        let b = sending.join().unwrap();
        for _ in 0..8 {
            got = got.or_else(|| a.poll(&mut inbox));
        }
        assert!(matches!(got, Some(Event::Message { tag: 1, len: 3, .. })), "{got:?}");
        assert_eq!(inbox.bytes(3), b"one");
        drop(b);
    });
}

/// A process leaves while its memory is read, and another moves into it: what is read while the slot still lives is of
/// the old life.
#[test]
fn no_bytes_of_another_life() {
    model(|| {
        let memory = Arc::new(Words::region(1, 2));
        let section = Region::read(&*memory).unwrap().sections()[0];
        let life = claim(&*memory, &section, 0).unwrap();
        let chunk = claim_run(&*memory, &section, chunk_owner(0, life), 1, 0).unwrap();
        let payload = section.entry.offset + section.layout.chunk(chunk);
        memory.store(payload, 1, Ordering::Relaxed);
        publish(&*memory, &section, 0, life);
        let other = memory.clone();
        let moving = thread::spawn(move || {
            reap(&*other, &section, 0, SlotState { incarnation: life, state: STATE_LIVE }, false);
            assert_eq!(claim_run(&*other, &section, chunk_owner(1, 1), 1, 0), Some(chunk));
            other.store(payload, 2, Ordering::Relaxed);
        });
        let read = memory.load(payload, Ordering::Relaxed);
        if lives(&*memory, section.slot(0), life) {
            assert_eq!(read, 1);
        }
        moving.join().unwrap();
    });
}

/// A sender gives a living receiver up and uses a fragment's memory again: what is read while the connection is still open
/// is the fragment.
#[test]
fn no_bytes_from_behind_a_closed_connection() {
    model(|| {
        let memory = Arc::new(Words::region(1, 2));
        let section = Region::read(&*memory).unwrap().sections()[0];
        let life = claim(&*memory, &section, 0).unwrap();
        publish(&*memory, &section, 0, life);
        let connection = section.entry.offset + section.layout.chunk(0);
        let payload = section.entry.offset + section.layout.chunk(1);
        memory.store(payload, 1, Ordering::Relaxed);
        let other = memory.clone();
        let sender = thread::spawn(move || {
            close(&*other, connection);
            other.store(payload, 2, Ordering::Relaxed);
        });
        let read = memory.load(payload, Ordering::Relaxed);
        if lives(&*memory, section.slot(0), life) && !is_closed(&*memory, connection) {
            assert_eq!(read, 1);
        }
        sender.join().unwrap();
    });
}

/// A doorbell: rings are counted, and a wait takes them all. Waiting for a ring that never comes is a deadlock, which the
/// model checker finds.
struct Doorbell {
    rings: Mutex<u64>,
    rung: Condvar,
}

impl Doorbell {
    fn new() -> Self {
        Self { rings: Mutex::new(0), rung: Condvar::new() }
    }
    fn ring(&self) {
        *self.rings.lock().unwrap() += 1;
        self.rung.notify_one();
    }
    fn wait(&self) {
        let mut rings = self.rings.lock().unwrap();
        while *rings == 0 {
            rings = self.rung.wait(rings).unwrap();
        }
        *rings = 0;
    }
}

/// A sleeper that waits for two messages without a time limit gets both, whenever they come: a message is published before
/// the sleeper's announcement is looked at, and the sleeper looks for messages after it has announced itself.
#[test]
fn no_message_is_slept_through() {
    model(|| {
        let memory = Arc::new(Words::region(2, 1));
        let region = Region::read(&*memory).unwrap();
        let ring = region.sections()[0].entry.offset + region.sections()[0].layout.heap;
        let slot = region.sections()[1].slot(0);
        let bell = Arc::new(Doorbell::new());
        let (shared, rope) = (memory.clone(), bell.clone());
        let sending = thread::spawn(move || {
            let mut producer = Producer::new(ring, 3);
            let mut rung = 0;
            for _ in 0..2 {
                producer.push(&*shared, KIND_INLINE, 0, &[]);
                if let Some(word) = announced(&*shared, slot, false)
                    && word != rung
                {
                    rung = word;
                    rope.ring();
                }
            }
        });
        let mut consumer = Consumer::new(&*memory, ring, 3);
        let mut sleeps = 0;
        for _ in 0..2 {
            while consumer.peek(&*memory).unwrap().is_none() {
                sleeps += 1;
                announce(&*memory, slot, sleeps, false);
                if consumer.peek(&*memory).unwrap().is_none() {
                    bell.wait();
                }
                retract(&*memory, slot);
            }
            let stamp = consumer.peek(&*memory).unwrap().unwrap();
            consumer.advance(&*memory, stamp);
        }
        sending.join().unwrap();
    });
}

/// A sender whose ring is full sleeps until it is acknowledged.
#[test]
fn no_acknowledgement_is_slept_through() {
    model(|| {
        let memory = Arc::new(Words::region(2, 1));
        let region = Region::read(&*memory).unwrap();
        let ring = region.sections()[0].entry.offset + region.sections()[0].layout.heap;
        let slot = region.sections()[0].slot(0);
        // Any word of the receiver's section.
        let consumed = region.sections()[1].entry.offset + region.sections()[1].layout.heap;
        let bell = Arc::new(Doorbell::new());
        let (shared, rope) = (memory.clone(), bell.clone());
        let mut producer = Producer::new(ring, 3);
        producer.push(&*memory, KIND_INLINE, 0, &[]);
        producer.push(&*memory, KIND_INLINE, 0, &[]);
        let receiving = thread::spawn(move || {
            let mut consumer = Consumer::new(&*shared, ring, 3);
            let mut rung = 0;
            for _ in 0..2 {
                let stamp = consumer.peek(&*shared).unwrap().unwrap();
                consumer.advance(&*shared, stamp);
                consumer.acknowledge(&*shared, consumed);
                if let Some(word) = announced(&*shared, slot, true)
                    && word != rung
                {
                    rung = word;
                    rope.ring();
                }
            }
        });
        let mut sleeps = 0;
        // One slot, then two.
        for wanted in [24, 56] {
            loop {
                producer.learn(&*memory, consumed).unwrap();
                if producer.has_room(wanted) {
                    break;
                }
                sleeps += 1;
                announce(&*memory, slot, sleeps, true);
                producer.learn(&*memory, consumed).unwrap();
                if !producer.has_room(wanted) {
                    bell.wait();
                }
                retract(&*memory, slot);
            }
        }
        receiving.join().unwrap();
    });
}

/// A handle on the words that an endpoint can own.
struct Shared(Arc<Words>);

impl CacheHints for Shared {}

impl Device for Shared {}

impl Memory for Shared {
    fn len(&self) -> u64 {
        self.0.len()
    }
    fn load(&self, offset: u64, order: Ordering) -> u64 {
        self.0.load(offset, order)
    }
    fn store(&self, offset: u64, value: u64, order: Ordering) {
        self.0.store(offset, value, order);
    }
    fn fetch_add(&self, offset: u64, value: u64, order: Ordering) -> u64 {
        self.0.fetch_add(offset, value, order)
    }
    fn compare_exchange(&self, offset: u64, current: u64, new: u64) -> Result<u64, u64> {
        self.0.compare_exchange(offset, current, new)
    }
    fn fence(&self, order: Ordering) {
        self.0.fence(order);
    }
    unsafe fn copy_out(&self, offset: u64, to: *mut u8, len: usize) {
        // SAFETY: the caller keeps the contract.
        unsafe { self.0.copy_out(offset, to, len) }
    }
    unsafe fn copy_in(&self, offset: u64, from: *const u8, len: usize) {
        // SAFETY: the caller keeps the contract.
        unsafe { self.0.copy_in(offset, from, len) }
    }
    fn address(&self, offset: u64, len: u64) -> *mut u8 {
        self.0.address(offset, len)
    }
    fn offset_of(&self, address: *const u8, len: u64) -> Option<u64> {
        self.0.offset_of(address, len)
    }
    fn zero(&self, offset: u64, len: u64) {
        self.0.zero(offset, len);
    }
}
