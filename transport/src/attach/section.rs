//! The choice of the section.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::Path;

use memmap2::MmapOptions;
use vmshm_abi::driver::NO_SECTION;
use vmshm_abi::ivshmem;
use vmshm_abi::region::{RegionHeader, SECTION_FREE, SECTION_JOINED};

use super::error::{AttachError, io_error};
use super::lock;
use super::source::{Opened, Source, read_region};
use crate::error::AttachError as SectionError;
use crate::region::{Region, Section};

/// The section of this process: decided by the device or the host's table, never by racing, and never by the process that asks,
/// which can only choose among those that no virtual machine has. Without the guest driver the file then holds a lock that
/// tells the host that the section is in use.
pub(super) fn choose_section(
    source: &Source,
    region: &Region,
    opened: &Opened,
    wanted: Option<u32>,
) -> Result<u32, AttachError> {
    let path = source.path();
    let file = &opened.file;
    let number = match (&opened.device, source) {
        (Some(device), _) if device.section == NO_SECTION => return Err(AttachError::NoSection { path }),
        (Some(device), _) => device.section,
        (None, Source::Pci(device)) => section_of_machine(device, region)?,
        (None, Source::File(_) | Source::Driver(_)) => match wanted {
            Some(number) => number,
            None => {
                let chosen = choose_host_section(source, region, file).map_err(io_error(&path))?;
                return chosen.ok_or(AttachError::AllAssigned(region.header().sections));
            }
        },
    };
    if let Some(wanted) = wanted.filter(|&wanted| wanted != number) {
        return Err(AttachError::OtherSection { path, wanted, section: number });
    }
    let last = region.header().sections - 1;
    if number > last {
        return Err(SectionError::Section { section: number, last }.into());
    }
    if opened.device.is_some() {
        return Ok(number);
    }
    // The host holds the byte for a moment, while it assigns the section.
    if !lock::try_shared(file, RegionHeader::entry_offset(number)).map_err(io_error(&path))? {
        return Err(AttachError::Taken(number));
    }
    // A virtual machine's locks are not seen from the host: its section is never a host process's. The table is read once
    // more, since the host may have given the section away just before we had the lock.
    if matches!(source, Source::File(_))
        && let Some(owner) = owner(&read_region(source)?, number)
    {
        return Err(AttachError::Assigned { section: number, owner });
    }
    Ok(number)
}

/// The section that the host gives this machine in the region behind an ivshmem device, given by its folder in sysfs.
///
/// # Errors
///
/// None is given; what tells of it can't be read.
pub fn section_of_machine(device: &Path, region: &Region) -> Result<u32, AttachError> {
    match iv_position(device)? {
        Some(position) => section_by_position(region, position),
        None => section_by_uuid(region),
    }
}

/// The virtual machine that the host keeps a section for, if any.
fn owner(region: &Region, number: u32) -> Option<String> {
    let entry = region.sections().get(number as usize)?.entry;
    let uuid = format_uuid(entry.vm_uuid);
    match entry.state {
        SECTION_FREE => None,
        SECTION_JOINED => Some(format!("process {} with UUID {uuid}", entry.owner_pid)),
        _ => Some(format!("UUID {uuid}")),
    }
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
fn iv_position(device: &Path) -> Result<Option<u32>, AttachError> {
    if !device.join("resource1").exists() {
        return Ok(None);
    }
    let path = device.join(format!("resource{}", ivshmem::REGISTERS_BAR));
    let file = OpenOptions::new().read(true).write(true).open(&path).map_err(io_error(&path))?;
    let registers = MmapOptions::new().len(4096).map_raw_read_only(&file).map_err(io_error(&path))?;
    // SAFETY: the register BAR is mapped, the register is aligned and inside it.
    let position =
        unsafe { registers.as_ptr().add(ivshmem::REG_IV_POSITION as usize).cast::<u32>().read_volatile() };
    // Negative as long as the server has not given one.
    match i32::try_from(position) {
        Ok(_) => Ok(Some(position)),
        Err(_) => Err(AttachError::NotJoined { path: device.into() }),
    }
}

/// The section whose row names the virtual machine with this id of the ivshmem server. The ids grow with each machine that a
/// section is given to; see `vmshm-host`.
fn section_by_position(region: &Region, position: u32) -> Result<u32, AttachError> {
    let number = position % region.header().sections;
    let entry = &region.sections()[number as usize].entry;
    match entry.state == SECTION_JOINED && entry.vm_id == position + 1 {
        true => Ok(number),
        false => Err(AttachError::Released { section: number, position }),
    }
}

fn section_by_uuid(region: &Region) -> Result<u32, AttachError> {
    let path = Path::new("/sys/class/dmi/id/product_uuid");
    let text = fs::read_to_string(path).map_err(io_error(path))?;
    let uuid = text.trim();
    section_with_uuid(region, uuid).ok_or_else(|| AttachError::NotAssigned { uuid: uuid.into() })
}

/// The section that the host keeps for the machine with this UUID. A free one keeps the UUID of the machine that had it.
fn section_with_uuid(region: &Region, uuid: &str) -> Option<u32> {
    // A machine without a UUID shows zeros.
    let uuid = parse_uuid(uuid).filter(|uuid| *uuid != [0; 16])?;
    let ours = |section: &&Section| section.entry.state != SECTION_FREE && section.entry.vm_uuid == uuid;
    region.sections().iter().find(ours).map(|section| section.number)
}

fn format_uuid(uuid: [u8; 16]) -> String {
    let digits = format!("{:032x}", u128::from_be_bytes(uuid));
    [0..8, 8..12, 12..16, 16..20, 20..32].map(|part| &digits[part]).join("-")
}

pub(super) fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    let digits: String = text.chars().filter(|digit| *digit != '-').collect();
    (digits.len() == 32).then(|| u128::from_str_radix(&digits, 16).ok())?.map(u128::to_be_bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use tempfile::TempDir;
    use vmshm_abi::driver::DeviceInfo;
    use vmshm_abi::region::{SECTION_ASSIGNED, SectionEntry};
    use zerocopy::{FromZeros, IntoBytes};

    use super::super::source::open;
    use super::*;

    const UUID: &str = "00112233-4455-6677-8899-aabbccddeeff";

    /// The view that sysfs gives of an ivshmem device with a region of two sections, the second of them in this row.
    struct Device(TempDir);

    impl Device {
        fn new(row: impl Fn(&mut SectionEntry)) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let header = RegionHeader::new([7; 16], 1 << 20, 4096, 2, 4);
            let memory = File::create(dir.path().join("resource2")).unwrap();
            memory.set_len(header.region_len).unwrap();
            memory.write_all_at(header.as_bytes(), 0).unwrap();
            for number in 0..2 {
                let mut entry = header.new_entry(number);
                if number == 1 {
                    entry.vm_uuid = parse_uuid(UUID).unwrap();
                    row(&mut entry);
                }
                memory.write_all_at(entry.as_bytes(), RegionHeader::entry_offset(number)).unwrap();
            }
            Self(dir)
        }

        /// With a server that has given it this id.
        fn with_position(self, position: u32) -> Self {
            let registers = File::create(self.0.path().join("resource0")).unwrap();
            registers.set_len(4096).unwrap();
            registers.write_all_at(&position.to_le_bytes(), ivshmem::REG_IV_POSITION).unwrap();
            File::create(self.0.path().join("resource1")).unwrap();
            self
        }

        fn choose(&self, wanted: Option<u32>) -> Result<u32, AttachError> {
            let source = Source::Pci(self.0.path().into());
            let region = read_region(&source)?;
            choose_section(&source, &region, &open(&source)?, wanted)
        }
    }

    fn joined(entry: &mut SectionEntry) {
        (entry.state, entry.vm_id) = (SECTION_JOINED, 3 + 1);
    }

    #[test]
    fn the_server_s_id_decides_and_no_other_section_can_be_asked_for() {
        let device = Device::new(joined).with_position(3);
        assert_eq!(device.choose(None).unwrap(), 1);
        assert_eq!(device.choose(Some(1)).unwrap(), 1);
        let error = device.choose(Some(0)).unwrap_err();
        assert!(matches!(error, AttachError::OtherSection { wanted: 0, section: 1, .. }), "{error}");
        assert!(error.to_string().contains("unset VMSHM_SECTION"), "{error}");
    }

    #[test]
    fn the_driver_s_word_decides_and_no_other_section_can_be_asked_for() {
        let device = Device::new(joined);
        let region = read_region(&Source::Pci(device.0.path().into())).unwrap();
        let choose = |section, wanted| {
            let info = DeviceInfo { section, ..DeviceInfo::new_zeroed() };
            let file = File::open(device.0.path().join("resource2")).unwrap();
            let opened = Opened { file, len: region.header().region_len, device: Some(info) };
            choose_section(&Source::Driver(device.0.path().into()), &region, &opened, wanted)
        };
        assert_eq!(choose(1, None).unwrap(), 1);
        assert_eq!(choose(1, Some(1)).unwrap(), 1);
        let error = choose(1, Some(0)).unwrap_err();
        assert!(matches!(error, AttachError::OtherSection { wanted: 0, section: 1, .. }), "{error}");
        for wanted in [None, Some(0)] {
            let error = choose(NO_SECTION, wanted).unwrap_err();
            assert!(matches!(error, AttachError::NoSection { .. }), "{error}");
        }
    }

    #[test]
    fn an_id_that_the_table_does_not_name_has_no_section() {
        let refused = |row: fn(&mut SectionEntry), position| {
            let device = Device::new(row).with_position(position);
            [None, Some(0), Some(1)].map(|wanted| device.choose(wanted).unwrap_err())
        };
        for error in refused(|_| {}, 3).into_iter().chain(refused(joined, 1)) {
            assert!(matches!(error, AttachError::Released { section: 1, .. }), "{error}");
        }
        for error in refused(joined, u32::MAX) {
            assert!(matches!(error, AttachError::NotJoined { .. }), "{error}");
        }
    }

    #[test]
    fn a_uuid_finds_the_row_that_is_kept_for_it_and_no_released_one() {
        let find = |row: fn(&mut SectionEntry), uuid| {
            let device = Device::new(row);
            section_with_uuid(&read_region(&Source::Pci(device.0.path().into())).unwrap(), uuid)
        };
        let nil = "00000000-0000-0000-0000-000000000000";
        assert_eq!(find(|entry| entry.state = SECTION_ASSIGNED, UUID), Some(1));
        assert_eq!(find(joined, UUID), Some(1));
        assert_eq!(find(|entry| entry.state = SECTION_FREE, UUID), None);
        assert_eq!(find(|entry| entry.state = SECTION_ASSIGNED, "nonsense"), None);
        let nobody = |entry: &mut SectionEntry| (entry.state, entry.vm_uuid) = (SECTION_ASSIGNED, [0; 16]);
        assert_eq!(find(nobody, nil), None);
    }

    #[test]
    fn uuids_are_rfc_4122_bytes() {
        let bytes = parse_uuid(UUID).unwrap();
        assert_eq!(bytes[0], 0x00);
        assert_eq!(bytes[15], 0xff);
        assert_eq!(format_uuid(bytes), UUID);
        assert_eq!(parse_uuid("nonsense"), None);
    }
}
