//! Emptying a section before another member gets it: nothing that the one before left can be read by the next.
//!
//! The memory is overwritten where it lies, and not given back to the kernel: devices of other virtual machines may have its
//! pages pinned.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use vmshm_abi::region::SectionEntry;
use vmshm_abi::section::{EndpointSlot, SLOTS_OFFSET, STATE_FREE, STATE_LIVE, SlotState};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::error::Error;
use crate::mapping::Mapping;
use crate::region::Region;

/// Bytes that are looked at at once.
const STEP: usize = 1 << 20;

impl Region {
    /// Empties a section, which nobody may use meanwhile; gives up when told to.
    ///
    /// The lives of its endpoint slots stay counted, so that peers take no later process for one that they have met.
    pub(crate) fn clear(&self, section: u32, entry: &SectionEntry, stop: &AtomicBool) -> Result<(), Error> {
        let doing = || format!("empty section {section} of {}", self.path().display());
        let file = self.reopen()?;
        let Some(layout) = self.layout(entry) else { return Ok(()) };
        let mut head =
            vec![0; (SLOTS_OFFSET as usize) + layout.endpoints as usize * size_of::<EndpointSlot>()];
        file.read_exact_at(&mut head, entry.offset).map_err(Error::io(doing()))?;
        head[..SLOTS_OFFSET as usize].fill(0);
        for slot in head[SLOTS_OFFSET as usize..].chunks_exact_mut(size_of::<EndpointSlot>()) {
            let last = EndpointSlot::read_from_bytes(slot).expect("a chunk has the size of a slot");
            slot.copy_from_slice(ended(&last).as_bytes());
        }
        let mut map = None;
        let mut replace = |bytes: &[u8], at: u64| {
            match file.write_all_at(bytes, at) {
                // hugetlbfs knows no write(2).
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
                written => return written.map_err(Error::io(doing())),
            }
            let map = match &map {
                Some(map) => map,
                None => map.insert(Mapping::new(&file, self.header().region_len, true)?),
            };
            map.write(at, bytes).map_err(Error::io(doing()))
        };
        replace(&head, entry.offset)?;
        let (mut at, end) = (entry.offset + head.len() as u64, entry.offset + entry.len);
        let (mut found, zeros) = (vec![0; STEP], vec![0; STEP]);
        while let Some(next) = next_data(&file, at, end).map_err(Error::io(doing()))? {
            if stop.load(Ordering::Relaxed) {
                return Err(Error::io(doing())(ErrorKind::Interrupted.into()));
            }
            let len = (end - next).min(STEP as u64) as usize;
            // Memory that was never touched stays untouched.
            file.read_exact_at(&mut found[..len], next).map_err(Error::io(doing()))?;
            if found[..len] != zeros[..len] {
                replace(&zeros[..len], next)?;
            }
            at = next + len as u64;
        }
        Ok(())
    }
}

/// A slot after the end of its process.
fn ended(last: &EndpointSlot) -> EndpointSlot {
    let SlotState { incarnation, state } = SlotState::unpack(last.state);
    EndpointSlot {
        // A number that nobody can have counted to would make the slot useless.
        state: SlotState {
            incarnation: if incarnation < 1 << 47 { incarnation } else { 0 },
            state: STATE_FREE,
        }
        .pack(),
        died: if state == STATE_LIVE { incarnation } else { last.died },
        ..EndpointSlot::new_zeroed()
    }
}

/// Where memory is allocated from `at` on, before `end`.
fn next_data(file: &File, at: u64, end: u64) -> io::Result<Option<u64>> {
    if at >= end {
        return Ok(None);
    }
    // SAFETY: plain integers; the descriptor is open, and its position is used by nobody.
    let data = unsafe { libc::lseek(file.as_raw_fd(), at as libc::off_t, libc::SEEK_DATA) };
    match u64::try_from(data) {
        Ok(data) => Ok(Some(data).filter(|&data| data < end)),
        Err(_) => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
            error => Err(error),
        },
    }
}
