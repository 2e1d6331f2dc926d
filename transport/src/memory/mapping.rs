//! A region's file, PCI BAR or device, mapped into this process.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::sync::{Mutex, PoisonError};

use vmshm_abi::driver::DeviceInfo;

use super::device::Device;
use super::driver;
use super::pages::Pages;
use super::sigbus::Guard;
use super::window::Window;

/// The largest pages that the guest driver maps: 2 MiB.
const LARGE_PAGE: usize = 2 << 20;

/// The whole region mapped read-only, and beside it the part that this member may write: the hardware keeps the
/// process to its own section.
pub type Mapping = Window<MappedFile>;

/// The open file or device behind a [`Mapping`], and its pages.
#[derive(Debug)]
pub struct MappedFile {
    file: File,
    /// Dropped before the pages that it watches over.
    guard: Guard,
    is_device: bool,
    has_doorbells: bool,
    /// Parts of it that are mapped once more.
    aliases: Mutex<Vec<(Guard, Pages)>>,
    _all: Pages,
    _own: Option<Pages>,
}

impl Device for MappedFile {
    fn ring(&self, section: u32, slot: u32) {
        if self.has_doorbells {
            // It fails where the peer's VM or our device is gone, and then nobody is there to be woken.
            let _ = driver::ring(&self.file, section, slot);
        }
    }

    fn is_lost(&self) -> bool {
        self.guard.is_lost()
    }
}

impl Mapping {
    /// Maps the first `len` bytes of `file`, and the pages of `writable` for writing.
    ///
    /// The memory may go away: a file can be made shorter, a device be unplugged. Then it reads as zeros and
    /// [`Mapping::is_lost`] says so. For that, SIGBUS is handled from now on as long as the process lives. No thread that
    /// uses the mapping may block SIGBUS: the kernel ends a process whose thread meets the loss with the signal blocked.
    ///
    /// # Errors
    ///
    /// The error of `mmap`; a part to write that is none of the `len` bytes; too many regions mapped.
    pub fn of_file(file: File, len: u64, writable: Range<u64>) -> io::Result<Self> {
        Self::map(file, len, writable, None)
    }

    /// Maps the region of the guest driver's device as [`Mapping::of_file`] does a file.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn of_device(file: File, device: &DeviceInfo, writable: Range<u64>) -> io::Result<Self> {
        Self::map(file, device.region_len, writable, Some(device))
    }

    fn map(file: File, len: u64, writable: Range<u64>, device: Option<&DeviceInfo>) -> io::Result<Self> {
        if writable.start > writable.end || writable.end > len {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "its bytes from {} to {} can't be written: it has {len}",
                    writable.start, writable.end
                ),
            ));
        }
        let alignment = device.map(|_| LARGE_PAGE);
        let all = Pages::map(&file, 0, len, false, alignment)?;
        let own = match writable.end - writable.start {
            0 => None,
            bytes => Some(Pages::map(&file, writable.start, bytes, true, alignment)?),
        };
        let (read, write) = (all.start(), own.as_ref().unwrap_or(&all).start());
        let mapped = MappedFile {
            file,
            guard: Guard::new(&all, own.as_ref())?,
            is_device: device.is_some(),
            has_doorbells: device.is_some_and(|device| device.vectors > 0),
            aliases: Mutex::default(),
            _all: all,
            _own: own,
        };
        // SAFETY: both mappings live as long as the window that owns them; `_own` covers exactly `writable` (an empty range
        // where it is absent); neither hands out references to its pages.
        Ok(unsafe { Self::with_device(read, len, write, writable, mapped) })
    }

    /// The file that is mapped.
    pub fn file(&self) -> &File {
        &self.device().file
    }

    /// Whether the memory is gone: the device, or a part of the file that was used.
    pub fn is_lost(&self) -> bool {
        self.device().guard.is_lost()
    }

    /// The device was seen to be gone.
    pub(crate) fn lose(&self) {
        self.device().guard.lose();
    }

    /// Bytes by which offset and address of an alias must agree, so that every kind of file but those of 1 GiB pages can be mapped,
    /// and with large pages.
    pub const ALIAS_ALIGNMENT: usize = LARGE_PAGE;

    /// Maps at least `len` bytes of the file from `offset` on once more, to be written too, at `address`, where nothing may be
    /// mapped. Returns how many bytes that are.
    ///
    /// # Errors
    ///
    /// The error of `mmap`.
    pub(crate) fn alias(&self, offset: u64, len: usize, address: usize) -> io::Result<usize> {
        // The size of the file's pages.
        let page =
            usize::try_from(self.file().metadata()?.blksize()).unwrap_or_default().clamp(4096, LARGE_PAGE);
        let pages = Pages::map_at(self.file(), offset, len.next_multiple_of(page), address)?;
        let (guard, len) = (Guard::new(&pages, Some(&pages))?, pages.len());
        self.device().aliases.lock().unwrap_or_else(PoisonError::into_inner).push((guard, pages));
        Ok(len)
    }

    /// Ends the alias at an address.
    pub(crate) fn end_alias(&self, address: usize) {
        let mut aliases = self.device().aliases.lock().unwrap_or_else(PoisonError::into_inner);
        aliases.retain(|(_, pages)| pages.start().addr() != address);
    }

    /// The file, if it is the guest driver's device.
    pub(crate) fn device_file(&self) -> Option<&File> {
        self.device().is_device.then_some(&self.device().file)
    }

    /// Whether endpoints can be rung.
    pub(crate) fn has_doorbells(&self) -> bool {
        self.device().has_doorbells
    }
}
