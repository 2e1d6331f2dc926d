//! Which section a process has is the host's decision, and not the process's.

mod common;

use common::Room;

#[test]
fn a_section_that_is_kept_for_a_vm_is_refused_to_processes_of_the_host() {
    let room = Room::with(16 << 20, 2, 2);
    let mut free = room.process(1);
    let uuid = room.region.assign(0, None).unwrap().to_string();
    let error = room.try_process(0).err().expect("the section is a VM's");
    for text in ["section 0", &uuid, "VMSHM_SECTION", "vmshm region release"] {
        assert!(error.contains(text), "no {text} in: {error}");
    }
    // A refused request has left no lock behind, and disturbed nobody.
    let mut other = room.process(1);
    free.meet(&mut other);
    free.hears(&other, 100);
    room.region.release(0, false).unwrap();
    let mut first = room.process(0);
    first.meet(&mut other);
    first.hears(&other, 100);
}
