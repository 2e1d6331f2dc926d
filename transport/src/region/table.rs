//! A region's header and table, copied and checked.

use alloc::vec::Vec;
use core::mem::offset_of;
use core::sync::atomic::Ordering;

use vmshm_abi::region::{HeaderError, RegionHeader, SECTION_JOINED, SectionEntry, TABLE_OFFSET};
use vmshm_abi::section::SectionLayout;
use vmshm_abi::{EndpointId, EndpointName};
use zerocopy::{FromZeros, IntoBytes};

use crate::memory::Memory;

/// The checked copy of a region's header and section table.
#[derive(Debug, Clone)]
pub struct Region {
    header: RegionHeader,
    sections: Vec<Section>,
}

/// One section of a region: its place and its owner.
#[derive(Debug, Clone, Copy)]
pub struct Section {
    /// The section's number.
    pub number: u32,
    /// Its row of the table.
    pub entry: SectionEntry,
    /// Offsets of its parts from the section's start.
    pub layout: SectionLayout,
}

impl Section {
    /// Whether `len` bytes at `offset` of the region lie inside this section.
    pub fn contains(&self, offset: u64, len: u64) -> bool {
        offset >= self.entry.offset
            && offset - self.entry.offset <= self.entry.len
            && len <= self.entry.len - (offset - self.entry.offset)
    }

    /// Turns an offset that counts from the section's start into one that counts from the region's, if `len` bytes
    /// there lie inside the section.
    pub fn absolute(&self, relative: u64, len: u64) -> Option<u64> {
        (relative <= self.entry.len && len <= self.entry.len - relative).then(|| self.entry.offset + relative)
    }

    /// Offset in the region of endpoint slot `slot`.
    pub fn slot(&self, slot: u32) -> u64 {
        self.entry.offset + self.layout.slot(slot)
    }

    /// The VM that owns the section now, by the host's table: a number that no other VM of this section has, or 0 for none.
    ///
    /// It comes from the generation, so that a VM that rejoins a restarted server, with a new `vm_id`, keeps its number.
    pub fn owner(&self, memory: &impl Memory) -> u64 {
        match self.word(memory, offset_of!(SectionEntry, state)) as u32 == SECTION_JOINED {
            true => self.last_owner(memory),
            false => 0,
        }
    }

    /// The number of the VM that has the section or had it last.
    fn last_owner(&self, memory: &impl Memory) -> u64 {
        self.word(memory, offset_of!(SectionEntry, generation)) << 1 | 1
    }

    /// The table's present content at byte `at` of the section's row.
    fn word(&self, memory: &impl Memory, at: usize) -> u64 {
        let row = RegionHeader::entry_offset(self.number);
        memory.load(row + (at & !7) as u64, Ordering::Acquire) >> (at % 8 * 8)
    }

    /// Whether an `owner` that [`Section::owner`] named earlier was a VM and has ended since.
    pub fn has_lost_owner(&self, memory: &impl Memory, owner: u64) -> bool {
        owner != 0 && self.owner(memory) != owner
    }

    /// Whether an `owner` that [`Section::owner`] named earlier was a VM, and the section has been assigned to another since,
    /// which may have written it.
    pub fn has_next_owner(&self, memory: &impl Memory, owner: u64) -> bool {
        owner != 0 && self.last_owner(memory) != owner
    }
}

impl Region {
    /// Copies and checks the header and the table of a region.
    ///
    /// # Errors
    ///
    /// Their fault.
    pub fn read(memory: &impl Memory) -> Result<Self, HeaderError> {
        let found = memory.len();
        if found < TABLE_OFFSET {
            return Err(HeaderError::Truncated { promised: TABLE_OFFSET, found });
        }
        let mut header = RegionHeader::new_zeroed();
        memory.read(0, header.as_mut_bytes());
        header.check(found)?;
        let sections = (0..header.sections)
            .map(|number| {
                let mut entry = SectionEntry::new_zeroed();
                memory.read(RegionHeader::entry_offset(number), entry.as_mut_bytes());
                entry.check(number, &header)?;
                let layout = SectionLayout::new(entry.len, header.sections, header.endpoints)
                    .ok_or(HeaderError::Section { section: number, field: "len", value: entry.len })?;
                Ok(Section { number, entry, layout })
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { header, sections })
    }

    /// The region's random 128-bit number.
    pub fn id(&self) -> [u8; 16] {
        self.header.region_id
    }

    /// The region's header.
    pub fn header(&self) -> &RegionHeader {
        &self.header
    }

    /// Whether every member may write every section.
    pub fn is_open(&self) -> bool {
        self.header.is_open()
    }

    /// The region's sections.
    pub fn sections(&self) -> &[Section] {
        &self.sections
    }

    /// Number of endpoints that the region can lease.
    pub fn endpoints(&self) -> u32 {
        self.header.sections * self.header.endpoints
    }

    /// The number of the endpoint in `slot` of `section`.
    pub fn endpoint(&self, section: u32, slot: u32) -> EndpointId {
        EndpointId(section * self.header.endpoints + slot)
    }

    /// The section and the slot of an endpoint, if the region has it.
    pub fn place(&self, id: EndpointId) -> Option<(&Section, u32)> {
        let section = self.sections.get((id.0 / self.header.endpoints) as usize)?;
        Some((section, id.0 % self.header.endpoints))
    }

    /// Whether an endpoint with this name lives in this region.
    pub fn has(&self, name: &EndpointName) -> bool {
        name.region_id == self.header.region_id && self.place(EndpointId(name.id)).is_some()
    }
}
