//! Cost of copies between two cores of this machine: ordinary memory, shared memory, ordinary memory, to and fro.
//!
//! A core's own cache does not show it, so that two threads on two CPUs of the process's set play the two processes. Ways that
//! are compared take turns, many short rounds each, and the median of the rounds counts: other users of the machine hit all
//! alike.

use std::fs;
use std::hint;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use super::choice::Choice;
use super::machine::Machine;
use super::way::{Row, SHORT, Way};
use crate::memory::copy::{self, BLOCK, Kernel};

/// Lines are owned ahead and demoted for copies of at most this many bytes.
const HINTED: usize = 4 << 10;

/// A message of several steps, and its steps, bytes.
const LONG: (usize, usize) = (64 << 10, 16 << 10);

/// The message that is cut in different ways, bytes.
const CUT: usize = 256 << 10;

/// Rounds in which all ways of a group have their turn.
const ROUNDS: usize = 15;

/// Bytes that a way moves in its turn, about; one that is about rotation goes through all of its memory.
const MOVED: usize = 128 << 10;

/// Longest time that a measurement takes.
const LIMIT: Duration = Duration::from_secs(4);

/// Bytes of a page, and of a line.
const PAGE: usize = 4096;
const LINE: usize = 64;

/// A measurement.
#[derive(Debug, Clone)]
pub struct Measurement {
    /// The two CPUs.
    pub cpus: [usize; 2],
    /// Two CPUs of different last-level caches, where the set has them.
    pub far: Option<[usize; 2]>,
    /// The times.
    pub rows: Vec<Row>,
    /// How far half of the rounds of a way lie apart, as a part of their median: the worst of all lengths.
    pub spread: f64,
}

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub enum Unmeasured {
    /// One CPU, or one core of several hardware threads.
    #[error(
        "this process may run on one core only ({0}): copies between two cores can't be measured; start it with more, as by taskset"
    )]
    OneCore(String),
    /// Other work has kept a thread from its CPU.
    #[error("the CPUs {0} and {1} were busy: no two threads ran at the same time for long enough")]
    Busy(usize, usize),
    /// The process's CPUs are not told.
    #[error("cannot find out which CPUs this process may use: {0}")]
    Set(nix::Error),
}

/// Measures all ways on two cores of this process's set, in some tenths of a second if both are idle.
///
/// # Errors
/// One core, or a busy one.
pub fn measure(machine: &Machine) -> Result<Measurement, Unmeasured> {
    let set = sched_getaffinity(Pid::from_raw(0)).map_err(Unmeasured::Set)?;
    let cpus: Vec<usize> = (0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false)).collect();
    let others = |file: &'static str| {
        move |cpu: usize| {
            fs::read_to_string(format!("/sys/devices/system/cpu/cpu{cpu}/{file}")).unwrap_or_default()
        }
    };
    let siblings = others("topology/thread_siblings_list");
    let last_level = others("cache/index3/shared_cpu_list");
    let [near, far] = pairs(&cpus, siblings, last_level);
    let Some(pair) = near.or(far) else { return Err(Unmeasured::OneCore(format!("CPU {cpus:?}"))) };
    let begin = Instant::now();
    let mut rows = Vec::new();
    let mut spread = 0f64;
    for group in groups(machine) {
        spread = spread.max(group.measure(pair, begin, &mut rows)?);
    }
    if let Some(pair) = far {
        spread = spread.max(far_group(machine).measure(pair, begin, &mut rows)?);
    }
    Ok(Measurement { cpus: pair, far, rows, spread })
}

/// Two CPUs of different cores that have the last-level cache in common, and two that don't. A fact that the system does not tell is
/// alike.
fn pairs(
    cpus: &[usize],
    siblings: impl Fn(usize) -> String,
    last_level: impl Fn(usize) -> String,
) -> [Option<[usize; 2]>; 2] {
    let Some((&first, rest)) = cpus.split_first() else { return [None; 2] };
    let has = |list: String, cpu: usize| {
        list.trim().split(',').any(|part| {
            let (begin, end) = part.split_once('-').unwrap_or((part, part));
            matches!((begin.parse::<usize>(), end.parse::<usize>()), (Ok(begin), Ok(end)) if (begin..=end).contains(&cpu))
        })
    };
    let is_near = |cpu: usize| {
        let list = last_level(first);
        list.trim().is_empty() || has(list, cpu)
    };
    let mut cores = rest.iter().copied().filter(|cpu| !has(siblings(first), *cpu));
    let near = cores.clone().find(|cpu| is_near(*cpu));
    [near, cores.find(|cpu| !is_near(*cpu))].map(|other| other.map(|other| [first, other]))
}

/// A way, as a party goes it.
#[derive(Debug, Clone, Copy)]
struct Path {
    way: Way,
    into: Kernel,
    out_of: Kernel,
    blocks: bool,
    piece: usize,
    rotation: usize,
}

/// Ways that are compared, with messages of one length.
struct Group {
    len: usize,
    paths: Vec<Path>,
    /// Bytes that fill a first level cache.
    filling: usize,
}

/// The widest vectors.
fn vectors(machine: &Machine) -> Kernel {
    let has = |wanted| Kernel::all().any(|kernel| kernel == wanted);
    match () {
        () if machine.avx && has(Kernel::Avx) => Kernel::Avx,
        () if has(Kernel::Sse2) => Kernel::Sse2,
        () => Kernel::Words,
    }
}

fn group(machine: &Machine, len: usize, piece: usize, ways: &[Way]) -> Group {
    let table = Choice::of(machine);
    let plain = vectors(machine);
    let path = |way: &Way| {
        let mut path = Path {
            way: *way,
            into: plain,
            out_of: plain,
            blocks: false,
            piece,
            rotation: table.rotation.max(piece),
        };
        match way {
            Way::StringInto => path.into = Kernel::String,
            Way::StringOutOf => path.out_of = Kernel::String,
            Way::FourPages => path.blocks = true,
            Way::FarNonTemporal => path.into = Kernel::NonTemporal,
            Way::Cut { chunk, rotation } => (path.piece, path.rotation) = (*chunk, *rotation),
            _ => {}
        }
        path
    };
    let has = |way: &&Way| match way {
        Way::StringInto | Way::StringOutOf => Kernel::all().any(|kernel| kernel == Kernel::String),
        Way::FourPages => plain == Kernel::Avx,
        Way::FarNonTemporal => plain != Kernel::Words,
        Way::Demote => machine.demotes,
        _ => true,
    };
    let paths = ways.iter().filter(has).map(path).collect();
    Group { len, paths, filling: table.evict_from.saturating_mul(2).min(512 << 10) }
}

fn groups(machine: &Machine) -> Vec<Group> {
    use Way::{Demote, Evict, FourPages, OwnAhead, StringInto, StringOutOf, Vectors};
    let table = Choice::of(machine);
    let mut groups: Vec<Group> = SHORT
        .into_iter()
        .map(|len| match len {
            ..=HINTED => group(machine, len, len, &[Vectors, StringInto, StringOutOf, OwnAhead, Demote]),
            _ => group(machine, len, len, &[Vectors, StringInto, StringOutOf]),
        })
        .collect();
    groups.push(group(machine, LONG.0, LONG.1, &[Vectors, StringInto, StringOutOf, FourPages, Evict]));
    let mut cuts = Vec::new();
    for chunk in [table.chunk_size / 2, table.chunk_size, 2 * table.chunk_size] {
        for rotation in [table.rotation / 4, table.rotation / 2, table.rotation, 2 * table.rotation] {
            if rotation >= 2 * chunk {
                cuts.push(Way::Cut { chunk, rotation });
            }
        }
    }
    groups.push(group(machine, CUT, CUT, &cuts));
    groups
}

fn far_group(machine: &Machine) -> Group {
    group(machine, LONG.0, LONG.1, &[Way::Far, Way::FarNonTemporal])
}

/// A counter in lines of its own.
#[repr(align(128))]
struct Counter(AtomicU64);

/// State that both threads see.
struct Shared {
    /// Where each of them writes its pieces.
    slabs: [*mut u8; 2],
    /// Pieces that each has written.
    written: [Counter; 2],
    /// One of them waits no longer.
    is_over: AtomicBool,
    deadline: Instant,
}

// SAFETY: each slab is written by one thread and read by the other once the counter says so; all else is atomic.
unsafe impl Sync for Shared {}

/// One of the two threads.
struct Party<'a> {
    shared: &'a Shared,
    me: usize,
    from: Vec<u8>,
    to: Vec<u8>,
    filling: Vec<u8>,
    /// Pieces sent and received.
    counts: [u64; 2],
    /// Pieces of each slab since the way began.
    places: [usize; 2],
}

/// The other thread has not come for too long.
struct Late;

/// Memory from which a page-aligned part of `len` bytes can be taken.
fn pages(len: usize) -> Vec<u8> {
    vec![1; len + 2 * PAGE]
}

fn aligned(memory: &mut [u8]) -> *mut u8 {
    let skip = memory.as_ptr().align_offset(PAGE);
    memory[skip..].as_mut_ptr()
}

/// Bytes between two pieces in a slab.
fn stride(piece: usize) -> usize {
    piece.next_multiple_of(PAGE)
}

impl Party<'_> {
    fn place(&mut self, who: usize, path: &Path) -> *mut u8 {
        let places = (path.rotation / stride(path.piece)).max(1);
        let place = self.places[who] % places;
        self.places[who] += 1;
        // Half a page from where ordinary memory begins, as the library's own layout has it.
        self.shared.slabs[who].wrapping_add(place * stride(path.piece) + PAGE / 2)
    }

    fn send(&mut self, path: &Path, len: usize) {
        let from = aligned(&mut self.from);
        for at in (0..len).step_by(path.piece) {
            let piece = path.piece.min(len - at);
            let to = self.place(self.me, path);
            if path.way == Way::OwnAhead {
                (0..piece).step_by(LINE).for_each(|at| crate::memory::prefetch_write(to.wrapping_add(at)));
            }
            // SAFETY: `from` has len bytes, the slab those of all places; the other thread has read the piece that was here, as it
            // has answered since.
            unsafe { path.into.copy(from.add(at), to, piece) };
            self.counts[0] += 1;
            self.shared.written[self.me].0.store(self.counts[0], Ordering::Release);
            if path.way == Way::Demote {
                (0..piece).step_by(LINE).for_each(|at| crate::memory::demote(to.wrapping_add(at)));
            }
        }
        if path.way == Way::Evict {
            for byte in self.filling.iter().step_by(LINE) {
                hint::black_box(*byte);
            }
        }
    }

    fn receive(&mut self, path: &Path, len: usize) -> Result<(), Late> {
        let (other, to) = (1 - self.me, aligned(&mut self.to));
        for at in (0..len).step_by(path.piece) {
            let piece = path.piece.min(len - at);
            let from = self.place(other, path);
            self.counts[1] += 1;
            self.wait(other)?;
            // SAFETY: `to` has len bytes; the piece is there, and stays until the answer.
            unsafe {
                match path.blocks {
                    true => copy::by_blocks(from, to.add(at), piece),
                    false => path.out_of.copy(from, to.add(at), piece),
                }
            }
        }
        Ok(())
    }

    fn wait(&self, other: usize) -> Result<(), Late> {
        let mut looks = 0u32;
        while self.shared.written[other].0.load(Ordering::Acquire) < self.counts[1] {
            hint::spin_loop();
            looks += 1;
            if looks.is_multiple_of(4096)
                && (self.shared.is_over.load(Ordering::Relaxed) || Instant::now() > self.shared.deadline)
            {
                self.shared.is_over.store(true, Ordering::Relaxed);
                return Err(Late);
            }
        }
        Ok(())
    }

    /// The time of each path in each round, nanoseconds one way.
    fn go(&mut self, group: &Group) -> Result<Vec<Vec<f64>>, Late> {
        let mut times = vec![Vec::new(); group.paths.len()];
        for _ in 0..ROUNDS {
            for (path, times) in group.paths.iter().zip(&mut times) {
                self.places = [0; 2];
                let turns = match path.way {
                    Way::Cut { rotation, .. } => rotation.div_ceil(group.len),
                    _ => (MOVED / group.len).clamp(2, 32),
                };
                // The first ones fetch what the way before has left elsewhere.
                let warm = (2 * path.rotation / group.len).clamp(1, turns);
                let mut begin = Instant::now();
                for turn in 0..warm + turns {
                    if turn == warm {
                        begin = Instant::now();
                    }
                    if self.me == 0 {
                        self.send(path, group.len);
                        self.receive(path, group.len)?;
                    } else {
                        self.receive(path, group.len)?;
                        self.send(path, group.len);
                    }
                }
                times.push(begin.elapsed().as_nanos() as f64 / (2 * turns) as f64);
            }
        }
        Ok(times)
    }
}

/// The median, and how far the middle half lies apart as a part of it.
fn middle(mut times: Vec<f64>) -> (f64, f64) {
    times.sort_by(f64::total_cmp);
    let at = |part: usize| times[times.len() * part / 4];
    (at(2), (at(3) - at(1)) / at(2).max(f64::MIN_POSITIVE))
}

impl Group {
    /// Adds a row for each way, and returns the spread of the first.
    fn measure(&self, cpus: [usize; 2], begin: Instant, rows: &mut Vec<Row>) -> Result<f64, Unmeasured> {
        let room = |path: &Path| path.rotation.max(stride(path.piece)) + PAGE;
        let slab = self.paths.iter().map(room).max().unwrap_or(PAGE);
        let mut slabs = [pages(slab), pages(slab)];
        let shared = Shared {
            slabs: slabs.each_mut().map(|slab| aligned(slab)),
            written: [const { Counter(AtomicU64::new(0)) }; 2],
            is_over: AtomicBool::new(false),
            deadline: begin + LIMIT,
        };
        let party = |me: usize| {
            let shared = &shared;
            move || {
                let mut set = CpuSet::new();
                if set.set(cpus[me]).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set)).is_err() {
                    shared.is_over.store(true, Ordering::Relaxed);
                    return Err(Late);
                }
                let (from, to, filling) = (pages(self.len), pages(self.len), vec![1; self.filling]);
                Party { shared, me, from, to, filling, counts: [0; 2], places: [0; 2] }.go(self)
            }
        };
        // Threads of their own, so that the caller stays where it may run.
        let [one, other] = thread::scope(|scope| {
            let [one, other] = [scope.spawn(party(0)), scope.spawn(party(1))];
            [one.join(), other.join()]
        });
        let (Ok(Ok(times)), Ok(Ok(_))) = (one, other) else {
            return Err(Unmeasured::Busy(cpus[0], cpus[1]));
        };
        let mut spread = None;
        for (path, times) in self.paths.iter().zip(times) {
            let (time, apart) = middle(times);
            spread = spread.or(Some(apart));
            rows.push(Row { way: path.way, len: self.len, time });
        }
        Ok(spread.unwrap_or(0.0))
    }
}

// A piece of a group of four pages is long enough for them.
const _: () = assert!(LONG.1 >= BLOCK);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_cores_are_two_cores() {
        let alone = |cpu: usize| cpu.to_string();
        let threads = |cpu: usize| format!("{}-{}\n", cpu / 2 * 2, cpu / 2 * 2 + 1);
        let one = |_: usize| "0-7\n".to_owned();
        let half = |cpu: usize| if cpu < 4 { "0-3" } else { "4-7" }.to_owned();
        let nothing = |_: usize| String::new();
        assert_eq!(pairs(&[], alone, one), [None, None]);
        assert_eq!(pairs(&[3], alone, one), [None, None]);
        assert_eq!(pairs(&[0, 1], threads, one), [None, None], "hardware threads of one core");
        assert_eq!(pairs(&[0, 1, 2], threads, one), [Some([0, 2]), None]);
        assert_eq!(pairs(&[2, 5], threads, half), [None, Some([2, 5])]);
        assert_eq!(pairs(&[0, 1, 2, 4], threads, half), [Some([0, 2]), Some([0, 4])]);
        assert_eq!(pairs(&[0, 9], nothing, nothing), [Some([0, 9]), None], "a guest may not be told");
    }

    #[test]
    fn ways_that_a_processor_lacks_are_not_measured() {
        let machine = Machine { avx: false, demotes: false, ..super::super::choice::tests::INTEL };
        let all: Vec<Way> =
            groups(&machine).iter().flat_map(|group| group.paths.iter().map(|path| path.way)).collect();
        assert!(
            !all.contains(&Way::FourPages) && !all.contains(&Way::Demote) && all.contains(&Way::OwnAhead)
        );
        assert!(groups(&machine).iter().flat_map(|group| &group.paths).all(|path| path.into != Kernel::Avx));
    }

    #[test]
    fn every_way_gets_a_time_or_it_is_said_why_not() {
        match measure(&Machine::read()) {
            Ok(Measurement { cpus, rows, .. }) => {
                assert_ne!(cpus[0], cpus[1]);
                assert!(rows.iter().all(|row| row.time > 0.0), "{rows:?}");
                assert!(rows.len() > SHORT.len() * 3, "{rows:?}");
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }

    #[test]
    fn a_process_with_one_cpu_measures_nothing_and_says_so() {
        let one = thread::spawn(|| {
            let all = sched_getaffinity(Pid::from_raw(0)).unwrap();
            let first = (0..CpuSet::count()).find(|cpu| all.is_set(*cpu).unwrap()).unwrap();
            let mut set = CpuSet::new();
            set.set(first).unwrap();
            sched_setaffinity(Pid::from_raw(0), &set).unwrap();
            measure(&Machine::read()).map(|_| ()).unwrap_err().to_string()
        });
        assert!(one.join().unwrap().contains("one core only"));
    }
}
