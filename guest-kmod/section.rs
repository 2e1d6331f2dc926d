// SPDX-License-Identifier: GPL-2.0

//! Which section is this machine's, and the lives of the endpoints in it.

use core::mem::offset_of;
use kernel::prelude::*;

use crate::{
    abi::{
        region::{RegionHeader, SectionEntry, SECTION_FREE, SECTION_JOINED},
        section::{
            EndpointSlot, SectionLayout, SlotState, STATE_ATTACHING, STATE_GONE, STATE_LIVE,
        },
    },
    sys::{product_uuid, Memory},
};

/// By what the host knows this machine.
#[derive(Clone, Copy)]
pub(crate) enum Identity {
    /// The number that the ivshmem server gave to the device. The server's numbers grow with each
    /// machine that a section is given to, by the number of sections.
    Position(u32),
    /// The UUID in its firmware.
    Uuid,
}

/// The section that this machine may write, checked.
#[derive(Clone, Copy)]
pub(crate) struct Section {
    pub(crate) number: u32,
    /// First byte, from the start of the region.
    pub(crate) offset: u64,
    /// Bytes.
    pub(crate) len: u64,
    layout: SectionLayout,
}

/// A copy of a row of the section table, if it makes sense.
pub(crate) fn entry(memory: &Memory, header: &RegionHeader, number: u32) -> Option<SectionEntry> {
    // No header that was checked has pages of no bytes; it is said again for the sake of the
    // division in `check`.
    if number >= header.sections || header.page_len == 0 {
        return None;
    }
    let entry: SectionEntry = memory.copy(RegionHeader::entry_offset(number)).ok()?;
    entry.check(number, header).ok()?;
    Some(entry)
}

impl Section {
    /// Looks it up in the table, which only the host writes.
    pub(crate) fn find(memory: &Memory, header: &RegionHeader, identity: Identity) -> Option<Self> {
        let named = |number, is_ours: &dyn Fn(&SectionEntry) -> bool| {
            let entry = entry(memory, header, number).filter(is_ours)?;
            Some((number, entry))
        };
        let (number, entry) = match identity {
            // The server writes the row before it tells the machine its number. Another number there
            // is the section's next machine's.
            Identity::Position(position) => {
                named(position.checked_rem(header.sections)?, &|entry| {
                    entry.state == SECTION_JOINED && entry.vm_id.checked_sub(1) == Some(position)
                })?
            }
            Identity::Uuid => {
                let uuid = parse_uuid(product_uuid()?.to_bytes())?;
                let is_ours =
                    |entry: &SectionEntry| entry.state != SECTION_FREE && entry.vm_uuid == uuid;
                (0..header.sections).find_map(|number| named(number, &is_ours))?
            }
        };
        let layout = SectionLayout::new(entry.len, header.sections, header.endpoints)?;
        Some(Self {
            number,
            offset: entry.offset,
            len: entry.len,
            layout,
        })
    }

    /// Notes that the process of slot `slot` has ended, unless it has left in good order; says
    /// whether it had to.
    ///
    /// The section is written by many processes of this machine at once, so that the note says
    /// which life is meant: a later one of the same slot is never touched.
    pub(crate) fn end_life(&self, memory: &Memory, slot: u32) -> Result<bool> {
        if slot >= self.layout.endpoints {
            return Err(EINVAL);
        }
        let slot = self.offset + self.layout.slot(slot);
        let state = slot + offset_of!(EndpointSlot, state) as u64;
        let died = slot + offset_of!(EndpointSlot, died) as u64;
        // The note while this life lasted: its other threads may end it just now, and a
        // later one, too.
        let before = memory.load(died)?;
        let word = memory.load(state)?;
        let life = SlotState::unpack(word);
        if life.state != STATE_ATTACHING && life.state != STATE_LIVE {
            return Ok(false);
        }
        // Before the state, so that whoever sees the end knows that it was no leaving.
        memory.compare_exchange(died, before, life.incarnation)?;
        memory.compare_exchange(
            state,
            word,
            SlotState {
                state: STATE_GONE,
                ..life
            }
            .pack(),
        )
    }
}

/// A UUID's text as RFC 4122 bytes.
fn parse_uuid(text: &[u8]) -> Option<[u8; 16]> {
    let mut uuid = 0u128;
    let mut digits = 0;
    for &byte in text {
        match byte {
            b'-' => continue,
            _ => uuid = uuid << 4 | u128::from((byte as char).to_digit(16)?),
        }
        digits += 1;
    }
    (digits == 32 && uuid != 0).then(|| uuid.to_be_bytes())
}
