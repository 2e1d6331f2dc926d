//! Checks of a VM.

use std::fs;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};
use uuid::Uuid;
use vmshm_abi::ivshmem::MEMORY_BAR;
use vmshm_host::format_bytes;
use vmshm_transport::Region;
use vmshm_transport::attach::{AttachError, Source, read_region, section_of_machine};

use super::check::Check;
use super::driver::Driver;
use super::{devices, memory_type};

/// All checks of a VM with these ivshmem devices.
pub fn checks(found: &[PathBuf]) -> Vec<Check> {
    if found.is_empty() {
        return vec![Check::missing(
            "this machine has no ivshmem device (PCI 1af4:1110)",
            "on its host: `vmshm qemu-args NAME --section K` or `vmshm libvirt-xml NAME --section K`",
        )];
    }
    let mut checks = Driver::look().checks();
    checks.extend(devices::look());
    for device in found {
        if Driver::drives(device) {
            checks.push(memory_check(device).0);
        } else {
            checks.extend(device_checks(device));
        }
        let bar = memory_bar(&fs::read_to_string(device.join("resource")).unwrap_or_default());
        checks.extend(bar.and_then(|(start, len)| {
            memory_type::check(&address(device), start, len, Driver::drives(device))
        }));
    }
    checks
}

fn address(device: &Path) -> String {
    device.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Where the device's memory lies, and whether that forbids caching.
fn memory_check(device: &Path) -> (Check, bool) {
    let address = address(device);
    match memory_bar(&fs::read_to_string(device.join("resource")).unwrap_or_default()) {
        None => (
            Check::missing(
                format!("{address}: its memory has no address: the VM's firmware found no room for it"),
                "give the VM a machine type and firmware with a large 64-bit PCI window, or make a smaller region",
            ),
            false,
        ),
        Some((start, len)) => (
            Check::ok(format!("{address}: {} of shared memory at {start:#x}", format_bytes(len))),
            start < 1 << 32,
        ),
    }
}

fn device_checks(device: &Path) -> Vec<Check> {
    let address = address(device);
    let (memory, is_low) = memory_check(device);
    let mut checks = vec![memory];
    if is_low {
        checks.push(Check::warning(
            format!("{address}: that is below 4 GiB, where x86 firmware forbids caching: slow"),
            "on the host, create the region with --size 4G or more",
        ));
    }
    let resource = device.join(format!("resource{MEMORY_BAR}"));
    if access(&resource, AccessFlags::R_OK | AccessFlags::W_OK).is_err() {
        checks.push(Check::missing(
            format!("this user may not open {}", resource.display()),
            format!(
                "run as root, or: sudo chmod 666 {} {}",
                resource.display(),
                device.join("enable").display()
            ),
        ));
        return checks;
    }
    match read_region(&Source::Pci(device.to_owned())) {
        Ok(region) => {
            let sections = region.sections().len();
            let id = Uuid::from_bytes(region.id());
            checks.push(Check::ok(format!("{address}: region {id} with {sections} sections")));
            checks.push(own_section(device, &address, &region));
        }
        // Somebody else's shared memory, a desktop viewer's say.
        Err(AttachError::Header { error: vmshm_abi::region::HeaderError::Magic(_), .. }) => {
            checks.push(Check::warning(
                format!("{address}: holds no vmshm region"),
                "nothing, if it is meant for another program; else create the region before the VM starts",
            ));
        }
        Err(error) => checks
            .push(Check::missing(format!("{address}: {error}"), "on the host: vmshm region inspect NAME")),
    }
    checks
}

/// Start and length of the memory BAR, from sysfs's `resource`.
fn memory_bar(resource: &str) -> Option<(u64, u64)> {
    let line = resource.lines().nth(MEMORY_BAR as usize)?;
    let mut words =
        line.split_ascii_whitespace().map(|word| u64::from_str_radix(word.trim_start_matches("0x"), 16).ok());
    let (start, end) = (words.next()??, words.next()??);
    (start != 0 && end > start).then(|| (start, end - start + 1))
}

/// Which section is this VM's, as a program would find it.
fn own_section(device: &Path, address: &str, region: &Region) -> Check {
    match section_of_machine(device, region) {
        Ok(number) => Check::ok(format!("{address}: this VM has section {number}")),
        Err(error) => Check::missing(
            format!("{address}: {error}"),
            "start the VM with what `vmshm qemu-args NAME --section K` prints on its host, its -uuid included; in the VM, run \
             this as root",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_bar_is_the_third_line() {
        let resource = "0x00000000febf1000 0x00000000febf10ff 0x0000000000040200\n\
            0x0000000000000000 0x0000000000000000 0x0000000000000000\n\
            0x0000000800000000 0x00000009ffffffff 0x000000000014220c\n";
        assert_eq!(memory_bar(resource), Some((0x8_0000_0000, 8 << 30)));
        assert_eq!(memory_bar("0x0 0x0 0x0\n0x0 0x0 0x0\n0x0 0x0 0x0\n"), None);
        assert_eq!(memory_bar("rubbish"), None);
    }
}
