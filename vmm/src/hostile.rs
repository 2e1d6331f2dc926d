//! Guests that store anything anywhere: no sequence of accesses and no content of a queue panics or hangs a device.

use std::sync::Arc;

use proptest::prelude::*;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::bus::Device;
use crate::disk::Disk;
use crate::ivshmem::{Addresses, Ivshmem};
use crate::layout;
use crate::msix::tests::Recorder;
use crate::net::Net;
use crate::pci::{Ecam, Ports, Root, Window};
use crate::random::Random;
use crate::vfio::function::tests::adapter;
use crate::virtio::{Backend, Virtio};

#[derive(Debug, Clone)]
struct Access {
    /// Configuration space, registers, ports.
    way: u8,
    offset: u64,
    len: usize,
    value: u64,
    store: bool,
}

fn access() -> impl Strategy<Value = Access> {
    let offset = prop_oneof![0u64..0x100, 0u64..0x4_0000, 0u64..layout::BARS_32_LEN];
    let value = prop_oneof![any::<u64>(), 0u64..16, Just(u64::MAX), Just(layout::BARS_32)];
    let len = prop_oneof![Just(1usize), Just(2), Just(4), Just(8)];
    (0u8..3, offset, len, value, any::<bool>()).prop_map(|(way, offset, len, value, store)| Access {
        way,
        offset,
        len,
        value,
        store,
    })
}

/// A bus with one device of each kind, and one below a root port.
fn root() -> Arc<Root> {
    let room = 0x2_0000;
    let at = |device: u64| layout::BARS_32 + device * room;
    let addresses =
        |device| Addresses { registers: at(device), table: at(device) + 0x1_0000, memory: 1 << 40 };
    let lines = Arc::new(Recorder::default());
    let mut root = Root::new();
    root.add(Arc::new(Ivshmem::plain(1 << 30, &addresses(0), Box::new(|_| ()))));
    let doorbell = Ivshmem::doorbell(1 << 30, &addresses(1), Box::new(|_| ()), 3, 4, lines.clone());
    root.add(Arc::new(doorbell));
    let random = Random::open().unwrap();
    root.add(Arc::new(Virtio::new(&random, [at(2), at(2) + 0x1_0000], lines)));
    root.add(adapter().0);
    Arc::new(root)
}

/// RAM full of anything, with a queue of eight entries at its beginning.
fn queue(content: &[u8]) -> (GuestMemoryMmap, Queue) {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap();
    memory.write_slice(content, GuestAddress(0)).unwrap();
    let mut queue = Queue::new(8).unwrap();
    queue.set_desc_table_address(Some(0), Some(0));
    queue.set_avail_ring_address(Some(0x80), Some(0));
    queue.set_used_ring_address(Some(0x1000), Some(0));
    queue.set_ready(true);
    (memory, queue)
}

/// Descriptors and a ring, half of them such that they lead somewhere.
fn content() -> impl Strategy<Value = Vec<u8>> {
    let word = |most: u64| prop_oneof![4 => 0..most, 1 => any::<u64>()];
    let descriptor = (word(0x1_0000), word(0x2000), 0u16..8, 0u16..10);
    let ring = prop::collection::vec(prop_oneof![4 => 0u16..8, 1 => any::<u16>()], 8);
    (prop::collection::vec(descriptor, 8), 0u16..9, ring).prop_map(|(descriptors, filled, ring)| {
        let mut bytes = Vec::new();
        for (address, len, flags, next) in descriptors {
            bytes.extend(address.to_le_bytes());
            bytes.extend((len as u32).to_le_bytes());
            bytes.extend(flags.to_le_bytes());
            bytes.extend(next.to_le_bytes());
        }
        bytes.extend([0, 0]);
        bytes.extend(filled.to_le_bytes());
        ring.into_iter().for_each(|head| bytes.extend(head.to_le_bytes()));
        bytes
    })
}

fn process(backend: &mut impl Backend, index: usize, content: &[u8]) {
    let (memory, mut queue) = queue(content);
    for _ in 0..3 {
        backend.process(index, &mut queue, &memory);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_sequence_of_accesses_panics(accesses in prop::collection::vec(access(), 1..200)) {
        let root = root();
        let ways: [Box<dyn Device>; 3] = [
            Box::new(Ecam(Arc::clone(&root))),
            Box::new(Window(Arc::clone(&root), layout::BARS_32)),
            Box::new(Ports::new(Arc::clone(&root))),
        ];
        for Access { way, offset, len, value, store } in accesses {
            let offset = if way == 2 { offset % 8 } else { offset };
            let mut data = value.to_le_bytes();
            if store {
                ways[usize::from(way)].write(offset, &data[..len]);
            } else {
                ways[usize::from(way)].read(offset, &mut data[..len]);
            }
        }
        // Whatever was stored, everybody still says who they are.
        for (device, id) in [
            (0u64, 0x29c0_8086u32),
            (1, 0x1110_1af4),
            (2, 0x1110_1af4),
            (3, 0x1044_1af4),
            (4, 0x000c_1b36),
        ] {
            let mut data = [0; 4];
            ways[0].read(device << 15, &mut data);
            prop_assert_eq!(u32::from_le_bytes(data), id);
        }
    }

    #[test]
    fn no_content_of_a_queue_panics_or_hangs_a_device(content in content()) {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        std::fs::write(&image, [7; 4096]).unwrap();
        process(&mut Disk::open(&image, None).unwrap(), 0, &content);
        process(&mut Disk::open(&image, Some(dir.path())).unwrap(), 0, &content);
        prop_assert_eq!(std::fs::read(&image).unwrap(), [7; 4096]);
        let (local, to) = (dir.path().join("local"), dir.path().join("to"));
        let mut net = Net::socket(&local, &to, [2; 6]).unwrap();
        // What is sent to ourselves comes in again.
        process(&mut Net::socket(&to, &local, [4; 6]).unwrap(), 1, &content);
        process(&mut net, 0, &content);
        process(&mut net, 1, &content);
        process(&mut Random::open().unwrap(), 0, &content);
    }
}
