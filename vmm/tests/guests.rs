//! Bare-metal guests on this host's KVM: what a VM can do to the region, and to other VMs.

mod common;

use std::time::{Duration, Instant};

use common::{Place, counts, ended, falls, kvm, polls, stores_a_vector, writes_everywhere};
use vmshm_host::CreateOptions;
use vmshm_vmm::{End, Error, Part};

const LEN: u64 = 1 << 20;

fn three() -> CreateOptions {
    CreateOptions { sections: 3, ..CreateOptions::new(LEN) }
}

fn bytes(place: &Place) -> Vec<u8> {
    let mut bytes = vec![0; LEN as usize];
    place.region().read(&mut bytes, 0).unwrap();
    bytes
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < common::LIMIT, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_guest_that_writes_everywhere_changes_its_own_section_only() {
    let Some(host) = kvm() else { return };
    let place = Place::new(&three());
    let before = bytes(&place);
    let vm = place.run(&host, 1, writes_everywhere());
    assert_eq!(vm.wait(common::LIMIT), Some(End::PowerOff));
    let dropped = vm.stats().dropped;
    let after = bytes(&place);
    vm.stop();

    let own = place.region().entry(1).unwrap();
    let (start, end) = (own.offset as usize, (own.offset + own.len) as usize);
    // The row of the table that says whose the section is, is the host's doing, from before the copy.
    for (i, (old, new)) in before.iter().zip(&after).enumerate() {
        let row = 256 + 128..256 + 256;
        assert!(
            old == new || (start..end).contains(&i) || row.contains(&i),
            "byte {i:#x}: {old} became {new}"
        );
    }
    for at in (start..end).step_by(512) {
        assert_eq!(after[at..at + 8], [0x5a; 8], "its own at {at:#x}");
    }
    assert_eq!(dropped, (LEN - own.len) / 512 + 8, "each store elsewhere was dropped and counted");
}

#[test]
fn an_open_region_may_be_written_but_for_its_table() {
    let Some(host) = kvm() else { return };
    let place = Place::new(&CreateOptions { open: true, ..three() });
    let header = place.region().header().table_end;
    assert_eq!(ended(place.run(&host, 1, writes_everywhere())), End::PowerOff);
    let after = bytes(&place);
    assert_eq!(after[..8], *b"VMSHMREG");
    for at in (header as usize..LEN as usize - 4096).step_by(512) {
        assert_eq!(after[at..at + 8], [0x5a; 8], "{at:#x}");
    }
}

#[test]
fn a_store_that_kvm_cannot_emulate_stops_that_vm_with_the_reason_and_no_other() {
    let Some(host) = kvm() else { return };
    if !std::is_x86_feature_detected!("avx") {
        eprintln!("skipped: this processor has no AVX");
        return;
    }
    let place = Place::new(&three());
    let other = place.run(&host, 0, counts());
    let counter = place.region().entry(0).unwrap().offset;
    wait_for("the other VM counts", || place.word(counter) > 0);
    let vm = place.run(&host, 1, stores_a_vector());
    wait_for("the store has an end", || vm.ended().is_some() || vm.stats().dropped > 0);
    match vm.ended() {
        Some(End::Failed(why)) => assert!(why.contains("vCPU 0") && why.contains("read-only"), "{why}"),
        // A KVM that emulates such stores drops them like all others, and the program goes on for ever.
        None => eprintln!("this KVM emulates stores of 32 bytes"),
        Some(end) => panic!("{end:?}"),
    }
    vm.stop();
    let now = place.word(counter);
    wait_for("the other VM goes on", || place.word(counter) > now);
    assert_eq!(other.stop(), End::Stopped);
}

#[test]
fn one_vm_is_paused_killed_and_restarted_while_another_goes_on() {
    let Some(host) = kvm() else { return };
    let place = Place::new(&three());
    let counter = |section| place.region().entry(section).unwrap().offset;
    let (a, b) = (place.run(&host, 0, counts()), place.run(&host, 1, counts()));
    wait_for("both count", || place.word(counter(0)) > 0 && place.word(counter(1)) > 0);

    a.pause();
    let (rested, moving) = (place.word(counter(0)), place.word(counter(1)));
    wait_for("b goes on", || place.word(counter(1)) > moving);
    assert_eq!(place.word(counter(0)), rested, "a paused VM does nothing");
    a.resume();
    wait_for("a goes on", || place.word(counter(0)) > rested);

    drop(a);
    let (dead, moving) = (place.word(counter(0)), place.word(counter(1)));
    wait_for("b goes on", || place.word(counter(1)) > moving);
    assert_eq!(place.word(counter(0)), dead);

    let a = place.run(&host, 0, counts());
    wait_for("a counts again", || place.word(counter(0)) > dead);
    a.pause();
    assert_eq!(a.stop(), End::Stopped, "a VM that rests can be stopped");
    assert_eq!(b.stop(), End::Stopped);
}

#[test]
fn a_guest_that_polls_does_not_leave_its_vcpu() {
    let Some(host) = kvm() else { return };
    let place = Place::new(&three());
    let counter = place.region().entry(0).unwrap().offset;
    let vm = place.run(&host, 0, polls());
    wait_for("it polls", || place.word(counter) > 0);
    let (exits, polls) = (vm.stats().exits, place.word(counter));
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(vm.stats().exits, exits, "{} polls later", place.word(counter) - polls);
    wait_for("it still polls", || place.word(counter) > polls);
    assert_eq!(vm.stop(), End::Stopped);
}

#[test]
fn a_triple_fault_is_the_end() {
    let Some(host) = kvm() else { return };
    let place = Place::new(&three());
    match ended(place.run(&host, 2, falls())) {
        End::Failed(why) => assert!(why.contains("triple fault"), "{why}"),
        end => panic!("{end:?}"),
    }
}

#[test]
fn a_vm_whose_region_is_truncated_stops_with_that_reason() {
    let Some(host) = kvm() else { return };
    let place = Place::new(&three());
    let counter = place.region().entry(0).unwrap().offset;
    let vm = place.run(&host, 0, counts());
    wait_for("the VM counts", || place.word(counter) > 0);
    place.region().file().set_len(0).unwrap();
    match ended(vm) {
        End::Failed(why) => assert!(why.contains("truncated"), "{why}"),
        end => panic!("{end:?}"),
    }
}

#[test]
fn a_section_belongs_to_one_vm_at_a_time_and_is_free_again_afterwards() {
    let place = Place::new(&three());
    let shared = place.take(1).unwrap();
    assert_eq!(
        shared.parts().iter().map(|part| part.writable).collect::<Vec<_>>(),
        [false, true, false],
        "{:?}",
        shared.parts()
    );
    let text = place.take(1).unwrap_err().to_string();
    assert!(text.contains("section 1") && text.contains("in use"), "{text}");
    drop(shared);
    assert_eq!(place.region().entry(1).unwrap().state, 0);
    place.take(1).unwrap();
    let text = place.take(3).unwrap_err().to_string();
    assert!(text.contains("sections 0 to 2"), "{text}");
}

#[test]
fn a_member_s_locks_hold_no_vm_up_and_the_region_s_file_is_closed_once_it_is_mapped() {
    let place = Place::new(&three());
    let region = place.region();
    region.assign(1, Some(uuid::Uuid::from_u128(2))).unwrap();
    let member = place.region();
    // SAFETY: all zeros is a valid flock: to the end of the file.
    let mut all: libc::flock = unsafe { std::mem::zeroed() };
    all.l_type = libc::F_WRLCK as libc::c_short;
    nix::fcntl::fcntl(member.file(), nix::fcntl::FcntlArg::F_OFD_SETLK(&all)).unwrap();
    let shared = place.take(1).unwrap();
    let path = region.path().to_owned();
    drop((region, member));
    let open = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    assert!(!open.filter_map(|fd| std::fs::read_link(fd.path()).ok()).any(|open| open == path));
    drop(shared);
    assert_eq!(place.region().entry(1).unwrap().state, 1, "it stays assigned");
}

#[test]
fn the_last_section_has_nothing_behind_it_but_what_is_left_over() {
    let place = Place::new(&CreateOptions { sections: 1, ..CreateOptions::new(LEN) });
    let shared = place.take(0).unwrap();
    let end = shared.parts().iter().fold(0, |end, Part { offset, len, .. }| {
        assert_eq!(*offset, end, "no gap");
        end + len
    });
    assert_eq!(end, LEN);
}

#[test]
fn a_region_that_may_only_be_read_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new(&three());
    let path = place.region().path().to_owned();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o440)).unwrap();
    // Root may write to everything.
    if place.region().is_writable() {
        return;
    }
    assert!(matches!(place.take(0), Err(Error::RegionReadOnly { .. })));
}
