//! A mapping of a device, whatever the kernel allows.

use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use libc::MAP_SHARED;

use crate::device::Device;

/// Bytes of a page of the processor.
pub const PAGE: usize = 4096;

/// A mapping, removed when this value is dropped.
#[derive(Debug)]
pub struct Map {
    address: *mut u8,
    len: usize,
}

impl Map {
    /// Maps what the kernel allows.
    pub fn new(fd: RawFd, offset: u64, len: usize, protection: i32, flags: i32) -> io::Result<Self> {
        // SAFETY: the kernel chooses an address where nothing is.
        let address =
            unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, fd, offset as libc::off_t) };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { address: address.cast(), len })
    }

    /// Maps a range of a device that others see too.
    pub fn shared(device: &Device, offset: u64, len: usize, protection: i32) -> io::Result<Self> {
        Self::new(device.fd(), offset, len, protection, MAP_SHARED)
    }

    /// A byte of the mapping.
    pub fn byte(&self, at: usize) -> &AtomicU8 {
        assert!(at < self.len);
        // SAFETY: the mapping lives as long as `self`; others change it, therefore an atomic.
        unsafe { AtomicU8::from_ptr(self.address.add(at)) }
    }

    /// An aligned word of the mapping.
    pub fn word(&self, at: usize) -> &AtomicU64 {
        assert!(at.is_multiple_of(8) && at < self.len);
        // SAFETY: as for `byte`; the address is aligned, since the mapping begins with a page.
        unsafe { AtomicU64::from_ptr(self.address.add(at).cast()) }
    }

    /// A copy of some bytes.
    pub fn bytes(&self, at: usize, len: usize) -> Vec<u8> {
        (at..at + len).map(|at| self.byte(at).load(Ordering::Relaxed)).collect()
    }

    /// Changes what may be done with a part of the mapping.
    pub fn protect(&self, at: usize, len: usize, protection: i32) -> io::Result<()> {
        // SAFETY: a part of our own mapping, which nothing refers to meanwhile.
        match unsafe { libc::mprotect(self.address.add(at).cast(), len, protection) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Gives the mapping another size, wherever it then lies.
    pub fn resize(&mut self, len: usize) -> io::Result<()> {
        // SAFETY: our own mapping, which nothing refers to meanwhile.
        let address = unsafe { libc::mremap(self.address.cast(), self.len, len, libc::MREMAP_MAYMOVE) };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        (self.address, self.len) = (address.cast(), len);
        Ok(())
    }

    /// Takes a part of the mapping away, which must not be touched any more.
    pub fn unmap(&self, at: usize, len: usize) -> io::Result<()> {
        assert!(at + len <= self.len);
        // SAFETY: a part of our own mapping, which nothing refers to.
        match unsafe { libc::munmap(self.address.add(at).cast(), len) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// The first byte, which others change too.
    pub fn as_ptr(&self) -> *mut u8 {
        self.address
    }

    /// The address.
    pub fn address(&self) -> usize {
        self.address as usize
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: our own mapping; nothing refers to it any more.
            unsafe { libc::munmap(self.address.cast(), self.len) };
        }
    }
}
