//! Pages of a file in this process's address space.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr;

/// A shared mapping, unmapped when it is dropped.
#[derive(Debug)]
pub struct Pages {
    start: *mut u8,
    len: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread, and the value itself never touches its bytes.
unsafe impl Send for Pages {}
// SAFETY: methods with `&self` only read the two fields.
unsafe impl Sync for Pages {}

impl Pages {
    /// Maps `len` bytes of `file` from `offset` on, to be written too if `is_writable`. Where `alignment` is given (a power
    /// of two, in bytes), address and offset leave the same rest on division by it, so that the kernel can use pages of
    /// that size.
    ///
    /// # Errors
    ///
    /// The error of `mmap`.
    pub fn map(
        file: &File,
        offset: u64,
        len: u64,
        is_writable: bool,
        alignment: Option<usize>,
    ) -> io::Result<Self> {
        let invalid = |_| io::Error::from(io::ErrorKind::InvalidInput);
        let len = usize::try_from(len).map_err(invalid)?;
        let from = libc::off_t::try_from(offset).map_err(invalid)?;
        let protection = if is_writable { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_READ };
        let Some(alignment) = alignment else {
            // SAFETY: the kernel chooses an address where nothing is.
            let start = unsafe {
                libc::mmap(ptr::null_mut(), len, protection, libc::MAP_SHARED, file.as_raw_fd(), from)
            };
            return Self::of(start, len);
        };
        // Room enough to choose from; what is not used is unmapped again.
        let total = len.checked_add(alignment).ok_or(io::ErrorKind::InvalidInput)?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: the kernel chooses an address where nothing is.
        let room =
            Self::of(unsafe { libc::mmap(ptr::null_mut(), total, libc::PROT_NONE, flags, -1, 0) }, total)?;
        let skipped = (offset as usize).wrapping_sub(room.start as usize) & (alignment - 1);
        // SAFETY: `skipped` is less than the alignment, so that `len` bytes from there on lie in the room.
        let start = unsafe { room.start.add(skipped) };
        let flags = libc::MAP_SHARED | libc::MAP_FIXED;
        // SAFETY: only the room just made is replaced.
        let mapped = Self::of(
            unsafe { libc::mmap(start.cast(), len, protection, flags, file.as_raw_fd(), from) },
            len,
        )?;
        std::mem::forget(room);
        for (at, bytes) in
            [(start.wrapping_sub(skipped), skipped), (start.wrapping_add(len), alignment - skipped)]
        {
            if bytes > 0 {
                // SAFETY: these are the parts of the room before and behind the mapping.
                unsafe { libc::munmap(at.cast(), bytes) };
            }
        }
        Ok(mapped)
    }

    /// Maps `len` bytes of `file` from `offset` on, to be written too, at an address where nothing is mapped.
    ///
    /// # Errors
    ///
    /// The error of `mmap`: `EEXIST` where something is.
    pub fn map_at(file: &File, offset: u64, len: usize, address: usize) -> io::Result<Self> {
        let from = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        let place = ptr::with_exposed_provenance_mut(address);
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_FIXED_NOREPLACE);
        // SAFETY: nothing that is mapped is replaced.
        let pages =
            Self::of(unsafe { libc::mmap(place, len, protection, flags, file.as_raw_fd(), from) }, len)?;
        // A kernel that does not know the flag may have chosen another address.
        match pages.start.addr() == address {
            true => Ok(pages),
            false => Err(io::Error::from_raw_os_error(libc::EEXIST)),
        }
    }

    fn of(start: *mut libc::c_void, len: usize) -> io::Result<Self> {
        match start == libc::MAP_FAILED {
            true => Err(io::Error::last_os_error()),
            false => Ok(Self { start: start.cast(), len }),
        }
    }

    /// The address of the first byte.
    pub fn start(&self) -> *mut u8 {
        self.start
    }

    /// Number of bytes.
    pub fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: `map` made exactly this mapping, and every pointer into it belongs to a window that owns these pages.
        unsafe { libc::munmap(self.start.cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn nothing_is_replaced() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(16 << 10).unwrap();
        let there = Pages::map(&file, 0, 16 << 10, true, None).unwrap();
        let address = there.start().expose_provenance();
        let error = Pages::map_at(&file, 4096, 4096, address).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EEXIST));
        // SAFETY: the mapping is there, and nobody else uses it.
        unsafe { there.start().add(4096).write_volatile(7) };
        drop(there);
        let again = Pages::map_at(&file, 4096, 4096, address).unwrap();
        // SAFETY: as above.
        assert_eq!((again.start().addr(), unsafe { again.start().read_volatile() }), (address, 7));
    }

    #[test]
    fn address_and_offset_agree() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 64 << 10]).unwrap();
        for alignment in [4096, 2 << 20, 1 << 30] {
            for offset in [0, 4096, 40_960] {
                let len = (64 << 10) - offset;
                let pages = Pages::map(&file, offset, len, false, Some(alignment)).unwrap();
                assert_eq!(pages.start() as usize % alignment, offset as usize % alignment);
                // SAFETY: the last byte of the mapping.
                let last = unsafe { pages.start().add(len as usize - 1).read_volatile() };
                assert_eq!((last, pages.len() as u64), (7, len));
            }
        }
    }
}
