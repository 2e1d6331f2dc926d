//! Holding an endpoint slot: what ends with the process, in whatever way it ends.

use std::fs::File;
use std::io;

use crate::driver;
use crate::lock;
use crate::region::Section;

/// Who knows which process holds a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// The kernel's locks on the region's file, one byte for each slot.
    Locks,
    /// The guest driver, which also marks the slots of the dead.
    Driver,
}

impl Hold {
    /// Takes a slot for this open file; false if a living process holds it.
    pub fn take(self, file: &File, section: &Section, slot: u32) -> io::Result<bool> {
        match self {
            Self::Locks => lock::try_exclusive(file, section.slot(slot)),
            Self::Driver => driver::claim(file, slot),
        }
    }

    /// Gives the slot back.
    pub fn release(self, file: &File, section: &Section, slot: u32) -> io::Result<()> {
        match self {
            Self::Locks => lock::release(file, section.slot(slot)),
            Self::Driver => driver::unclaim(file),
        }
    }
}
