//! The server, seen by a client of our own that checks every message and every descriptor.

mod common;

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use common::{Client, Host, receive, state, until};
use vmshm_host::{CALL_TAKEN, CreateOptions, RegionName, Server, State, call_address, section_socket};

/// A process that holds a connection of its own: bash's /dev/tcp knows no unix sockets, perl does.
fn vm(path: PathBuf) -> Child {
    let script = "use IO::Socket::UNIX; my $s = IO::Socket::UNIX->new(Peer => $ARGV[0]) or die; sleep 1000;";
    Command::new("perl").args(["-e", script]).arg(path).stdin(Stdio::null()).spawn().unwrap()
}

#[test]
fn a_client_gets_its_section_s_number_and_the_region_s_own_memory() {
    let host = Host::new();
    let region = host.create("r", 3);
    let _server = host.serve("r", 2);
    let client = Client::join(&host.socket(), 2).unwrap();
    assert_eq!(client.id, 0);
    let meta = std::fs::metadata(host.registry.dir().join("r")).unwrap();
    assert_eq!(client.inode(), (meta.dev(), meta.ino()));
    let offset = region.entry(0).unwrap().offset;
    client.memory.write_all_at(b"hello", offset + 1).unwrap();
    let mut seen = [0; 5];
    region.read(&mut seen, offset + 1).unwrap();
    assert_eq!(&seen, b"hello");

    let entry = region.entry(0).unwrap();
    assert_eq!(
        (State::of(&entry), entry.generation, entry.owner_pid),
        (State::Joined, 1, std::process::id())
    );
    drop(client);
    until("the section is free", || state(&region, 0) == State::Free);
    assert_eq!(region.entry(0).unwrap().generation, 1);
}

#[test]
fn every_doorbell_rings_at_its_owner_and_nowhere_else() {
    let host = Host::new();
    host.create("r", 3);
    let _server = host.serve("r", 2);
    let mut clients: Vec<_> = (0..3).map(|_| Client::join(&host.socket(), 2).unwrap()).collect();
    for client in &mut clients {
        while client.bells.len() < 3 || client.bells.values().any(|bells| bells.len() < 2) {
            client.next().unwrap();
        }
    }
    // The server rang when they joined; the last one's own join is the last of it.
    for (joins, client) in (1..=3).rev().zip(&clients) {
        client.wait_for_rings("the joins of this one and of those after it", joins);
    }
    for sender in 0..3 {
        for receiver in 0..3i64 {
            for vector in 0..2 {
                (&clients[sender].bells[&receiver][vector]).write_all(&1u64.to_ne_bytes()).unwrap();
                for owner in 0..3i64 {
                    for own in 0..2 {
                        let mut count = [0; 8];
                        let rung = (&clients[owner as usize].bells[&owner][own]).read(&mut count);
                        if (owner, own) == (receiver, vector) {
                            rung.unwrap();
                            assert_eq!(u64::from_ne_bytes(count), 1);
                        } else {
                            assert_eq!(rung.unwrap_err().kind(), ErrorKind::WouldBlock);
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn the_others_hear_who_leaves_and_its_section_is_given_again() {
    let host = Host::new();
    let region = host.create("r", 3);
    let _server = host.serve("r", 1);
    let mut first = Client::join(&host.socket(), 1).unwrap();
    let second = Client::join(&host.socket(), 1).unwrap();
    assert_eq!(second.bells.len(), 2);
    assert_eq!(first.next().unwrap(), None);
    assert!(first.bells.contains_key(&1));
    drop(second);
    assert_eq!(first.next().unwrap(), Some(1));
    let again = Client::join(&host.socket(), 1).unwrap();
    // The same section under a new id: QEMU does not survive that an id comes back.
    assert_eq!(again.id, 1 + 3);
    assert_eq!(region.entry(1).unwrap().generation, 2);
    assert_eq!(first.next().unwrap(), None);
}

#[test]
fn the_table_says_who_can_be_rung_and_all_doorbells_ring_when_that_changes() {
    let host = Host::new();
    let region = host.create("r", 3);
    let vm_id = |section| region.entry(section).unwrap().vm_id;
    assert_eq!((vm_id(0), vm_id(1)), (0, 0));
    let server = host.serve("r", 3);
    let first = Client::join(&host.socket(), 3).unwrap();
    assert_eq!((vm_id(0), vm_id(1)), (1, 0));
    first.wait_for_rings("the first one's own join", 1);

    let second = Client::join(&host.socket(), 3).unwrap();
    // A peer that is rung finds the row written.
    first.wait_for_rings("the second one's join", 1);
    assert_eq!((state(&region, 1), vm_id(1)), (State::Joined, 2));
    drop(second);
    first.wait_for_rings("the second one's end", 1);
    assert_eq!((state(&region, 1), vm_id(1)), (State::Free, 0));

    // The next VM of the section has another id.
    let third = Client::join(&host.socket(), 3).unwrap();
    assert_eq!((third.id, vm_id(1)), (1 + 3, 1 + 3 + 1));
    assert_eq!(vm_id(0), 1);
    region.release(1, true).unwrap();
    assert_eq!((state(&region, 1), vm_id(1)), (State::Free, 0));

    // Without a server nobody is told, but the living can still be rung.
    drop(server);
    assert_eq!(vm_id(0), 1);
}

#[test]
fn a_doorbell_that_cannot_take_more_does_not_stop_the_server() {
    let host = Host::new();
    let region = host.create("r", 3);
    let _server = host.serve("r", 2);
    let first = Client::join(&host.socket(), 2).unwrap();
    let bad = Client::join(&host.socket(), 2).unwrap();
    first.wait_for_rings("both joins", 2);
    bad.wait_for_rings("its own join", 1);
    for mut bell in &bad.bells[&bad.id] {
        // Writing to a full counter would wait for ever now.
        nix::fcntl::fcntl(bell, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::empty())).unwrap();
        bell.write_all(&(u64::MAX - 1).to_ne_bytes()).unwrap();
    }
    drop(Client::join(&host.socket(), 2).unwrap());
    first.wait_for_rings("the third one's coming and going", 2);
    assert_eq!(state(&region, 2), State::Free);
}

#[test]
fn no_client_is_told_of_an_id_twice_even_when_the_ids_begin_again() {
    let host = Host::new();
    // With 1024 sections a section has 64 ids.
    let options = CreateOptions { sections: 1024, ..CreateOptions::new(512 << 20) };
    let options = CreateOptions { sparse: true, ..options };
    host.registry.create(&RegionName::new("r").unwrap(), &options).unwrap();
    let _server = host.serve("r", 1);
    let mut watcher = Client::join(&section_socket(&host.socket(), 7), 1).unwrap();
    for round in 0..64 {
        let visitor = Client::join(&section_socket(&host.socket(), 5), 1).unwrap();
        assert_eq!(visitor.id, 5 + round * 1024);
        assert_eq!(watcher.next().unwrap(), None);
        drop(visitor);
        assert_eq!(watcher.next().unwrap(), Some(5 + round * 1024));
    }
    let again = Client::join(&section_socket(&host.socket(), 5), 1).unwrap();
    assert_eq!(again.id, 5);
    drop(again);
    let other = Client::join(&section_socket(&host.socket(), 6), 1).unwrap();
    assert_eq!(other.id, 6);
    assert_eq!(watcher.next().unwrap(), None);
    assert_eq!(watcher.bells.keys().copied().collect::<Vec<_>>(), [6, 7]);
}

#[test]
fn a_section_s_own_socket_gives_that_section_once() {
    let host = Host::new();
    host.create("r", 3);
    let _server = host.serve("r", 1);
    let client = Client::join(&section_socket(&host.socket(), 2), 1).unwrap();
    assert_eq!(client.id, 2);
    let refused = Client::join(&section_socket(&host.socket(), 2), 1).map(|c| c.id).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    assert_eq!(Client::join(&host.socket(), 1).unwrap().id, 0);
}

#[test]
fn assigned_sections_and_those_of_host_processes_are_not_given_to_anybody() {
    let host = Host::new();
    let region = host.create("r", 3);
    region.assign(0, None).unwrap();
    let user = host.registry.open("r").unwrap();
    let row = vmshm_abi::RegionHeader::entry_offset(1);
    let _lock = vmshm_host::Lock::try_exclusive(user.file(), row).unwrap().unwrap();
    let _server = host.serve("r", 1);
    let any = Client::join(&host.socket(), 1).unwrap();
    assert_eq!(any.id, 2);
    assert!(Client::join(&host.socket(), 1).is_err());
    assert!(Client::join(&section_socket(&host.socket(), 1), 1).is_err());
    let assigned = Client::join(&section_socket(&host.socket(), 0), 1).unwrap();
    assert_eq!(state(&region, 0), State::Joined);
    drop(assigned);
    until("the section is assigned again", || state(&region, 0) == State::Assigned);
}

/// Locks all bytes of the region's file that no host process uses, as any process that may open the file can.
fn lock_all(file: &File) {
    // SAFETY: all zeros is a valid flock: exclusive, to the end of the file.
    let mut all: libc::flock = unsafe { std::mem::zeroed() };
    all.l_type = libc::F_WRLCK as libc::c_short;
    nix::fcntl::fcntl(file, nix::fcntl::FcntlArg::F_OFD_SETLK(&all)).unwrap();
}

#[test]
fn a_member_that_keeps_every_lock_of_the_region_s_file_stops_no_server() {
    let host = Host::new();
    let region = host.create("r", 3);
    region.assign(0, None).unwrap();
    region.assign(1, None).unwrap();
    let member = host.registry.open("r").unwrap();
    lock_all(member.file());
    let _server = host.serve("r", 1);
    let mut first = Client::join(&section_socket(&host.socket(), 0), 1).unwrap();
    let second = Client::join(&section_socket(&host.socket(), 1), 1).unwrap();
    assert_eq!(first.next().unwrap(), None);
    drop(second);
    assert_eq!(first.next().unwrap(), Some(1));
    drop(first);
    until("the section is assigned again", || state(&region, 0) == State::Assigned);
    region.release(1, false).unwrap();
}

#[test]
fn a_section_in_which_a_vm_runs_without_the_server_is_given_to_nobody() {
    let host = Host::new();
    let region = host.create("r", 3);
    let (own, other) = (uuid::Uuid::from_u128(7), uuid::Uuid::from_u128(8));
    region.assign(0, Some(own)).unwrap();
    // A member's locks are not in its way.
    let member = host.registry.open("r").unwrap();
    lock_all(member.file());
    let vm = host.registry.open("r").unwrap();
    assert!(!vm.occupy(0, own).unwrap(), "it was assigned");
    let ledger = vm.into_ledger();

    let _server = host.serve("r", 1);
    assert!(Client::join(&section_socket(&host.socket(), 0), 1).is_err());
    let second = host.registry.open("r").unwrap();
    for refused in
        [region.release(0, false), region.assign(0, Some(other)).map(drop), second.occupy(0, own).map(drop)]
    {
        let text = refused.unwrap_err().to_string();
        assert!(text.contains("section 0") && text.contains("in use by the VM"), "{text}");
    }
    drop(ledger);
    assert_eq!(Client::join(&section_socket(&host.socket(), 0), 1).unwrap().id, 0);
}

#[test]
fn clients_that_talk_or_do_not_listen_disturb_nobody() {
    let host = Host::new();
    let region = host.create("r", 4);
    let _server = host.serve("r", 64);
    let mut good = Client::join(&host.socket(), 64).unwrap();

    let mut talker = UnixStream::connect(host.socket()).unwrap();
    talker.write_all(&[7; 1000]).unwrap();
    let silent = UnixStream::connect(section_socket(&host.socket(), 3)).unwrap();
    until("the silent one has joined", || state(&region, 3) == State::Joined);

    // The silent one's socket fills up with notices of those who come and go; at last it is thrown out.
    let mut rounds = 0;
    let mut thrown_out = false;
    while !thrown_out {
        let visitor = Client::join(&section_socket(&host.socket(), 2), 64).unwrap();
        let id = visitor.id;
        drop(visitor);
        loop {
            match good.next().unwrap() {
                Some(3) => thrown_out = true,
                Some(left) if left == id => break,
                _ => {}
            }
        }
        rounds += 1;
        assert!(rounds < 1000, "the silent one is kept for ever");
    }
    drop(silent);
    assert_eq!(state(&region, 0), State::Joined);
    assert_eq!(Client::join(&section_socket(&host.socket(), 3), 64).unwrap().id, 3 + 4);
    drop(talker);
}

#[test]
fn a_client_that_is_killed_leaves() {
    let host = Host::new();
    let region = host.create("r", 2);
    let _server = host.serve("r", 1);
    let mut child = vm(host.socket());
    until("the process has joined", || state(&region, 0) == State::Joined);
    assert_eq!(region.entry(0).unwrap().owner_pid, child.id());
    child.kill().unwrap();
    child.wait().unwrap();
    until("its section is free", || state(&region, 0) == State::Free);
}

#[test]
fn a_restarted_server_keeps_the_sections_of_the_living_and_frees_those_of_the_dead() {
    let host = Host::new();
    let region = host.create("r", 3);
    region.assign(1, None).unwrap();
    let server = host.serve("r", 1);
    let mut stays = vm(section_socket(&host.socket(), 0));
    let mut ends = vm(section_socket(&host.socket(), 1));
    until("both have joined", || (0..2).all(|s| state(&region, s) == State::Joined));
    drop(server);
    assert!(!host.socket().exists());
    assert_eq!(state(&region, 0), State::Joined);
    ends.kill().unwrap();
    ends.wait().unwrap();

    let _server = host.serve("r", 1);
    assert_eq!((state(&region, 0), state(&region, 1)), (State::Joined, State::Assigned));
    let vm_id = |section| region.entry(section).unwrap().vm_id;
    assert_eq!((vm_id(0), vm_id(1)), (1, 0));
    let peer = Client::join(&host.socket(), 1).unwrap();
    assert_eq!((peer.id, vm_id(2)), (2, 3));
    let meta = region.file().metadata().unwrap();
    assert_eq!(peer.inode(), (meta.dev(), meta.ino()));
    assert!(Client::join(&section_socket(&host.socket(), 0), 1).is_err());
    peer.wait_for_rings("its own join", 1);
    stays.kill().unwrap();
    stays.wait().unwrap();
    peer.wait_for_rings("the end of the one that stayed", 1);
    assert_eq!((state(&region, 0), vm_id(0)), (State::Free, 0));
}

#[test]
fn a_member_that_comes_back_to_a_restarted_server_gets_its_section_again() {
    let host = Host::new();
    let region = host.create("r", 3);
    let server = host.serve("r", 1);
    let before = Client::join(&section_socket(&host.socket(), 1), 1).unwrap();
    drop(server);
    let _server = host.serve("r", 1);
    let after = Client::join(&host.socket(), 1).unwrap();
    assert_eq!(after.id, before.id);
    assert_eq!(region.entry(1).unwrap().vm_id, 2);
    assert_eq!(after.inode(), before.inode());
    assert_eq!(region.entry(1).unwrap().generation, 1);
    drop(before);
    assert_eq!(state(&region, 1), State::Joined);
}

#[test]
fn a_restarted_server_calls_vms_which_join_again_or_else_keep_their_sections() {
    let host = Host::new();
    let region = host.create("r", 3);
    let server = host.serve("r", 1);
    let before: Vec<_> = (0..2).map(|_| Client::join(&host.socket(), 1).unwrap()).collect();
    // The second one never answers.
    let listeners = [0, 1]
        .map(|section| UnixListener::bind_addr(&call_address(before[0].inode(), section).unwrap()).unwrap());
    drop(server);
    let answer = std::thread::spawn({
        let listener = listeners[0].try_clone().unwrap();
        move || {
            let (mut socket, _) = listener.accept().unwrap();
            socket.write_all(&[CALL_TAKEN]).unwrap();
            Client::greet(socket, 1).unwrap()
        }
    });
    let _server = host.serve("r", 1);
    let again = answer.join().unwrap();
    assert_eq!((again.id, again.inode()), (0, before[0].inode()));
    again.wait_for_rings("that it has joined", 1);
    assert_eq!(region.entry(0).unwrap().generation, 1, "it is no new member");
    assert_eq!(state(&region, 1), State::Joined);
    drop(again);
    until("the end of the first frees its section", || state(&region, 0) == State::Free);
}

#[test]
fn a_second_server_and_a_destruction_are_refused_while_one_serves() {
    let host = Host::new();
    host.create("r", 2);
    let server = host.serve("r", 1);
    let other = vmshm_host::ServerOptions { socket: Some(host.dir.path().join("o.sock")), ..host.options(1) };
    let error = Server::new(host.registry.open("r").unwrap(), &other).unwrap_err().to_string();
    assert!(error.contains("served already"), "{error}");
    assert!(!host.dir.path().join("o.sock").exists());
    let error = host.registry.destroy("r", false).unwrap_err().to_string();
    assert!(error.contains("in use"), "{error}");
    drop(server);
    host.registry.destroy("r", false).unwrap();
}

#[test]
fn a_server_ends_when_its_region_is_destroyed_by_force() {
    let host = Host::new();
    host.create("r", 2);
    let mut server = host.serve("r", 1);
    host.registry.destroy("r", true).unwrap();
    server.wait().unwrap();
    assert!(!host.socket().exists());
}

#[test]
fn the_table_in_the_region_takes_no_section_from_a_vm_though_another_overwrites_it() {
    let host = Host::new();
    let region = host.create("r", 3);
    let server = host.serve("r", 1);
    let mut good = vm(section_socket(&host.socket(), 1));
    until("it has joined", || state(&region, 1) == State::Joined);
    let bad = Client::join(&section_socket(&host.socket(), 2), 1).unwrap();
    // All sections free, all of them as short as a page, and nobody's.
    let mut table = vec![0; 3 * 128];
    region.read(&mut table, 256).unwrap();
    for row in table.chunks_exact_mut(128) {
        row[8..16].copy_from_slice(&4096u64.to_le_bytes());
        row[16..].fill(0);
    }
    bad.memory.write_all_at(&table, 256).unwrap();
    assert_eq!(state(&region, 1), State::Free);
    drop(server);

    let _server = host.serve("r", 1);
    let refused = Client::join(&section_socket(&host.socket(), 1), 1).map(|client| client.id).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    // The host's next publication is right again.
    let next = Client::join(&section_socket(&host.socket(), 0), 1).unwrap();
    assert_eq!(next.id, 0);
    let entry = region.entry(0).unwrap();
    assert!(State::of(&entry) == State::Joined && entry.len > 4096);
    good.kill().unwrap();
    good.wait().unwrap();
}

#[test]
fn a_vm_finds_nothing_in_a_section_that_another_had_and_the_same_vm_finds_all() {
    use vmshm_abi::section::{EndpointSlot, SLOTS_OFFSET, STATE_FREE, STATE_LIVE, SlotState};
    use zerocopy::{FromBytes, FromZeros, IntoBytes};
    let host = Host::new();
    let region = host.create("r", 2);
    let uuid = region.assign(1, None).unwrap();
    let _server = host.serve("r", 1);
    let slot = EndpointSlot {
        state: SlotState { incarnation: 7, state: STATE_LIVE }.pack(),
        pid: 42,
        ..EndpointSlot::new_zeroed()
    };
    let write = |section, client: &Client| {
        let entry = region.entry(section).unwrap();
        let secret = vec![0x5a; entry.len as usize];
        client.memory.write_all_at(&secret, entry.offset).unwrap();
        client.memory.write_all_at(slot.as_bytes(), entry.offset + SLOTS_OFFSET).unwrap();
    };
    let read = |section| {
        let entry = region.entry(section).unwrap();
        let mut bytes = vec![0; entry.len as usize];
        region.read(&mut bytes, entry.offset).unwrap();
        let slots = SLOTS_OFFSET as usize;
        let first = EndpointSlot::read_from_bytes(&bytes[slots..slots + 256]).unwrap();
        let others = region.header().endpoints as usize * 256;
        bytes[slots..slots + others].fill(0);
        (bytes.iter().all(|&byte| byte == 0), first)
    };
    let check_empty = |section| {
        let (empty, first) = read(section);
        assert!(empty, "section {section} is not empty");
        // Peers that have met the seventh life of the slot take the next for no other than the eighth.
        let life = SlotState::unpack(first.state);
        assert_eq!((life.incarnation, life.state, first.died, first.pid), (7, STATE_FREE, 7, 0));
    };
    let before = Client::join(&section_socket(&host.socket(), 0), 1).unwrap();
    write(0, &before);
    drop(before);
    until("the section is free", || state(&region, 0) == State::Free);
    let after = Client::join(&section_socket(&host.socket(), 0), 1).unwrap();
    check_empty(0);
    write(0, &after);

    for _ in 0..2 {
        let kept = Client::join(&section_socket(&host.socket(), 1), 1).unwrap();
        write(1, &kept);
        drop(kept);
        until("the section is assigned again", || state(&region, 1) == State::Assigned);
        assert!(!read(1).0);
    }
    assert_eq!(region.assign(1, Some(uuid)).unwrap(), uuid);
    assert!(!read(1).0);
    region.assign(1, Some(uuid::Uuid::from_u128(uuid.as_u128() ^ 1))).unwrap();
    check_empty(1);
    // Nobody touches what a living VM has.
    assert!(!read(0).0);
    drop(after);
}

#[test]
fn nobody_can_shorten_a_memfd_that_the_server_hands_out() {
    let host = Host::new();
    let region =
        vmshm_host::create_memfd(&RegionName::new("r").unwrap(), &CreateOptions::new(4 << 20)).unwrap();
    let _server = host.serve_region(region, 1);
    let client = Client::join(&host.socket(), 1).unwrap();
    for len in [0, 4096, 8 << 20] {
        assert_eq!(client.memory.set_len(len).unwrap_err().kind(), ErrorKind::PermissionDenied);
    }
}

#[test]
fn a_vm_that_scribbles_over_header_and_table_cannot_stop_the_server() {
    let host = Host::new();
    let region = host.create("r", 3);
    let _server = host.serve("r", 1);
    let mut good = Client::join(&host.socket(), 1).unwrap();
    let bad = Client::join(&host.socket(), 1).unwrap();
    let mut table = vec![0; region.header().table_end as usize];
    region.read(&mut table, 0).unwrap();
    for junk in [0xff, 0x00, 0x5a] {
        bad.memory.write_all_at(&vec![junk; table.len()], 0).unwrap();
        let _ = UnixStream::connect(host.socket()).map(|s| receive(&s).map(|_| ()));
    }
    drop(bad);
    while good.next().unwrap() != Some(1) {}
    good.memory.write_all_at(&table, 0).unwrap();
    until("the server gives sections again", || Client::join(&host.socket(), 1).is_ok());
}

#[test]
fn nonsense_is_refused_with_the_value() {
    let host = Host::new();
    host.create("r", 2);
    let refuse = |options| Server::new(host.registry.open("r").unwrap(), &options).unwrap_err().to_string();
    assert!(refuse(host.options(0)).contains("\"0\""));
    assert!(refuse(host.options(5000)).contains("\"5000\""));
    let mut options = host.options(1);
    options.group = Some("no-such-group".into());
    assert!(refuse(options).contains("no-such-group"));
    let mut options = host.options(1);
    options.socket = Some(host.dir.path().join("x".repeat(100)).join("s.sock"));
    assert!(refuse(options).contains("107"));
    let file = host.dir.path().join("file");
    File::create(&file).unwrap();
    let mut options = host.options(1);
    options.socket = Some(file.clone());
    assert!(refuse(options).contains("no socket"));
    assert!(file.exists());
}
