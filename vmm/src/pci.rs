//! PCI: the configuration space of functions, and the buses with their ECAM window and their windows for BARs.
//!
//! Our own functions lie on bus 0 and have MSI-X only; each passed-through one lies below a root port of its own. There
//! are no I/O ports. There is no firmware: the VMM gives BARs, windows and buses their places before the guest runs, and
//! kernels keep these.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::bus::Device;
use crate::error::Error;

/// Bytes of a function's configuration space.
pub const CONFIG_LEN: usize = 4096;
pub(crate) const COMMAND: usize = 4;
pub(crate) const STATUS: usize = 6;
/// 0 for a device, 1 for a bridge.
pub(crate) const HEADER_TYPE: usize = 0x0e;
/// Offset of the first BAR.
pub(crate) const BAR0: usize = 0x10;
pub(crate) const CAPABILITIES: usize = 0x34;
/// Memory decoding: BARs answer.
pub(crate) const COMMAND_MEMORY: u8 = 1 << 1;
/// Command bits that a guest may set: memory, bus master, no INTx.
pub(crate) const COMMAND_WRITABLE: u16 = 0b0000_0100_0000_0110;
pub(crate) const STATUS_CAPABILITIES: u16 = 1 << 4;
/// Id of the PCI Express capability.
pub(crate) const EXPRESS: u8 = 0x10;

/// Identity of a function.
#[derive(Debug, Clone, Copy)]
pub struct Identity {
    /// Vendor and device.
    pub id: (u16, u16),
    /// Vendor and device of the subsystem.
    pub subsystem: (u16, u16),
    /// Class and subclass.
    pub class: u16,
    /// Revision.
    pub revision: u8,
}

/// Kind of a BAR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BarKind {
    /// Below 4 GiB, not prefetchable: registers.
    Registers,
    /// Anywhere, prefetchable: memory. Takes the place of two BARs.
    Memory,
    /// As [`Self::Memory`], with registers of which some are no memory of the guest's.
    Both,
}

impl BarKind {
    fn is_wide(self) -> bool {
        self != Self::Registers
    }
}

#[derive(Debug, Clone, Copy)]
struct Bar {
    kind: BarKind,
    len: u64,
}

/// Shows the memory of a BAR to the guest at an address, or not at all.
pub(crate) type PlaceBar = Box<dyn Fn(Option<u64>) + Send + Sync>;

/// Memory that follows its BAR. A place that is taken hides it, of which the log tells once: a guest can bring it about as
/// often as it likes.
pub(crate) fn follow(
    what: String,
    place: impl Fn(Option<u64>) -> Result<(), Error> + Send + Sync + 'static,
) -> PlaceBar {
    let told = AtomicBool::new(false);
    Box::new(move |address| {
        if let Err(error) = place(address)
            && !told.swap(true, Ordering::Relaxed)
        {
            tracing::warn!(%error, "the guest moved {what} to where it cannot be");
        }
    })
}

/// A function's configuration space: bytes, and which of their bits the guest may change.
#[derive(Debug)]
pub struct Config {
    bytes: Vec<u8>,
    /// The bytes as they were before the guest changed any.
    initial: Vec<u8>,
    writable: Vec<u8>,
    bars: [Option<Bar>; 6],
    next_capability: usize,
    last_link: usize,
}

impl Config {
    /// A configuration space without BARs and capabilities.
    pub fn new(identity: &Identity) -> Self {
        let mut config = Self {
            bytes: vec![0; CONFIG_LEN],
            initial: vec![0; CONFIG_LEN],
            writable: vec![0; CONFIG_LEN],
            bars: [None; 6],
            next_capability: 0x40,
            last_link: CAPABILITIES,
        };
        config.set(0, &identity.id.0.to_le_bytes());
        config.set(2, &identity.id.1.to_le_bytes());
        config.set(8, &[identity.revision, 0]);
        config.set(0xa, &identity.class.to_le_bytes());
        config.set(0x2c, &identity.subsystem.0.to_le_bytes());
        config.set(0x2e, &identity.subsystem.1.to_le_bytes());
        config.writable[COMMAND..COMMAND + 2].copy_from_slice(&COMMAND_WRITABLE.to_le_bytes());
        // The interrupt line register is the guest's notepad.
        config.writable[0x3c] = 0xff;
        config
    }

    /// Adds a BAR of `len` bytes, a power of two, at an address that is a multiple of `len`.
    pub fn add_bar(&mut self, index: usize, kind: BarKind, len: u64, address: u64) {
        assert!(len.is_power_of_two() && len >= 16 && address.is_multiple_of(len), "BAR {index}");
        self.bars[index] = Some(Bar { kind, len });
        let at = BAR0 + 4 * index;
        let mask = !(len - 1);
        match kind {
            BarKind::Registers => {
                self.writable[at..at + 4].copy_from_slice(&(mask as u32).to_le_bytes());
                self.set(at, &(address as u32).to_le_bytes());
            }
            BarKind::Memory | BarKind::Both => {
                self.writable[at..at + 8].copy_from_slice(&mask.to_le_bytes());
                // 64-bit, prefetchable.
                self.set(at, &(address | 0b1100).to_le_bytes());
            }
        }
        self.set(COMMAND, &[COMMAND_MEMORY]);
    }

    /// Adds a capability: its id, its body, and which bits of the body the guest may change. Returns its offset.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> usize {
        let at = self.next_capability;
        let end = at + 2 + body.len();
        assert!(end <= 256 && body.len() == writable.len(), "capability {id:#x}");
        self.set(self.last_link, &[at as u8]);
        self.set(at, &[id, 0]);
        self.set(at + 2, body);
        self.writable[at + 2..end].copy_from_slice(writable);
        self.last_link = at + 1;
        self.next_capability = end.next_multiple_of(4);
        self.set(STATUS, &STATUS_CAPABILITIES.to_le_bytes());
        at
    }

    /// Puts a field of the function's own at an offset, and says which of its bits the guest may change.
    pub(crate) fn add_field(&mut self, at: usize, value: &[u8], writable: &[u8]) {
        self.set(at, value);
        self.writable[at..at + writable.len()].copy_from_slice(writable);
    }

    fn set(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        self.initial[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Forgets what the guest has written.
    pub fn reset(&mut self) {
        self.bytes.copy_from_slice(&self.initial);
    }

    /// Loads; ones outside the space.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        let end = offset.saturating_add(data.len());
        match self.bytes.get(offset..end) {
            Some(bytes) => data.copy_from_slice(bytes),
            None => data.fill(0xff),
        }
    }

    /// Takes a store, as far as bits may be changed.
    pub fn write(&mut self, offset: usize, data: &[u8]) {
        let end = offset.saturating_add(data.len());
        let (Some(bytes), Some(writable)) = (self.bytes.get_mut(offset..end), self.writable.get(offset..end))
        else {
            return;
        };
        for ((byte, mask), new) in bytes.iter_mut().zip(writable).zip(data) {
            *byte = *byte & !mask | new & mask;
        }
    }

    /// A little-endian word of 16 bits.
    pub fn word(&self, offset: usize) -> u16 {
        u16::from_le_bytes([self.bytes[offset], self.bytes[offset + 1]])
    }

    /// Where a BAR answers, unless memory decoding is off.
    pub fn bar(&self, index: usize) -> Option<u64> {
        let bar = self.bars[index]?;
        if self.bytes[COMMAND] & COMMAND_MEMORY == 0 {
            return None;
        }
        let at = BAR0 + 4 * index;
        let half = |at: usize| u32::from_le_bytes(self.bytes[at..at + 4].try_into().expect("four bytes"));
        let low = u64::from(half(at));
        let high = if bar.kind.is_wide() { u64::from(half(at + 4)) << 32 } else { 0 };
        Some((high | low) & !(bar.len - 1))
    }

    /// The BAR of registers in which an access lies, and the offset there.
    fn find(&self, address: u64, len: usize) -> Option<(usize, u64)> {
        (0..6).find_map(|index| {
            let bar = self.bars[index].filter(|bar| bar.kind != BarKind::Memory)?;
            let offset = address.checked_sub(self.bar(index)?)?;
            (offset.checked_add(len as u64)? <= bar.len).then_some((index, offset))
        })
    }
}

/// A PCI function. Every value comes from the guest, which may be hostile.
pub trait Function: Send + Sync {
    /// Its configuration space.
    fn config(&self) -> &Mutex<Config>;
    /// Called after the guest has changed the configuration space, without its lock.
    fn configured(&self) {}
    /// The machine was reset: all is as it was when the guest first ran. No vCPU runs.
    fn power_on(&self) {
        self.config().lock().reset();
        self.configured();
    }
    /// Fills `data` with what a load from the configuration space sees.
    fn load(&self, register: usize, data: &mut [u8]) {
        self.config().lock().read(register, data);
    }
    /// Takes a store to the configuration space.
    fn store(&self, register: usize, data: &[u8]) {
        self.config().lock().write(register, data);
        self.configured();
    }
    /// The bus behind a bridge, and the one function there.
    fn below(&self) -> Option<(u8, &Arc<dyn Function>)> {
        None
    }
    /// The bridge above was told to reset what lies below.
    fn reset(&self) {}
    /// Fills `data` with what a load from a BAR of registers sees.
    fn read(&self, bar: usize, offset: u64, data: &mut [u8]) {
        let _ = (bar, offset);
        data.fill(0xff);
    }
    /// Takes a store to a BAR of registers.
    fn write(&self, bar: usize, offset: u64, data: &[u8]) {
        let _ = (bar, offset, data);
    }
}

/// Root buses: functions by bus and device number, and what lies behind bridges among them.
#[derive(Default)]
pub struct Root(Vec<(u8, Arc<dyn Function>)>);

impl std::fmt::Debug for Root {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Root({} functions)", self.0.len())
    }
}

/// Most functions on a bus, each a device of its own.
pub const MOST: usize = 32;

impl Root {
    /// A bus with a host bridge as device 0.
    pub fn new() -> Self {
        // The bridge that QEMU's q35 has: kernels know it, and expect nothing of it.
        let identity =
            Identity { id: (0x8086, 0x29c0), subsystem: (0x1af4, 0x1100), class: 0x0600, revision: 0 };
        Self(vec![(0, Arc::new(Bridge(Mutex::new(Config::new(&identity)))))])
    }

    /// Adds a function as the next device of bus 0; `None` where the bus is full, else the device's number.
    pub fn add(&mut self, function: Arc<dyn Function>) -> Option<usize> {
        self.add_to(0, function)
    }

    /// As [`Self::add`], to a root bus of any number.
    pub fn add_to(&mut self, bus: u8, function: Arc<dyn Function>) -> Option<usize> {
        let device = self.0.iter().filter(|(of, _)| *of == bus).count();
        (device < MOST).then(|| self.0.push((bus, function)))?;
        Some(device)
    }

    /// Resets all functions.
    pub fn power_on(&self) {
        self.0.iter().for_each(|(_, function)| function.power_on());
    }

    fn below(&self) -> impl Iterator<Item = (u8, &Arc<dyn Function>)> {
        self.0.iter().filter_map(|(_, function)| function.below())
    }

    /// The function and the offset in its configuration space that an offset in the ECAM window means.
    fn decode(&self, offset: u64, len: usize) -> Option<(&Arc<dyn Function>, usize)> {
        let (bus, device, function) = (offset >> 20, offset >> 15 & 31, offset >> 12 & 7);
        let register = (offset & 0xfff) as usize;
        if function != 0 || len > 8 || register + len > CONFIG_LEN {
            return None;
        }
        let mut on_root = self.0.iter().filter(|(of, _)| u64::from(*of) == bus).peekable();
        let found = if on_root.peek().is_some() {
            on_root.nth(device as usize).map(|(_, function)| function)
        } else {
            // Behind a link there is one device.
            let below = |(of, _): &(u8, _)| u64::from(*of) == bus && device == 0;
            self.below().find(below).map(|(_, function)| function)
        };
        Some((found?, register))
    }

    fn find(&self, address: u64, len: usize) -> Option<(&Arc<dyn Function>, usize, u64)> {
        // The windows of bridges are not looked at: they are for kernels to keep, and a guest that does not keep them
        // reaches no other device than its own.
        let roots = self.0.iter().map(|(_, function)| function);
        roots.chain(self.below().map(|(_, function)| function)).find_map(|function| {
            let (bar, offset) = function.config().lock().find(address, len)?;
            Some((function, bar, offset))
        })
    }
}

struct Bridge(Mutex<Config>);

impl Function for Bridge {
    fn config(&self) -> &Mutex<Config> {
        &self.0
    }
}

/// The ECAM window of a bus.
#[derive(Debug)]
pub struct Ecam(pub Arc<Root>);

impl Device for Ecam {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match self.0.decode(offset, data.len()) {
            Some((function, register)) => function.load(register, data),
            None => data.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some((function, register)) = self.0.decode(offset, data.len()) {
            function.store(register, data);
        }
    }
}

/// The first of the eight ports of the old way to configuration space: an address, then data.
pub const PORTS: u64 = 0xcf8;
const DATA: u64 = 4;
const ENABLE: u32 = 1 << 31;

/// The old way to configuration space, which kernels use before they have read where the ECAM window is.
#[derive(Debug)]
pub struct Ports {
    ecam: Ecam,
    address: Mutex<u32>,
}

impl Ports {
    /// The ports of a bus.
    pub fn new(root: Arc<Root>) -> Self {
        Self { ecam: Ecam(root), address: Mutex::new(0) }
    }

    /// The offset in the ECAM window that an access to the data port means.
    fn place(&self, offset: u64) -> Option<u64> {
        let address = *self.address.lock();
        let place = u64::from(address >> 8 & 0xffff) << 12 | u64::from(address & 0xfc);
        Some(place + offset.checked_sub(DATA)?).filter(|_| address & ENABLE != 0)
    }
}

impl Device for Ports {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if offset == 0 && data.len() == 4 {
            data.copy_from_slice(&self.address.lock().to_le_bytes());
        } else if let Some(at) = self.place(offset) {
            self.ecam.read(at, data);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (0, Ok(word)) = (offset, <[u8; 4]>::try_from(data)) {
            *self.address.lock() = u32::from_le_bytes(word);
        } else if let Some(at) = self.place(offset) {
            self.ecam.write(at, data);
        }
    }
}

/// A window for BARs of registers, which begins at the address in it.
#[derive(Debug)]
pub struct Window(pub Arc<Root>, pub u64);

impl Device for Window {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match self.0.find(self.1 + offset, data.len()) {
            Some((function, bar, offset)) => function.read(bar, offset, data),
            None => data.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some((function, bar, offset)) = self.0.find(self.1 + offset, data.len()) {
            function.write(bar, offset, data);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDENTITY: Identity =
        Identity { id: (0x1af4, 0x1110), subsystem: (0x1af4, 0x1100), class: 0x0500, revision: 1 };

    struct Plain(Mutex<Config>, Mutex<Vec<(usize, u64)>>);

    impl Function for Plain {
        fn config(&self) -> &Mutex<Config> {
            &self.0
        }
        fn write(&self, bar: usize, offset: u64, _: &[u8]) {
            self.1.lock().push((bar, offset));
        }
    }

    fn bus() -> (Arc<Root>, Arc<Plain>) {
        let mut config = Config::new(&IDENTITY);
        config.add_bar(0, BarKind::Registers, 256, 0xc000_0000);
        config.add_bar(2, BarKind::Memory, 1 << 40, 1 << 45);
        config.add_capability(0x11, &[7, 0, 1, 0, 0, 0, 1, 8, 0, 0], &[0, 0xc0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let function = Arc::new(Plain(Mutex::new(config), Mutex::default()));
        let mut root = Root::new();
        assert_eq!(root.add(function.clone()), Some(1));
        (Arc::new(root), function)
    }

    fn read(ecam: &Ecam, register: u64) -> u32 {
        let mut data = [0; 4];
        ecam.read(1 << 15 | register, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(ecam: &Ecam, register: u64, value: u32) {
        ecam.write(1 << 15 | register, &value.to_le_bytes());
    }

    #[test]
    fn a_function_is_found_and_says_who_it_is() {
        let ecam = Ecam(bus().0);
        assert_eq!(read(&ecam, 0), 0x1110_1af4);
        assert_eq!(read(&ecam, 8), 0x0500_0001);
        assert_eq!(read(&ecam, 0x2c), 0x1100_1af4);
        assert_eq!(read(&ecam, 0x34), 0x40);
        assert_eq!(read(&ecam, 0x40), 0x0007_0011);
        let mut data = [0; 4];
        ecam.read(2 << 15, &mut data);
        assert_eq!(data, [0xff; 4], "nobody is device 2");
        ecam.read(1 << 20, &mut data);
        assert_eq!(data, [0xff; 4], "nobody is on bus 1");
    }

    #[test]
    fn bars_tell_their_size_as_the_standard_says_and_keep_their_address() {
        let (root, function) = bus();
        let ecam = Ecam(root);
        write(&ecam, 4, 0);
        for (register, size) in [(0x10, 0xffff_ff00), (0x14, 0), (0x18, 0xc), (0x1c, 0xffff_ff00)] {
            let old = read(&ecam, register);
            write(&ecam, register, u32::MAX);
            assert_eq!(read(&ecam, register), size, "{register:#x}");
            write(&ecam, register, old);
        }
        assert_eq!(function.config().lock().bar(2), None, "decoding is off");
        write(&ecam, 4, 0xffff_ffff);
        assert_eq!(read(&ecam, 4) & 0xffff, u32::from(COMMAND_WRITABLE));
        assert_eq!(function.config().lock().bar(2), Some(1 << 45));
        assert_eq!(function.config().lock().bar(0), Some(0xc000_0000));
    }

    #[test]
    fn only_bits_that_may_be_changed_are() {
        let (root, _) = bus();
        let ecam = Ecam(root);
        for register in (0..4096).step_by(4) {
            write(&ecam, register, u32::MAX);
        }
        assert_eq!(read(&ecam, 0), 0x1110_1af4);
        assert_eq!(read(&ecam, 0x40), 0xc007_0011);
        assert_eq!(read(&ecam, 0x100), 0);
        // An access that crosses the end, or is longer than any that a processor makes.
        ecam.write(1 << 15 | 0xffe, &[1; 4]);
        ecam.write(1 << 15, &[0; 64]);
        assert_eq!(read(&ecam, 0), 0x1110_1af4);
    }

    #[test]
    fn a_reset_forgets_what_the_guest_wrote_and_nothing_else() {
        let (root, _) = bus();
        let ecam = Ecam(Arc::clone(&root));
        let all = || (0..4096).step_by(4).map(|register| read(&ecam, register)).collect::<Vec<_>>();
        let before = all();
        (0..4096).step_by(4).for_each(|register| write(&ecam, register, u32::MAX));
        assert_ne!(all(), before);
        root.power_on();
        assert_eq!(all(), before);
    }

    #[test]
    fn the_old_ports_reach_the_same_registers() {
        let ports = Ports::new(bus().0);
        let mut data = [0; 2];
        ports.read(DATA + 2, &mut data);
        assert_eq!(data, [0xff; 2], "no address yet");
        ports.write(0, &(ENABLE | 1 << 11 | 8).to_le_bytes());
        ports.read(DATA + 2, &mut data);
        assert_eq!(u16::from_le_bytes(data), 0x0500);
        ports.write(0, &(ENABLE | 1 << 11 | 4).to_le_bytes());
        ports.write(DATA, &[4]);
        let mut data = [0; 4];
        ports.read(DATA, &mut data);
        assert_eq!(data[0], 4);
        ports.read(0, &mut data);
        assert_eq!(u32::from_le_bytes(data), ENABLE | 1 << 11 | 4);
        ports.write(0, &(ENABLE | 2 << 11).to_le_bytes());
        ports.read(DATA, &mut data);
        assert_eq!(data, [0xff; 4], "nobody is device 2");
    }

    #[test]
    fn a_bar_answers_where_the_guest_put_it() {
        let (root, function) = bus();
        let (ecam, window) = (Ecam(Arc::clone(&root)), Window(root, 0xc000_0000));
        window.write(0xc, &[1]);
        write(&ecam, 0x10, 0xc000_1000);
        window.write(0xc, &[1]);
        window.write(0x10fc, &[1; 4]);
        window.write(0x10fd, &[1; 4]);
        assert_eq!(*function.1.lock(), [(0, 0xc), (0, 0xfc)]);
        let mut data = [0];
        window.read(0, &mut data);
        assert_eq!(data, [0xff]);
    }
}
