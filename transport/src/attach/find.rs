//! Where regions are looked for.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use vmshm_abi::driver::{DeviceInfo, NAME, VERSION};
use vmshm_abi::ivshmem;
use vmshm_abi::region::HeaderError;

use super::error::io_error;
use super::{AttachError, HUGE_DIR, PCI_DEVICES, REGION_DIR, read_region};
use crate::driver;

/// Where a region comes from.
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

    /// What it means that the system refused something with the file of [`Source::path`].
    pub(super) fn error(&self) -> impl FnOnce(io::Error) -> AttachError + '_ {
        move |error| match self {
            // Elsewhere it has other meanings, such as a file system that can't be mapped.
            Self::Driver(path) if error.raw_os_error() == Some(libc::ENODEV) => {
                AttachError::Lost { path: path.clone() }
            }
            _ => io_error(&self.path())(error),
        }
    }
}

/// Finds what the options mean.
///
/// # Errors
///
/// Nothing there, or more than one without a choice.
pub fn find(device: Option<&str>) -> Result<Source, AttachError> {
    if let Some(device) = device {
        return find_named(device);
    }
    let mut found: Vec<Source> = driver_nodes().into_iter().map(Source::Driver).collect();
    if found.is_empty() {
        let left = pci_devices().into_iter().filter(|device| !has_driver(device));
        found = left.map(Source::Pci).filter(is_region).collect();
    }
    if found.is_empty() {
        found = region_dirs().iter().flat_map(|dir| region_files(dir)).map(Source::File).collect();
    }
    match found.len() {
        0 => Err(AttachError::NoDevice),
        1 => Ok(found.remove(0)),
        _ => {
            let name = |source: &Source| match source {
                Source::File(path) | Source::Driver(path) | Source::Pci(path) => path.display().to_string(),
            };
            Err(AttachError::Ambiguous(found.iter().map(name).collect()))
        }
    }
}

fn find_named(device: &str) -> Result<Source, AttachError> {
    let unknown = || AttachError::Unknown(device.into());
    if device.contains('/') {
        let path = Path::new(device);
        return match path.metadata() {
            Ok(metadata) if metadata.file_type().is_char_device() => Ok(Source::Driver(path.into())),
            Ok(_) => Ok(Source::File(path.into())),
            Err(_) => Err(unknown()),
        };
    }
    let pci = |address: &str| Some(Path::new(PCI_DEVICES).join(address)).filter(|path| path.exists());
    if let Some(path) = pci(device).or_else(|| pci(&format!("0000:{device}"))) {
        // The driver's device is the better way to the same memory.
        return Ok(node_of(&path).map_or(Source::Pci(path), Source::Driver));
    }
    if let Some(node) = driver_nodes().into_iter().find(|node| node.file_name() == Some(device.as_ref())) {
        return Ok(Source::Driver(node));
    }
    let file = region_dirs().into_iter().map(|dir| dir.join(device)).find(|path| path.is_file());
    file.map(Source::File).ok_or_else(unknown)
}

/// The folders that hold region files: on tmpfs and in each hugetlbfs mount, or the one that `VMSHM_DIR` names.
pub fn region_dirs() -> Vec<PathBuf> {
    if let Some(dir) = std::env::var_os("VMSHM_DIR") {
        return vec![dir.into()];
    }
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let huge = mounts.lines().filter_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let (dir, kind) = (fields.next()?, fields.next()?);
        (kind == "hugetlbfs").then(|| Path::new(dir).join(HUGE_DIR))
    });
    std::iter::once(PathBuf::from(REGION_DIR)).chain(huge).collect()
}

fn region_files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let hidden =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
    entries.filter(|path| path.is_file() && !hidden(path)).collect()
}

/// The sysfs folders of this machine's ivshmem devices, whatever they hold.
pub fn pci_devices() -> Vec<PathBuf> {
    let number = |path: &Path, file: &str| {
        let text = fs::read_to_string(path.join(file)).ok()?;
        u16::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok()
    };
    let entries = fs::read_dir(PCI_DEVICES).into_iter().flatten().flatten().map(|entry| entry.path());
    let ours = |path: &PathBuf| {
        number(path, "vendor") == Some(ivshmem::VENDOR) && number(path, "device") == Some(ivshmem::DEVICE)
    };
    let mut devices: Vec<_> = entries.filter(ours).collect();
    devices.sort();
    devices
}

/// The guest driver's devices, in the order of their numbers.
pub fn driver_nodes() -> Vec<PathBuf> {
    nodes_in(Path::new("/dev"))
}

fn nodes_in(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let number = |name: &std::ffi::OsStr| name.to_str()?.strip_prefix(NAME)?.parse::<u32>().ok();
    let mut nodes: Vec<_> =
        entries.filter_map(|entry| Some((number(&entry.file_name())?, entry.path()))).collect();
    nodes.sort();
    nodes.into_iter().map(|(_, path)| path).collect()
}

/// The guest driver's device for a PCI device.
fn node_of(device: &Path) -> Option<PathBuf> {
    let name = nodes_in(&device.join("misc")).into_iter().next()?;
    Some(Path::new("/dev").join(name.file_name()?)).filter(|node| node.exists())
}

/// Whether the guest driver has a PCI device.
fn has_driver(device: &Path) -> bool {
    fs::read_link(device.join("driver")).is_ok_and(|driver| driver.file_name() == Some(NAME.as_ref()))
}

/// Asks the guest driver what a device is.
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
    /// What the guest driver says of it, where there is one.
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

/// Whether the device holds a region or can't be asked; a foreign ivshmem device is none of our business.
fn is_region(source: &Source) -> bool {
    !matches!(read_region(source), Err(AttachError::Header { error: HeaderError::Magic(_), .. }))
}
