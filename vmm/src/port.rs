//! PCI Express root ports: a bridge from the root bus to a bus of its own, on which one function lies.
//!
//! Libraries for network adapters and accelerators take a function on the root bus for a part of the chipset. No
//! hotplug, no interrupts: nothing ever changes below.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::pci::{COMMAND, COMMAND_WRITABLE, Config, EXPRESS, Function, HEADER_TYPE, Identity};

/// Unit of windows, which begin and end at multiples of it.
pub const WINDOW_UNIT: u64 = 1 << 20;

const BUSES: usize = 0x18;
const SECONDARY: usize = 0x19;
const WINDOWS: usize = 0x20;
const CONTROL: usize = 0x3e;
/// Bridge control: the bus below is held in reset.
const CONTROL_RESET: u16 = 1 << 6;
/// Bits of bridge control that the guest may set: parity and system errors, reset.
const CONTROL_WRITABLE: u16 = CONTROL_RESET | 0b11;
/// Memory decoding, bus master.
const COMMAND_ON: [u8; 2] = [0b110, 0];

/// Lanes, and the generation of the link, which nothing depends on but what programs print.
const LANES: u16 = 16;
const GENERATION: u16 = 5;

/// The port that QEMU has, which needs no driver of its own.
const IDENTITY: Identity = Identity { id: (0x1b36, 0x000c), subsystem: (0, 0), class: 0x0604, revision: 0 };

/// An address and a length.
pub type Window = (u64, u64);
/// Where BARs below ports may lie: below and above 4 GiB.
pub type Room = [Window; 2];

/// A root bus besides bus 0, for devices that are near a virtual node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootBus {
    /// The virtual node.
    pub node: usize,
    /// Its number, which is that of its first bus.
    pub first: u8,
    /// The last bus behind it.
    pub last: u8,
    /// Where windows of its ports and BARs of its devices lie; of no length where there are none.
    pub room: Room,
}

/// A root port with the function below it.
pub struct Port {
    config: Mutex<Config>,
    in_reset: AtomicBool,
    below: Arc<dyn Function>,
}

impl std::fmt::Debug for Port {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Port to bus {}", self.secondary())
    }
}

impl Port {
    /// A port to bus number `bus`, with the windows below and above 4 GiB in which the BARs of `below` lie: multiples of
    /// [`WINDOW_UNIT`].
    pub fn new(bus: u8, registers: Option<Window>, memory: Option<Window>, below: Arc<dyn Function>) -> Self {
        let mut config = Config::new(&IDENTITY);
        config.add_field(COMMAND, &COMMAND_ON, &COMMAND_WRITABLE.to_le_bytes());
        config.add_field(HEADER_TYPE, &[1], &[0]);
        // Primary, secondary and last bus below.
        config.add_field(BUSES, &[0, bus, bus], &[0xff; 3]);
        let mut windows = Vec::new();
        // From 1 to 0: shut.
        let ends = |window: Option<Window>| match window {
            Some((start, len)) => {
                debug_assert!(
                    start.is_multiple_of(WINDOW_UNIT) && len.is_multiple_of(WINDOW_UNIT) && len > 0
                );
                (start, start + len - 1)
            }
            None => (WINDOW_UNIT, 0),
        };
        let unit = |address: u64| (address >> 16) as u16 & 0xfff0;
        let (start, end) = ends(registers);
        windows.extend([unit(start), unit(end)]);
        let (start, end) = ends(memory);
        // 64-bit.
        windows.extend([unit(start) | 1, unit(end) | 1]);
        let upper = |address: u64| [(address >> 32) as u16, (address >> 48) as u16];
        windows.extend([upper(start), upper(end)].concat());
        let writable = [[0xfff0; 4], [0xffff; 4]].concat();
        config.add_field(WINDOWS, &words(&windows), &words(&writable));
        config.add_field(CONTROL, &[0, 0], &CONTROL_WRITABLE.to_le_bytes());
        let (body, writable) = express();
        config.add_capability(EXPRESS, &body, &writable);
        Self { config: Mutex::new(config), in_reset: AtomicBool::new(false), below }
    }

    /// The bus below, as the guest has it.
    fn secondary(&self) -> u8 {
        self.config.lock().word(SECONDARY) as u8
    }
}

impl Function for Port {
    fn config(&self) -> &Mutex<Config> {
        &self.config
    }

    fn below(&self) -> Option<(u8, &Arc<dyn Function>)> {
        Some((self.secondary(), &self.below))
    }

    fn power_on(&self) {
        self.config.lock().reset();
        self.configured();
        self.below.power_on();
    }

    fn configured(&self) {
        let reset = self.config.lock().word(CONTROL) & CONTROL_RESET != 0;
        if !self.in_reset.swap(reset, Ordering::AcqRel) && reset {
            self.below.reset();
        }
    }
}

fn words(words: &[u16]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// The capability of a root port without slot, whose link is up; and which of its bits the guest may change.
fn express() -> (Vec<u8>, Vec<u8>) {
    let (mut body, mut writable) = (vec![0; 58], vec![0; 58]);
    // Offsets as in the standard; the body begins behind id and link.
    let mut put = |at: usize, value: u16, mask: u16| {
        body[at - 2..at].copy_from_slice(&value.to_le_bytes());
        writable[at - 2..at].copy_from_slice(&mask.to_le_bytes());
    };
    // Version 2, root port.
    put(0x02, 4 << 4 | 2, 0);
    // Payloads of 256 bytes; errors are reported by role.
    put(0x04, 1 << 15 | 1, 0);
    // Device control: payload, read request, error reporting.
    put(0x08, 2 << 12, 0x78ff);
    put(0x0c, LANES << 4 | GENERATION, 0);
    // The link tells whether it is up.
    put(0x0e, 1 << 4, 0);
    put(0x10, 0, 0b1100_1000);
    put(0x12, 1 << 13 | LANES << 4 | GENERATION, 0);
    put(0x1c, 0, 0b1111);
    // All generations up to this one.
    put(0x2c, (1 << (GENERATION + 1)) - 2, 0);
    put(0x30, GENERATION, 0);
    (body, writable)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use proptest::prelude::*;

    use super::*;
    use crate::bus::Device;
    use crate::pci::{BarKind, Ecam, Ports, Root};

    struct Below(Mutex<Config>, AtomicUsize);

    impl Function for Below {
        fn config(&self) -> &Mutex<Config> {
            &self.0
        }
        fn reset(&self) {
            self.1.fetch_add(1, Ordering::Relaxed);
        }
    }

    const BUS: u8 = 5;

    fn bus() -> (Arc<Root>, Arc<Below>) {
        let identity = Identity { id: (0x15b3, 0x101e), subsystem: (0x15b3, 7), class: 0x0207, revision: 0 };
        let mut config = Config::new(&identity);
        config.add_bar(0, BarKind::Both, 1 << 20, 1 << 45);
        let below = Arc::new(Below(Mutex::new(config), AtomicUsize::new(0)));
        let port = Port::new(BUS, None, Some((1 << 45, 2 << 20)), below.clone());
        let mut root = Root::new();
        assert_eq!(root.add(Arc::new(port)), Some(1));
        (Arc::new(root), below)
    }

    fn read(ecam: &Ecam, at: u64) -> u32 {
        let mut data = [0; 4];
        ecam.read(at, &mut data);
        u32::from_le_bytes(data)
    }

    const PORT: u64 = 1 << 15;
    const DEVICE: u64 = (BUS as u64) << 20;

    #[test]
    fn the_device_is_on_the_port_s_bus_and_follows_its_number() {
        let ecam = Ecam(bus().0);
        assert_eq!(read(&ecam, PORT), 0x000c_1b36);
        assert_eq!(read(&ecam, PORT + 0x0c), 1 << 16, "a bridge");
        assert_eq!(read(&ecam, PORT + 0x18), u32::from_le_bytes([0, BUS, BUS, 0]));
        assert_eq!(read(&ecam, DEVICE), 0x101e_15b3);
        assert_eq!(read(&ecam, DEVICE + PORT), u32::MAX, "only one device is there");
        assert_eq!(read(&ecam, DEVICE + 0x1000), u32::MAX, "with one function");
        assert_eq!(read(&ecam, 6 << 20), u32::MAX);
        ecam.write(PORT + 0x19, &[6, 6]);
        assert_eq!(read(&ecam, DEVICE), u32::MAX);
        assert_eq!(read(&ecam, 6 << 20), 0x101e_15b3);
        ecam.write(PORT + 0x19, &[0, 0]);
        assert_eq!(read(&ecam, 0), 0x29c0_8086, "bus 0 stays the root bus");
    }

    #[test]
    fn the_old_ports_reach_what_is_below() {
        let ports = Ports::new(bus().0);
        ports.write(0, &(1 << 31 | u32::from(BUS) << 16).to_le_bytes());
        let mut data = [0; 4];
        ports.read(4, &mut data);
        assert_eq!(u32::from_le_bytes(data), 0x101e_15b3);
    }

    #[test]
    fn windows_say_where_the_bars_are() {
        let ecam = Ecam(bus().0);
        // Memory below 4 GiB: shut, from 1 MiB to 0.
        assert_eq!(read(&ecam, PORT + 0x20), 0x0000_0010);
        assert_eq!(read(&ecam, PORT + 0x1c), 0, "no window for ports");
        assert_eq!(read(&ecam, PORT + 0x24), 0x0011_0001);
        assert_eq!((read(&ecam, PORT + 0x28), read(&ecam, PORT + 0x2c)), (1 << 13, 1 << 13));
        ecam.write(PORT + 0x24, &[0xff; 4]);
        assert_eq!(read(&ecam, PORT + 0x24), 0xfff1_fff1);
    }

    #[test]
    fn it_is_a_root_port_whose_link_is_up() {
        let ecam = Ecam(bus().0);
        assert_eq!(read(&ecam, PORT + 0x34), 0x40);
        assert_eq!(read(&ecam, PORT + 0x40), 0x0042_0010);
        assert_eq!(read(&ecam, PORT + 0x50) >> 16, 1 << 13 | 16 << 4 | 5);
        assert_eq!(read(&ecam, PORT + 0x100), 0, "no extended capabilities");
    }

    #[test]
    fn the_device_is_reset_once_for_each_time_that_the_guest_says_so() {
        let (root, below) = bus();
        let ecam = Ecam(root);
        for byte in [0x40, 0x41, 0, 0x40] {
            ecam.write(PORT + 0x3e, &[byte]);
        }
        assert_eq!(below.1.load(Ordering::Relaxed), 2);
    }

    proptest! {
        #[test]
        fn whatever_is_stored_the_port_stays_one(
            stores in prop::collection::vec((0u64..0x200, any::<u64>(), 1usize..=8), 0..100)
        ) {
            let ecam = Ecam(bus().0);
            for (at, value, len) in stores {
                ecam.write(PORT + at, &value.to_le_bytes()[..len]);
            }
            prop_assert_eq!(read(&ecam, PORT), 0x000c_1b36);
            prop_assert_eq!(read(&ecam, PORT + 0x08), 0x0604_0000);
            prop_assert_eq!(read(&ecam, PORT + 0x0c) >> 16, 1);
            prop_assert_eq!(read(&ecam, PORT + 0x40), 0x0042_0010);
            // Whole units, and the window above 4 GiB stays a 64-bit one.
            prop_assert_eq!(read(&ecam, PORT + 0x20) & 0x000f_000f, 0);
            prop_assert_eq!(read(&ecam, PORT + 0x24) & 0x000f_000f, 0x0001_0001);
            prop_assert_eq!(read(&ecam, PORT + 0x10), 0, "no BAR");
            prop_assert_eq!(read(&ecam, 0), 0x29c0_8086);
        }
    }
}
