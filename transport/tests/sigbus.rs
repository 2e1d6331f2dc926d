//! Memory that goes away while it is mapped: a region's file that is truncated, or, played by that, a device.

#![cfg(feature = "std")]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use vmshm_transport::abi::driver::{self, DeviceInfo};
use vmshm_transport::abi::region::RegionHeader;
use vmshm_transport::{ConnectError, Endpoint, Event, Inbox, Mapping, Memory, PeerError, Region, SendError};
use zerocopy::IntoBytes;

const LEN: u64 = 8 << 20;

fn info(section: u32) -> DeviceInfo {
    DeviceInfo {
        version: driver::VERSION,
        section,
        region_len: LEN,
        vectors: 0,
        memory_type: driver::WRITE_BACK,
        reserved: [0; 5],
    }
}

/// The file of a region with two sections.
fn region_file() -> File {
    let file = tempfile::tempfile().expect("a temporary file");
    file.set_len(LEN).expect("room");
    let header = RegionHeader::new(*b"0123456789abcdef", LEN, 4096, 2, 4);
    file.write_all_at(header.as_bytes(), 0).expect("room");
    for number in 0..2 {
        let at = RegionHeader::entry_offset(number);
        file.write_all_at(header.new_entry(number).as_bytes(), at).expect("room");
    }
    file
}

fn own(section: u32) -> std::ops::Range<u64> {
    let entry = RegionHeader::new([0; 16], LEN, 4096, 2, 4).new_entry(section);
    entry.offset..entry.offset + entry.len
}

fn map(file: &File, section: u32) -> Mapping {
    Mapping::of_device(file.try_clone().expect("a handle"), &info(section), own(section)).expect("maps")
}

fn map_file(file: &File, section: u32) -> Mapping {
    Mapping::of_file(file.try_clone().expect("a handle"), LEN, own(section)).expect("maps")
}

/// Pages of a file that nobody watches over.
fn map_unwatched(file: &File, at: *mut libc::c_void) -> *mut libc::c_void {
    let fixed = if at.is_null() { 0 } else { libc::MAP_FIXED };
    // SAFETY: new pages, or such as belong to the caller.
    let there = unsafe {
        libc::mmap(
            at,
            4096,
            libc::PROT_READ,
            libc::MAP_SHARED | fixed,
            std::os::fd::AsRawFd::as_raw_fd(file),
            0,
        )
    };
    assert_ne!(there, libc::MAP_FAILED);
    there
}

#[test]
fn what_is_lost_reads_as_zeros_and_can_be_written() {
    loses(map);
    loses(map_file);
}

fn loses(map: fn(&File, u32) -> Mapping) {
    let (file, other) = (region_file(), region_file());
    let (mapping, untouched) = (map(&file, 0), map(&other, 1));
    let own = Region::read(&mapping).expect("a region").sections()[0].entry.offset;
    mapping.store(own, 7, Ordering::Relaxed);
    assert_eq!(mapping.load(own, Ordering::Relaxed), 7);
    assert!(!mapping.is_lost());
    file.set_len(0).expect("truncates");
    assert_eq!(mapping.load(LEN - 8, Ordering::Relaxed), 0, "a word that only the others write");
    assert!(mapping.is_lost());
    assert_eq!(mapping.load(own, Ordering::Relaxed), 0, "a word of ours");
    mapping.store(own, 8, Ordering::Relaxed);
    assert_eq!(mapping.load(own, Ordering::Relaxed), 8);
    let mut bytes = vec![1; 100_000];
    mapping.read(0, &mut bytes);
    assert!(bytes.iter().all(|byte| *byte == 0));
    assert!(!untouched.is_lost());
    assert!(Region::read(&untouched).is_ok(), "another region is still there");
}

#[test]
fn a_file_that_is_too_short_for_its_table_is_an_error() {
    let file = region_file();
    let error = Mapping::of_file(file, LEN / 2, own(1)).expect_err("its second half is another region's");
    assert!(error.to_string().contains("it has 4194304"), "{error}");
}

#[test]
fn many_threads_lose_it_at_once() {
    for _ in 0..20 {
        let file = region_file();
        let mapping = map(&file, 0);
        let start = std::sync::Barrier::new(5);
        std::thread::scope(|scope| {
            for thread in 0..4u64 {
                let (mapping, start) = (&mapping, &start);
                scope.spawn(move || {
                    start.wait();
                    for page in 0..LEN / 4096 {
                        mapping.load((page * 7 + thread) % (LEN / 4096) * 4096, Ordering::Relaxed);
                    }
                });
            }
            start.wait();
            file.set_len(0).expect("truncates");
        });
        mapping.load(0, Ordering::Relaxed);
        assert!(mapping.is_lost());
    }
}

#[test]
fn endpoints_are_told() {
    let file = region_file();
    let mut a = Endpoint::attach(Arc::new(map(&file, 0)), 0).expect("attaches");
    let mut b = Endpoint::attach(Arc::new(map(&file, 1)), 1).expect("attaches");
    let b_name = b.name();
    let to_b = a.connect(&b_name).expect("b is there");
    let to_a = b.connect(&a.name()).expect("a is there");
    let mut inbox = Inbox::new();
    b.send(to_a, 1, &[b"hello"]).expect("room");
    while a.poll(&mut inbox).is_none() {}
    let fragment = a.fragment(5000).expect("room");
    a.send_fragment(to_b, 1, &fragment, 5000, 9).expect("room");
    file.set_len(0).expect("truncates");
    let mut events = Vec::new();
    while !matches!(events.last(), Some(Event::Gone { .. })) {
        events.extend(a.poll(&mut inbox));
    }
    assert_eq!(
        events,
        [Event::Unsent { peer: to_b, token: 9 }, Event::Gone { peer: to_b, why: PeerError::DeviceLost }]
    );
    assert_eq!(a.send(to_b, 1, &[b"?"]), Err(SendError::Gone));
    assert_eq!(a.connect(&b_name), Err(ConnectError::Gone));
    assert!(a.is_drained());
    // The other has its own mapping of the same device; it meets the loss in a send.
    while b.send(to_a, 1, &[b"?"]) != Err(SendError::Gone) {}
    assert_eq!(b.poll(&mut inbox), Some(Event::Gone { peer: to_a, why: PeerError::DeviceLost }));
}

/// Answer of a player whose lost memory was replaced: it has come so far only with our handler.
const HANDLED: &str = "the loss was handled";

/// Plays one part in a process of its own, which may be killed, but not before its lost memory was replaced.
fn play(part: &str) -> std::process::ExitStatus {
    let program = std::env::current_exe().expect("this program");
    let mut command = Command::new(program);
    command.args(["--exact", "player", "--nocapture"]).env("PART", part);
    // SAFETY: the call is safe between fork and exec. No core files in the tree.
    unsafe {
        std::os::unix::process::CommandExt::pre_exec(&mut command, || {
            let limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            libc::setrlimit(libc::RLIMIT_CORE, &raw const limit);
            Ok(())
        });
    }
    let output = command.output().expect("runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains(HANDLED), "{part}: {}, said {said}", output.status);
    output.status
}

/// Not a test by itself: what [`play`] runs.
#[test]
fn player() {
    let Ok(part) = std::env::var("PART") else { return };
    extern "C" fn exits(_: libc::c_int) {
        // SAFETY: safe in a signal handler.
        unsafe { libc::_exit(42) };
    }
    let own: extern "C" fn(libc::c_int) = exits;
    // SAFETY: the handlers are valid.
    unsafe {
        libc::signal(libc::SIGBUS, if part == "own" { own as libc::sighandler_t } else { libc::SIG_DFL });
    }
    let lost = region_file();
    let mapping = map(&lost, 0);
    lost.set_len(0).expect("truncates");
    assert_eq!(mapping.load(0, Ordering::Relaxed), 0);
    assert!(mapping.is_lost());
    println!("{HANDLED}");
    if part == "raise" {
        // SAFETY: raises a signal.
        unsafe { libc::raise(libc::SIGBUS) };
    }
    let file = region_file();
    file.set_len(0).expect("truncates");
    if part == "again" {
        // Memory in the lost one's place that is lost, too: what was put there can't be had any more.
        map_unwatched(&file, mapping.address(0, 8).cast());
        mapping.load(0, Ordering::Relaxed);
    }
    let foreign = map_unwatched(&file, std::ptr::null_mut());
    // SAFETY: the pages are mapped.
    unsafe { foreign.cast::<u64>().read_volatile() };
}

#[test]
fn what_is_lost_twice_ends_the_process() {
    assert_eq!(play("again").signal(), Some(libc::SIGBUS));
}

#[test]
fn other_bus_errors_end_the_process_as_ever() {
    assert_eq!(play("default").signal(), Some(libc::SIGBUS));
    assert_eq!(play("raise").signal(), Some(libc::SIGBUS));
}

#[test]
fn another_handler_is_still_called() {
    assert_eq!(play("own").code(), Some(42));
}
