//! The raw transport, without MPI and without virtual machines: two processes on two cores, with one region.
//!
//! Each round measures the same things in turn, one line each: `round NUMBER NAME NANOSECONDS`, all one-way times of 8 bytes.
//! Figures that are measured only once follow as `once NAME FIGURE`. With `--copies` it is the floor under long messages instead, for
//! one message alone (`copies-BYTES`, one way) and in a stream (`copies-stream-BYTES`).

use std::io::{PipeWriter, Read, Write};
use std::os::fd::AsRawFd;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};
use vmshm_benches::fixture::{Fixture, Node};
use vmshm_benches::floor;
use vmshm_transport::abi::section::CHUNK;
use vmshm_transport::attach::{self, open_endpoint};
use vmshm_transport::{Event, Fragment, Memory, Peer};

const PING: u8 = 1;
const STOP: u8 = 2;
const HELLO: u8 = 3;

const LISTEN: u8 = 1;
const END: u8 = 2;

/// Measures the transport without MPI, beside a bare cache line that goes to and fro.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    /// How often each is measured
    #[arg(long, default_value_t = 7, value_name = "N")]
    rounds: u32,
    /// Round trips in each measurement
    #[arg(long, default_value_t = 100_000, value_name = "N")]
    turns: u32,
    /// Silent peers beside the one that is talked to
    #[arg(long, default_value_t = 63, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=200))]
    silent: u32,
    /// Processes that attach together
    #[arg(long, default_value_t = 256, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=1024))]
    endpoints: u32,
    /// Measures two copies of long messages that overlap, and nothing else
    #[arg(long)]
    copies: bool,
    /// Measures the bare cache line, and nothing else
    #[arg(long, conflicts_with = "copies")]
    line: bool,
}

/// Polls until a message of a word or less is there, and returns its sender, tag and bytes.
#[inline]
fn receive(node: &mut Node) -> (Peer, u8, u64) {
    loop {
        match node.endpoint.poll(&mut node.inbox) {
            Some(Event::Message { peer, tag, len }) => {
                let mut word = [0; 8];
                word[..len].copy_from_slice(node.inbox.bytes(len));
                return (peer, tag, u64::from_le_bytes(word));
            }
            Some(Event::Gone { why, .. }) => panic!("the peer is gone: {why}"),
            _ => {}
        }
    }
}

/// A node that has met one in another process, and those that have sent once to both and are silent since.
///
/// In one process the two would share lines of the heap, which costs more than what is measured here.
struct Party {
    one: Node,
    /// Tells the other process to [`LISTEN`] or to [`END`].
    bell: PipeWriter,
    echo: Pid,
}

impl Party {
    /// With so many silent peers, in the section of the other node or each in its own.
    fn new(silent: u32, apart: bool, core: usize) -> Party {
        let mut fixture = if apart {
            Fixture::new(2 + silent, 4)
        } else {
            Fixture::new(2, (silent + 2).next_power_of_two())
        };
        let (mut one, mut other) = (fixture.node(0), fixture.node(1));
        one.meet(&other);
        other.meet(&one);
        for index in 0..silent {
            let mut node = fixture.node(if apart { 2 + index } else { 1 });
            for known in [&mut one, &mut other] {
                let to = known.endpoint.connect(&node.endpoint.name()).expect("it is there");
                node.meet(known);
                node.send(HELLO, &[7; 8]);
                let (from, tag, _) = receive(known);
                assert!(from == to && tag == HELLO, "only this peer has sent something");
            }
            // It stays, and so does the other node, which lives on in the child.
            std::mem::forget(node);
        }
        let (mut ear, bell) = std::io::pipe().expect("a pipe");
        // SAFETY: there is no other thread now, as the child would need one.
        match unsafe { fork() }.expect("a process") {
            ForkResult::Parent { child } => {
                std::mem::forget(other);
                Party { one, bell, echo: child }
            }
            ForkResult::Child => {
                die_with_parent();
                pin(core);
                let mut word = [END];
                while ear.read_exact(&mut word).is_ok() && word == [LISTEN] {
                    echo(&mut other);
                }
                // SAFETY: ends the process without its destructors: the endpoints are the parent's.
                unsafe { libc::_exit(0) }
            }
        }
    }

    /// Nanoseconds that 8 bytes take one way.
    fn measure(&mut self, turns: u32) -> f64 {
        self.bell.write_all(&[LISTEN]).expect("the other process is there");
        let mut trips = |count: u32| {
            for turn in 0..count {
                self.one.send(PING, &u64::from(turn).to_le_bytes());
                let (_, _, word) = receive(&mut self.one);
                assert_eq!(word, u64::from(turn), "the answer to another message");
            }
        };
        trips(turns / 10 + 1);
        let began = Instant::now();
        trips(turns);
        let spent = one_way(began.elapsed(), turns);
        self.one.send(STOP, &[]);
        let (_, tag, _) = receive(&mut self.one);
        assert_eq!(tag, STOP, "the last message");
        spent
    }

    fn end(self) {
        let Party { one, mut bell, echo } = self;
        bell.write_all(&[END]).expect("the other process is there");
        let ended = waitpid(echo, None);
        assert_eq!(ended, Ok(WaitStatus::Exited(echo, 0)), "the other process failed");
        drop(one);
    }
}

/// Nobody is left waiting where this program is killed.
fn die_with_parent() {
    // SAFETY: a call without pointers.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
}

fn echo(node: &mut Node) {
    loop {
        match receive(node) {
            (_, PING, word) => node.send(PING, &word.to_le_bytes()),
            (_, STOP, _) => return node.send(STOP, &[]),
            _ => {}
        }
    }
}

fn one_way(spent: Duration, turns: u32) -> f64 {
    spent.as_secs_f64() * 1e9 / (2.0 * f64::from(turns))
}

/// Two lines of the region, each written by one side and read by the other.
struct Lines {
    nodes: [Node; 2],
    lines: [Fragment; 2],
}

impl Lines {
    fn new() -> Lines {
        let mut fixture = Fixture::new(2, 4);
        let mut nodes = [fixture.node(0), fixture.node(1)];
        let lines = nodes.each_mut().map(|node| node.endpoint.fragment(128).expect("room in the section"));
        Lines { nodes, lines }
    }

    /// Nanoseconds that a bare cache line takes one way: a store here, a load that sees it there.
    fn measure(&mut self, cores: [usize; 2], turns: u32) -> f64 {
        let word = |node: usize, line: usize| {
            let at = self.nodes[node].endpoint.memory().address(self.lines[line].offset(), 64);
            // SAFETY: the line lies in the region, which is mapped until the end of this function, and is only used as
            // words.
            unsafe { AtomicU64::from_ptr(at.cast()) }
        };
        // Each side reads through its own mapping.
        let (ours, theirs) = (word(0, 0), word(0, 1));
        let (seen, answer) = (word(1, 0), word(1, 1));
        let first = ours.load(Ordering::Relaxed) + 1;
        let warm = u64::from(turns / 10 + 1);
        let last = first + warm + u64::from(turns);
        let spent = thread::scope(|scope| {
            scope.spawn(|| {
                pin(cores[1]);
                for turn in first..last {
                    while seen.load(Ordering::Acquire) != turn {}
                    answer.store(turn, Ordering::Release);
                }
            });
            let trip = |turn| {
                ours.store(turn, Ordering::Release);
                while theirs.load(Ordering::Acquire) != turn {}
            };
            (first..first + warm).for_each(trip);
            let began = Instant::now();
            (first + warm..last).for_each(trip);
            began.elapsed()
        });
        one_way(spent, turns)
    }
}

const SECTIONS: u32 = 4;

/// Seconds in which so many processes attach, each as an MPI process does, from the moment at which all may begin.
fn attach(count: u32) -> f64 {
    let fixture = Fixture::new(SECTIONS, count.div_ceil(SECTIONS));
    let file = fixture.region().file().as_raw_fd();
    let device = format!("/proc/{}/fd/{file}", std::process::id());
    let [(mut start, begin), (mut ready, done), (mut end, leave)] =
        [(); 3].map(|()| std::io::pipe().expect("a pipe"));
    let mut children = Vec::new();
    for index in 0..count {
        // SAFETY: there is no other thread now, as the child would need one.
        match unsafe { fork() }.expect("a process") {
            ForkResult::Parent { child } => children.push(child),
            ForkResult::Child => {
                die_with_parent();
                // The pipes end when the parent, as the last, closes them.
                drop((begin, leave, ready));
                let _ = start.read(&mut [0]);
                let (device, section) = (Some(device), Some(index % SECTIONS));
                let attached = open_endpoint(&attach::Options { device, section, ..Default::default() });
                if let Err(error) = &attached {
                    eprintln!("vmshm_raw: process {index} of {count}: {error}");
                }
                let told = (&done).write_all(&[u8::from(attached.is_ok())]);
                let _ = end.read(&mut [0]);
                // SAFETY: ends the process at once.
                unsafe { libc::_exit(i32::from(attached.is_err() || told.is_err())) }
            }
        }
    }
    drop((start, done, end));
    let began = Instant::now();
    drop(begin);
    let mut answers = vec![0; count as usize];
    ready.read_exact(&mut answers).expect("every process answers");
    let spent = began.elapsed().as_secs_f64();
    drop(leave);
    for child in children {
        assert_eq!(waitpid(child, None), Ok(WaitStatus::Exited(child, 0)), "a process did not attach");
    }
    spent
}

/// Time and memory of many endpoints that meet one another.
struct Meeting {
    /// Seconds in which all meet all, one after another.
    seconds: f64,
    /// Bytes that two who have met take, both ways.
    pair: f64,
}

impl Meeting {
    fn measure(count: u32) -> Meeting {
        let mut fixture = Fixture::new(SECTIONS, count.div_ceil(SECTIONS));
        let mut nodes: Vec<Node> = (0..count).map(|index| fixture.node(index % SECTIONS)).collect();
        let names: Vec<_> = nodes.iter().map(|node| node.endpoint.name()).collect();
        // The heap is cut into chunks: what one meeting costs shows between the meetings that take a new one.
        let mut grown: Vec<(usize, u64)> = Vec::new();
        let began = Instant::now();
        for (me, node) in nodes.iter_mut().enumerate() {
            let others = names.iter().enumerate().filter(|(index, _)| *index != me);
            for (meetings, (_, name)) in others.enumerate() {
                node.endpoint.connect(name).expect("it is there, and there is room");
                if me == 0 {
                    let taken = taken(node);
                    if grown.last().is_none_or(|(_, known)| *known != taken) {
                        grown.push((meetings, taken));
                    }
                }
            }
        }
        let seconds = began.elapsed().as_secs_f64();
        let pair = match grown[..] {
            [_, (first, few), .., (last, many)] => 2.0 * (many - few) as f64 / (last - first) as f64,
            // Too few meetings to tell.
            _ => f64::NAN,
        };
        Meeting { seconds, pair }
    }
}

/// Bytes of the region that belong to some endpoint.
fn taken(node: &Node) -> u64 {
    let memory = node.endpoint.memory();
    let of_section = |section: &vmshm_transport::Section| {
        let owner =
            |chunk| memory.load(section.entry.offset + section.layout.owner(chunk), Ordering::Acquire);
        (0..section.layout.chunks).filter(|chunk| owner(*chunk) != 0).count() as u64
    };
    let chunks: u64 = node.endpoint.region().sections().iter().map(of_section).sum();
    chunks * CHUNK
}

fn pin(core: usize) {
    let mut set = CpuSet::new();
    let pinned = set.set(core).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
    if let Err(error) = pinned {
        eprintln!("vmshm_raw: cannot stay on processor {core}: {error}");
    }
}

/// Two processors that we may use, on different cores.
fn cores() -> Option<[usize; 2]> {
    let allowed = sched_getaffinity(Pid::from_raw(0)).ok()?;
    let core = |cpu: usize| {
        let read =
            |what| std::fs::read_to_string(format!("/sys/devices/system/cpu/cpu{cpu}/topology/{what}"));
        (read("physical_package_id").unwrap_or_default(), read("core_id").unwrap_or_else(|_| cpu.to_string()))
    };
    let mut cpus = (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap_or(false));
    let first = cpus.next()?;
    let second = cpus.find(|cpu| core(*cpu) != core(first))?;
    Some([first, second])
}

fn main() -> ExitCode {
    let options = Options::parse();
    let Some(cores) = cores() else {
        eprintln!("vmshm_raw needs two cores, and this machine has one, or this process may use only one");
        return ExitCode::FAILURE;
    };
    if options.copies {
        let begin = |side: usize| {
            if side > 0 {
                die_with_parent();
            }
            pin(cores[side]);
        };
        for (round, figures) in (1..).zip(floor::measure(options.rounds, begin)) {
            for (name, figure) in figures {
                println!("round {round} {name} {figure:.2}");
            }
        }
        return ExitCode::SUCCESS;
    }
    let turns = options.turns.max(1);
    if options.line {
        pin(cores[0]);
        let mut lines = Lines::new();
        for round in 0..=options.rounds {
            let line = lines.measure(cores, turns);
            if round > 0 {
                println!("round {round} line {line:.2}");
            }
        }
        return ExitCode::SUCCESS;
    }
    let attached = attach(options.endpoints);
    let Meeting { seconds: met, pair } = Meeting::measure(options.endpoints);
    pin(cores[0]);
    let mut alone = Party::new(0, false, cores[1]);
    let mut one_vm = Party::new(options.silent, false, cores[1]);
    let mut apart = Party::new(options.silent, true, cores[1]);
    let mut lines = Lines::new();
    // The first round warms up, and is not shown.
    for round in 0..=options.rounds {
        let mut figures = [
            ("line", lines.measure(cores, turns)),
            ("transport", alone.measure(turns)),
            ("silent-one-vm", one_vm.measure(turns)),
            ("silent-vm-each", apart.measure(turns)),
        ];
        figures.sort_by_key(|(name, _)| *name);
        for (name, figure) in figures.iter().filter(|_| round > 0) {
            println!("round {round} {name} {figure:.2}");
        }
    }
    [alone, one_vm, apart].into_iter().for_each(Party::end);
    println!("once attach-{}-seconds {attached:.4}", options.endpoints);
    println!("once meet-{}-seconds {met:.4}", options.endpoints);
    if pair.is_finite() {
        println!("once pair-bytes {pair:.0}");
    }
    ExitCode::SUCCESS
}
