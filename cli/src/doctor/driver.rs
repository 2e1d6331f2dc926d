//! The guest driver: whether it is there, and what it says of its devices.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::unistd::{AccessFlags, Gid, Group, access, geteuid};
use uuid::Uuid;
use vmshm_abi::driver::{DeviceInfo, NAME, NO_SECTION, WRITE_BACK};
use vmshm_host::format_bytes;
use vmshm_transport::Region;
use vmshm_transport::attach::{Source, driver_info, driver_nodes, read_region};

use super::check::Check;

/// The first kernel that the driver can be built for.
const FIRST_KERNEL: (u32, u32) = (7, 2);

/// The cure for those who cannot have the driver: what works without it.
const WITHOUT: &str = "without it root can use the device, through sysfs: by polling only, and uncached where KVM honours the \
     guest's memory type (AMD; Intel with a device passed through, or QEMU's honor-guest-pat=on)";

/// Findings on the driver and its devices.
#[derive(Debug)]
pub struct Driver {
    /// The devices in `/dev`, in order.
    pub nodes: Vec<PathBuf>,
    is_loaded: bool,
}

impl Driver {
    /// Looks at this machine.
    pub fn look() -> Self {
        Self { nodes: driver_nodes(), is_loaded: Path::new("/sys/module").join(NAME).exists() }
    }

    /// Whether it drives the PCI device, given by its folder in sysfs.
    pub fn drives(device: &Path) -> bool {
        fs::read_link(device.join("driver")).is_ok_and(|driver| driver.file_name().is_some_and(|n| n == NAME))
    }

    /// All checks of the driver and its devices.
    pub fn checks(&self) -> Vec<Check> {
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let kernel = kernel.trim();
        if !self.nodes.is_empty() {
            return self.nodes.iter().flat_map(|node| node_checks(node)).collect();
        }
        if self.is_loaded {
            return vec![Check::warning(
                "the guest driver is loaded, but offers no device",
                "sudo dmesg | grep vmshm: the driver says there why it left a device alone",
            )];
        }
        let what = format!("the vmshm guest driver is not loaded (kernel {kernel}): {WITHOUT}");
        let config = fs::read_to_string(format!("/boot/config-{kernel}")).ok();
        vec![Check::warning(what, cure(kernel, config.as_deref(), has_module()))]
    }
}

/// Whether the module is installed for the running kernel.
fn has_module() -> bool {
    // Beside the paths of users, who need not have /sbin in theirs.
    ["modinfo", "/sbin/modinfo", "/usr/sbin/modinfo"].iter().any(|program| {
        let mut command = Command::new(program);
        command.arg(NAME).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    })
}

/// How to get the driver for a kernel of which this much is known.
fn cure(kernel: &str, config: Option<&str>, has_module: bool) -> String {
    let is_too_old = version(kernel).is_some_and(|version| version < FIRST_KERNEL);
    let has_rust = config.is_none_or(|config| config.lines().any(|line| line == "CONFIG_RUST=y"));
    let (major, minor) = FIRST_KERNEL;
    if has_module {
        "sudo modprobe vmshm".to_owned()
    } else if is_too_old || !has_rust {
        format!(
            "this kernel cannot have it: take Linux {major}.{minor} or later with CONFIG_RUST=y (Debian 13: \
             linux-image-amd64 from trixie-backports), then the driver; see guest-kmod/README.md"
        )
    } else {
        "build it (guest-kmod/README.md; for Debian's kernels `cargo xtask kmod` on any Debian machine), then: \
         sudo insmod vmshm.ko"
            .to_owned()
    }
}

/// Major and minor number of a kernel release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

fn node_checks(node: &Path) -> Vec<Check> {
    if access(node, AccessFlags::R_OK | AccessFlags::W_OK).is_err() {
        return vec![denied(node)];
    }
    let info = match driver_info(node) {
        Ok(info) => info,
        Err(error) => {
            let cure =
                "sudo dmesg | grep vmshm; a device that was removed comes back when it is plugged in again";
            return vec![Check::missing(format!("{}: {error}", node.display()), cure)];
        }
    };
    let region = match read_region(&Source::Driver(node.to_owned())) {
        Ok(region) => region,
        Err(error) => {
            let cure = "on the host: vmshm region inspect NAME";
            return vec![Check::missing(format!("{}: {error}", node.display()), cure)];
        }
    };
    describe(&node.display().to_string(), &info, &region)
}

/// Why this user may not open a device, and the cure.
fn denied(node: &Path) -> Check {
    let group = fs::metadata(node).ok().map(|meta| Gid::from_raw(meta.gid()));
    let group = group.and_then(|gid| Group::from_gid(gid).ok().flatten()).map(|group| group.name);
    let what = format!(
        "this user (id {}) may not open {}, which belongs to the group {}",
        geteuid(),
        node.display(),
        group.as_deref().unwrap_or("of another system")
    );
    let cure = if group.as_deref() == Some("vmshm") {
        "sudo usermod -aG vmshm $USER, then log in again"
    } else {
        "the group vmshm and the udev rule packaging/udev/60-vmshm.rules are missing: sudo groupadd -rf vmshm; sudo cp \
         60-vmshm.rules /etc/udev/rules.d; sudo udevadm control --reload; sudo udevadm trigger; sudo usermod -aG vmshm \
         $USER, then log in again"
    };
    Check::missing(what, cure)
}

/// Properties of a device of the driver.
fn describe(node: &str, info: &DeviceInfo, region: &Region) -> Vec<Check> {
    let sections = region.sections().len();
    let text = format!(
        "{node}: region {} of {} with {sections} sections",
        Uuid::from_bytes(region.id()),
        format_bytes(info.region_len)
    );
    let mut checks = vec![Check::ok(text)];
    checks.push(if info.section == NO_SECTION {
        Check::missing(
            format!("{node}: no section is assigned to this VM: the region can only be read"),
            "on the host: start the VM with what `vmshm qemu-args NAME --section K` prints, its -uuid included",
        )
    } else {
        Check::ok(format!("{node}: this VM has section {}", info.section))
    });
    checks.push(match info.memory_type {
        WRITE_BACK => Check::ok(format!("{node}: mapped write-back, as ordinary memory")),
        _ => Check::warning(
            format!("{node}: mapped UNCACHED, which is slow: most likely it lies below 4 GiB, where firmware forbids caching"),
            "on the host, create the region with --size 4G or more: it then lies above 4 GiB",
        ),
    });
    checks.push(match info.vectors {
        0 => Check::ok(format!(
            "{node}: no doorbells, so processes wait by polling; for others: `vmshm qemu-args --doorbell` on the host"
        )),
        vectors => {
            Check::ok(format!("{node}: {vectors} doorbells: processes can sleep, see btl_vmshm_sleep_after"))
        }
    });
    checks
}

#[cfg(test)]
mod tests {
    use super::super::check::Verdict;
    use super::*;

    #[test]
    fn the_cure_depends_on_kernel_and_module() {
        let with_rust = Some("CONFIG_A=y\nCONFIG_RUST=y\n");
        let without = Some("# CONFIG_RUST is not set\n");
        let impossible = "cannot have it: take Linux 7.2";
        assert!(cure("6.1.0-40-amd64", None, false).contains(impossible));
        assert!(cure("7.2.12+deb13-amd64", without, false).contains(impossible));
        for (kernel, config) in [("7.2.12+deb13-amd64", with_rust), ("8.0.0", None), ("", None)] {
            assert!(cure(kernel, config, false).contains("cargo xtask kmod"), "{kernel}");
        }
        assert_eq!(cure("7.2.12+deb13-amd64", with_rust, true), "sudo modprobe vmshm");
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        assert_eq!(version("6.12.5-amd64"), Some((6, 12)));
        assert!(version("10.1").unwrap() > FIRST_KERNEL);
        assert_eq!(version("linux"), None);
    }

    #[test]
    fn a_device_is_described_with_its_memory_type_and_doorbells() {
        let directory = tempfile::TempDir::new_in("/dev/shm").unwrap();
        let registry = vmshm_host::Registry::at(directory.path());
        let name = vmshm_host::RegionName::new("job").unwrap();
        let file = registry.create(&name, &vmshm_host::CreateOptions::new(4 << 20)).unwrap();
        let region = read_region(&Source::File(file.path().to_owned())).unwrap();
        let info = DeviceInfo {
            version: vmshm_abi::driver::VERSION,
            section: 1,
            region_len: 4 << 20,
            vectors: 8,
            memory_type: WRITE_BACK,
            reserved: [0; 5],
        };
        let text = |info: DeviceInfo| {
            let checks = describe("/dev/vmshm0", &info, &region);
            let worst = checks.iter().map(|check| check.verdict as u8).max().unwrap();
            let lines: Vec<_> =
                checks.into_iter().map(|check| check.what + "; " + &check.cure.unwrap_or_default()).collect();
            (worst, lines.join("\n"))
        };
        let (worst, good) = text(info);
        assert_eq!(worst, Verdict::Ok as u8);
        for part in
            [&file.id().to_string(), "4 MiB with 2 sections", "has section 1", "write-back", "8 doorbells"]
        {
            assert!(good.contains(part), "{good}");
        }
        let (worst, slow) = text(DeviceInfo { memory_type: vmshm_abi::driver::UNCACHED, vectors: 0, ..info });
        assert_eq!(worst, Verdict::Warning as u8);
        assert!(slow.contains("UNCACHED") && slow.contains("--size 4G or more"), "{slow}");
        assert!(slow.contains("no doorbells"), "{slow}");
        let (worst, idle) = text(DeviceInfo { section: NO_SECTION, ..info });
        assert_eq!(worst, Verdict::Missing as u8);
        assert!(idle.contains("vmshm qemu-args"), "{idle}");
    }
}
