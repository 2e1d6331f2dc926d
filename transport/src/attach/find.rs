//! The search for a region.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use vmshm_abi::driver::NAME;
use vmshm_abi::ivshmem;
use vmshm_abi::region::HeaderError;

use super::error::AttachError;
use super::source::{Source, read_region};

/// Folder of regions on tmpfs, unless `VMSHM_DIR` names another.
const REGION_DIR: &str = "/dev/shm/vmshm";

/// Folder of regions inside each hugetlbfs mount.
const HUGE_DIR: &str = "vmshm";

const PCI_DEVICES: &str = "/sys/bus/pci/devices";

/// Finds the source of the region that `device` names, or the only one that there is.
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

/// The sysfs folders of this machine's ivshmem devices, with a region or without.
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

/// Whether the device holds a region or can't be asked; a foreign ivshmem device is none of our business.
fn is_region(source: &Source) -> bool {
    !matches!(read_region(source), Err(AttachError::Header { error: HeaderError::Magic(_), .. }))
}
