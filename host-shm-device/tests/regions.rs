//! Regions come and go as they are asked for, and never over the top of another.

mod common;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::process::{Command, Stdio};

use common::{Host, state};
use uuid::Uuid;
use vmshm_abi::RegionHeader;
use vmshm_abi::region::VERSION;
use vmshm_host::{
    CreateOptions, Error, Lock, PageSize, Region, RegionName, State, create_memfd, inspect, nodes,
};

fn name(text: &str) -> RegionName {
    RegionName::new(text).unwrap()
}

#[test]
fn a_new_region_is_whole_and_private_to_its_group() {
    let host = Host::new();
    let options = CreateOptions { sections: 3, open: true, ..CreateOptions::new(8 << 20) };
    let region = host.registry.create(&name("größe 1"), &options).unwrap();
    let meta = region.file().metadata().unwrap();
    assert_eq!((meta.len(), meta.permissions().mode() & 0o777), (8 << 20, 0o660));
    assert!(meta.blocks() * 512 >= 8 << 20, "allocated in full");
    assert_eq!(region.name(), "größe 1");
    assert!(region.header().is_open());
    let entries = region.entries().unwrap();
    assert_eq!(entries.len(), 3);
    for (i, entry) in entries.iter().enumerate() {
        assert_eq!(State::of(entry), State::Free);
        assert_eq!((entry.generation, entry.node), (0, -1));
        assert_eq!(Uuid::from_bytes(entry.vm_uuid).get_version_num(), 4);
        assert!(entries[..i].iter().all(|other| other.vm_uuid != entry.vm_uuid));
        assert!(region.layout(entry).unwrap().chunks > 0);
    }
    let listed = host.registry.list().unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].name, "größe 1");
}

#[test]
fn a_name_is_given_once() {
    let host = Host::new();
    let id = host.create("r", 2).id();
    let again = host.registry.create(&name("r"), &CreateOptions::new(4 << 20));
    assert!(matches!(again, Err(Error::Exists { .. })));
    assert_eq!(host.registry.open("r").unwrap().id(), id);
    let foreign = host.registry.dir().join("foreign");
    fs::write(&foreign, "mine").unwrap();
    assert!(host.registry.create(&name("foreign"), &CreateOptions::new(4 << 20)).is_err());
    assert_eq!(fs::read(&foreign).unwrap(), b"mine");
}

#[test]
fn many_that_create_one_name_at_once_make_one_region() {
    let host = Host::new();
    let made = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| host.registry.create(&name("r"), &CreateOptions::new(1 << 20)).is_ok()))
            .collect();
        threads.into_iter().map(|t| usize::from(t.join().unwrap())).sum::<usize>()
    });
    assert_eq!(made, 1);
    assert_eq!(host.registry.list().unwrap().len(), 1);
}

#[test]
fn a_sparse_region_takes_memory_only_for_its_table() {
    let host = Host::new();
    let options = CreateOptions { sparse: true, sections: 2, ..CreateOptions::new(1 << 40) };
    let region = host.registry.create(&name("r"), &options).unwrap();
    assert_eq!(region.header().region_len, 1 << 40);
    assert!(region.allocated() <= 4 << 20);
    let seen = inspect(&region).unwrap();
    assert!(seen.sections.iter().all(|s| s.nodes_found.is_empty()));
    assert!(region.allocated() <= 4 << 20, "looking at it allocates nothing");
}

#[test]
fn too_much_memory_is_refused_before_anything_is_made() {
    let host = Host::new();
    let error = host.registry.create(&name("r"), &CreateOptions::new(1 << 50)).unwrap_err().to_string();
    assert!(error.contains("1024 TiB") && error.contains("--sparse"), "{error}");
    assert_eq!(fs::read_dir(host.registry.dir()).unwrap().count(), 0);
}

#[test]
fn memory_lies_on_the_node_that_was_asked_for() {
    let Some(node) = nodes().into_iter().find(|node| node.has_memory) else {
        println!("skipped: this kernel has no NUMA support");
        return;
    };
    let host = Host::new();
    let options = CreateOptions { nodes: vec![node.id], ..CreateOptions::new(4 << 20) };
    let region = host.registry.create(&name("r"), &options).unwrap();
    for section in inspect(&region).unwrap().sections {
        assert_eq!(section.node, Some(node.id as i32));
        assert_eq!(section.nodes_found, [node.id as i32]);
    }
    let refuse = |nodes| {
        let options = CreateOptions { nodes, sections: 2, ..CreateOptions::new(4 << 20) };
        host.registry.create(&name("other"), &options).unwrap_err().to_string()
    };
    let missing = (0..).find(|n| nodes().iter().all(|node| node.id != *n)).unwrap();
    assert!(refuse(vec![missing]).contains(&format!("node {missing} does not exist")));
    assert!(refuse(vec![node.id; 3]).contains("3 entries for 2 sections"));
}

#[test]
fn huge_pages_come_from_hugetlbfs_or_the_way_there_is_told() {
    let host = Host::new();
    let options = CreateOptions { pages: PageSize::Huge2M, ..CreateOptions::new(16 << 20) };
    match host.registry.create(&name("huge"), &options) {
        Ok(region) => {
            assert_eq!(region.header().page_len, 2 << 20);
            // hugetlbfs knows no write(2), but a section is emptied all the same.
            let secret = region.entry(1).unwrap().offset + (1 << 20);
            store(&region, secret, 0x5a5a);
            region.assign(1, None).unwrap();
            assert_eq!(state(&region, 1), State::Assigned);
            let mut word = [1; 8];
            region.read(&mut word, secret).unwrap();
            assert_eq!(word, [0; 8]);
            let target = fs::canonicalize(region.path()).unwrap();
            drop(region);
            host.registry.destroy("huge", false).unwrap();
            assert!(!target.exists());
        }
        Err(error @ (Error::NoHugetlbfs { .. } | Error::NoRoom { .. })) => {
            let text = error.to_string();
            assert!(text.contains("sudo"), "{text}");
            println!("skipped: {text}");
        }
        Err(error) => panic!("{error}"),
    }
    assert_eq!(fs::read_dir(host.registry.dir()).unwrap().count(), 0);
}

/// Writes a word by way of a mapping.
fn store(region: &Region, offset: u64, value: u64) {
    use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
    let len = (region.header().region_len as usize).try_into().unwrap();
    let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice changes no memory in use.
    let start = unsafe { mmap(None, len, prot, MapFlags::MAP_SHARED, region.file(), 0) }.unwrap();
    // SAFETY: an aligned word inside the mapping.
    unsafe { start.byte_add(offset as usize).cast::<u64>().write_volatile(value) };
    // SAFETY: our own mapping, to which no pointer is kept.
    unsafe { munmap(start, len.get()) }.unwrap();
}

#[test]
fn a_link_that_an_interrupted_creation_left_is_no_region_and_no_obstacle() {
    let host = Host::new();
    host.create("other", 2);
    std::os::unix::fs::symlink("/nowhere/at/all", host.registry.dir().join("r")).unwrap();
    assert_eq!(host.registry.list().unwrap().len(), 1);
    assert!(matches!(host.registry.open("r"), Err(Error::NotFound { .. })));
    host.create("r", 2);
    assert_eq!(host.registry.list().unwrap().len(), 2);
}

#[test]
fn a_link_to_elsewhere_is_removed_without_what_it_leads_to() {
    let host = Host::new();
    let region = host.create("r", 2);
    let elsewhere = host.dir.path().join("elsewhere");
    fs::rename(region.path(), &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, region.path()).unwrap();
    assert!(host.registry.destroy("r", false).unwrap_err().to_string().contains("link"));
    host.registry.destroy("r", true).unwrap();
    assert!(!region.path().is_symlink());
    Region::open(&elsewhere).unwrap();
}

#[test]
fn a_memfd_region_cannot_be_shortened() {
    let region = create_memfd(&name("r"), &CreateOptions::new(1 << 20)).unwrap();
    assert!(region.file().set_len(4096).is_err());
    assert_eq!(region.entries().unwrap().len(), 2);
}

#[test]
fn a_section_is_assigned_to_one_vm_and_released_again() {
    let host = Host::new();
    let region = host.create("r", 2);
    let own = Uuid::from_bytes(region.entry(0).unwrap().vm_uuid);
    assert_eq!(region.assign(0, None).unwrap(), own);
    assert_eq!((state(&region, 0), region.entry(0).unwrap().generation), (State::Assigned, 1));
    assert_eq!(region.assign(0, None).unwrap(), own);
    assert_eq!(region.entry(0).unwrap().generation, 1, "the same VM again is no new member");
    let other = Uuid::from_u128(0x1234_5678_9abc_4def_8000_0000_0000_0001);
    region.assign(0, Some(other)).unwrap();
    assert_eq!(region.entry(0).unwrap().vm_uuid, *other.as_bytes());
    assert!(region.assign(1, Some(other)).unwrap_err().to_string().contains("section 0's already"));
    assert!(region.assign(1, Some(Uuid::nil())).is_err());
    assert!(region.assign(2, None).unwrap_err().to_string().contains("sections 0 to 1"));
    region.release(0, false).unwrap();
    assert_eq!(state(&region, 0), State::Free);
}

#[test]
fn what_the_host_has_decided_stands_in_a_file_of_the_owner_s_alone() {
    let host = Host::new();
    let region = host.create("r", 2);
    let ledger = host.registry.dir().join(".r.host");
    assert_eq!(fs::metadata(&ledger).unwrap().permissions().mode() & 0o777, 0o600);
    region.assign(0, None).unwrap();
    drop(region);

    // Anything else in its place is not trusted, and not written to.
    let elsewhere = host.dir.path().join("elsewhere");
    fs::write(&elsewhere, "mine").unwrap();
    fs::remove_file(&ledger).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &ledger).unwrap();
    let refused = |what: &str| {
        let error = host.registry.open("r").unwrap().assign(1, None).unwrap_err().to_string();
        assert!(error.contains(".r.host") && error.contains(what), "{error}");
    };
    refused("symbolic link");
    assert_eq!(fs::read(&elsewhere).unwrap(), b"mine");
    fs::remove_file(&ledger).unwrap();
    fs::write(&ledger, "").unwrap();
    fs::set_permissions(&ledger, fs::Permissions::from_mode(0o660)).unwrap();
    refused("mode 660");
    fs::remove_file(&ledger).unwrap();

    // Where it was lost, what the table says is the best there is.
    let region = host.registry.open("r").unwrap();
    region.assign(1, None).unwrap();
    assert_eq!((state(&region, 0), state(&region, 1)), (State::Assigned, State::Assigned));
    drop(region);
    host.registry.destroy("r", false).unwrap();
    assert_eq!(fs::read_dir(host.registry.dir()).unwrap().count(), 0);

    // A region that is removed by other means leaves one that says nothing of the next.
    let region = host.create("r", 2);
    region.assign(0, None).unwrap();
    fs::remove_file(region.path()).unwrap();
    let region = host.create("r", 2);
    let uuid = Uuid::from_bytes(region.entry(0).unwrap().vm_uuid);
    assert_eq!(region.assign(0, None).unwrap(), uuid);
    assert_eq!(region.entry(0).unwrap().generation, 1);
}

#[test]
fn emptying_a_sparse_section_allocates_nothing() {
    let host = Host::new();
    let options = CreateOptions { sparse: true, sections: 2, ..CreateOptions::new(1 << 40) };
    let region = host.registry.create(&name("r"), &options).unwrap();
    let entry = region.entry(1).unwrap();
    region.file().write_all_at(b"secret", entry.offset + entry.len / 2).unwrap();
    region.assign(1, None).unwrap();
    let mut bytes = [1; 6];
    region.read(&mut bytes, entry.offset + entry.len / 2).unwrap();
    assert_eq!(bytes, [0; 6]);
    assert!(region.allocated() <= 4 << 20);
}

#[test]
fn a_section_that_host_processes_use_is_not_assigned() {
    let host = Host::new();
    let region = host.create("r", 2);
    let user = host.registry.open("r").unwrap();
    let lock = Lock::try_exclusive(user.file(), RegionHeader::entry_offset(1)).unwrap().unwrap();
    assert!(region.assign(1, None).unwrap_err().to_string().contains("in use by host processes"));
    assert_eq!(state(&region, 1), State::Free);
    assert!(matches!(host.registry.destroy("r", false), Err(Error::InUse { .. })));
    drop(lock);
    region.assign(1, None).unwrap();
}

#[test]
fn a_region_that_a_process_has_open_is_destroyed_only_by_force() {
    let host = Host::new();
    let region = host.create("r", 2);
    let path = region.path().to_owned();
    drop(region);
    let mut user =
        Command::new("sleep").arg("1000").stdin(Stdio::from(File::open(&path).unwrap())).spawn().unwrap();
    let error = host.registry.destroy("r", false).unwrap_err().to_string();
    let kept = Region::open(&path).unwrap();
    host.registry.destroy("r", true).unwrap();
    user.kill().unwrap();
    user.wait().unwrap();
    assert!(error.contains(&format!("pid {} (sleep)", user.id())), "{error}");
    assert!(!path.exists());
    // A process that still has it sees that it is no region any more.
    let mut magic = [0xff; 8];
    kept.read(&mut magic, 0).unwrap();
    assert_eq!(magic, [0; 8]);
}

#[test]
fn what_is_no_region_is_named_and_stays_unless_forced() {
    let host = Host::new();
    host.create("good", 2);
    let dir = host.registry.dir();
    let good = fs::read(dir.join("good")).unwrap();
    let spoil = |name: &str, offset: usize, bytes: &[u8], len: usize| {
        let mut spoiled = good[..len].to_vec();
        spoiled[offset..offset + bytes.len()].copy_from_slice(bytes);
        fs::write(dir.join(name), spoiled).unwrap();
    };
    spoil("foreign", 0, b"\x7fELF", 1 << 20);
    spoil("future", 8, &(VERSION + 1).to_le_bytes(), 4 << 20);
    spoil("short", 0, b"V", 1 << 20);
    spoil("tiny", 0, b"V", 100);
    spoil("many", 48, &u32::MAX.to_le_bytes(), 4 << 20);
    spoil("overlap", 256 + 128, &4096u64.to_le_bytes(), 4 << 20);
    fs::create_dir(dir.join("dir")).unwrap();
    let newer = format!("version {}", VERSION + 1);
    let expected = [
        ("foreign", "no vmshm region"),
        ("future", &newer),
        ("short", "truncated"),
        ("tiny", "header"),
        ("many", "sections = 4294967295"),
        ("overlap", "section 1: offset = 4096"),
        ("dir", "directory"),
    ];
    for (name, text) in expected {
        let error = host.registry.open(name).unwrap_err().to_string();
        assert!(error.contains(text), "{name}: {error}");
        assert!(host.registry.destroy(name, false).is_err());
        assert!(dir.join(name).exists());
    }
    assert_eq!(host.registry.list().unwrap().len(), expected.len() + 1);
    for (name, _) in &expected[..6] {
        host.registry.destroy(name, true).unwrap();
        assert!(!dir.join(name).exists());
    }
    assert!(host.registry.destroy("dir", true).is_err());
    let outside = host.dir.path().join("outside");
    fs::write(&outside, "mine").unwrap();
    assert!(host.registry.destroy(outside.to_str().unwrap(), true).is_err());
    assert!(outside.exists(), "only what lies in the registry is removed unseen");
}

#[test]
fn endpoints_are_shown_with_whether_they_live() {
    use vmshm_abi::section::{EndpointSlot, STATE_LIVE, SlotState};
    use zerocopy::{FromZeros, IntoBytes};
    let host = Host::new();
    let region = host.create("r", 2);
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let (high, low) = Uuid::parse_str(boot.trim()).unwrap().as_u64_pair();
    let entry = region.entry(1).unwrap();
    let layout = region.layout(&entry).unwrap();
    let slot = EndpointSlot {
        state: SlotState { incarnation: 7, state: STATE_LIVE }.pack(),
        pid: 42,
        boot_id: [high, low],
        heartbeat: 9,
        ..EndpointSlot::new_zeroed()
    };
    let at = entry.offset + layout.slot(3);
    let user = host.registry.open("r").unwrap();
    user.file().write_all_at(slot.as_bytes(), at).unwrap();
    let lock = Lock::try_exclusive(user.file(), at).unwrap().unwrap();
    let look = || inspect(&region).unwrap().sections[1].endpoints.pop().unwrap();
    let seen = look();
    assert_eq!((seen.slot, seen.pid, seen.incarnation, seen.heartbeat), (3, 42, 7, 9));
    assert_eq!((seen.state.as_str(), seen.on_host, seen.alive), ("live", true, Some(true)));
    drop(lock);
    assert_eq!(look().alive, Some(false));
    let guest = EndpointSlot { boot_id: [1, 2], ..slot };
    user.file().write_all_at(guest.as_bytes(), at).unwrap();
    assert_eq!((look().on_host, look().alive), (false, None));
}
