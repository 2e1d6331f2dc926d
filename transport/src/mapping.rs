//! A region's file or PCI BAR, mapped into this process.

use std::fs::File;
use std::io;
use std::ops::{Deref, Range};

use memmap2::{MmapOptions, MmapRaw};

use crate::window::Window;

/// The whole region mapped read-only, and beside it the part that this member may write: the hardware keeps the
/// process to its own section.
#[derive(Debug)]
pub struct Mapping {
    window: Window,
    file: File,
    _all: MmapRaw,
    _own: Option<MmapRaw>,
}

impl Mapping {
    /// Maps the first `len` bytes of `file`, and the pages of `writable` for writing.
    ///
    /// # Errors
    ///
    /// What `mmap` says.
    pub fn new(file: File, len: u64, writable: Range<u64>) -> io::Result<Self> {
        let size = usize::try_from(len).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        let all = MmapOptions::new().len(size).map_raw_read_only(&file)?;
        let own = match usize::try_from(writable.end - writable.start) {
            Ok(0) | Err(_) => None,
            Ok(bytes) => Some(MmapOptions::new().offset(writable.start).len(bytes).map_raw(&file)?),
        };
        let write = own.as_ref().map_or(all.as_mut_ptr(), MmapRaw::as_mut_ptr);
        // SAFETY: both mappings live as long as the window beside them, `own` covers exactly `writable` (an empty range
        // where it is absent), and nobody makes references to either.
        let window = unsafe { Window::new(all.as_mut_ptr(), len, write, writable) };
        Ok(Self { window, file, _all: all, _own: own })
    }

    /// The file that is mapped.
    pub fn file(&self) -> &File {
        &self.file
    }
}

impl Deref for Mapping {
    type Target = Window;

    fn deref(&self) -> &Window {
        &self.window
    }
}
