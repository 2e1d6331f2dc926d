//! The lives of an endpoint slot.
//!
//! ```text
//!  free ──claim──▶ attaching ──publish──▶ live
//!   ▲                  │     ◀──withdraw──  │
//!   └──────reap────── gone ◀──leave or die──┘
//! ```
//!
//! A process that withdraws has left, as its peers see it, but keeps what it holds until it dies.
//!
//! Only processes of the section change the state word, with compare-and-exchange. Each claim begins a new *incarnation*; a
//! peer that knows the incarnation can't mistake one life for another. Whether a process is dead is decided outside, by its
//! lock. [`reap`] may be called by several processes at the same time, and again after one of them died half-way.

use core::mem::offset_of;
use core::sync::atomic::Ordering;

use vmshm_abi::section::{
    EndpointSlot, STATE_ATTACHING, STATE_FREE, STATE_GONE, STATE_LIVE, SlotState, chunk_owner,
};

use super::chunks;
use super::table::Section;
use crate::error::PeerError;
use crate::memory::Memory;

const DIED: u64 = offset_of!(EndpointSlot, died) as u64;

/// Liveness check behind a copy: whether the slot at offset `slot` still lives its life `incarnation`. If so, bytes of its
/// owner that were copied before are of that life, since a slot's state changes before its memory is given to others.
#[inline]
pub fn lives(memory: &impl Memory, slot: u64, incarnation: u64) -> bool {
    says(memory, slot, live(incarnation))
}

/// The state word of a slot as long as it lives this life.
#[inline]
pub fn live(incarnation: u64) -> u64 {
    SlotState { incarnation, state: STATE_LIVE }.pack()
}

/// As [`lives`], for the state word that [`live`] makes.
#[inline(always)]
pub fn says(memory: &impl Memory, slot: u64, word: u64) -> bool {
    memory.fence(Ordering::Acquire);
    memory.load_peer(slot, Ordering::Acquire) == word
}

/// The reason why the life `incarnation` of a slot has ended, or is about to be taken for ended. `owner` is the section's
/// [`Section::owner`] from when that life was met.
pub fn ending(memory: &impl Memory, section: &Section, slot: u32, incarnation: u64, owner: u64) -> PeerError {
    if memory.is_lost() {
        return PeerError::DeviceLost;
    }
    let now = state(memory, section, slot);
    let died = memory.load(section.slot(slot) + DIED, Ordering::Acquire) == incarnation;
    // The slot's word counts only if this owner wrote it: another VM's incarnations may be the same numbers. The table is asked
    // after the slot was read, since a VM writes only after the table names it.
    let is_told = now.incarnation == incarnation && now.state != STATE_LIVE;
    if section.has_next_owner(memory, owner) || !is_told && section.has_lost_owner(memory, owner) {
        return PeerError::Died;
    }
    match died {
        true => PeerError::Died,
        false => PeerError::Left,
    }
}

/// The boot id that the process of slot `slot` wrote when it attached.
#[cfg(feature = "std")]
pub fn boot_id(memory: &impl Memory, section: &Section, slot: u32) -> [u64; 2] {
    const BOOT_ID: u64 = offset_of!(EndpointSlot, boot_id) as u64;
    [0, 8].map(|word| memory.load(section.slot(slot) + BOOT_ID + word, Ordering::Relaxed))
}

/// The state of slot `slot`.
pub fn state(memory: &impl Memory, section: &Section, slot: u32) -> SlotState {
    SlotState::unpack(memory.load(section.slot(slot), Ordering::Acquire))
}

fn change(memory: &impl Memory, section: &Section, slot: u32, from: SlotState, to: SlotState) -> bool {
    memory.compare_exchange(section.slot(slot), from.pack(), to.pack()).is_ok()
}

/// Takes slot `slot` if it is free, and returns its new incarnation.
pub fn claim(memory: &impl Memory, section: &Section, slot: u32) -> Option<u64> {
    let free = state(memory, section, slot);
    // 48 bits of incarnations last for any machine's life; a slot whose word is rubbish is left alone.
    if free.state != STATE_FREE || free.incarnation >= (1 << 48) - 1 {
        return None;
    }
    let taken = SlotState { incarnation: free.incarnation + 1, state: STATE_ATTACHING };
    change(memory, section, slot, free, taken).then_some(taken.incarnation)
}

/// Makes a claimed slot live: a peer that sees it live sees everything that was written before.
pub fn publish(memory: &impl Memory, section: &Section, slot: u32, incarnation: u64) -> bool {
    let attaching = SlotState { incarnation, state: STATE_ATTACHING };
    change(memory, section, slot, attaching, SlotState { incarnation, state: STATE_LIVE })
}

/// Ends a life as far as peers can tell; the memory stays with the process, until that is reaped.
#[cfg(feature = "std")]
pub fn withdraw(memory: &impl Memory, section: &Section, slot: u32, incarnation: u64) -> bool {
    let live = SlotState { incarnation, state: STATE_LIVE };
    change(memory, section, slot, live, SlotState { incarnation, state: STATE_ATTACHING })
}

/// Marks a slot gone whose process is dead, which was found out after its state `live` was read: its peers are told that it
/// died, not that it left. Its memory stays taken, until it is [reaped](reap).
pub fn mark_dead(memory: &impl Memory, section: &Section, slot: u32, live: SlotState) {
    let at = section.slot(slot) + DIED;
    let before = memory.load(at, Ordering::Acquire);
    if live.state != STATE_LIVE || state(memory, section, slot) != live {
        return;
    }
    // Before the state, so that a peer that sees the end sees that it was no leaving. In exchange for the value from while this
    // life lasted: others may have marked this life since, and a later one.
    let _ = memory.compare_exchange(at, before, live.incarnation);
    change(memory, section, slot, live, SlotState { state: STATE_GONE, ..live });
}

/// Ends the life `ended` of a slot, whose process has left or is dead: marks it gone, so that peers stop listening, then
/// gives its memory back, then frees the slot.
///
/// With `died`, its peers are told that it died, else that it left. A process that was only attaching, or has withdrawn, has
/// no peers.
pub fn reap(memory: &impl Memory, section: &Section, slot: u32, ended: SlotState, died: bool) {
    let gone = SlotState { state: STATE_GONE, ..ended };
    if died && ended.state == STATE_LIVE {
        mark_dead(memory, section, slot, ended);
        if state(memory, section, slot) != gone {
            return;
        }
    } else if ended.state != STATE_GONE && !change(memory, section, slot, ended, gone) {
        return;
    }
    chunks::free_all(memory, section, chunk_owner(slot, gone.incarnation));
    change(memory, section, slot, gone, SlotState { state: STATE_FREE, ..gone });
}

#[cfg(all(test, feature = "std"))]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    use vmshm_abi::region::RegionHeader;
    use zerocopy::IntoBytes;

    use super::super::table::Region;
    use super::*;
    use crate::memory::Mapping;

    fn region() -> (Mapping, Section) {
        let (file, len): (File, _) = (tempfile::tempfile().unwrap(), 1 << 20);
        file.set_len(len).unwrap();
        let header = RegionHeader::new([7; 16], len, 4096, 1, 4);
        file.write_all_at(header.as_bytes(), 0).unwrap();
        file.write_all_at(header.new_entry(0).as_bytes(), RegionHeader::entry_offset(0)).unwrap();
        let mapping = Mapping::of_file(file, len, header.table_end..len).unwrap();
        let section = Region::read(&mapping).unwrap().sections()[0];
        (mapping, section)
    }

    fn live(memory: &impl Memory, section: &Section) -> SlotState {
        let life = claim(memory, section, 0).unwrap();
        assert!(publish(memory, section, 0, life));
        state(memory, section, 0)
    }

    #[test]
    fn who_reaps_late_does_not_touch_the_next_life() {
        let (memory, section) = region();
        let first = live(&memory, &section);
        // Found dead by two; one is slow.
        reap(&memory, &section, 0, first, true);
        let second = live(&memory, &section);
        reap(&memory, &section, 0, second, true);
        reap(&memory, &section, 0, first, true);
        mark_dead(&memory, &section, 0, first);
        assert_eq!(ending(&memory, &section, 0, second.incarnation, 0), PeerError::Died);
        let third = live(&memory, &section);
        reap(&memory, &section, 0, second, true);
        assert_eq!(state(&memory, &section, 0), third);
    }

    #[test]
    fn who_has_left_has_not_died() {
        let (memory, section) = region();
        let first = live(&memory, &section);
        reap(&memory, &section, 0, first, false);
        reap(&memory, &section, 0, first, true);
        assert_eq!(ending(&memory, &section, 0, first.incarnation, 0), PeerError::Left);
        // It may also die while it leaves.
        let second = live(&memory, &section);
        let leaving = SlotState { state: STATE_GONE, ..second };
        assert!(change(&memory, &section, 0, second, leaving));
        reap(&memory, &section, 0, leaving, true);
        assert_eq!(ending(&memory, &section, 0, second.incarnation, 0), PeerError::Left);
    }
}
