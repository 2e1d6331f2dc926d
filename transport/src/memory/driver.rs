//! The guest driver's calls, see [`vmshm_abi::driver`].

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, ppoll};
use vmshm_abi::driver::{CLAIM, DeviceInfo, INFO, RING, Ring, UNCLAIM};
use zerocopy::FromZeros;

/// # Safety
///
/// `argument` must be what the ioctl `number` wants: valid for its size, or ignored.
unsafe fn ioctl<T>(file: &File, number: u32, argument: *mut T) -> io::Result<()> {
    // SAFETY: the caller vouches for the argument. The number's type differs between C libraries.
    match unsafe { libc::ioctl(file.as_raw_fd(), number as _, argument) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Description of the device.
pub fn info(file: &File) -> io::Result<DeviceInfo> {
    let mut info = DeviceInfo::new_zeroed();
    // SAFETY: the ioctl fills one DeviceInfo.
    unsafe { ioctl(file, INFO, &raw mut info) }?;
    Ok(info)
}

/// Takes an endpoint slot of this VM's section for this open file; false if another holds it.
pub fn claim(file: &File, mut slot: u32) -> io::Result<bool> {
    // SAFETY: the ioctl reads one number.
    match unsafe { ioctl(file, CLAIM, &raw mut slot) } {
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Ok(false),
        result => result.map(|()| true),
    }
}

/// Gives the held slot back.
pub fn unclaim(file: &File) -> io::Result<()> {
    // SAFETY: the ioctl has no argument.
    unsafe { ioctl(file, UNCLAIM, std::ptr::null_mut::<u8>()) }
}

/// Rings the doorbell of an endpoint.
pub fn ring(file: &File, section: u32, slot: u32) -> io::Result<()> {
    let mut ring = Ring { section, slot };
    // SAFETY: the ioctl reads one Ring.
    unsafe { ioctl(file, RING, &raw mut ring) }
}

/// Reason why a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Woken {
    /// The doorbell has rung.
    Rung,
    /// Nothing, in the time given; or a signal came.
    Nothing,
    /// The device is gone.
    Lost,
}

/// Waits until the doorbell of the held slot rings, and takes the rings.
pub fn wait(file: &File, timeout: Duration) -> Woken {
    let mut poll = [PollFd::new(file.as_fd(), PollFlags::POLLIN)];
    if !matches!(ppoll(&mut poll, Some(timeout.into()), None), Ok(1..)) {
        return Woken::Nothing;
    }
    let events = poll[0].revents().unwrap_or(PollFlags::empty());
    if events.intersects(PollFlags::POLLHUP | PollFlags::POLLERR) {
        return Woken::Lost;
    }
    match nix::unistd::read(file, &mut [0; 8]) {
        Ok(_) => Woken::Rung,
        Err(nix::Error::ENODEV) => Woken::Lost,
        Err(_) => Woken::Nothing,
    }
}

/// Whether the device is gone.
pub fn is_gone(file: &File) -> bool {
    let mut poll = [PollFd::new(file.as_fd(), PollFlags::empty())];
    matches!(ppoll(&mut poll, Some(Duration::ZERO.into()), None), Ok(1..))
        && poll[0].revents().is_some_and(|events| events.intersects(PollFlags::POLLHUP | PollFlags::POLLERR))
}
