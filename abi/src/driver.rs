//! The guest driver's interface at `/dev/vmshmN`, beside `mmap` of the region: ioctl numbers and their arguments.
//!
//! - An open file *holds* at most one endpoint slot of the VM's own section. When the process that took the slot closes
//!   a descriptor of the file (a copy too) or ends, in whatever way, the driver marks the slot's life
//!   as died, unless the process left it in good order before.
//! - `poll` says readable when the doorbell of the held slot (of any slot, where none is held) has rung since the last
//!   `read`, which returns the number of rings as eight bytes and never blocks; it says hang-up when the device is gone.
//! - `open` fails with `ENFILE` when twice as many files as a section has slots, and 64, are open.
//! - A device that is gone answers every call with `ENODEV`.

use core::mem::{offset_of, size_of};

#[cfg(feature = "zerocopy")]
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Devices are called this, and a number.
pub const NAME: &str = "vmshm";

/// Version of this interface.
pub const VERSION: u32 = 1;

/// A device, as [`INFO`] describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "zerocopy", derive(FromBytes, IntoBytes, Immutable, KnownLayout))]
#[repr(C)]
pub struct DeviceInfo {
    /// [`VERSION`].
    pub version: u32,
    /// The section that this VM may write, or [`NO_SECTION`].
    pub section: u32,
    /// Bytes of the region.
    pub region_len: u64,
    /// Doorbells of this VM; 0 on a device without a server. That of slot `s` is number `s` modulo this.
    pub vectors: u32,
    /// How the memory is really mapped: [`WRITE_BACK`] or [`UNCACHED`].
    pub memory_type: u32,
    /// Zero; room for later versions.
    pub reserved: [u64; 5],
}

/// No section is assigned to this VM: the region can be read, and not written unless it is open.
pub const NO_SECTION: u32 = u32::MAX;

/// Memory type: cached, as ordinary memory.
pub const WRITE_BACK: u32 = 0;
/// Memory type: every access goes to memory, because firmware or another user of the BAR insists on it.
pub const UNCACHED: u32 = 1;

/// The endpoint that [`RING`] wakes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "zerocopy", derive(FromBytes, IntoBytes, Immutable, KnownLayout))]
#[repr(C)]
pub struct Ring {
    /// Its section.
    pub section: u32,
    /// Its slot in that section.
    pub slot: u32,
}

/// The eventfd that [`EVENTFD`] has signalled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "zerocopy", derive(FromBytes, IntoBytes, Immutable, KnownLayout))]
#[repr(C)]
pub struct EventFd {
    /// The eventfd, or -1 for none any more. A file has at most one.
    pub fd: i32,
    /// The doorbell whose rings it counts.
    pub vector: u32,
}

const _: () = {
    assert!(size_of::<DeviceInfo>() == 64);
    assert!(offset_of!(DeviceInfo, section) == 4);
    assert!(offset_of!(DeviceInfo, region_len) == 8);
    assert!(offset_of!(DeviceInfo, vectors) == 16);
    assert!(offset_of!(DeviceInfo, memory_type) == 20);
    assert!(offset_of!(DeviceInfo, reserved) == 24);
    assert!(size_of::<Ring>() == 8);
    assert!(offset_of!(Ring, slot) == 4);
    assert!(size_of::<EventFd>() == 8);
    assert!(offset_of!(EventFd, vector) == 4);
};

const MAGIC: u32 = 0xb7;

// As `_IOC` in `asm-generic/ioctl.h`.
const fn number(direction: u32, number: u32, bytes: usize) -> u32 {
    direction << 30 | (bytes as u32) << 16 | MAGIC << 8 | number
}

const NONE: u32 = 0;
const WRITE: u32 = 1;
const READ: u32 = 2;

/// Ioctl: fills a [`DeviceInfo`].
pub const INFO: u32 = number(READ, 0, size_of::<DeviceInfo>());
/// Ioctl: takes the endpoint slot whose number (a `u32`) the argument points to, for this open file and this process.
///
/// `EBUSY` if another open file holds it, `EEXIST` if this one holds a slot already, `EINVAL` if there is no such slot,
/// `ENXIO` if this VM has no section.
pub const CLAIM: u32 = number(WRITE, 1, size_of::<u32>());
/// Ioctl: gives the held slot back. `ENOENT` if there is none.
pub const UNCLAIM: u32 = number(NONE, 2, 0);
/// Ioctl: rings the doorbell of an endpoint, given by a [`Ring`]; one of this VM is woken without the device.
///
/// `ENXIO` if the device has no doorbells, `EINVAL` if there is no such endpoint, `ENOTCONN` if no VM has that section.
pub const RING: u32 = number(WRITE, 3, size_of::<Ring>());
/// Ioctl: has an [`EventFd`] signalled by each ring of a doorbell, or no more. `ENXIO`, `EINVAL` as for [`RING`], `EBADF`
/// for what is no eventfd.
pub const EVENTFD: u32 = number(WRITE, 4, size_of::<EventFd>());
