//! An open `/dev/vmshmN` and the calls that it answers.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;

use vmshm_transport::abi::driver::{self, DeviceInfo, EventFd, Ring};
use zerocopy::FromZeros;

/// An open device.
#[derive(Debug)]
pub struct Device {
    file: File,
}

/// Any ioctl, with any argument; the kernel says which are good.
pub fn ioctl<T: ?Sized>(fd: RawFd, request: u32, argument: *mut T) -> io::Result<i32> {
    // SAFETY: the callers give what the request reads or writes, or an address that the kernel has to refuse.
    let result = unsafe { libc::ioctl(fd, request.into(), argument) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

impl Device {
    /// Opens it for reading and writing.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { file: OpenOptions::new().read(true).write(true).open(path)? })
    }

    /// Opens it for reading alone.
    pub fn open_read_only(path: &Path) -> io::Result<Self> {
        Ok(Self { file: File::open(path)? })
    }

    /// The file descriptor.
    pub fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// The device as the driver describes it.
    pub fn info(&self) -> io::Result<DeviceInfo> {
        let mut info = DeviceInfo::new_zeroed();
        ioctl(self.fd(), driver::INFO, &raw mut info)?;
        Ok(info)
    }

    /// Takes an endpoint slot.
    pub fn claim(&self, mut slot: u32) -> io::Result<()> {
        ioctl(self.fd(), driver::CLAIM, &raw mut slot).map(drop)
    }

    /// Gives the slot back.
    pub fn unclaim(&self) -> io::Result<()> {
        ioctl::<u8>(self.fd(), driver::UNCLAIM, std::ptr::null_mut()).map(drop)
    }

    /// Rings a doorbell.
    pub fn ring(&self, section: u32, slot: u32) -> io::Result<()> {
        let mut ring = Ring { section, slot };
        ioctl(self.fd(), driver::RING, &raw mut ring).map(drop)
    }

    /// Has an eventfd signalled by a doorbell.
    pub fn eventfd(&self, fd: RawFd, vector: u32) -> io::Result<()> {
        let mut event = EventFd { fd, vector };
        ioctl(self.fd(), driver::EVENTFD, &raw mut event).map(drop)
    }

    /// Rings since the last call.
    pub fn rings(&self) -> io::Result<u64> {
        let mut bytes = [0; 8];
        match (&self.file).read(&mut bytes)? {
            8 => Ok(u64::from_ne_bytes(bytes)),
            count => Err(io::Error::other(format!("read gave {count} bytes, not 8"))),
        }
    }

    /// Waits so many milliseconds for something to happen; what `poll` says, 0 if nothing did.
    pub fn wait(&self, milliseconds: i32) -> io::Result<i16> {
        wait(self.fd(), milliseconds)
    }
}

/// Waits until the descriptor is readable or hung up.
pub fn wait(fd: RawFd, milliseconds: i32) -> io::Result<i16> {
    let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid element.
    match unsafe { libc::poll(&raw mut poll, 1, milliseconds) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(poll.revents),
    }
}

/// A new eventfd that does not block.
pub fn new_eventfd() -> io::Result<File> {
    use std::os::fd::FromRawFd;
    // SAFETY: plain integers.
    let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// Whether a call was refused with exactly this error.
pub fn refused<T>(result: io::Result<T>, errno: i32) -> anyhow::Result<()> {
    match result {
        Ok(_) => anyhow::bail!("it was allowed"),
        Err(error) if error.raw_os_error() == Some(errno) => Ok(()),
        Err(error) => {
            anyhow::bail!("it was refused with {error}, not with {}", io::Error::from_raw_os_error(errno))
        }
    }
}
