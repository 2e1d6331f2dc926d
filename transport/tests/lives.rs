//! Processes whose lives the kernel's locks tell: what their watchers do, and when they count as dead.

#![cfg(feature = "std")]

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::mem::offset_of;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::Duration;

use tempfile::TempDir;
use vmshm_transport::abi::region::{RegionHeader, VERSION};
use vmshm_transport::abi::section::{EndpointSlot, STATE_FREE, STATE_GONE};
use vmshm_transport::abi::{EndpointId, EndpointName};
use vmshm_transport::attach::{Attached, Options, open_endpoint};
use vmshm_transport::{Event, Inbox, Memory, PeerError, parts};
use zerocopy::IntoBytes;

/// A region of two sections with `endpoints` slots each.
fn region(endpoints: u32) -> (TempDir, PathBuf) {
    let directory = TempDir::new().expect("a folder");
    let path = directory.path().join("region");
    let len = 64 << 20;
    let header = RegionHeader::new(*b"0123456789abcdef", len, 4096, 2, endpoints);
    let file = File::options().read(true).write(true).create_new(true).open(&path).expect("a file");
    file.set_len(len).expect("room");
    file.write_all_at(header.as_bytes(), 0).expect("room");
    for number in 0..2 {
        let at = RegionHeader::entry_offset(number);
        file.write_all_at(header.new_entry(number).as_bytes(), at).expect("room");
    }
    (directory, path)
}

fn attach(path: &Path, section: u32) -> Attached {
    let device = Some(path.display().to_string());
    open_endpoint(&Options { device, section: Some(section), ..Options::default() }).expect("attaches")
}

/// Another process with an endpoint.
struct Other {
    process: Child,
    name: EndpointName,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Other {
    fn start(path: &Path, section: u32) -> Self {
        let mut process = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "other", "--nocapture"])
            .env("REGION", path)
            .env("SECTION", section.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("starts");
        let to = process.stdin.take().expect("a pipe");
        let from = BufReader::new(process.stdout.take().expect("a pipe"));
        let region_id = *b"0123456789abcdef";
        let name = EndpointName { region_id, id: 0, version: VERSION, incarnation: 0 };
        let mut other = Self { process, name, to, from };
        let [id, incarnation] = other.hear("endpoint");
        other.name = EndpointName { id, incarnation: incarnation.into(), ..other.name };
        other
    }

    /// The text behind `word` on the next line that begins with it.
    fn hear<const N: usize>(&mut self, word: &str) -> [u32; N] {
        loop {
            let mut line = String::new();
            assert_ne!(self.from.read_line(&mut line).expect("a line"), 0, "it ended without saying {word}");
            if let Some((_, numbers)) = line.split_once(word) {
                let numbers = numbers.split_whitespace().map(|number| number.parse().expect("a number"));
                return numbers.collect::<Vec<_>>().try_into().expect("as many as are wanted");
            }
        }
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Not a test by itself: the program of [`Other`]. Attaches, waits to be told, leaves a child behind, and is killed.
#[test]
fn other() {
    let Ok(path) = std::env::var("REGION") else { return };
    let section = std::env::var("SECTION").expect("a section").parse().expect("a number");
    let endpoint = attach(Path::new(&path), section);
    println!("endpoint {} {}", endpoint.name().id, endpoint.name().incarnation);
    std::io::stdin().read_line(&mut String::new()).expect("a word");
    // SAFETY: the child makes only calls that are safe after a fork. No handler runs in it: those of the program are none of
    // our business.
    unsafe {
        let child = libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0);
        if child == 0 {
            // The child neither keeps the test's pipes open nor lives for ever, whatever becomes of the test.
            (0..3).for_each(|fd| _ = libc::close(fd));
            libc::alarm(120);
            loop {
                libc::pause();
            }
        }
        println!("child {child}");
        libc::kill(libc::getpid(), libc::SIGKILL);
    }
}

fn polls_until<T>(
    endpoint: &mut Attached,
    mut found: impl FnMut(&Attached, Option<Event>) -> Option<T>,
) -> T {
    let mut inbox = Inbox::new();
    for _ in 0..60_000 {
        let event = endpoint.poll(&mut inbox);
        if let Some(found) = found(endpoint, event) {
            return found;
        }
        std::thread::sleep(Duration::from_micros(500));
    }
    panic!("nobody noticed");
}

/// A child has its parent's open files, and with them the locks; whoever waits for the parent must not wait for it.
fn a_killed_process_with_a_child_counts_as_dead(of_one_section: bool) {
    let (_directory, path) = region(4);
    let mut us = attach(&path, 0);
    let mut other = Other::start(&path, if of_one_section { 0 } else { 1 });
    let peer = us.connect(&other.name).expect("it is there");
    writeln!(other.to, "go").expect("it listens");
    let [child] = other.hear("child");
    let why = polls_until(&mut us, |_, event| match event {
        Some(Event::Gone { peer: gone, why }) if gone == peer => Some(why),
        _ => None,
    });
    assert_eq!(why, PeerError::Died);
    let (section, slot) = us.region().place(EndpointId(other.name.id)).map(|(s, slot)| (*s, slot)).unwrap();
    let state = |us: &Attached| parts::state(us.memory(), &section, slot).state;
    if of_one_section {
        // Its child may still write what the process had of the section.
        assert_eq!(state(&us), STATE_GONE);
    }
    // SAFETY: the process is our grandchild, which nobody else ends.
    unsafe { libc::kill(child as i32, libc::SIGKILL) };
    if of_one_section {
        polls_until(&mut us, |us, _| (state(us) == STATE_FREE).then_some(()));
    }
}

#[test]
fn a_killed_sibling_with_a_child_counts_as_dead() {
    a_killed_process_with_a_child_counts_as_dead(true);
}

#[test]
fn a_killed_process_of_another_section_with_a_child_counts_as_dead() {
    a_killed_process_with_a_child_counts_as_dead(false);
}

/// The threads that watch over endpoints of this process.
fn monitors() -> Vec<PathBuf> {
    let tasks = fs::read_dir("/proc/self/task").expect("threads").flatten().map(|task| task.path());
    let is_monitor =
        |task: &PathBuf| fs::read_to_string(task.join("comm")).is_ok_and(|name| name == "vmshm-monitor\n");
    tasks.filter(is_monitor).collect()
}

/// A number in the status of a thread.
fn status(task: &Path, field: &str, base: u32) -> u64 {
    let status = fs::read_to_string(task.join("status")).expect("a thread's status");
    let value = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(":\t"));
    u64::from_str_radix(value.expect("the field"), base).expect("a number")
}

/// A process that only sleeps or computes costs nothing: its section wakes up about once a second, however many there are.
#[test]
fn a_section_that_does_not_poll_rests() {
    const EACH: usize = 30;
    let (_directory, path) = region(EACH as u32);
    let mut all: Vec<_> = (0..2 * EACH).map(|n| attach(&path, (n % 2) as u32)).collect();
    let names: Vec<_> = all.iter().map(|endpoint| endpoint.name()).collect();
    let mut inbox = Inbox::new();
    for (n, endpoint) in all.iter_mut().enumerate() {
        for name in names.iter().enumerate().filter(|(other, _)| *other != n).map(|(_, name)| name) {
            endpoint.connect(name).expect("room");
        }
        while endpoint.poll(&mut inbox).is_some() {}
    }
    // Until they have noticed.
    std::thread::sleep(Duration::from_secs(1));
    let ours = monitors();
    assert!(ours.len() >= 2 * EACH);
    let wake_ups = || -> u64 { ours.iter().map(|task| status(task, "voluntary_ctxt_switches", 10)).sum() };
    let beat = |endpoint: &Attached| {
        let at = endpoint.section().slot(endpoint.slot()) + offset_of!(EndpointSlot, heartbeat) as u64;
        endpoint.memory().load(at, Ordering::Relaxed)
    };
    let (before, beats): (_, Vec<_>) = (wake_ups(), all.iter().map(beat).collect());
    let seconds = 4;
    std::thread::sleep(Duration::from_secs(seconds));
    let spent = wake_ups() - before;
    // One a second, and a third more for those who would take its place. Other tests run beside this one.
    assert!(spent <= 2 * 2 * (seconds + 1), "{spent} wake-ups of {} threads in {seconds} s", ours.len());
    let mut waited = 0;
    while all.iter().map(beat).zip(&beats).any(|(now, before)| now <= *before) {
        waited += 1;
        assert!(waited < 300, "nobody counts up some heartbeats");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn the_program_s_signals_are_not_the_keeper_s() {
    let (_directory, path) = region(4);
    let _endpoint = attach(&path, 0);
    for monitor in monitors() {
        let blocked = status(&monitor, "SigBlk", 16);
        let has = |signal: i32| blocked >> (signal - 1) & 1 == 1;
        for signal in
            [libc::SIGTERM, libc::SIGINT, libc::SIGALRM, libc::SIGCHLD, libc::SIGUSR1, libc::SIGPROF]
        {
            assert!(has(signal), "signal {signal} may come to it");
        }
        assert!(!has(libc::SIGBUS) && !has(libc::SIGSEGV));
    }
    // SAFETY: an empty mask is filled in.
    let ours = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), &raw mut set);
        libc::sigismember(&raw const set, libc::SIGTERM)
    };
    assert_eq!(ours, 0, "our own mask is as it was");
}
