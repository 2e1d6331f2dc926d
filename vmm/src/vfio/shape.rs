//! Header, BARs and capabilities of a function of the host, and the part of its configuration space that the VMM keeps.

use super::device::Physical;
use crate::host_device::{Address, Refusal};
use crate::msix;
use crate::pci::{
    BAR0, BarKind, CAPABILITIES, CONFIG_LEN, Config, EXPRESS, HEADER_TYPE, Identity, STATUS,
    STATUS_CAPABILITIES,
};

/// The bit of the header's type that says that there are more functions.
pub(super) const MANY_FUNCTIONS: u8 = 0x80;
const PROGRAMMING: usize = 0x09;
pub(super) const PIN: usize = 0x3d;
const HEADER_LEN: usize = 0x40;
const EXTENDED: usize = 0x100;

pub(super) const MSI: u8 = 0x05;
/// Bytes of the MSI-X capability.
const MSIX_LEN: usize = 12;
/// Device types of the Express capability, in the high half of its third byte.
const ENDPOINT: u8 = 0;
const INTEGRATED_ENDPOINT: u8 = 9;

/// Extended capabilities that make no sense for one function alone: alternative routing, virtual functions, BARs of other
/// sizes.
const HIDDEN: [u16; 3] = [0x0e, 0x10, 0x15];

/// A BAR of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bar {
    pub(super) index: usize,
    pub(super) len: u64,
    /// Whether it has 64 bits. All such are shown as prefetchable, since only then may they lie above 4 GiB; nothing in
    /// a VM prefetches.
    pub(super) wide: bool,
}

impl Bar {
    /// Bytes of address space: no two BARs share a page.
    pub(super) fn room(&self) -> u64 {
        self.len.max(0x1000)
    }
}

/// Where the MSI-X capability, table and pending bits are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MsixPlace {
    pub(super) capability: usize,
    pub(super) vectors: u32,
    /// BAR and offset.
    pub(super) table: (usize, u64),
    pub(super) pending: (usize, u64),
}

impl MsixPlace {
    pub(super) fn table_len(&self) -> u64 {
        msix::table_len(self.vectors)
    }

    pub(super) fn pending_len(&self) -> u64 {
        msix::pending_len(self.vectors)
    }
}

/// Header, BARs and capabilities of a function.
#[derive(Debug)]
pub(super) struct Shape {
    config: Vec<u8>,
    pub(super) bars: Vec<Bar>,
    pub(super) msix: Option<MsixPlace>,
}

impl Shape {
    /// Looks at a function.
    pub(super) fn read(device: &dyn Physical, address: &Address) -> Result<Self, Refusal> {
        let unfit = |why: String| Refusal::Unfit { address: address.clone(), why };
        let mut config = vec![0; CONFIG_LEN];
        let (header, extended) = config.split_at_mut(EXTENDED);
        device.read_config(0, header);
        device.read_config(EXTENDED, extended);
        let kind = config[HEADER_TYPE] & !MANY_FUNCTIONS;
        if kind != 0 {
            return Err(unfit(format!("has a configuration header of type {kind}, as bridges have")));
        }
        let mut bars = Vec::new();
        let mut index = 0;
        while index < 6 {
            let at = BAR0 + 4 * index;
            let len = device.bar_len(index);
            let (port, wide) = (config[at] & 1 != 0, config[at] & 0b111 == 0b100);
            // Ports of devices are for systems of another age; drivers do without.
            if len != 0 && !port {
                if !len.is_power_of_two() || wide && index == 5 {
                    return Err(unfit(format!("has a BAR {index} of {len:#x} bytes")));
                }
                bars.push(Bar { index, len, wide });
            }
            index += if wide && !port { 2 } else { 1 };
        }
        let mut shape = Self { config, bars, msix: None };
        if let Some(place) = shape.find_msix() {
            let inside = |(bar, offset): (usize, u64), len: u64| {
                let bar = shape.bars.iter().find(|found| found.index == bar);
                bar.is_some_and(|bar| offset + len <= bar.len)
            };
            if !inside(place.table, place.table_len()) || !inside(place.pending, place.pending_len()) {
                return Err(unfit("has its MSI-X table outside its BARs".into()));
            }
            shape.msix = Some(place);
        }
        Ok(shape)
    }

    /// Whether it has an interrupt line.
    pub(super) fn has_line(&self) -> bool {
        self.config[PIN] != 0
    }

    /// Parts of a BAR that the guest does not reach as memory: offset and length.
    pub(super) fn trapped(&self, bar: usize) -> Vec<(u64, u64)> {
        let Some(msix) = self.msix else { return Vec::new() };
        let parts = [(msix.table, msix.table_len()), (msix.pending, msix.pending_len())];
        parts.iter().filter(|((of, _), _)| *of == bar).map(|((_, at), len)| (*at, *len)).collect()
    }

    fn word(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.config[at], self.config[at + 1]])
    }

    fn long(&self, at: usize) -> u32 {
        u32::from(self.word(at)) | u32::from(self.word(at + 2)) << 16
    }

    /// Capabilities: id and offset.
    fn capabilities(&self) -> Vec<(u8, usize)> {
        let mut found = Vec::new();
        if self.word(STATUS) & STATUS_CAPABILITIES == 0 {
            return found;
        }
        let mut at = usize::from(self.config[CAPABILITIES] & !3);
        // As many as there is room for: a chain may lead back.
        while at >= HEADER_LEN && found.len() < 48 {
            found.push((self.config[at], at));
            at = usize::from(self.config[at + 1] & !3);
        }
        found
    }

    /// Extended capabilities: id and offset.
    fn extended(&self) -> Vec<(u16, usize)> {
        let mut found = Vec::new();
        let mut at = EXTENDED;
        while (EXTENDED..=CONFIG_LEN - 4).contains(&at) && found.len() < (CONFIG_LEN - EXTENDED) / 8 {
            let header = self.long(at);
            if header == 0 || header == u32::MAX {
                break;
            }
            found.push((header as u16, at));
            at = (header >> 20) as usize & !3;
        }
        found
    }

    fn find_msix(&self) -> Option<MsixPlace> {
        let (_, capability) = self.capabilities().into_iter().find(|(id, _)| *id == msix::CAPABILITY)?;
        if capability + MSIX_LEN > EXTENDED {
            return None;
        }
        let vectors = u32::from(self.word(capability + 2) & 0x7ff) + 1;
        let place = |at| {
            let word = self.long(at);
            ((word & 7) as usize, u64::from(word & !7))
        };
        Some(MsixPlace { capability, vectors, table: place(capability + 4), pending: place(capability + 8) })
    }

    /// The configuration space that the VMM keeps, and which bytes of it are its own.
    pub(super) fn emulated(&self, places: &[(usize, u64)]) -> (Config, Vec<bool>) {
        let mut config = Config::new(&Identity {
            id: (self.word(0), self.word(2)),
            subsystem: (self.word(0x2c), self.word(0x2e)),
            class: self.word(0x0a),
            revision: self.config[8],
        });
        let mut own = vec![false; CONFIG_LEN];
        own[..HEADER_LEN].fill(true);
        own[STATUS..STATUS + 2].fill(false);
        for at in [PROGRAMMING, CAPABILITIES, PIN] {
            config.add_field(at, &[self.config[at]], &[0]);
        }
        for &(index, address) in places {
            let bar = self.bars.iter().find(|bar| bar.index == index).expect("places are those of BARs");
            let kind = if bar.wide { BarKind::Both } else { BarKind::Registers };
            config.add_bar(index, kind, bar.len, address);
        }
        let mut put = |at: usize, value: &[u8], writable: &[u8]| {
            config.add_field(at, value, writable);
            own[at..at + value.len()].fill(true);
        };
        for (id, at) in self.capabilities() {
            match id {
                // Not offered beside MSI-X and the line. An id of 0 is one without content.
                MSI => put(at, &[0], &[0]),
                msix::CAPABILITY if self.msix.is_some_and(|msix| msix.capability == at) => {
                    let mut body = self.config[at..at + MSIX_LEN].to_vec();
                    body[3] &= 0b111;
                    let mut writable = [0; MSIX_LEN];
                    writable[3] = msix::WRITABLE;
                    put(at, &body, &writable);
                }
                // Below a port there is a link.
                EXPRESS if self.config[at + 2] >> 4 == INTEGRATED_ENDPOINT => {
                    put(at + 2, &[self.config[at + 2] & 0xf | ENDPOINT << 4], &[0]);
                }
                _ => {}
            }
        }
        for (id, at) in self.extended() {
            if HIDDEN.contains(&id) {
                put(at, &[0; 2], &[0; 2]);
            }
        }
        (config, own)
    }
}
