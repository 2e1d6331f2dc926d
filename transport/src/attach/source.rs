//! Sources of a region, and opening them.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use vmshm_abi::driver::{DeviceInfo, VERSION};
use vmshm_abi::ivshmem;
use vmshm_abi::region::{HeaderError, RegionHeader};

use super::error::{AttachError, io_error};
use crate::memory::{Mapping, driver};
use crate::region::Region;

/// Source of a region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A file on this host.
    File(PathBuf),
    /// A device of the guest driver: `/dev/vmshmN`.
    Driver(PathBuf),
    /// An ivshmem device of this guest: its folder in sysfs.
    Pci(PathBuf),
}

impl Source {
    /// The file to map.
    pub fn path(&self) -> PathBuf {
        match self {
            Self::File(path) | Self::Driver(path) => path.clone(),
            // Not `resource2_wc`: write-combined stores overtake each other, and the rings need them in order.
            Self::Pci(device) => device.join(format!("resource{}", ivshmem::MEMORY_BAR)),
        }
    }

    /// Error for what the system refused with the file of [`Source::path`].
    pub(super) fn error(&self) -> impl FnOnce(io::Error) -> AttachError + '_ {
        move |error| match self {
            // ENODEV of a file has other meanings, such as a file system that can't be mapped.
            Self::Driver(path) if error.raw_os_error() == Some(libc::ENODEV) => {
                AttachError::Lost { path: path.clone() }
            }
            _ => io_error(&self.path())(error),
        }
    }
}

/// The guest driver's description of a device.
///
/// # Errors
///
/// A file that can't be opened, no device of the guest driver, another version of it, a device that is gone.
pub fn driver_info(path: &Path) -> Result<DeviceInfo, AttachError> {
    let source = Source::Driver(path.into());
    ask(&open_file(&source)?, &source)
}

fn ask(file: &File, source: &Source) -> Result<DeviceInfo, AttachError> {
    let info = driver::info(file).map_err(|error| match error.raw_os_error() {
        Some(libc::ENOTTY | libc::EINVAL) => AttachError::Foreign { path: source.path() },
        _ => source.error()(error),
    })?;
    match info.version {
        VERSION => Ok(info),
        found => Err(AttachError::DriverVersion { path: source.path(), found }),
    }
}

/// An open region.
#[derive(Debug)]
pub(super) struct Opened {
    pub file: File,
    pub len: u64,
    /// The guest driver's description of the device, where there is a driver.
    pub device: Option<DeviceInfo>,
}

fn open_file(source: &Source) -> Result<File, AttachError> {
    OpenOptions::new().read(true).write(true).open(source.path()).map_err(source.error())
}

pub(super) fn open(source: &Source) -> Result<Opened, AttachError> {
    if let Source::Pci(device) = source {
        // Without a driver nobody has switched the device's memory on.
        let enable = device.join("enable");
        if fs::read_to_string(&enable).is_ok_and(|text| text.trim() == "0") {
            fs::write(&enable, "1").map_err(io_error(&enable))?;
        }
    }
    let file = open_file(source)?;
    if let Source::Driver(_) = source {
        let device = ask(&file, source)?;
        return Ok(Opened { file, len: device.region_len, device: Some(device) });
    }
    let len = file.metadata().map_err(source.error())?.len();
    Ok(Opened { file, len, device: None })
}

/// Reads the header and the table of a region, without attaching to it.
///
/// # Errors
///
/// A path that can't be opened, or is no region.
pub fn read_region(source: &Source) -> Result<Region, AttachError> {
    look(source, &open(source)?)
}

/// Reads the header and the table of an open region, which need not be the one that lies at its path by now.
pub(super) fn look(source: &Source, opened: &Opened) -> Result<Region, AttachError> {
    let header = |error| AttachError::Header { path: source.path(), error };
    let least = size_of::<RegionHeader>() as u64;
    if opened.len < least {
        return Err(header(HeaderError::Truncated { promised: least, found: opened.len }));
    }
    let file = opened.file.try_clone().map_err(source.error())?;
    let mapping = map(source, Opened { file, ..*opened }, 0..0)?;
    Region::read(&mapping).map_err(header)
}

pub(super) fn map(source: &Source, opened: Opened, writable: Range<u64>) -> Result<Mapping, AttachError> {
    let Opened { file, len, device } = opened;
    let mapping = match &device {
        Some(device) => Mapping::of_device(file, device, writable),
        None => Mapping::of_file(file, len, writable),
    };
    mapping.map_err(source.error())
}
