//! A virtio source of random bytes, from the host's.

use std::fs::File;
use std::io::{Read, Write};

use virtio_queue::Queue;
use vm_memory::GuestMemoryMmap;

use crate::error::Error;
use crate::virtio::{Backend, Done, serve_all};

/// Most bytes for one buffer: what a guest asks for at once is less.
const MOST: usize = 4096;

pub(crate) struct Random(File);

impl Random {
    pub(crate) fn open() -> Result<Self, Error> {
        File::open("/dev/urandom").map(Self).map_err(Error::io("open /dev/urandom"))
    }
}

impl Backend for Random {
    const TYPE: u16 = 4;
    const CLASS: u16 = 0x00ff;
    const QUEUES: usize = 1;
    const NAME: &'static str = "virtio-rng";

    fn features(&self) -> u64 {
        0
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn process(&mut self, _: usize, queue: &mut Queue, memory: &GuestMemoryMmap) -> Done {
        serve_all(queue, memory, |chain| {
            let mut bytes = [0; MOST];
            let len = chain.writer(memory).map_or(0, |mut writer| {
                let len = writer.available_bytes().min(MOST);
                let filled =
                    self.0.read_exact(&mut bytes[..len]).and_then(|()| writer.write_all(&bytes[..len]));
                filled.map_or(0, |()| len)
            });
            len as u32
        })
    }
}
