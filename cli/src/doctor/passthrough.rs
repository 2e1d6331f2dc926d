//! Passthrough of PCI devices: IOMMU, driver, groups, and memory that may be locked.

use std::fs;
use std::path::Path;

use vmshm_host::format_bytes;
use vmshm_vmm::vfio;

use super::check::Check;

/// Findings for `vmshm vm run --device`, for a user who may lock so many bytes of memory, or any number.
pub fn checks(root: &Path, memlock: Option<u64>) -> Vec<Check> {
    let groups = fs::read_dir(root.join("sys/kernel/iommu_groups")).map_or(0, Iterator::count);
    if groups == 0 {
        return vec![Check::warning(
            "no IOMMU is on: no device can be passed through (vmshm vm run --device)",
            "switch on VT-d or AMD-Vi in the firmware, and on Intel boot with intel_iommu=on",
        )];
    }
    let mut checks = vec![Check::ok(format!("an IOMMU is on, with {groups} groups of devices"))];
    if !root.join("sys/bus/pci/drivers/vfio-pci").exists() {
        checks.push(Check::warning(
            "the driver vfio-pci is not there: no device can be passed through",
            "sudo modprobe vfio-pci; at every boot: echo vfio-pci | sudo tee /etc/modules-load.d/vfio-pci.conf",
        ));
        return checks;
    }
    let bound = vfio::bound(root);
    if bound.is_empty() {
        checks.push(Check::ok("vfio-pci has no device: vmshm vm run --device says how to give it one"));
        return checks;
    }
    for address in &bound {
        checks.push(match vfio::look(root, address) {
            Ok(found) => {
                let node = found.node.map_or(String::new(), |node| format!(", on NUMA node {node}"));
                let file = format!("dev/vfio/{}", found.group);
                let text = format!("{address} ({}) can be passed through{node}", found.id);
                match fs::File::options().read(true).write(true).open(root.join(&file)) {
                    Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Check::warning(
                        format!("{text}, but this user may not open /{file}"),
                        format!("sudo chown $USER /{file}, or run VMs as root"),
                    ),
                    _ => Check::ok(text),
                }
            }
            // The fault, a colon, and the cure.
            Err(error) => {
                let text = error.to_string();
                let (what, cure) = text.split_once(": ").unwrap_or((&text, "see docs/vmm.md"));
                Check::warning(what, cure)
            }
        });
    }
    if let Some(limit) = memlock {
        checks.push(Check::warning(
            format!("this user may lock {} of memory; passthrough locks all of a VM's", format_bytes(limit)),
            "a line `USER - memlock unlimited` in /etc/security/limits.conf, or LimitMEMLOCK=infinity in a unit",
        ));
    }
    checks
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn each_thing_that_is_missing_is_named_before_the_next() {
        let root = tempfile::tempdir().unwrap();
        let sys = root.path().join("sys");
        let last = |memlock| checks(root.path(), memlock).pop().unwrap();
        let found = last(None);
        assert!(found.cure.unwrap().contains("intel_iommu=on"), "{}", found.what);
        let group = sys.join("kernel/iommu_groups/7");
        fs::create_dir_all(group.join("devices/0000:01:00.0")).unwrap();
        let found = last(None);
        assert!(found.cure.unwrap().contains("modprobe vfio-pci"), "{}", found.what);
        let driver = sys.join("bus/pci/drivers/vfio-pci");
        fs::create_dir_all(&driver).unwrap();
        assert_eq!(last(None).verdict, Verdict::Ok);

        let device = sys.join("bus/pci/devices/0000:01:00.0");
        fs::create_dir_all(&device).unwrap();
        fs::create_dir(driver.join("0000:01:00.0")).unwrap();
        symlink(&driver, device.join("driver")).unwrap();
        let found = last(None);
        assert!(found.what.contains("in no IOMMU group") && found.cure.is_some(), "{}", found.what);
        symlink(&group, device.join("iommu_group")).unwrap();
        fs::write(device.join("vendor"), "0x8086\n").unwrap();
        fs::write(device.join("device"), "0x10ca\n").unwrap();
        let found = last(None);
        assert_eq!(found.verdict, Verdict::Ok);
        assert!(found.what.contains("0000:01:00.0 (8086:10ca) can be passed through"), "{}", found.what);
        let found = last(Some(64 << 10));
        assert!(found.what.contains("64 KiB") && found.cure.unwrap().contains("memlock"), "{}", found.what);
    }
}
