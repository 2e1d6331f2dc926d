//! Finding the region of this host or guest, and attaching to it.
//!
//! A program names no device in the normal case. The order is: the device that the options name; an ivshmem PCI device
//! that holds a region (in a guest, through sysfs); the one region file of this host (processes without any VM).

use std::fs::{self, File, OpenOptions};
use std::io;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use memmap2::MmapOptions;
use vmshm_abi::ivshmem;
use vmshm_abi::region::{HeaderError, RegionHeader, SECTION_FREE, SECTION_JOINED};

use crate::endpoint::Endpoint;
use crate::error;
use crate::keeper::Keeper;
use crate::lock;
use crate::mapping::Mapping;
use crate::region::Region;
use crate::slot;

/// Where regions on tmpfs lie unless `VMSHM_DIR` says otherwise.
pub const REGION_DIR: &str = "/dev/shm/vmshm";

/// Folder of regions inside each hugetlbfs mount.
const HUGE_DIR: &str = "vmshm";

const PCI_DEVICES: &str = "/sys/bus/pci/devices";

/// How long [`Attached`] waits at the end for peers to consume what was sent to them.
const DRAIN: Duration = Duration::from_secs(1);

/// What to attach to.
#[derive(Debug, Clone)]
pub struct Options {
    /// A region's name or file, or the address of a PCI device (`0000:00:04.0`); none to search.
    pub device: Option<String>,
    /// The section, where the one that the device or the host decides on is not wanted.
    pub section: Option<u32>,
    /// How long the heartbeat of another machine may pause before its processes are taken for dead.
    pub patience: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { device: None, section: None, patience: Duration::from_secs(30) }
    }
}

impl Options {
    /// What `VMSHM_DEVICE` and `VMSHM_SECTION` say.
    ///
    /// # Errors
    ///
    /// A section that is no number.
    pub fn from_env() -> Result<Self, AttachError> {
        let set = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let section = match set("VMSHM_SECTION") {
            None => None,
            Some(value) => Some(value.parse().map_err(|_| AttachError::SectionNumber(value))?),
        };
        Ok(Self { device: set("VMSHM_DEVICE"), section, ..Self::default() })
    }
}

/// Why no region could be attached to.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// Nothing to attach to.
    #[error(
        "no vmshm region found: a guest needs an ivshmem device (on its host: `vmshm qemu-args`), processes on a host \
         need a region (`vmshm region create`)"
    )]
    NoDevice,
    /// What was named does not exist.
    #[error(
        "vmshm device or region {0:?} does not exist: `vmshm region list` shows the regions of this host"
    )]
    Unknown(String),
    /// More than one region, and none named.
    #[error("there is more than one vmshm region ({}): name one in VMSHM_DEVICE or the parameter btl_vmshm_device", .0.join(", "))]
    Ambiguous(Vec<String>),
    /// The process may not open it.
    #[error("{} may not be opened by this user: {}", path.display(), cure(path))]
    Denied {
        /// What could not be opened.
        path: PathBuf,
    },
    /// The header is foreign, damaged or of another version.
    #[error("{} can't be used as a vmshm region: {error}", path.display())]
    Header {
        /// Where it lies.
        path: PathBuf,
        /// What is wrong.
        error: HeaderError,
    },
    /// The machine is not in the region's table.
    #[error(
        "no section of the region is assigned to this machine (SMBIOS UUID {uuid}): start it with the arguments that \
         `vmshm qemu-args` prints, or name a section in VMSHM_SECTION"
    )]
    NotAssigned {
        /// The machine's UUID.
        uuid: String,
    },
    /// All sections belong to VMs.
    #[error(
        "all {0} sections of the region are kept for virtual machines: release one with `vmshm region release`"
    )]
    AllAssigned(u32),
    /// The section is a running VM's, or is being given to one.
    #[error("section {0} belongs to a virtual machine: choose another in VMSHM_SECTION")]
    Taken(u32),
    /// The section variable is no number.
    #[error("VMSHM_SECTION is {0:?}, which is no section number")]
    SectionNumber(String),
    /// The section is unknown or full.
    #[error(transparent)]
    Section(#[from] error::AttachError),
    /// The system refused something.
    #[error("{}: {error}", path.display())]
    Io {
        /// What it was about.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

fn cure(path: &Path) -> &'static str {
    match path.starts_with("/sys") {
        true => "without the vmshm guest driver only root can map the device",
        false => "ask for membership in its group (see `ls -l`)",
    }
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> AttachError + '_ {
    move |error| match error.kind() {
        io::ErrorKind::NotFound => AttachError::Unknown(path.display().to_string()),
        io::ErrorKind::PermissionDenied => AttachError::Denied { path: path.into() },
        _ => AttachError::Io { path: path.into(), error },
    }
}

/// Where a region comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A file on this host.
    File(PathBuf),
    /// An ivshmem device of this guest: its folder in sysfs.
    Pci(PathBuf),
}

impl Source {
    /// The file to map.
    pub fn path(&self) -> PathBuf {
        match self {
            Self::File(path) => path.clone(),
            // Not `resource2_wc`: write-combined stores overtake each other, and the rings need them in order.
            Self::Pci(device) => device.join(format!("resource{}", ivshmem::MEMORY_BAR)),
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
    let mut devices = pci_devices();
    devices.retain(|device| is_region(&Source::Pci(device.clone())));
    let mut found: Vec<Source> = devices.into_iter().map(Source::Pci).collect();
    if found.is_empty() {
        found = region_dirs().iter().flat_map(|dir| region_files(dir)).map(Source::File).collect();
    }
    match found.len() {
        0 => Err(AttachError::NoDevice),
        1 => Ok(found.remove(0)),
        _ => {
            let name = |source: &Source| match source {
                Source::File(path) | Source::Pci(path) => path.display().to_string(),
            };
            Err(AttachError::Ambiguous(found.iter().map(name).collect()))
        }
    }
}

fn find_named(device: &str) -> Result<Source, AttachError> {
    let unknown = || AttachError::Unknown(device.into());
    if device.contains('/') {
        let path = Path::new(device);
        return if path.exists() { Ok(Source::File(path.into())) } else { Err(unknown()) };
    }
    let pci = |address: &str| Some(Path::new(PCI_DEVICES).join(address)).filter(|path| path.exists());
    if let Some(path) = pci(device).or_else(|| pci(&format!("0000:{device}"))) {
        return Ok(Source::Pci(path));
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

/// Whether the device holds a region or can't be asked; a foreign ivshmem device is none of our business.
fn is_region(source: &Source) -> bool {
    !matches!(read_region(source), Err(AttachError::Header { error: HeaderError::Magic(_), .. }))
}

/// Reads the header and the table of a region, without attaching to it.
///
/// # Errors
///
/// What can't be opened, or is no region.
pub fn read_region(source: &Source) -> Result<Region, AttachError> {
    let path = source.path();
    let (file, len) = open(source)?;
    map(&path, file, len, 0..0).map(|(_, region)| region)
}

fn open(source: &Source) -> Result<(File, u64), AttachError> {
    let path = source.path();
    if let Source::Pci(device) = source {
        // Without a driver nobody has switched the device's memory on.
        let enable = device.join("enable");
        if fs::read_to_string(&enable).is_ok_and(|text| text.trim() == "0") {
            fs::write(&enable, "1").map_err(io_error(&enable))?;
        }
    }
    let file = OpenOptions::new().read(true).write(true).open(&path).map_err(io_error(&path))?;
    let len = file.metadata().map_err(io_error(&path))?.len();
    Ok((file, len))
}

fn map(
    path: &Path,
    file: File,
    len: u64,
    writable: std::ops::Range<u64>,
) -> Result<(Mapping, Region), AttachError> {
    let header = |error| AttachError::Header { path: path.into(), error };
    let least = size_of::<RegionHeader>() as u64;
    if len < least {
        return Err(header(HeaderError::Truncated { promised: least, found: len }));
    }
    let mapping = Mapping::new(file, len, writable).map_err(io_error(path))?;
    let region = Region::read(&mapping).map_err(header)?;
    Ok((mapping, region))
}

/// An endpoint in this machine's region, kept alive and watched over; it detaches when it is dropped.
#[derive(Debug)]
pub struct Attached {
    // Dropped in this order: first nobody beats for the endpoint, then it leaves.
    keeper: Option<Keeper>,
    endpoint: ManuallyDrop<Endpoint<Arc<Mapping>>>,
    source: Source,
    /// The process that attached: a forked child has a copy of this value, but not the endpoint.
    pid: u32,
}

/// Attaches to the region that the options mean.
///
/// # Errors
///
/// No region, no permission, a foreign or damaged region, no section, no room: each says what to do.
pub fn open_endpoint(options: &Options) -> Result<Attached, AttachError> {
    let source = find(options.device.as_deref())?;
    let path = source.path();
    let region = read_region(&source)?;
    let (file, len) = open(&source)?;
    let number = choose_section(&source, &region, &file, options.section)?;
    let last = region.header().sections - 1;
    let section = *region
        .sections()
        .get(number as usize)
        .ok_or(AttachError::Section(error::AttachError::Section { section: number, last }))?;
    let writable = match region.is_open() {
        true => region.header().table_end..region.header().region_len,
        false => section.entry.offset..section.entry.offset + section.entry.len,
    };
    let (mapping, region) = map(&path, file, len, writable)?;
    let mapping = Arc::new(mapping);
    let boot_id = boot_id();
    let slots = section.layout.endpoints;
    for slot in 0..slots {
        let at = section.slot(slot);
        if !lock::try_exclusive(mapping.file(), at).map_err(io_error(&path))? {
            continue;
        }
        // With the lock in hand, whatever the slot says, its process is dead.
        let state = slot::state(&mapping, &section, slot);
        if state.state != vmshm_abi::section::STATE_FREE {
            slot::reap(&mapping, &section, slot, state, true);
        }
        let Some(incarnation) = slot::claim(&mapping, &section, slot) else {
            let _ = lock::release(mapping.file(), at);
            continue;
        };
        let pid = std::process::id();
        let endpoint =
            Endpoint::take(Arc::clone(&mapping), region, number, slot, incarnation, pid.into(), boot_id)?;
        let keeper = Keeper::start(&endpoint, boot_id, options.patience, matches!(source, Source::File(_)))
            .map_err(io_error(&path))?;
        return Ok(Attached { keeper: Some(keeper), endpoint: ManuallyDrop::new(endpoint), source, pid });
    }
    Err(error::AttachError::NoSlot { section: number, slots }.into())
}

impl Attached {
    /// Where the region was found.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// What would make the way faster, if anything: one line for the user, to be said once.
    pub fn advice(&self) -> Option<&'static str> {
        matches!(self.source, Source::Pci(_)).then_some(
            "the shared memory is mapped through sysfs, which is slow where the processor honours the guest's memory \
             type; the vmshm guest driver maps it cached",
        )
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        if self.pid != std::process::id() {
            // In a forked child: thread and slot are the parent's.
            std::mem::forget(self.keeper.take());
            return;
        }
        let end = Instant::now() + DRAIN;
        while !self.endpoint.is_drained() && Instant::now() < end {
            std::thread::yield_now();
        }
        drop(self.keeper.take());
        let mapping = Arc::clone(self.endpoint.memory());
        let section = *self.endpoint.section();
        let slot = section.slot(self.endpoint.slot());
        // SAFETY: this is the only place that drops it, and nobody uses it afterwards.
        unsafe { ManuallyDrop::drop(&mut self.endpoint) };
        // By name: a forked child that has the file open too would keep the locks.
        let _ = lock::release(mapping.file(), slot);
        let _ = lock::release(mapping.file(), RegionHeader::entry_offset(section.number));
    }
}

impl Deref for Attached {
    type Target = Endpoint<Arc<Mapping>>;

    fn deref(&self) -> &Self::Target {
        &self.endpoint
    }
}

impl DerefMut for Attached {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.endpoint
    }
}

/// Which section is ours: decided by the device or the host, never by racing. The file then holds a lock that tells the
/// host that the section is in use.
fn choose_section(
    source: &Source,
    region: &Region,
    file: &File,
    wanted: Option<u32>,
) -> Result<u32, AttachError> {
    let path = source.path();
    let number = match (wanted, source) {
        (Some(number), _) => number,
        (None, Source::Pci(device)) => match iv_position(device)? {
            // The server's ids grow with each VM that a section is given to; see `vmshm-host`.
            Some(position) => position % region.header().sections,
            None => section_by_uuid(region)?,
        },
        (None, Source::File(_)) => {
            let chosen = choose_host_section(source, region, file).map_err(io_error(&path))?;
            return chosen.ok_or(AttachError::AllAssigned(region.header().sections));
        }
    };
    // Held by the host for a moment, while it gives the section to somebody.
    match lock::try_shared(file, RegionHeader::entry_offset(number)).map_err(io_error(&path))? {
        // A VM's locks are not seen from the host: its section is never ours.
        true if matches!(source, Source::File(_)) && is_joined(source, number)? => {
            Err(AttachError::Taken(number))
        }
        true => Ok(number),
        false => Err(AttachError::Taken(number)),
    }
}

fn is_joined(source: &Source, number: u32) -> Result<bool, AttachError> {
    let region = read_region(source)?;
    Ok(region.sections().get(number as usize).is_some_and(|section| section.entry.state == SECTION_JOINED))
}

/// The first section that no process has, else any that is not a VM's.
fn choose_host_section(source: &Source, region: &Region, file: &File) -> io::Result<Option<u32>> {
    let is_free = |region: &Region, number: u32| {
        region.sections().get(number as usize).is_some_and(|section| section.entry.state == SECTION_FREE)
    };
    let sections = region.header().sections;
    let mut free: Vec<u32> = (0..sections).filter(|number| is_free(region, *number)).collect();
    if let Some(places) = u32::try_from(free.len()).ok().filter(|places| *places > 0) {
        free.rotate_left((std::process::id() % places) as usize);
    }
    let mut shared = Vec::new();
    let mut alone = Vec::new();
    for number in free {
        match lock::is_held_by_another(file, RegionHeader::entry_offset(number))? {
            true => shared.push(number),
            false => alone.push(number),
        }
    }
    for number in alone.into_iter().chain(shared) {
        let at = RegionHeader::entry_offset(number);
        if !lock::try_shared(file, at)? {
            continue;
        }
        // The host may have given it to a VM just before we had the lock.
        if read_region(source).is_ok_and(|now| is_free(&now, number)) {
            return Ok(Some(number));
        }
        lock::release(file, at)?;
    }
    Ok(None)
}

/// The id that the ivshmem server gave this device, if it has a server: then it has MSI-X, in BAR 1.
///
/// # Errors
///
/// A register BAR that can't be opened or mapped.
pub fn iv_position(device: &Path) -> Result<Option<u32>, AttachError> {
    if !device.join("resource1").exists() {
        return Ok(None);
    }
    let path = device.join(format!("resource{}", ivshmem::REGISTERS_BAR));
    let file = OpenOptions::new().read(true).write(true).open(&path).map_err(io_error(&path))?;
    let registers = MmapOptions::new().len(4096).map_raw_read_only(&file).map_err(io_error(&path))?;
    // SAFETY: the register BAR is mapped, the register is aligned and inside it.
    let position =
        unsafe { registers.as_ptr().add(ivshmem::REG_IV_POSITION as usize).cast::<u32>().read_volatile() };
    Ok(Some(position))
}

fn section_by_uuid(region: &Region) -> Result<u32, AttachError> {
    let path = Path::new("/sys/class/dmi/id/product_uuid");
    let text = fs::read_to_string(path).map_err(io_error(path))?;
    let uuid = text.trim();
    let bytes = parse_uuid(uuid);
    let ours = |bytes| region.sections().iter().find(|section| section.entry.vm_uuid == bytes);
    bytes.and_then(ours).map(|section| section.number).ok_or(AttachError::NotAssigned { uuid: uuid.into() })
}

fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    let digits: String = text.chars().filter(|digit| *digit != '-').collect();
    (digits.len() == 32).then(|| u128::from_str_radix(&digits, 16).ok())?.map(u128::to_be_bytes)
}

/// Which kernel this is: processes with the same answer can see each other's locks.
fn boot_id() -> [u64; 2] {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    match parse_uuid(text.trim()) {
        Some(id) => {
            let number = u128::from_be_bytes(id);
            [(number >> 64) as u64, number as u64]
        }
        // It does not say: be unlike every other, so that nobody looks for our lock.
        None => {
            let mut bytes = [0; 8];
            let read = File::open("/dev/urandom").and_then(|file| file.read_exact_at(&mut bytes, 0));
            [u64::from(std::process::id()), read.map_or(1, |()| u64::from_le_bytes(bytes))]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids_are_read_as_rfc_4122_bytes() {
        let bytes = parse_uuid("00112233-4455-6677-8899-aabbccddeeff").unwrap();
        assert_eq!(bytes[0], 0x00);
        assert_eq!(bytes[15], 0xff);
        assert_eq!(parse_uuid("nonsense"), None);
    }
}
