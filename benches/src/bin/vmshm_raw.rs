//! The raw transport, without MPI and without virtual machines: two processes on two cores, with one region.
//!
//! Each round measures the same things in turn, one line each: `round NUMBER NAME NANOSECONDS`, all one-way times of 8 bytes.
//! What is measured only once follows as `once NAME FIGURE`.

use std::io::{PipeWriter, Read, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};
use vmshm_host::{CreateOptions, Region, RegionName, create_memfd};
use vmshm_transport::abi::section::CHUNK;
use vmshm_transport::{Endpoint, Event, Fragment, Inbox, Mapping, Memory, Peer, SendError};

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
    /// Endpoints that attach together
    #[arg(long, default_value_t = 256, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=1024))]
    endpoints: u32,
}

/// An endpoint with what it needs to be used in a loop.
struct Node {
    endpoint: Endpoint<Arc<Mapping>>,
    inbox: Inbox,
    peer: Option<Peer>,
}

impl Node {
    fn meet(&mut self, other: &Node) {
        self.peer = Some(self.endpoint.connect(&other.endpoint.name()).expect("the other is there"));
    }

    fn send(&mut self, tag: u8, bytes: &[u8]) {
        let peer = self.peer.expect("every node is connected first");
        while self.endpoint.send(peer, tag, &[bytes]) == Err(SendError::Full) {}
    }

    /// Polls until a message is there, and returns its sender, tag and bytes.
    #[inline]
    fn receive(&mut self) -> (Peer, u8, u64) {
        loop {
            match self.endpoint.poll(&mut self.inbox) {
                Some(Event::Message { peer, tag, len }) => {
                    let mut word = [0; 8];
                    word[..len].copy_from_slice(self.inbox.bytes(len));
                    return (peer, tag, u64::from_le_bytes(word));
                }
                Some(Event::Gone { why, .. }) => panic!("the peer is gone: {why}"),
                _ => {}
            }
        }
    }
}

/// A region in memory, with one mapping for each section that is used.
struct Ground {
    region: Region,
    mappings: Vec<Option<Arc<Mapping>>>,
}

impl Ground {
    fn new(sections: u32, endpoints: u32) -> Ground {
        let mut options = CreateOptions::new(2 << 30);
        (options.sections, options.endpoints, options.sparse) = (sections, Some(endpoints), true);
        let name = RegionName::new("raw").expect("a good name");
        let region = create_memfd(&name, &options).expect("a region in memory");
        Ground { region, mappings: vec![None; sections as usize] }
    }

    fn mapping(&mut self, section: u32) -> Arc<Mapping> {
        let region = &self.region;
        let made = self.mappings[section as usize].get_or_insert_with(|| {
            let entry = region.entry(section).expect("a section of the region");
            let own = entry.offset..entry.offset + entry.len;
            let file = region.reopen().expect("a file of our own");
            Arc::new(Mapping::new(file, region.header().region_len, own).expect("memory to map"))
        });
        Arc::clone(made)
    }

    fn node(&mut self, section: u32) -> Node {
        let endpoint = Endpoint::attach(self.mapping(section), section).expect("room in the section");
        Node { endpoint, inbox: Inbox::new(), peer: None }
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
        let mut ground =
            if apart { Ground::new(2 + silent, 4) } else { Ground::new(2, (silent + 2).next_power_of_two()) };
        let (mut one, mut other) = (ground.node(0), ground.node(1));
        one.meet(&other);
        other.meet(&one);
        for index in 0..silent {
            let mut node = ground.node(if apart { 2 + index } else { 1 });
            for known in [&mut one, &mut other] {
                let to = known.endpoint.connect(&node.endpoint.name()).expect("it is there");
                node.peer = Some(node.endpoint.connect(&known.endpoint.name()).expect("it is there"));
                node.send(HELLO, &[7; 8]);
                let (from, tag, _) = known.receive();
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
                let (_, _, word) = self.one.receive();
                assert_eq!(word, u64::from(turn), "the answer to another message");
            }
        };
        trips(turns / 10 + 1);
        let began = Instant::now();
        trips(turns);
        let spent = one_way(began.elapsed(), turns);
        self.one.send(STOP, &[]);
        let (_, tag, _) = self.one.receive();
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
        match node.receive() {
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
    ground: Ground,
    nodes: [Node; 2],
    lines: [Fragment; 2],
}

impl Lines {
    fn new() -> Lines {
        let mut ground = Ground::new(2, 4);
        let mut nodes = [ground.node(0), ground.node(1)];
        let lines = nodes.each_mut().map(|node| node.endpoint.fragment(128).expect("room in the section"));
        Lines { ground, nodes, lines }
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
        debug_assert!(!self.ground.mappings.is_empty());
        one_way(spent, turns)
    }
}

/// What many endpoints take.
struct Together {
    /// Seconds in which they attach.
    attached: f64,
    /// Seconds in which all meet all.
    met: f64,
    /// Bytes that two who have met take, both ways.
    pair: f64,
}

impl Together {
    fn measure(count: u32) -> Together {
        const SECTIONS: u32 = 4;
        let mut ground = Ground::new(SECTIONS, count.div_ceil(SECTIONS));
        let began = Instant::now();
        let mut nodes: Vec<Node> = (0..count)
            .map(|index| {
                // Nobody shares a mapping, as processes do not.
                ground.mappings[(index % SECTIONS) as usize] = None;
                ground.node(index % SECTIONS)
            })
            .collect();
        let attached = began.elapsed().as_secs_f64();
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
        let met = began.elapsed().as_secs_f64();
        let pair = match grown[..] {
            [_, (first, few), .., (last, many)] => 2.0 * (many - few) as f64 / (last - first) as f64,
            // Too few meetings to tell.
            _ => f64::NAN,
        };
        Together { attached, met, pair }
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
    let turns = options.turns.max(1);
    let Together { attached, met, pair } = Together::measure(options.endpoints);
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
