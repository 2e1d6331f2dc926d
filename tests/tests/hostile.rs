//! A member that writes rubbish over its own section, or in an open region over another's, while
//! others talk: they are undisturbed, and nobody crashes or hangs.

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use std::{sync::Arc, thread};

use common::{Process, Room};
use memmap2::{MmapOptions, MmapRaw};
use vmshm_host::CreateOptions;
use vmshm_tests::payload::{Key, Random};

/// Contents that are written over a section.
#[derive(Clone, Copy, Debug)]
enum Rubbish {
    /// Random words anywhere.
    Random,
    /// Words that look right where words are in use: moved, off by a little, or huge.
    Crafted,
}

/// A thread that spoils a section until it is stopped.
struct Vandal {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl Vandal {
    fn start(room: &Room, section: u32, rubbish: Rubbish, seed: u64) -> Vandal {
        let entry = room.region.entry(section).expect("a section");
        let (offset, len) = (entry.offset, usize::try_from(entry.len).expect("it fits"));
        let map = MmapOptions::new().offset(offset).len(len).map_raw(&room.file()).expect("mapped");
        let stop = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&stop);
        let region_len = room.region.header().region_len;
        let thread = thread::spawn(move || spoil(&map, rubbish, seed, region_len, &ended));
        Vandal { stop, thread }
    }

    /// Stops, and says how many words were spoilt.
    fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("no panic")
    }
}

fn load(map: &MmapRaw, word: usize) -> u64 {
    // SAFETY: callers give the number of a word of the mapping, which is aligned to pages.
    unsafe { map.as_ptr().cast::<u64>().add(word).read_volatile() }
}

fn store(map: &MmapRaw, word: usize, value: u64) {
    // SAFETY: as in `load`, and the mapping is writable.
    unsafe { map.as_mut_ptr().cast::<u64>().add(word).write_volatile(value) }
}

fn spoil(map: &MmapRaw, rubbish: Rubbish, seed: u64, region_len: u64, stop: &AtomicBool) -> u64 {
    let mut random = Random::new(Key::new(seed, &[]));
    let words = map.len() / 8;
    let mut spoilt = 0;
    while !stop.load(Ordering::Relaxed) {
        match rubbish {
            Rubbish::Random => {
                for _ in 0..2000 {
                    let value = random.next_u64();
                    store(map, random.below(words), value);
                    spoilt += 1;
                }
            }
            Rubbish::Crafted => {
                let used: Vec<usize> = (0..words).filter(|&word| load(map, word) != 0).collect();
                for _ in 0..300 {
                    let Some(&word) = used.get(random.below(used.len())) else { continue };
                    let old = load(map, word);
                    let value = match random.below(9) {
                        0 => old.wrapping_add(1),
                        1 => old.wrapping_sub(1),
                        2 => old ^ (1 << random.below(64)),
                        3 => load(map, used[random.below(used.len())]),
                        4 => 0,
                        5 => u64::MAX,
                        6 => region_len - 8 * random.below(16) as u64,
                        7 => region_len.wrapping_mul(random.next_u64() % 4),
                        _ => u64::from_le_bytes(old.to_be_bytes()),
                    };
                    store(map, word, value);
                    // A descriptor's first word is followed by its length.
                    if random.below(4) == 0 && word + 1 < words {
                        store(map, word + 1, u64::MAX >> random.below(64));
                    }
                    spoilt += 1;
                }
            }
        }
        thread::sleep(Duration::from_micros(500));
    }
    spoilt
}

/// Lets `a` and `b` talk while `section` is spoilt, and after that.
fn undisturbed(room: &Room, a: &mut Process, b: &mut Process, section: u32, seed: u64) {
    for (rubbish, seed) in [(Rubbish::Crafted, seed), (Rubbish::Random, seed + 1)] {
        let vandal = Vandal::start(room, section, rubbish, seed);
        for _ in 0..4 {
            a.hears(b, 400);
            b.hears(a, 400);
        }
        let spoilt = vandal.stop();
        assert!(spoilt > 100, "only {spoilt} words were spoilt");
        a.hears(b, 100);
        b.hears(a, 100);
    }
}

#[test]
fn rubbish_in_the_own_section_harms_nobody_else() {
    for seed in 1..=3 {
        let room = Room::with(8 << 20, 3, 4);
        let [mut a, mut b, hostile] = room.three([0, 1, 2]);
        a.hears(&hostile, 20);
        b.hears(&hostile, 20);
        undisturbed(&room, &mut a, &mut b, 2, seed);
        // Their news of the hostile one may be anything; that they answer is enough.
        assert_eq!((a.report().len(), b.report().len()), (2, 2));
    }
}

#[test]
fn rubbish_from_a_process_that_does_nothing_else_harms_nobody() {
    let room = Room::with(8 << 20, 3, 4);
    let [mut a, mut b, hostile] = room.three([0, 1, 2]);
    a.hears(&hostile, 20);
    // Its own code repairs nothing: it stands still and lives.
    hostile.signal(libc::SIGSTOP);
    undisturbed(&room, &mut a, &mut b, 2, 10);
    hostile.signal(libc::SIGCONT);
    // A newcomer reads the spoilt section from its beginning.
    let mut late = room.process(0);
    late.meet(&mut b);
    late.hears(&b, 100);
}

#[test]
fn in_an_open_region_the_victim_survives_and_the_others_are_undisturbed() {
    let options =
        CreateOptions { sections: 4, endpoints: Some(4), open: true, ..CreateOptions::new(8 << 20) };
    for seed in 20..=22 {
        let room = Room::new(&options);
        let [mut a, mut b, mut victim] = room.three([0, 1, 2]);
        a.hears(&victim, 20);
        victim.hears(&b, 20);
        // Written by the member of section 3, whom all may write to and who may write to all.
        undisturbed(&room, &mut a, &mut b, 2, seed);
        // Answers, so it neither crashed nor hangs.
        assert_eq!(victim.report().len(), 2);
    }
}
