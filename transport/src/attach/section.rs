//! Which section of the region is this process's.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::Path;

use memmap2::MmapOptions;
use vmshm_abi::driver::NO_SECTION;
use vmshm_abi::ivshmem;
use vmshm_abi::region::{RegionHeader, SECTION_FREE, SECTION_JOINED};

use super::error::io_error;
use super::find::Opened;
use super::{AttachError, Source, read_region};
use crate::lock;
use crate::region::Region;

/// Which section is ours: decided by the device or the host, never by racing. Without the guest driver the file then holds
/// a lock that tells the host that the section is in use.
pub(super) fn choose_section(
    source: &Source,
    region: &Region,
    opened: &Opened,
    wanted: Option<u32>,
) -> Result<u32, AttachError> {
    let path = source.path();
    let file = &opened.file;
    if let Some(device) = &opened.device {
        return match (device.section, wanted) {
            (NO_SECTION, _) => Err(AttachError::NoSection { path }),
            (section, Some(wanted)) if wanted != section => {
                Err(AttachError::OtherSection { path, wanted, section })
            }
            (section, _) => Ok(section),
        };
    }
    let number = match (wanted, source) {
        (Some(number), _) => number,
        (None, Source::Pci(device)) => match iv_position(device)? {
            // The server's ids grow with each VM that a section is given to; see `vmshm-host`.
            Some(position) => position % region.header().sections,
            None => section_by_uuid(region)?,
        },
        (None, Source::File(_) | Source::Driver(_)) => {
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

pub(super) fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    let digits: String = text.chars().filter(|digit| *digit != '-').collect();
    (digits.len() == 32).then(|| u128::from_str_radix(&digits, 16).ok())?.map(u128::to_be_bytes)
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
