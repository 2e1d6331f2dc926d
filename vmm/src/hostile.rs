//! Guests and servers that do anything. Each function here takes bytes for what they do, and panics where a device, or the
//! client of a server, breaks a promise: libFuzzer calls them (`fuzz/`), and tests do with its finds and with chance.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::IoSlice;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use arbitrary::{Arbitrary, Result, Unstructured};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;
use vmshm_abi::ivshmem::{MSG_SHARED_MEMORY, PROTOCOL_VERSION, REG_DOORBELL};
use vmshm_host::{CreateOptions, RegionName, create_memfd};

use crate::bus::Bus;
use crate::client;
use crate::disk::Disk;
use crate::hvc::Hvc;
use crate::interrupts::Message;
use crate::ivshmem::{Addresses, Ivshmem};
use crate::layout;
use crate::msix::{self, Msix};
use crate::net::Net;
use crate::pci::{Ecam, Function, PORTS, PlaceBar, Ports, Root, Window};
use crate::random::Random;
use crate::recorder::Recorder;
use crate::shared::Shared;
use crate::vfio::function::fake::adapter;
use crate::virtio::{Backend, Virtio};

/// Most steps of one run: no promise depends on how long a guest goes on.
const STEPS: usize = 512;
/// Room for the registers of a device.
const ROOM: u64 = 0x2_0000;
const REGION: u64 = 1 << 30;

fn steps<'a>(data: &'a [u8], mut step: impl FnMut(&mut Unstructured<'a>) -> Result<()>) {
    let mut input = Unstructured::new(data);
    for _ in 0..STEPS {
        if input.is_empty() || step(&mut input).is_err() {
            return;
        }
    }
}

/// A value as guests store them: small, an address, anything.
fn value(input: &mut Unstructured<'_>) -> Result<u64> {
    Ok(match input.arbitrary::<u8>()? % 5 {
        0 => input.arbitrary::<u8>()?.into(),
        1 => u64::MAX,
        2 => layout::BARS_32 + u64::from(input.arbitrary::<u8>()?) * 0x1_0000,
        3 => input.arbitrary::<u32>()?.into(),
        _ => input.arbitrary()?,
    })
}

/// A load or a store of one, two, four or eight bytes.
fn access(input: &mut Unstructured<'_>, bus: &Bus, address: u64) -> Result<()> {
    let how = input.arbitrary::<u8>()?;
    let len = 1 << (how % 4);
    if how & 0x80 == 0 {
        bus.write(address, &value(input)?.to_le_bytes()[..len]);
    } else {
        bus.read(address, &mut [0; 8][..len]);
    }
    Ok(())
}

/// The buses of a machine with one device of each kind, and one below a root port.
struct Buses {
    memory: Bus,
    ports: Bus,
}

impl Buses {
    fn new() -> Self {
        let at = |device: u64| layout::BARS_32 + device * ROOM;
        let addresses =
            |device| Addresses { registers: at(device), table: at(device) + ROOM / 2, memory: 1 << 40 };
        let place = || -> PlaceBar {
            Box::new(|address| assert!(address.is_none_or(|address| address % REGION == 0)))
        };
        let lines = Arc::new(Recorder::default());
        let mut root = Root::new();
        root.add(Arc::new(Ivshmem::plain(REGION, &addresses(0), place())));
        root.add(Arc::new(Ivshmem::doorbell(REGION, &addresses(1), place(), 3, 4, lines.clone())));
        let random = Random::open().expect("a source of random bytes");
        root.add(Arc::new(Virtio::new(&random, [at(2), at(2) + ROOM / 2], lines)));
        root.add(adapter().0);
        let root = Arc::new(root);
        let (memory, ports) = (Bus::default(), Bus::default());
        let ecam_len = u64::from(layout::BUSES) << 20;
        ports.insert(PORTS, 8, Arc::new(Ports::new(Arc::clone(&root)))).expect("free");
        memory.insert(layout::ECAM, ecam_len, Arc::new(Ecam(Arc::clone(&root)))).expect("free");
        let window = Window(root, layout::BARS_32);
        memory.insert(layout::BARS_32, layout::BARS_32_LEN, Arc::new(window)).expect("free");
        Self { memory, ports }
    }

    /// Ids of the functions, which no store changes.
    fn check(&self) {
        let ids = [0x29c0_8086u32, 0x1110_1af4, 0x1110_1af4, 0x1044_1af4, 0x000c_1b36];
        for (device, id) in (0u64..).zip(ids) {
            let mut data = [0; 4];
            self.memory.read(layout::ECAM + (device << 15), &mut data);
            assert_eq!(u32::from_le_bytes(data), id);
        }
    }
}

/// An address in configuration space: of a register of the first devices, or any.
fn register(input: &mut Unstructured<'_>) -> Result<u64> {
    let (device, register): (u8, u16) = input.arbitrary()?;
    Ok(match device % 16 {
        device @ 0..14 => layout::ECAM + (u64::from(device % 6) << 15) + u64::from(register % 0x110),
        // The device below the port, whose bus has a number if the guest left that alone.
        14 => layout::ECAM + (1 << 20) + u64::from(register % 0x200),
        _ => input.arbitrary()?,
    })
}

/// A guest that loads from and stores to PCI configuration space, by ECAM and by ports.
pub fn config(data: &[u8]) {
    let buses = Buses::new();
    steps(data, |input| {
        if input.arbitrary::<u8>()? % 4 == 0 {
            let port = PORTS + u64::from(input.arbitrary::<u8>()? % 10);
            access(input, &buses.ports, port)
        } else {
            let address = register(input)?;
            access(input, &buses.memory, address)
        }
    });
    buses.check();
}

/// A guest that loads from and stores to BARs of registers, and moves them.
pub fn bars(data: &[u8]) {
    let buses = Buses::new();
    steps(data, |input| {
        let (kind, offset): (u8, u16) = input.arbitrary()?;
        let address = match kind % 8 {
            0 => register(input)?,
            1 => layout::BARS_32 + layout::BARS_32_LEN - u64::from(offset),
            // Registers, and the table half a room further.
            kind => {
                layout::BARS_32
                    + u64::from(kind >> 1) * ROOM
                    + u64::from(kind & 1) * (ROOM / 2)
                    + u64::from(offset)
            }
        };
        access(input, &buses.memory, address)
    });
    buses.check();
}

fn event() -> EventFd {
    EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).expect("a descriptor")
}

/// A guest that programs an MSI-X table while the server gives it events: a vector is connected exactly if it has an event
/// and the guest wants it, with the message that stands in the table.
pub fn table(data: &[u8]) {
    let Some((&vectors, data)) = data.split_first() else { return };
    let vectors = u32::from(vectors % 66) + 1;
    let recorder = Arc::new(Recorder::default());
    let mut msix = Msix::new(vectors, recorder.clone());
    let (mut events, mut control) = (0, 0);
    steps(data, |input| {
        let (step, offset): (u8, u16) = input.arbitrary()?;
        let len = 1 << (step / 4 % 4);
        match step % 4 {
            0 => events += u32::from(msix.add_event(event())),
            1 => {
                control = input.arbitrary()?;
                msix.set_control(control);
            }
            2 => msix.write(u64::from(offset % 0x880), &value(input)?.to_le_bytes()[..len]),
            _ => msix.read(u64::from(offset % 0x880), &mut [0; 8][..len]),
        }
        let on = control & (msix::ENABLE | msix::MASK_ALL) == msix::ENABLE;
        let mut wanted = Vec::new();
        for number in 0..vectors {
            let mut entry = [0; 16];
            msix.read(u64::from(number) * 16, &mut entry);
            let word = |at: usize| u32::from_le_bytes(entry[at..at + 4].try_into().expect("four bytes"));
            if on && number < events && word(12) & 1 == 0 {
                let address = u64::from(word(4)) << 32 | u64::from(word(0));
                wanted.push((number, Message { address, data: word(8) }));
            }
        }
        let mut connected = recorder.connected.lock().clone();
        connected.sort_by_key(|(number, _)| *number);
        assert_eq!(connected, wanted);
        Ok(())
    });
}

/// Guest memory of a queue's run.
const RAM: usize = 0x1_0000;
const IMAGE: [u8; 4096] = [7; 4096];
/// Where [`set_up`] puts the parts of a queue.
const PARTS: [(u64, u64); 3] = [(0x20, 0), (0x28, 0x80), (0x30, 0x1000)];

/// A directory for what devices need outside.
static PLACE: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("image"), IMAGE).expect("room for an image");
    dir
});

/// A guest that sets a virtio device up and fills its queues with anything.
pub fn queues(data: &[u8]) {
    let Some((kind, data)) = data.split_first() else { return };
    let dir = PLACE.path();
    let image = dir.join("image");
    // Sockets of this run alone, since many may run at once.
    let name = |end: &str| dir.join(format!("{end}-{:?}", std::thread::current().id()));
    let (near, far) = (name("near"), name("far"));
    match kind % 6 {
        0 => queue(Disk::open(&image, None).expect("an image"), data),
        1 => queue(Disk::open(&image, Some(dir)).expect("room for a copy"), data),
        2 => {
            // A loop: frames that are sent come in again.
            let net = Net::socket(&near, &far, [2; 6]).expect("a socket");
            let _ = std::fs::remove_file(&far);
            std::os::unix::fs::symlink(&near, &far).expect("a link");
            queue(net, data);
            let _ = std::fs::remove_file(&far);
        }
        3 => {
            let console = Hvc::listen(&near).expect("a socket");
            let typist = UnixStream::connect(&near).expect("a console");
            send(&typist, &[7; 5000], &[]);
            queue(console, data);
        }
        4 => {
            let net = Net::listen(&near, [2; 6]).expect("a socket");
            let peer = UnixStream::connect(&near).expect("a network");
            // A peer's bytes are anything as well.
            send(&peer, data, &[]);
            queue(net, data);
        }
        _ => queue(Random::open().expect("a source of random bytes"), data),
    }
    assert_eq!(std::fs::read(image).expect("it stays"), IMAGE);
}

fn queue<B: Backend>(backend: B, data: &[u8]) {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM)]).expect("memory");
    let (device, mut engine, _stop) =
        Virtio::pair(backend, [0xc000_0000, 0xc001_0000], Arc::new(Recorder::default()))
            .expect("descriptors");
    let write = |offset: u64, data: &[u8]| device.write(0, offset, data);
    steps(data, |input| {
        match input.arbitrary::<u8>()? % 8 {
            0 => set_up::<B>(&write),
            1 => {
                let (offset, how): (u8, u8) = input.arbitrary()?;
                write((offset % 0x40).into(), &value(input)?.to_le_bytes()[..1 << (how % 4)]);
            }
            2 => {
                let (at, len): (u16, u8) = input.arbitrary()?;
                let at = usize::from(at);
                let len = usize::from(len).min(RAM - at).min(input.len());
                memory.write_slice(input.bytes(len)?, GuestAddress(at as u64)).expect("inside");
            }
            // A descriptor, and one more entry in the ring that leads to it.
            3 => {
                let (index, address, len, flags, next): (u8, u16, u16, u8, u8) = input.arbitrary()?;
                let mut bytes = u64::from(address).to_le_bytes().to_vec();
                bytes.extend(u32::from(len).to_le_bytes());
                bytes.extend(u16::from(flags % 8).to_le_bytes());
                bytes.extend(u16::from(next % 8).to_le_bytes());
                memory.write_slice(&bytes, GuestAddress(u64::from(index % 8) * 16)).expect("inside");
            }
            4 => {
                let head: u8 = input.arbitrary()?;
                let filled: u16 = memory.read_obj(GuestAddress(0x82)).expect("inside");
                let entry = GuestAddress(0x84 + 2 * u64::from(filled % 8));
                memory.write_obj(u16::from(head % 8), entry).expect("inside");
                memory.write_obj(filled.wrapping_add(1), GuestAddress(0x82)).expect("inside");
            }
            _ => engine.process(usize::from(input.arbitrary::<u8>()?) % B::QUEUES, &memory),
        }
        Ok(())
    });
}

/// A driver's steps: features, the same queue of eight entries for all, ready.
fn set_up<B: Backend>(write: &impl Fn(u64, &[u8])) {
    write(0x14, &[0]);
    write(0x08, &1u32.to_le_bytes());
    write(0x0c, &1u32.to_le_bytes());
    write(0x14, &[11]);
    for queue in 0..B::QUEUES as u16 {
        write(0x16, &queue.to_le_bytes());
        write(0x18, &8u16.to_le_bytes());
        for (register, at) in PARTS {
            write(register, &at.to_le_bytes());
        }
        write(0x1c, &1u16.to_le_bytes());
    }
    write(0x14, &[15]);
}

/// A guest that uses an ivshmem device's registers and moves its BARs while peers come and go: KVM listens to exactly the
/// doorbells of those that are there, at the place where the register is.
pub fn registers(data: &[u8]) {
    let recorder = Arc::new(Recorder::default());
    let at = Addresses { registers: 0xc000_0000, table: 0xc000_1000, memory: 1 << 40 };
    let place = |address: Option<u64>| assert!(address.is_none_or(|address| address % REGION == 0));
    let device = Ivshmem::doorbell(REGION, &at, Box::new(place), 3, 4, recorder.clone());
    let mut peers: BTreeMap<u16, u32> = BTreeMap::new();
    let mut given = 0;
    steps(data, |input| {
        let (step, which): (u8, u8) = input.arbitrary()?;
        let len = 1 << (step / 8 % 4);
        let id = u16::from(which % 6);
        match step % 8 {
            0 | 1 if given < 64 => {
                given += 1;
                device.add_vector(id, owned(event()));
                *peers.entry(id).or_default() += 1;
            }
            2 => {
                device.remove_peer(id);
                peers.remove(&id);
            }
            3 | 4 => {
                let register = usize::from(which) % 0x60;
                device.config().lock().write(register, &value(input)?.to_le_bytes()[..len]);
                device.configured();
            }
            5 => device.read(
                usize::from(which % 2),
                u64::from(input.arbitrary::<u16>()? % 0x1000),
                &mut [0; 8][..len],
            ),
            _ => {
                let offset = u64::from(input.arbitrary::<u16>()? % 0x1000);
                device.write(usize::from(which % 2), offset, &value(input)?.to_le_bytes()[..len]);
            }
        }
        let register = device.config().lock().bar(0).map(|bar| bar + REG_DOORBELL);
        let bells = peers.iter().flat_map(|(&id, &count)| (0..count).map(move |n| u32::from(id) << 16 | n));
        let wanted: Vec<_> = bells.filter_map(|word| Some((register?, word))).collect();
        let mut listens = recorder.listens.lock().clone();
        listens.sort_unstable();
        assert_eq!(listens, wanted);
        Ok(())
    });
}

fn owned(event: EventFd) -> OwnedFd {
    use std::os::fd::IntoRawFd;
    // SAFETY: the descriptor goes over from one owner to the next.
    unsafe { OwnedFd::from_raw_fd(event.into_raw_fd()) }
}

/// A sound region of 1 MiB with three sections: its header and table.
static SOUND: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let options = CreateOptions { sections: 3, ..CreateOptions::new(1 << 20) };
    let region = create_memfd(&RegionName::new("job").expect("a name"), &options).expect("a region");
    let mut bytes = vec![0; region.header().table_end as usize];
    region.read(&mut bytes, 0).expect("it is there");
    bytes
});

/// A file that is a region but for some words and its length.
fn region(input: &mut Unstructured<'_>) -> Result<OwnedFd> {
    // SAFETY: the name is a C string that outlives the call.
    let fd = unsafe { libc::memfd_create(c"hostile".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(fd >= 0, "no memfd");
    // SAFETY: the descriptor is new and nobody else's.
    let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    let (len, words): (u8, u8) = input.arbitrary()?;
    file.set_len([1 << 20, 1 << 20, 1 << 20, 4096, 1 << 40][usize::from(len % 5)]).expect("a sparse file");
    file.write_all_at(&SOUND, 0).expect("room");
    for _ in 0..words % 4 {
        let at = u64::from(input.arbitrary::<u8>()? % 96) * 8;
        file.write_all_at(&value(input)?.to_le_bytes(), at).expect("room");
    }
    Ok(file.into())
}

fn descriptor(input: &mut Unstructured<'_>) -> Result<OwnedFd> {
    Ok(match input.arbitrary::<u8>()? % 4 {
        0 => region(input)?,
        1 => File::open("/dev/null").expect("it is there").into(),
        2 => UnixStream::pair().expect("descriptors").0.into(),
        _ => owned(event()),
    })
}

fn send(socket: &UnixStream, bytes: &[u8], fds: &[OwnedFd]) {
    let raw: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &[][..] } else { &rights };
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    // A message that does not fit is not sent: a server may fall silent at any time.
    let _ = sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(bytes)], control, flags, None);
}

/// A server that sends anything: the client ends with an error or has a section, of which it maps what is its own.
pub fn server(data: &[u8]) {
    let Some((&greeting, data)) = data.split_first() else { return };
    let (near, far) = UnixStream::pair().expect("descriptors");
    let mut input = Unstructured::new(data);
    let say = |input: &mut Unstructured<'_>| -> Result<()> {
        if greeting % 4 != 0 {
            send(&far, &PROTOCOL_VERSION.to_le_bytes(), &[]);
            let id = if greeting % 4 == 1 { 1 } else { input.arbitrary::<i64>()? };
            send(&far, &id.to_le_bytes(), &[]);
            let memory = region(input)?;
            send(&far, &MSG_SHARED_MEMORY.to_le_bytes(), &[memory]);
        }
        for _ in 0..64 {
            if input.is_empty() {
                break;
            }
            let (how, id): (u8, u8) = input.arbitrary()?;
            let word = if how & 8 == 0 { i64::from(id % 8) } else { i64::arbitrary(input)? };
            let fds = (0..how % 4).map(|_| descriptor(input)).collect::<Result<Vec<_>>>()?;
            let word = word.to_le_bytes();
            let (head, tail) = word.split_at(usize::from(how >> 4 & 7));
            if !head.is_empty() {
                send(&far, head, &[]);
            }
            send(&far, tail, &fds);
        }
        Ok(())
    };
    let _ = say(&mut input);
    far.shutdown(Shutdown::Write).expect("a connection");
    let Ok(given) = client::greet(near, Path::new("hostile")) else { return };
    let header = *given.region.header();
    let section = u32::from(given.id) % header.sections;
    if let Ok(shared) = Shared::given(given.region, section) {
        let end = shared.parts().iter().fold(0, |end, part| {
            assert!(part.offset == end && part.len > 0 && part.len % 4096 == 0, "{part:?}");
            assert!(!part.writable || part.offset >= header.table_end, "{part:?}");
            end + part.len
        });
        assert_eq!(end, shared.len());
    }
    let recorder = Arc::new(Recorder::default());
    let at = Addresses { registers: 0xc000_0000, table: 0xc000_1000, memory: 1 << 40 };
    let device = Ivshmem::doorbell(REGION, &at, Box::new(|_| ()), given.id, 4, recorder);
    given.connection.hear(&device);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Seeds: inputs that libFuzzer found worth keeping, and ones that once went wrong.
    fn seeds(target: &str) -> Vec<Vec<u8>> {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds").join(target);
        let files = std::fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        let seeds: Vec<_> = files.map(|file| std::fs::read(file.unwrap().path()).unwrap()).collect();
        assert!(!seeds.is_empty());
        seeds
    }

    fn run(target: fn(&[u8]), name: &str) {
        seeds(name).iter().for_each(|seed| target(seed));
        let config = ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() };
        proptest!(config, |(bytes in prop::collection::vec(any::<u8>(), 0..1000))| target(&bytes));
    }

    #[test]
    fn no_access_to_configuration_space_breaks_a_device() {
        run(config, "config");
    }

    #[test]
    fn no_access_to_registers_breaks_a_device() {
        run(bars, "bars");
    }

    #[test]
    fn a_vector_is_connected_exactly_while_it_is_wanted() {
        run(table, "table");
    }

    #[test]
    fn no_content_of_a_queue_breaks_a_device() {
        run(queues, "queues");
    }

    #[test]
    fn kvm_listens_to_exactly_the_doorbells_that_are_there() {
        run(registers, "registers");
    }

    #[test]
    fn no_server_breaks_its_client() {
        run(server, "server");
    }
}
