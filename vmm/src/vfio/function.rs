//! A passed-through function as the guest has it.

#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod fake;

use std::sync::Arc;

use parking_lot::Mutex;
use vmm_sys_util::eventfd::EventFd;

use super::device::Physical;
use super::shape::{Bar, MsixPlace, Shape};
use crate::error::Error;
use crate::interrupts::Interrupts;
use crate::msix::{self, Msix};
use crate::pci::{COMMAND, COMMAND_MEMORY, Config, Function, PlaceBar};
use crate::port::Room;

/// Interrupts of the function.
struct Signals {
    msix: Msix,
    msix_on: bool,
    /// The event that raises the line, and the one that says the guest has seen to it.
    line: Option<(EventFd, EventFd)>,
}

/// A passed-through function.
pub(super) struct Passed {
    config: Mutex<Config>,
    /// Which bytes of configuration space are ours.
    own: Vec<bool>,
    /// Goes before the device, which is in use while its memory is mapped.
    bars: Vec<(Bar, PlaceBar)>,
    device: Box<dyn Physical>,
    room: Room,
    msix: Option<MsixPlace>,
    signals: Mutex<Signals>,
}

impl Passed {
    /// A function with its BARs at these addresses, and its line at a pin of the I/O APIC.
    pub(super) fn new(
        device: Box<dyn Physical>,
        shape: &Shape,
        memory: Vec<(usize, u64, PlaceBar)>,
        room: Room,
        interrupts: Arc<dyn Interrupts>,
        pin: u32,
    ) -> Result<Self, Error> {
        let places: Vec<_> = memory.iter().map(|(bar, address, _)| (*bar, *address)).collect();
        let (config, own) = shape.emulated(&places);
        let event = || {
            EventFd::new(libc::EFD_CLOEXEC | libc::EFD_NONBLOCK)
                .map_err(Error::io("make the events of a device's interrupts (`ulimit -n` limits them)"))
        };
        let vectors = shape.msix.map_or(0, |msix| msix.vectors);
        let mut msix = Msix::new(vectors, Arc::clone(&interrupts));
        for _ in 0..vectors {
            msix.add_event(event()?);
        }
        let mut line = None;
        if shape.has_line() {
            let (raise, seen) = (event()?, event()?);
            interrupts.connect_line(pin, &raise, &seen)?;
            line = Some((raise, seen));
        }
        let bars = memory.into_iter().map(|(index, _, place)| {
            let bar = shape.bars.iter().find(|bar| bar.index == index).expect("memory is that of BARs");
            (*bar, place)
        });
        let passed = Self {
            device,
            config: Mutex::new(config),
            own,
            bars: bars.collect(),
            room,
            msix: shape.msix,
            signals: Mutex::new(Signals { msix, msix_on: false, line }),
        };
        passed.switch_line(&passed.signals.lock(), true);
        passed.apply(&passed.config.lock());
        Ok(passed)
    }

    /// Makes the device and the guest's memory what the configuration space says.
    fn apply(&self, config: &Config) {
        let command = config.word(COMMAND);
        // The device answers before the guest can reach it, and as long as it can.
        if command & u16::from(COMMAND_MEMORY) == 0 {
            self.bars.iter().for_each(|(_, place)| place(None));
        }
        self.device.write_config(COMMAND, &command.to_le_bytes());
        if command & u16::from(COMMAND_MEMORY) != 0 {
            for (bar, place) in &self.bars {
                // Elsewhere are RAM, other devices' registers and KVM's.
                let inside = |at: &u64| {
                    self.room.iter().any(|(start, len)| {
                        at.checked_sub(*start).is_some_and(|offset| offset <= len.saturating_sub(bar.len))
                    })
                };
                place(config.bar(bar.index).filter(inside));
            }
        }
        if let Some(place) = self.msix {
            self.switch_msix(config.word(place.capability + 2));
        }
    }

    fn switch_msix(&self, control: u16) {
        let mut signals = self.signals.lock();
        let on = control & msix::ENABLE != 0;
        if on != signals.msix_on {
            signals.msix_on = on;
            // VFIO has one kind of interrupt at a time.
            if on {
                self.switch_line(&signals, false);
            }
            let result = self.device.msix(on.then(|| signals.msix.events().collect()));
            if let Err(error) = result {
                tracing::warn!(%error, on, "MSI-X of a device cannot be switched");
            }
            if !on {
                self.switch_line(&signals, true);
            }
        }
        signals.msix.set_control(control);
    }

    fn switch_line(&self, signals: &Signals, on: bool) {
        let Some((raise, seen)) = &signals.line else { return };
        if let Err(error) = self.device.line(on.then_some((raise, seen))) {
            tracing::warn!(%error, on, "the interrupt line of a device cannot be switched");
        }
    }

    /// The part of the MSI-X table or its pending bits that an access means, as [`Msix`] has them.
    fn msix_offset(&self, bar: usize, offset: u64, len: usize) -> Option<u64> {
        let place = self.msix?;
        let within = |(of, start): (usize, u64), part: u64| {
            let at = offset.checked_sub(start).filter(|_| of == bar)?;
            (at + len as u64 <= part).then_some(at)
        };
        let pending = || within(place.pending, place.pending_len());
        within(place.table, place.table_len())
            .or_else(|| Some(msix::Place::new(place.vectors).pending + pending()?))
    }
}

impl Function for Passed {
    fn config(&self) -> &Mutex<Config> {
        &self.config
    }

    fn load(&self, register: usize, data: &mut [u8]) {
        let Some(own) = self.own.get(register..register + data.len()) else { return data.fill(0xff) };
        let mut ours = vec![0; data.len()];
        self.config.lock().read(register, &mut ours);
        if own.contains(&false) {
            self.device.read_config(register, data);
        }
        for ((byte, our), own) in data.iter_mut().zip(ours).zip(own) {
            if *own {
                *byte = our;
            }
        }
    }

    fn store(&self, register: usize, data: &[u8]) {
        let Some(own) = self.own.get(register..register + data.len()) else { return };
        let mut config = self.config.lock();
        config.write(register, data);
        // Runs of bytes that are the device's.
        let mut at = 0;
        for run in own.chunk_by(|a, b| a == b) {
            if !run[0] {
                self.device.write_config(register + at, &data[at..at + run.len()]);
            }
            at += run.len();
        }
        if own.contains(&true) {
            self.apply(&config);
        }
    }

    fn reset(&self) {
        self.device.reset();
    }

    /// Not a bus master any more, the device writes to no memory of the next guest's.
    fn power_on(&self) {
        let mut config = self.config.lock();
        config.reset();
        self.apply(&config);
        self.device.reset();
        self.signals.lock().msix.reset();
    }

    fn read(&self, bar: usize, offset: u64, data: &mut [u8]) {
        match self.msix_offset(bar, offset, data.len()) {
            Some(at) => self.signals.lock().msix.read(at, data),
            None => self.device.read(bar, offset, data),
        }
    }

    fn write(&self, bar: usize, offset: u64, data: &[u8]) {
        match self.msix_offset(bar, offset, data.len()) {
            Some(at) => self.signals.lock().msix.write(at, data),
            None => self.device.write(bar, offset, data),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use proptest::prelude::*;

    use super::super::shape::MSI;
    use super::fake::*;
    use super::*;
    use crate::bus::Device;
    use crate::pci::{Ecam, HEADER_TYPE, Root, Window};
    use crate::recorder::Recorder;

    fn set_up() -> (Arc<Root>, Ecam, Arc<Log>, Arc<Recorder>) {
        let (port, log, recorder) = adapter();
        let mut root = Root::new();
        root.add(port);
        let root = Arc::new(root);
        (Arc::clone(&root), Ecam(root), log, recorder)
    }

    const DEVICE: u64 = 1 << 20;

    fn read(ecam: &Ecam, at: u64) -> u32 {
        let mut data = [0; 4];
        ecam.read(DEVICE + at, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(ecam: &Ecam, at: u64, bytes: &[u8]) {
        ecam.write(DEVICE + at, bytes);
    }

    #[test]
    fn the_guest_sees_the_device_with_bars_of_the_vmm_s() {
        let (_, ecam, log, _) = set_up();
        assert_eq!(read(&ecam, 0), 0x101e_15b3);
        assert_eq!(read(&ecam, 8), 0x0108_0203);
        assert_eq!(read(&ecam, 0x0c), 0, "one function");
        assert_eq!(read(&ecam, 0x10), HIGH as u32 + 0x10_0000 + 0b1100, "64-bit ones are prefetchable");
        assert_eq!((read(&ecam, 0x14), read(&ecam, 0x1c)), (1 << 13, 1 << 13));
        assert_eq!(read(&ecam, 0x20), 0, "ports are not offered");
        assert_eq!(read(&ecam, 0x24), LOW as u32);
        assert_eq!(read(&ecam, 0x30), 0, "no ROM");
        assert_eq!(read(&ecam, 0x3c), 1 << 8);
        assert_eq!(read(&ecam, 4), 0x0010_0002, "it answers, and has capabilities");
        assert_eq!(log.config.lock()[COMMAND], 2);
        assert_eq!(*log.placed.lock(), PLACES.map(|(bar, at)| (bar, Some(at))));
    }

    #[test]
    fn capabilities_go_through_but_those_that_make_no_sense_in_a_vm() {
        let (_, ecam, log, _) = set_up();
        assert_eq!(read(&ecam, 0x40), 0x0000_5001);
        assert_eq!(read(&ecam, 0x50), 0x0080_6000, "MSI is one without content");
        assert_eq!(read(&ecam, 0x60), 0x0004_7011, "MSI-X is off");
        assert_eq!(read(&ecam, 0x70), 0x0002_0010, "an endpoint");
        assert_eq!(read(&ecam, 0x100), 0x1401_0001);
        assert_eq!(read(&ecam, 0x140), 0x0001_0000, "no virtual functions");
        write(&ecam, 0x44, &[9, 8]);
        assert_eq!(log.config.lock()[0x44..0x46], [9, 8], "the kernel checks these");
        write(&ecam, 0x4f, &[5, 6]);
        assert_eq!(log.config.lock()[0x4f..0x51], [5, MSI], "half ours");
    }

    #[test]
    fn bars_follow_the_guest_within_the_windows_and_go_when_decoding_is_off() {
        let (_, ecam, log, _) = set_up();
        let placed = || std::mem::take(&mut *log.placed.lock());
        placed();
        write(&ecam, 4, &[0, 0]);
        assert_eq!(placed(), PLACES.map(|(bar, _)| (bar, None)));
        assert_eq!(log.config.lock()[COMMAND], 0);
        write(&ecam, 0x24, &u32::MAX.to_le_bytes());
        assert_eq!(read(&ecam, 0x24), 0xffff_f000);
        write(&ecam, 0x24, &0xc900_0000u32.to_le_bytes());
        // Into RAM, and beyond the windows.
        write(&ecam, 0x18, &[0; 8]);
        write(&ecam, 0x14, &u32::MAX.to_le_bytes());
        placed();
        write(&ecam, 4, &[6, 0]);
        assert_eq!(placed(), [(0, None), (2, None), (5, Some(0xc900_0000))]);
        assert_eq!(log.config.lock()[COMMAND], 6);
    }

    #[test]
    fn msi_x_is_one_or_the_line_and_its_table_is_the_vmm_s() {
        let (root, ecam, log, recorder) = set_up();
        assert_eq!((&*recorder.lines.lock(), &*log.line.lock()), (&vec![17], &vec![true]));
        let window = Window(root, HIGH);
        let table = 0x10_0000 + 0x2000;
        window.write(table + 16, &0xfee0_1000u64.to_le_bytes());
        window.write(table + 24, &0x41u64.to_le_bytes());
        assert_eq!(*log.bars.lock(), [], "the device's own table stays as it is");
        write(&ecam, 0x62, &(msix::ENABLE | msix::MASK_ALL).to_le_bytes());
        assert_eq!((&*log.msix.lock(), &*log.line.lock()), (&vec![5], &vec![true, false]));
        assert!(recorder.connected.lock().is_empty());
        write(&ecam, 0x62, &msix::ENABLE.to_le_bytes());
        let connected: Vec<_> = recorder.connected.lock().iter().map(|(n, m)| (*n, m.data)).collect();
        assert_eq!((connected, log.msix.lock().len()), (vec![(1, 0x41)], 1));
        let mut data = [0xff; 4];
        window.read(table + 24, &mut data);
        assert_eq!(data, [0x41, 0, 0, 0]);
        window.read(0x10_0000 + 0x3000, &mut data);
        assert_eq!(data, [0; 4], "nothing is pending");
        // Beside the table are the device's registers.
        window.write(table + 5 * 16, &[1; 4]);
        assert_eq!(*log.bars.lock(), [(0, 0x2050, 4)]);
        write(&ecam, 0x62, &[0, 0]);
        assert_eq!((&*log.msix.lock(), &*log.line.lock()), (&vec![5, 0], &vec![true, false, true]));
        assert!(recorder.connected.lock().is_empty());
    }

    #[test]
    fn the_port_resets_the_device() {
        let (_, ecam, log, _) = set_up();
        ecam.write(1 << 15 | 0x3e, &[0x40]);
        assert_eq!(log.resets.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_machine_that_is_reset_has_the_device_as_at_first() {
        let (root, ecam, log, recorder) = set_up();
        write(&ecam, 4, &[6, 4]);
        write(&ecam, 0x24, &0xc900_0000u32.to_le_bytes());
        write(&ecam, 0x62, &msix::ENABLE.to_le_bytes());
        Window(Arc::clone(&root), HIGH).write(0x10_0000 + 0x2000 + 8, &0x41u64.to_le_bytes());
        assert_eq!(recorder.connected.lock().len(), 1);
        ecam.write(1 << 15 | 0x19, &[9]);
        root.power_on();
        assert_eq!(read(&ecam, 4), 0x0010_0002, "on its bus again, and no bus master");
        assert_eq!((log.config.lock()[COMMAND], log.resets.load(Ordering::Relaxed)), (2, 1));
        assert_eq!(log.placed.lock().last(), Some(&(5, Some(LOW))));
        assert_eq!((log.msix.lock().last(), log.line.lock().last()), (Some(&0), Some(&true)));
        assert!(recorder.connected.lock().is_empty());
        write(&ecam, 0x62, &msix::ENABLE.to_le_bytes());
        assert!(recorder.connected.lock().is_empty(), "the vectors are masked");
    }

    #[test]
    fn odd_devices_are_refused_and_say_why() {
        let shape = |at: usize, byte: u8| {
            let mut config = registers();
            config[at] = byte;
            let fake = Fake(Arc::new(Log { config: Mutex::new(config), ..Log::default() }));
            Shape::read(&fake, &"01:00.0".parse().unwrap()).map_err(|error| error.to_string())
        };
        assert!(shape(HEADER_TYPE, 1).unwrap_err().contains("01:00.0 has a configuration header of type 1"));
        assert!(shape(0x65, 0x40).unwrap_err().contains("outside its BARs"));
        // Capabilities that lead back to themselves.
        assert!(shape(0x71, 0x40).is_ok());
        assert!(shape(0x142, 0x01).is_ok_and(|shape| shape.msix.is_some()));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_guest_puts_a_bar_elsewhere_or_reaches_beyond_it(
            accesses in prop::collection::vec(
                (0usize..3, prop_oneof![0u64..0x80, 0u64..0x1000], any::<u64>(), 1usize..=8, any::<bool>()), 0..200,
            )
        ) {
            let (root, ecam, log, _) = set_up();
            let windows = [Window(Arc::clone(&root), ROOM[0].0), Window(root, HIGH)];
            for (way, at, value, len, store) in accesses {
                let mut data = value.to_le_bytes();
                let (device, at): (&dyn Device, u64) = match way {
                    0 => (&ecam, DEVICE + at),
                    // In whichever BAR the value says.
                    1 => (&windows[0], LOW - ROOM[0].0 + at),
                    _ => (&windows[1], value % (2 << 20)),
                };
                if store {
                    device.write(at, &data[..len]);
                } else {
                    device.read(at, &mut data[..len]);
                }
            }
            for (bar, at) in &*log.placed.lock() {
                let len = [0x4000, 0, 0x10_0000, 0, 0, 0x1000][*bar];
                let inside = |at: u64| ROOM.iter().any(|(start, room)| at >= *start && at + len <= start + room);
                prop_assert!(at.is_none_or(inside), "BAR {} at {:x?}", bar, at);
            }
            prop_assert_eq!(read(&ecam, 0), 0x101e_15b3);
            prop_assert_eq!(read(&ecam, 8), 0x0108_0203);
        }
    }
}
