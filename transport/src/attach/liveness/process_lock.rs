//! Showing that a process lives, by a lock that ends with the process and with nothing else.
//!
//! The lock on an endpoint's slot ([`SlotLease`](crate::attach::lease::SlotLease)) belongs to an open file, which forked children have too: it
//! says that memory of the section may still be in use, not that the process lives. That is said by the lock on the byte
//! behind it, of a file that no child ever gets: a thread of the process opens it in a table of open files of its own.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use super::super::lock;
use crate::region::Section;

/// The byte whose lock says that the process of slot `slot` lives.
fn byte(section: &Section, slot: u32) -> u64 {
    section.slot(slot) + 1
}

/// Which file holds the region.
#[derive(Debug)]
pub struct Place {
    path: PathBuf,
    dev: u64,
    ino: u64,
}

impl Place {
    /// The file that is open as `file` and lies at `path`.
    pub fn new(path: PathBuf, file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self { path, dev: metadata.dev(), ino: metadata.ino() })
    }
}

/// The region's file, open for the thread that opened it.
#[derive(Debug)]
pub struct ProcessLock(File);

impl ProcessLock {
    /// Shows that the process of slot `slot` lives, until the value is dropped or the calling thread ends: one of our own
    /// that uses no open file from now on. Where the system refuses it a table of its own, forked children keep the lock.
    ///
    /// # Errors
    ///
    /// A file that can't be opened again; another process that lives in the slot.
    pub fn begin(place: &Place, section: &Section, slot: u32) -> io::Result<Self> {
        // SAFETY: the call takes numbers. Only the copy that this thread gets for itself is emptied.
        unsafe { libc::syscall(libc::SYS_close_range, 0, u32::MAX, libc::CLOSE_RANGE_UNSHARE) };
        // Again, above the numbers of standard input and output, which are closed.
        let file =
            OpenOptions::new().read(true).write(true).open(&place.path)?.as_fd().try_clone_to_owned()?;
        let file = File::from(file);
        let metadata = file.metadata()?;
        if (metadata.dev(), metadata.ino()) != (place.dev, place.ino) {
            return Err(io::Error::other("it was replaced while it was being attached to: try again"));
        }
        match lock::try_exclusive(&file, byte(section, slot))? {
            true => Ok(Self(file)),
            false => Err(io::Error::other(format!(
                "slot {slot} of section {} is another process's: try again",
                section.number
            ))),
        }
    }

    /// Whether the process of another slot lives. Where the lock can't be asked, the answer is unknown, and that is not death.
    pub fn is_alive(&self, section: &Section, slot: u32) -> bool {
        lock::is_held_by_another(&self.0, byte(section, slot)).unwrap_or(true)
    }

    /// The region's file.
    pub fn file(&self) -> &File {
        &self.0
    }
}
