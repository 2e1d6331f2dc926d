//! Starting and stopping VMs leaves nothing behind. Alone in its process, since it counts what that has.

mod common;

use std::fs;

use common::{Place, counts, kvm};
use vmshm_host::CreateOptions;
use vmshm_vmm::End;

/// Descriptors, threads, mappings of this process.
fn census() -> [usize; 3] {
    let entries = |dir| fs::read_dir(dir).unwrap().count();
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    [
        entries("/proc/self/fd"),
        entries("/proc/self/task"),
        maps.lines().filter(|l| !l.contains("[heap]")).count(),
    ]
}

#[test]
fn a_hundred_starts_and_stops_leave_no_descriptor_thread_or_mapping() {
    let Some(host) = kvm() else { return };
    let place = Place::new(&CreateOptions::new(1 << 20));
    let counter = place.region().entry(1).unwrap().offset;
    let mut after_first = None;
    for round in 0..100 {
        let vm = place.run(&host, 1, counts());
        let before = place.word(counter);
        while place.word(counter) == before {
            std::thread::yield_now();
        }
        assert_eq!(vm.stop(), End::Stopped);
        // The first rounds make the allocator's and the thread library's own mappings.
        if round == 4 {
            after_first = Some(census());
        }
    }
    assert_eq!(Some(census()), after_first);
}
