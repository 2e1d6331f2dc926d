//! A function of no device, for tests.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::super::shape::{MANY_FUNCTIONS, MSI, PIN};
use super::*;
use crate::pci::{BAR0, CAPABILITIES, CONFIG_LEN, EXPRESS, HEADER_TYPE, STATUS};
use crate::port::Port;
use crate::recorder::Recorder;

/// Log of a function that is no more than its registers: what is asked of it.
#[derive(Default)]
pub(crate) struct Log {
    pub(super) config: Mutex<Vec<u8>>,
    pub(super) bars: Mutex<Vec<(usize, u64, usize)>>,
    pub(super) msix: Mutex<Vec<usize>>,
    pub(super) line: Mutex<Vec<bool>>,
    pub(super) resets: AtomicUsize,
    /// Where the memory of BARs was put.
    pub(super) placed: Mutex<Vec<(usize, Option<u64>)>>,
}

pub(super) struct Fake(pub(super) Arc<Log>);

impl Physical for Fake {
    fn read_config(&self, at: usize, data: &mut [u8]) {
        data.copy_from_slice(&self.0.config.lock()[at..at + data.len()]);
    }
    fn write_config(&self, at: usize, data: &[u8]) {
        self.0.config.lock()[at..at + data.len()].copy_from_slice(data);
    }
    fn bar_len(&self, bar: usize) -> u64 {
        [0x4000, 0, 0x10_0000, 0, 0x20, 0x1000][bar]
    }
    fn read(&self, bar: usize, offset: u64, data: &mut [u8]) {
        assert!(offset + data.len() as u64 <= self.bar_len(bar), "BAR {bar}, {offset:#x}");
        data.fill(0xda);
    }
    fn write(&self, bar: usize, offset: u64, data: &[u8]) {
        assert!(offset + data.len() as u64 <= self.bar_len(bar), "BAR {bar}, {offset:#x}");
        self.0.bars.lock().push((bar, offset, data.len()));
    }
    fn msix(&self, events: Option<Vec<&EventFd>>) -> Result<(), String> {
        self.0.msix.lock().push(events.map_or(0, |events| events.len()));
        Ok(())
    }
    fn line(&self, events: Option<(&EventFd, &EventFd)>) -> Result<(), String> {
        self.0.line.lock().push(events.is_some());
        Ok(())
    }
    fn reset(&self) {
        self.0.resets.fetch_add(1, Ordering::Relaxed);
    }
}

/// Registers of an adapter: two 64-bit BARs, one of ports, one with 32 bits; power management, MSI, MSI-X with five
/// vectors in BAR 0, Express as an integrated endpoint; error reporting, virtual functions.
pub(super) fn registers() -> Vec<u8> {
    let mut config = vec![0; CONFIG_LEN];
    let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &[0xb3, 0x15, 0x1e, 0x10]);
    put(STATUS, &[0x10, 0]);
    put(8, &[3, 2, 8, 1]);
    put(HEADER_TYPE, &[MANY_FUNCTIONS]);
    put(BAR0, &0b0100u32.to_le_bytes());
    put(BAR0 + 8, &0b1100u32.to_le_bytes());
    put(BAR0 + 16, &1u32.to_le_bytes());
    put(0x2c, &[0xb3, 0x15, 7, 0]);
    put(CAPABILITIES, &[0x40]);
    put(PIN, &[1]);
    put(0x40, &[1, 0x50]);
    put(0x50, &[MSI, 0x60, 0x80, 0]);
    put(0x60, &[msix::CAPABILITY, 0x70, 4, 0x80, 0, 0x20, 0, 0, 0, 0x30, 0, 0]);
    put(0x70, &[EXPRESS, 0, 0x92, 0]);
    put(0x100, &(0x140 << 20 | 1 << 16 | 1u32).to_le_bytes());
    put(0x140, &(1 << 16 | 0x10u32).to_le_bytes());
    config
}

pub(super) const ROOM: Room = [(0xc040_0000, 0x1fc0_0000), (1 << 45, 1 << 40)];
pub(super) const LOW: u64 = 0xc800_0000;
pub(super) const HIGH: u64 = 1 << 45;
pub(super) const PLACES: [(usize, u64); 3] = [(0, HIGH + 0x10_0000), (2, HIGH), (5, LOW)];

/// An adapter below a port that leads to bus 1, at the addresses of [`PLACES`].
pub(crate) fn adapter() -> (Arc<Port>, Arc<Log>, Arc<Recorder>) {
    let log = Arc::new(Log { config: Mutex::new(registers()), ..Log::default() });
    let fake = Fake(Arc::clone(&log));
    let shape = Shape::read(&fake, &"01:00.0".parse().expect("a sound one")).expect("a sound one");
    let memory = PLACES.map(|(bar, address)| {
        let log = Arc::clone(&log);
        (bar, address, Box::new(move |at| log.placed.lock().push((bar, at))) as PlaceBar)
    });
    let recorder = Arc::new(Recorder::default());
    let passed =
        Passed::new(Box::new(fake), &shape, memory.into(), ROOM, recorder.clone(), 17).expect("a sound one");
    let windows = (Some((LOW, 1 << 20)), Some((HIGH, 2 << 20)));
    (Arc::new(Port::new(1, windows.0, windows.1, Arc::new(passed))), log, recorder)
}
