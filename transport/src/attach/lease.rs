//! Ownership of an endpoint slot. The kernel releases it when the process exits, however it exits.

use std::fs::File;
use std::io;

use vmshm_abi::section::{STATE_ATTACHING, STATE_LIVE};

use super::lock;
use crate::memory::driver;
use crate::region::Section;

/// Lease of an endpoint slot, by what grants it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotLease {
    /// The kernel's locks on the region's file, one byte for each slot.
    Locks,
    /// The guest driver, which also marks the slots of the dead.
    Driver,
}

impl SlotLease {
    /// Leases a slot to this open file; false if a living process has it.
    pub fn take(self, file: &File, section: &Section, slot: u32) -> io::Result<bool> {
        match self {
            Self::Locks => lock::try_exclusive(file, section.slot(slot)),
            Self::Driver => driver::claim(file, slot),
        }
    }

    /// Whether a slot that was just leased is in use all the same. It is in the state `state` (one of [`vmshm_abi::section`]),
    /// written under the boot id `its_boot`; this kernel's is `our_boot`.
    ///
    /// The driver does not know of processes that attached through sysfs before it was loaded. It has marked gone by now every
    /// slot that it leased before, so that a slot of this boot without the mark belongs to one of those processes.
    pub fn is_owned_elsewhere(self, state: u8, its_boot: [u64; 2], our_boot: [u64; 2]) -> bool {
        self == Self::Driver && matches!(state, STATE_ATTACHING | STATE_LIVE) && its_boot == our_boot
    }

    /// Gives the slot back.
    pub fn release(self, file: &File, section: &Section, slot: u32) -> io::Result<()> {
        match self {
            Self::Locks => lock::release(file, section.slot(slot)),
            Self::Driver => driver::unclaim(file),
        }
    }
}

#[cfg(test)]
mod tests {
    use vmshm_abi::section::{STATE_FREE, STATE_GONE};

    use super::*;

    #[test]
    fn the_driver_spares_those_who_came_before_it() {
        let (ours, earlier) = ([1, 2], [1, 3]);
        for state in [STATE_ATTACHING, STATE_LIVE] {
            assert!(SlotLease::Driver.is_owned_elsewhere(state, ours, ours));
            assert!(
                !SlotLease::Driver.is_owned_elsewhere(state, earlier, ours),
                "left over from an earlier boot"
            );
            assert!(
                !SlotLease::Locks.is_owned_elsewhere(state, ours, ours),
                "its lock would not have been had"
            );
        }
        for state in [STATE_FREE, STATE_GONE] {
            assert!(!SlotLease::Driver.is_owned_elsewhere(state, ours, ours));
        }
    }
}
