//! A shared mapping of a region file. Nothing here makes a reference to the memory: others write to it.

use std::fs::File;
use std::io::{self, IoSlice};
use std::num::NonZeroUsize;
use std::ptr::NonNull;

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::sys::uio::{RemoteIoVec, process_vm_writev};
use nix::unistd::Pid;

use crate::error::Error;

/// Populate this much at once, so that a signal is answered soon.
const STEP: u64 = 256 << 20;

/// A mapping of the first bytes of a file, unmapped when dropped.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<libc::c_void>,
    len: NonZeroUsize,
}

impl Mapping {
    /// Maps the first `len` bytes of a file, shared.
    pub(crate) fn new(file: &File, len: u64, writable: bool) -> Result<Self, Error> {
        let doing = || format!("map {} of the region", crate::memory::format_bytes(len));
        let len = usize::try_from(len)
            .ok()
            .and_then(NonZeroUsize::new)
            .ok_or_else(|| Error::io(doing())(io::ErrorKind::InvalidInput.into()))?;
        let prot = if writable { ProtFlags::PROT_READ | ProtFlags::PROT_WRITE } else { ProtFlags::PROT_READ };
        // NORESERVE: what must be there is allocated explicitly, and a sparse region reserves no huge pages.
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice changes no memory in use.
        let start = unsafe { mmap(None, len, prot, flags, file, 0) }.map_err(Error::sys(doing()))?;
        Ok(Self { start, len })
    }

    /// The address of `[offset, offset + len)`.
    ///
    /// # Panics
    /// If that is not inside the mapping.
    pub(crate) fn at(&self, offset: u64, len: u64) -> *mut libc::c_void {
        let end = offset.checked_add(len).expect("a range of a mapping");
        assert!(end <= self.len.get() as u64, "the range ends behind the mapping");
        self.start.as_ptr().wrapping_byte_add(offset as usize)
    }

    /// Makes `[offset, offset + len)` present, writable ones by writing to them. Fails instead of raising SIGBUS.
    pub(crate) fn populate(&self, offset: u64, len: u64, writable: bool) -> io::Result<()> {
        let advice = if writable { libc::MADV_POPULATE_WRITE } else { libc::MADV_POPULATE_READ };
        let mut done = 0;
        while done < len {
            let step = STEP.min(len - done);
            let start = self.at(offset + done, step);
            // SAFETY: the range lies in our mapping; populating changes no byte of it.
            if unsafe { libc::madvise(start, step as usize, advice) } == 0 {
                done += step;
                continue;
            }
            let error = io::Error::last_os_error();
            if !matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) {
                return Err(error);
            }
        }
        Ok(())
    }

    /// Writes bytes by way of the kernel, which fails where the file has become shorter instead of raising SIGBUS.
    ///
    /// # Panics
    /// If the range is not inside the mapping.
    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let base = self.at(offset, bytes.len() as u64) as usize;
        let place = RemoteIoVec { base, len: bytes.len() };
        match process_vm_writev(Pid::this(), &[IoSlice::new(bytes)], &[place])? {
            written if written == bytes.len() => Ok(()),
            _ => Err(io::ErrorKind::WriteZero.into()),
        }
    }

    /// Writes bytes with volatile stores of 64-bit words; offset and length must be multiples of 8.
    ///
    /// # Panics
    /// If they are not, or if the range is not inside the mapping.
    pub(crate) fn write_words(&self, offset: u64, bytes: &[u8]) {
        assert!(offset.is_multiple_of(8) && bytes.len().is_multiple_of(8));
        let start = self.at(offset, bytes.len() as u64).cast::<u64>();
        for (i, word) in bytes.chunks_exact(8).enumerate() {
            let word = u64::from_ne_bytes(word.try_into().expect("eight bytes"));
            // SAFETY: inside the mapping as `at` checked, aligned because mapping and offset are.
            unsafe { start.wrapping_add(i).write_volatile(word) };
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this is our own mapping and nobody keeps pointers into it.
        let _ = unsafe { munmap(self.start, self.len.get()) };
    }
}
