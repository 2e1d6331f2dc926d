//! The shared memory's PCI device: ivshmem, revision 1, as QEMU has it.
//!
//! BAR 0 has the registers, BAR 1 the MSI-X table (with doorbells only), BAR 2 the region itself.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::sync::{Arc, LazyLock};

use parking_lot::Mutex;
use vmm_sys_util::eventfd::EventFd;
use vmshm_abi::ivshmem::{
    DEVICE, MEMORY_BAR, REG_DOORBELL, REG_INTR_MASK, REG_INTR_STATUS, REG_IV_POSITION, REGISTERS_BAR,
    REGISTERS_LEN, VENDOR,
};
use vmshm_host::Bells as Ringer;

use crate::interrupts::Interrupts;
use crate::msix::{self, Msix};
use crate::pci::{BarKind, Config, Function, Identity, PlaceBar};

const TABLE_BAR: usize = 1;
/// Most interrupt vectors of a peer that are kept; MSI-X has no more.
const MOST_VECTORS: usize = 2048;

const IDENTITY: Identity = Identity {
    id: (VENDOR, DEVICE),
    subsystem: (VENDOR, 0x1100),
    // Memory, RAM.
    class: 0x0500,
    revision: 1,
};

/// Where a device's BARs lie when the guest starts.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Addresses {
    pub(crate) registers: u64,
    pub(crate) table: u64,
    pub(crate) memory: u64,
}

/// Rings where KVM does not listen. Never waits, whatever a peer makes of its event. One for all devices, since the kernel
/// takes long to end such a queue; made with the first device, before threads are confined.
static RINGER: LazyLock<Option<Mutex<Ringer>>> = LazyLock::new(|| {
    let ringer = Ringer::new().inspect_err(|error| tracing::warn!(%error, "some doorbells may stay silent"));
    ringer.ok().map(Mutex::new)
});

/// The doorbells: ours, and those of others.
struct Bells {
    /// Our id.
    id: u16,
    msix: Msix,
    capability: usize,
    peers: BTreeMap<u16, Vec<Bell>>,
    /// Ids of an earlier server, which hold until this one tells of the VM of that section.
    earlier: BTreeSet<u16>,
    sections: u32,
    interrupts: Arc<dyn Interrupts>,
    /// Where the doorbell register is now.
    register: Option<u64>,
}

/// A vector of a peer.
#[derive(Debug)]
struct Bell {
    event: EventFd,
    /// The word that the guest stores to ring it.
    word: u32,
    /// The address at which KVM listens to that by itself.
    listens: Option<u64>,
}

impl Bells {
    /// Makes KVM listen where the doorbell register is now.
    fn listen(&mut self) {
        for bell in self.peers.values_mut().flatten() {
            if bell.listens == self.register {
                continue;
            }
            if let Some(old) = bell.listens.take() {
                self.interrupts.unlisten(old, bell.word, &bell.event);
            }
            bell.listens =
                self.register.filter(|&register| self.interrupts.listen(register, bell.word, &bell.event));
        }
    }

    fn remove(&mut self, id: u16) {
        for bell in self.peers.remove(&id).into_iter().flatten() {
            if let Some(register) = bell.listens {
                self.interrupts.unlisten(register, bell.word, &bell.event);
            }
        }
    }
}

#[derive(Debug, Default)]
struct Registers {
    mask: u32,
    status: u32,
}

/// One ivshmem device.
pub(crate) struct Ivshmem {
    config: Mutex<Config>,
    place: PlaceBar,
    registers: Mutex<Registers>,
    bells: Option<Mutex<Bells>>,
}

impl Ivshmem {
    /// A device without doorbells for a region of `len` bytes.
    pub(crate) fn plain(len: u64, at: &Addresses, place: PlaceBar) -> Self {
        Self { config: Mutex::new(config(len, at)), place, registers: Mutex::default(), bells: None }
    }

    /// A device with doorbells, to which the server gave an id.
    pub(crate) fn doorbell(
        len: u64,
        at: &Addresses,
        place: PlaceBar,
        id: u16,
        vectors: u32,
        interrupts: Arc<dyn Interrupts>,
    ) -> Self {
        let mut config = config(len, at);
        let parts = msix::Place::new(vectors);
        config.add_bar(TABLE_BAR, BarKind::Registers, parts.bar_len, at.table);
        let capability = msix::add_capability(&mut config, vectors, TABLE_BAR);
        let register = config.bar(REGISTERS_BAR as usize).map(|bar| bar + REG_DOORBELL);
        let msix = Msix::new(vectors, Arc::clone(&interrupts));
        LazyLock::force(&RINGER);
        let (peers, earlier) = (BTreeMap::new(), BTreeSet::new());
        let bells = Bells { id, msix, capability, peers, earlier, sections: 1, interrupts, register };
        let bells = Some(Mutex::new(bells));
        Self { config: Mutex::new(config), place, registers: Mutex::default(), bells }
    }

    /// Takes the next interrupt vector of a peer, or our own, from the server.
    pub(crate) fn add_vector(&self, id: u16, event: OwnedFd) {
        let Some(bells) = &self.bells else { return };
        // SAFETY: the descriptor is ours and goes over to the new owner.
        let event = unsafe { EventFd::from_raw_fd(event.into_raw_fd()) };
        let mut bells = bells.lock();
        let same = |earlier: &u16| u32::from(*earlier) % bells.sections == u32::from(id) % bells.sections;
        for earlier in bells.earlier.iter().copied().filter(same).collect::<Vec<_>>() {
            bells.earlier.remove(&earlier);
            bells.remove(earlier);
        }
        if bells.id == id
            && let Ok(own) = event.try_clone()
        {
            bells.msix.add_event(own);
        }
        let vectors = bells.peers.entry(id).or_default();
        if vectors.len() < MOST_VECTORS {
            let word = u32::from(id) << 16 | vectors.len() as u32;
            vectors.push(Bell { event, word, listens: None });
        }
        bells.listen();
    }

    /// A peer has left.
    pub(crate) fn remove_peer(&self, id: u16) {
        if let Some(bells) = &self.bells {
            bells.lock().remove(id);
        }
    }

    /// The next server of the same region has given us this id, and will tell of our vectors and of its peers.
    pub(crate) fn rejoin(&self, id: u16, sections: u32) {
        let Some(bells) = &self.bells else { return };
        let mut bells = bells.lock();
        (bells.id, bells.sections) = (id, sections);
        bells.earlier = bells.peers.keys().copied().collect();
        bells.msix.forget_events();
    }

    fn ring(&self, word: u32) {
        let (peer, vector) = ((word >> 16) as u16, (word & 0xffff) as usize);
        let Some(bells) = &self.bells else { return };
        let bells = bells.lock();
        let Some(bell) = bells.peers.get(&peer).and_then(|vectors| vectors.get(vector)) else { return };
        match &*RINGER {
            Some(ringer) => ringer.lock().ring(&bell.event),
            None => tracing::debug!(word, "a doorbell beyond those that KVM listens to stays silent"),
        }
    }
}

fn config(len: u64, at: &Addresses) -> Config {
    let mut config = Config::new(&IDENTITY);
    config.add_bar(REGISTERS_BAR as usize, BarKind::Registers, REGISTERS_LEN, at.registers);
    config.add_bar(MEMORY_BAR as usize, BarKind::Memory, len, at.memory);
    config
}

impl Function for Ivshmem {
    fn config(&self) -> &Mutex<Config> {
        &self.config
    }

    fn configured(&self) {
        // Under its lock, so that of two stores at once the later one's address stays.
        let config = self.config.lock();
        (self.place)(config.bar(MEMORY_BAR as usize));
        if let Some(bells) = &self.bells {
            let mut bells = bells.lock();
            let control = config.word(bells.capability + 2);
            bells.msix.set_control(control);
            bells.register = config.bar(REGISTERS_BAR as usize).map(|bar| bar + REG_DOORBELL);
            bells.listen();
        }
    }

    /// Peers, doorbells and position stay: to the server and to peers it is the same member.
    fn power_on(&self) {
        *self.registers.lock() = Registers::default();
        self.config.lock().reset();
        if let Some(bells) = &self.bells {
            bells.lock().msix.reset();
        }
        self.configured();
    }

    fn read(&self, bar: usize, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if bar == TABLE_BAR {
            if let Some(bells) = &self.bells {
                bells.lock().msix.read(offset, data);
            }
            return;
        }
        let mut registers = self.registers.lock();
        let word = match offset {
            REG_INTR_MASK => registers.mask,
            REG_INTR_STATUS => std::mem::take(&mut registers.status),
            REG_IV_POSITION => self.bells.as_ref().map_or(0, |bells| u32::from(bells.lock().id)),
            _ => 0,
        };
        let len = data.len().min(4);
        data[..len].copy_from_slice(&word.to_le_bytes()[..len]);
    }

    fn write(&self, bar: usize, offset: u64, data: &[u8]) {
        if bar == TABLE_BAR {
            if let Some(bells) = &self.bells {
                bells.lock().msix.write(offset, data);
            }
            return;
        }
        let Ok(word) = <[u8; 4]>::try_from(data).map(u32::from_le_bytes) else { return };
        match offset {
            REG_INTR_MASK => self.registers.lock().mask = word,
            REG_INTR_STATUS => self.registers.lock().status = word,
            REG_DOORBELL => self.ring(word),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;
    use crate::recorder::Recorder;

    const LEN: u64 = 1 << 30;
    const AT: Addresses = Addresses { registers: 0xc000_0000, table: 0xc000_1000, memory: 1 << 40 };

    fn nowhere() -> PlaceBar {
        Box::new(|_| ())
    }

    fn doorbell() -> (Ivshmem, Arc<Recorder>) {
        let recorder = Arc::new(Recorder::default());
        (Ivshmem::doorbell(LEN, &AT, nowhere(), 3, 2, recorder.clone()), recorder)
    }

    fn word(device: &Ivshmem, offset: u64) -> u32 {
        let mut data = [0xff; 4];
        device.read(0, offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn event() -> (EventFd, OwnedFd) {
        let event = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        // SAFETY: a fresh descriptor that nobody else owns.
        let other = unsafe { OwnedFd::from_raw_fd(event.try_clone().unwrap().into_raw_fd()) };
        (event, other)
    }

    #[test]
    fn a_plain_device_reads_as_position_0_and_has_no_interrupts() {
        let device = Ivshmem::plain(LEN, &AT, nowhere());
        assert_eq!(word(&device, REG_IV_POSITION), 0);
        device.write(0, REG_DOORBELL, &[0; 4]);
        let config = device.config.lock();
        assert_eq!(config.word(6), 0, "no capabilities");
        assert_eq!(config.bar(2), Some(1 << 40));
    }

    #[test]
    fn registers_keep_what_qemu_s_keep() {
        let device = Ivshmem::plain(LEN, &AT, nowhere());
        device.write(0, REG_INTR_MASK, &7u32.to_le_bytes());
        device.write(0, REG_INTR_STATUS, &9u32.to_le_bytes());
        device.write(0, REG_IV_POSITION, &5u32.to_le_bytes());
        device.write(0, REG_INTR_MASK, &[1]);
        assert_eq!(word(&device, REG_INTR_MASK), 7);
        assert_eq!((word(&device, REG_INTR_STATUS), word(&device, REG_INTR_STATUS)), (9, 0));
        assert_eq!(word(&device, REG_IV_POSITION), 0);
        assert_eq!(word(&device, 0x80), 0);
    }

    #[test]
    fn a_doorbell_reaches_the_peer_s_vector_and_no_other() {
        let (device, _) = doorbell();
        let ((a, a_fd), (b, b_fd)) = (event(), event());
        device.add_vector(6, a_fd);
        device.add_vector(6, b_fd);
        assert_eq!(word(&device, REG_IV_POSITION), 3);
        for word in [6 << 16 | 2, 5 << 16, 3 << 16, u32::MAX] {
            device.write(0, REG_DOORBELL, &word.to_le_bytes());
        }
        assert!(a.read().is_err() && b.read().is_err());
        device.write(0, REG_DOORBELL, &(6u32 << 16 | 1).to_le_bytes());
        assert!(a.read().is_err());
        assert_eq!(b.read().unwrap(), 1);
        device.remove_peer(6);
        device.write(0, REG_DOORBELL, &(6u32 << 16 | 1).to_le_bytes());
        assert!(b.read().is_err());
    }

    #[test]
    fn own_vectors_become_interrupts_when_the_guest_switches_msi_x_on() {
        let (device, recorder) = doorbell();
        let (own, fd) = event();
        device.add_vector(3, fd);
        device.write(1, 0, &0xfee0_0000u64.to_le_bytes());
        device.write(1, 8, &0x30u64.to_le_bytes());
        assert!(recorder.connected.lock().is_empty());
        let capability = device.bells.as_ref().unwrap().lock().capability;
        let mut control = [0; 2];
        device.config.lock().read(capability + 2, &mut control);
        assert_eq!(u16::from_le_bytes(control), 1, "two vectors");
        device.config.lock().write(capability + 2, &msix::ENABLE.to_le_bytes());
        device.configured();
        assert_eq!(recorder.connected.lock().len(), 1);
        // A VM may ring itself.
        device.write(0, REG_DOORBELL, &(3u32 << 16).to_le_bytes());
        assert_eq!(own.read().unwrap(), 1);
    }

    #[test]
    fn kvm_listens_where_the_register_is_and_to_those_who_are_there() {
        let (device, recorder) = doorbell();
        let listens = || recorder.listens.lock().clone();
        device.add_vector(6, event().1);
        device.add_vector(6, event().1);
        device.add_vector(7, event().1);
        let at = AT.registers + REG_DOORBELL;
        assert_eq!(listens(), [(at, 6 << 16), (at, 6 << 16 | 1), (at, 7 << 16)]);
        device.remove_peer(6);
        assert_eq!(listens(), [(at, 7 << 16)]);
        let write = |register, value: u32| {
            device.config.lock().write(register, &value.to_le_bytes());
            device.configured();
        };
        write(4, 0);
        assert_eq!(listens(), [], "memory decoding is off");
        write(0x10, 0xd000_0000);
        write(4, 2);
        assert_eq!(listens(), [(0xd000_0000 + REG_DOORBELL, 7 << 16)]);
    }

    #[test]
    fn a_reset_puts_the_bars_back_and_keeps_position_and_peers() {
        let (device, recorder) = doorbell();
        device.add_vector(3, event().1);
        device.add_vector(6, event().1);
        let places = recorder.listens.lock().clone();
        let capability = device.bells.as_ref().unwrap().lock().capability;
        for (register, value) in [(0x10, 0xd000_0000), (0x1c, 1 << 9), (capability, 1 << 31)] {
            device.config.lock().write(register, &u32::to_le_bytes(value));
            device.configured();
        }
        device.write(0, REG_INTR_MASK, &7u32.to_le_bytes());
        device.write(TABLE_BAR, 12, &[0; 4]);
        assert_ne!(*recorder.listens.lock(), places);
        assert_eq!(recorder.connected.lock().len(), 1);
        device.power_on();
        assert_eq!(*recorder.listens.lock(), places, "both listen where they did");
        assert_eq!(recorder.connected.lock().len(), 0);
        assert_eq!((word(&device, REG_INTR_MASK), word(&device, REG_IV_POSITION)), (0, 3));
        assert_eq!(device.config.lock().bar(2), Some(AT.memory));
    }

    #[test]
    fn after_a_server_s_restart_each_section_rings_as_the_new_one_says() {
        let (device, recorder) = doorbell();
        device.write(1, 12, &[0; 4]);
        device.bells.as_ref().unwrap().lock().msix.set_control(msix::ENABLE);
        for id in [3, 6, 9] {
            device.add_vector(id, event().1);
        }
        assert_eq!(recorder.connected.lock().len(), 1);
        // Four sections: 3 is our section's, 2 that of 6, 1 that of 9.
        device.rejoin(7, 4);
        assert_eq!(word(&device, REG_IV_POSITION), 7);
        assert_eq!(recorder.connected.lock().len(), 0);
        let ((own, own_fd), (peer, peer_fd)) = (event(), event());
        device.add_vector(6, peer_fd);
        device.add_vector(7, own_fd);
        assert_eq!(recorder.connected.lock().len(), 1);
        for id in [6u32, 7, 3] {
            device.write(0, REG_DOORBELL, &(id << 16).to_le_bytes());
        }
        assert_eq!((own.read().unwrap(), peer.read().unwrap()), (1, 1));
        let at = AT.registers + REG_DOORBELL;
        let listens = recorder.listens.lock().clone();
        assert_eq!(listens, [(at, 9 << 16), (at, 6 << 16), (at, 7 << 16)], "9 has not come back yet");
        device.remove_peer(6);
        device.add_vector(1, event().1);
        assert_eq!(*recorder.listens.lock(), [(at, 7 << 16), (at, 1 << 16)]);
    }

    #[test]
    fn a_full_bell_does_not_make_the_guest_wait() {
        let (device, _) = doorbell();
        let (bell, fd) = event();
        bell.write(u64::MAX - 1).unwrap();
        // SAFETY: plain integers; the descriptor is open.
        unsafe { libc::fcntl(bell.as_raw_fd(), libc::F_SETFL, 0) };
        device.add_vector(9, fd);
        let ring = move || {
            device.write(0, REG_DOORBELL, &(9u32 << 16).to_le_bytes());
            device
        };
        // As a vCPU's thread may.
        crate::thread::spawn(crate::thread::Kind::Vcpu, "vcpu", ring).unwrap().join().unwrap();
    }

    #[test]
    fn the_memory_goes_where_the_guest_puts_the_bar() {
        let places = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&places);
        let device = Ivshmem::plain(LEN, &AT, Box::new(move |at| seen.lock().push(at)));
        let write = |register, value: u32| {
            device.config.lock().write(register, &value.to_le_bytes());
            device.configured();
        };
        write(4, 0);
        write(0x1c, 1 << 9);
        write(4, 2);
        assert_eq!(*places.lock(), [None, None, Some(1 << 41)]);
    }
}
