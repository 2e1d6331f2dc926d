//! The queues of a network card in the kernel: vhost-net moves frames between them and a tap device, without this process.

use std::fs::File;
use std::sync::Arc;

use vhost::net::VhostNet;
use vhost::vhost_kern::net::Net as KernelNet;
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use crate::space::Space;

/// The kernel puts in front of each frame, and takes away, the header that the tap device knows nothing of.
const NET_HEADER: u64 = 1 << 27;
const VERSION_1: u64 = 1 << 32;
const NEEDED: u64 = NET_HEADER | VERSION_1;

/// A network card's queues in the kernel. The order matters: the kernel's part goes before the memory that it uses.
pub(crate) struct Vhost {
    kernel: KernelNet<Arc<GuestMemoryMmap>>,
    tap: File,
    space: Arc<Space>,
}

impl std::fmt::Debug for Vhost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Vhost")
    }
}

/// Why the kernel does not do it.
type Reason = String;

impl Vhost {
    /// Opens `/dev/vhost-net` for a tap device.
    pub(crate) fn open(tap: &File, space: &Arc<Space>) -> Result<Self, Reason> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let tap = tap.try_clone().map_err(|error| text(&error))?;
        let memory = Arc::new(space.ram().map().clone());
        let kernel = KernelNet::new(memory).map_err(|error| text(&error))?;
        let set = || {
            kernel.set_owner()?;
            let offered = kernel.get_features()?;
            let regions = space.ram().ranges().map(|(start, address, len)| VhostUserMemoryRegionInfo {
                guest_phys_addr: start,
                memory_size: len,
                userspace_addr: address.as_ptr().addr() as u64,
                ..VhostUserMemoryRegionInfo::default()
            });
            kernel.set_mem_table(&regions.collect::<Vec<_>>())?;
            kernel.set_features(NEEDED)?;
            Ok::<_, vhost::Error>(offered)
        };
        match set() {
            Ok(offered) if offered & NEEDED == NEEDED => Ok(Self { kernel, tap, space: Arc::clone(space) }),
            Ok(offered) => Err(format!("it offers the features {offered:#x}, and {NEEDED:#x} are needed")),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Lets the kernel see to a queue, which the guest has set up: its number, its kicks, and what raises its interrupt.
    pub(crate) fn start(
        &self,
        index: usize,
        queue: &Queue,
        kick: &EventFd,
        call: Option<&EventFd>,
    ) -> Result<(), Reason> {
        let ring = ring(queue, self.space.ram().map()).ok_or("a queue lies outside of the memory")?;
        let set = || {
            self.kernel.set_vring_num(index, queue.size())?;
            self.kernel.set_vring_base(index, 0)?;
            self.kernel.set_vring_addr(index, &ring)?;
            self.kernel.set_vring_kick(index, kick)?;
            if let Some(call) = call {
                self.kernel.set_vring_call(index, call)?;
            }
            self.kernel.set_backend(index, Some(&self.tap))
        };
        set().map_err(|error| error.to_string())
    }

    /// Takes a queue back: the kernel touches it no more.
    pub(crate) fn stop(&self, index: usize) {
        if let Err(error) = self.kernel.set_backend(index, None) {
            tracing::warn!(%error, "vhost-net keeps a queue");
        }
    }
}

/// Where a queue lies. The kernel is told addresses of this process, so each part must lie in one piece of RAM: whatever
/// lies behind that piece here is none of the guest's.
fn ring(queue: &Queue, memory: &GuestMemoryMmap) -> Option<VringConfigData> {
    let size = usize::from(queue.size());
    let inside = |at: u64, len: usize| memory.get_slice(GuestAddress(at), len).is_ok().then_some(at);
    Some(VringConfigData {
        queue_max_size: queue.max_size(),
        queue_size: queue.size(),
        desc_table_addr: inside(queue.desc_table(), 16 * size)?,
        avail_ring_addr: inside(queue.avail_ring(), 6 + 2 * size)?,
        used_ring_addr: inside(queue.used_ring(), 6 + 8 * size)?,
        ..VringConfigData::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_that_reaches_beyond_a_piece_of_memory_is_refused() {
        let pieces = [(GuestAddress(0), 0x1_0000), (GuestAddress(0x1_0000), 0x1_0000)];
        let memory = GuestMemoryMmap::from_ranges(&pieces).unwrap();
        let ring = |at: [u64; 3]| {
            let mut queue = Queue::new(256).unwrap();
            queue.set_desc_table_address(Some(at[0] as u32), Some((at[0] >> 32) as u32));
            queue.set_avail_ring_address(Some(at[1] as u32), Some((at[1] >> 32) as u32));
            queue.set_used_ring_address(Some(at[2] as u32), Some((at[2] >> 32) as u32));
            super::ring(&queue, &memory)
        };
        assert!(ring([0xf000, 0x1000, 0x1_0000]).is_some());
        for outside in [[0xf010, 0, 0], [0, 0xff00, 0], [0, 0, 0xf800], [1 << 40, 0, 0], [0, 0x1_ff00, 0]] {
            assert!(ring(outside).is_none(), "{outside:x?}");
        }
    }
}
