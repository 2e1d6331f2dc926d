//! A lock that shows a process alive: it ends with the process and with nothing else.
//!
//! The lease of an endpoint slot belongs to an open file, which forked children have too: it says that memory of the section may
//! still be in use, not that the process lives. The process lock is one on the byte behind, of a file that no child ever gets: a
//! thread of the process opens it in a table of open files of its own.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use super::super::lock;
use crate::region::Section;

/// Offset of the byte whose lock shows the process of slot `slot` alive.
fn byte(section: &Section, slot: u32) -> u64 {
    section.slot(slot) + 1
}

/// The region's file, by path and identity.
#[derive(Debug)]
pub struct RegionFile {
    path: PathBuf,
    dev: u64,
    ino: u64,
}

impl RegionFile {
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
    /// Shows the process of slot `slot` alive, until the value is dropped or the calling thread ends: a thread of our own that
    /// uses no open file from now on. Where the system refuses it a table of its own, forked children keep the lock.
    ///
    /// # Errors
    ///
    /// A file that can't be opened again; another process that lives in the slot.
    pub fn begin(region_file: &RegionFile, section: &Section, slot: u32) -> io::Result<Self> {
        // SAFETY: the call takes numbers. CLOSE_RANGE_UNSHARE gives this thread a copy of the table of open files and closes
        // those of the copy alone, so that no file of other threads is closed under them; this thread has opened none.
        unsafe { libc::syscall(libc::SYS_close_range, 0, u32::MAX, libc::CLOSE_RANGE_UNSHARE) };
        // Again, above the numbers of standard input and output, which are closed.
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&region_file.path)?
            .as_fd()
            .try_clone_to_owned()?;
        let file = File::from(file);
        let metadata = file.metadata()?;
        if (metadata.dev(), metadata.ino()) != (region_file.dev, region_file.ino) {
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

    /// Whether the process of another slot lives. A lock that can't be asked leaves that unknown, which is not death.
    pub fn is_alive(&self, section: &Section, slot: u32) -> bool {
        lock::is_held_by_another(&self.0, byte(section, slot)).unwrap_or(true)
    }

    /// The region's file.
    pub fn file(&self) -> &File {
        &self.0
    }
}
