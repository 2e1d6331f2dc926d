//! Whether a device of this host can be passed through, as sysfs says, and the cure where not.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use vmshm_host::format_bytes;

/// Where a PCI function is on this host: `0000:3b:00.2`, say.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address(String);

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Address {
    type Err = String;

    /// Takes an address as `lspci` prints it, with or without the domain.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("{text:?} is no PCI address: give one as `lspci -D` prints it, as 0000:3b:00.2");
        let whole = if text.matches(':').count() == 1 { format!("0000:{text}") } else { text.to_lowercase() };
        let (place, function) = whole.split_once('.').ok_or_else(wrong)?;
        let parts: Vec<_> = place.split(':').collect();
        let hex = |text: &str, most: u32| {
            text.bytes().all(|byte| byte.is_ascii_hexdigit())
                && u32::from_str_radix(text, 16).is_ok_and(|n| n <= most)
        };
        let sound = matches!(parts[..], [domain, bus, device]
            if hex(domain, 0xffff_ffff) && hex(bus, 0xff) && hex(device, 31));
        if !sound || !hex(function, 7) {
            return Err(wrong());
        }
        let part = |i: usize| u32::from_str_radix(parts[i], 16).unwrap_or_default();
        Ok(Self(format!("{:04x}:{:02x}:{:02x}.{function}", part(0), part(1), part(2))))
    }
}

/// A function that can be passed through.
#[derive(Debug, Clone)]
pub struct Found {
    /// Its address.
    pub address: Address,
    /// Vendor and device, as `lspci -n` prints them.
    pub id: String,
    /// Its IOMMU group.
    pub group: u32,
    /// The NUMA node it is plugged into.
    pub node: Option<u32>,
    /// Its directory in sysfs.
    pub(crate) path: PathBuf,
}

/// Why a device cannot be passed through.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// There is no such function.
    #[error("there is no PCI device {address} on this host: `lspci -D` lists those that are there{hint}")]
    NoDevice {
        /// Its address.
        address: Address,
        /// Further advice.
        hint: &'static str,
    },
    /// Nothing translates the addresses that devices use.
    #[error(
        "no IOMMU is on, without which device {address} could write to all memory: switch on VT-d or AMD-Vi in the \
         firmware, and on Intel boot with intel_iommu=on"
    )]
    NoIommu {
        /// The device.
        address: Address,
    },
    /// The IOMMU is on, but does not see this device.
    #[error(
        "device {address} is in no IOMMU group, so nothing confines its memory accesses: it cannot be passed through; \
         `dmesg | grep -i -e DMAR -e AMD-Vi` may say why"
    )]
    NoGroup {
        /// The device.
        address: Address,
    },
    /// A driver of the host has it.
    #[error(
        "device {address} ({id}) {}: give it to vfio-pci: sudo modprobe vfio-pci && {}",
        driver.as_ref().map_or("has no driver".to_owned(), |driver| format!("belongs to the driver {driver}")),
        bind(address, driver.is_some())
    )]
    OtherDriver {
        /// The device.
        address: Address,
        /// Vendor and device.
        id: String,
        /// The driver.
        driver: Option<String>,
    },
    /// Others of its group are in use by the host.
    #[error(
        "device {address} shares IOMMU group {group} with {}, which the host uses: give those to vfio-pci as well \
         ({}), or plug the device into a slot whose group it has for itself",
        others.iter().map(|(address, driver)| format!("{address} (driver {driver})")).collect::<Vec<_>>().join(", "),
        bind(&others[0].0, true)
    )]
    Group {
        /// The device.
        address: Address,
        /// Its group.
        group: u32,
        /// Those of the group that are in use, and their drivers.
        others: Vec<(Address, String)>,
    },
    /// The module is not loaded.
    #[error("there is no {}: sudo modprobe vfio-pci", path.display())]
    NoVfio {
        /// The file.
        path: PathBuf,
    },
    /// The user may not use it.
    #[error("{0} may not be opened by this user: sudo chown $USER {0}, or run as root", path.display())]
    Permission {
        /// The file.
        path: PathBuf,
    },
    /// Another process has it.
    #[error(
        "{0} is in use by another VM, or by a program of its own: `sudo fuser -v {0}` shows by which; end that first",
        path.display()
    )]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// Memory must be locked, and may not.
    #[error(
        "passthrough locks all memory that the device can reach, {}, but this user may lock {}: \
         `ulimit -l unlimited` as root before this command, LimitMEMLOCK=infinity in a systemd unit, or a memlock line in \
         /etc/security/limits.conf",
        format_bytes(*wanted), format_bytes(*limit)
    )]
    Memlock {
        /// Bytes wanted.
        wanted: u64,
        /// Bytes allowed.
        limit: u64,
    },
    /// The IOMMU does not take an address.
    #[error(
        "the IOMMU of this host does not map {len:#x} bytes at the guest's address {start:#x} ({cause}): the address is \
         beyond its width, or reserved (see {reserved})"
    )]
    Map {
        /// The guest's address.
        start: u64,
        /// Bytes.
        len: u64,
        /// The kernel's answer.
        cause: io::Error,
        /// The file that lists what is reserved.
        reserved: String,
    },
    /// A kind of device that is not supported.
    #[error("device {address} {why}: it cannot be passed through")]
    Unfit {
        /// The device.
        address: Address,
        /// The oddity.
        why: String,
    },
    /// The kernel refused.
    #[error("cannot {doing}: {cause}; `dmesg` may say more")]
    Kernel {
        /// The attempt, as a verb with its object.
        doing: String,
        /// Its answer.
        cause: String,
    },
}

/// The commands that give a function to vfio-pci.
fn bind(address: &Address, bound: bool) -> String {
    let device = format!("/sys/bus/pci/devices/{address}");
    let unbind =
        if bound { format!("echo {address} | sudo tee {device}/driver/unbind && ") } else { String::new() };
    format!(
        "echo vfio-pci | sudo tee {device}/driver_override && {unbind}echo {address} | sudo tee /sys/bus/pci/drivers_probe"
    )
}

/// Looks whether a function can be passed through, in the sysfs below `root`.
///
/// # Errors
/// It cannot, for a reason that says how to mend it.
pub fn look(root: &Path, address: &Address) -> Result<Found, Refusal> {
    let path = root.join("sys/bus/pci/devices").join(&address.0);
    if !path.exists() {
        let hint = if address.0.ends_with(".0") {
            ""
        } else {
            ". A virtual function is there once its adapter was told how many: echo 4 | sudo tee \
             /sys/bus/pci/devices/ADAPTER/sriov_numvfs"
        };
        return Err(Refusal::NoDevice { address: address.clone(), hint });
    }
    let groups = root.join("sys/kernel/iommu_groups");
    if fs::read_dir(&groups).map_or(true, |mut entries| entries.next().is_none()) {
        return Err(Refusal::NoIommu { address: address.clone() });
    }
    let Some(group) = link(&path.join("iommu_group")).and_then(|name| name.parse::<u32>().ok()) else {
        return Err(Refusal::NoGroup { address: address.clone() });
    };
    let id = id(&path);
    let driver = link(&path.join("driver"));
    if !driver.as_deref().is_some_and(is_vfio) {
        return Err(Refusal::OtherDriver { address: address.clone(), id, driver });
    }
    // As the kernel decides: drivers of bridges and stubs are no users.
    let mut others = Vec::new();
    let members = fs::read_dir(groups.join(group.to_string()).join("devices"));
    for member in members.into_iter().flatten().flatten() {
        let name = member.file_name().to_string_lossy().into_owned();
        let driver = link(&root.join("sys/bus/pci/devices").join(&name).join("driver"));
        let used = driver.filter(|driver| !is_vfio(driver) && driver != "pci-stub" && driver != "pcieport");
        if let Some(driver) = used {
            others.push((Address(name), driver));
        }
    }
    if !others.is_empty() {
        others.sort();
        return Err(Refusal::Group { address: address.clone(), group, others });
    }
    let node = text(&path.join("numa_node")).and_then(|node| node.parse().ok());
    Ok(Found { address: address.clone(), id, group, node, path })
}

/// All functions that a driver for passthrough has, in the sysfs below `root`.
pub fn bound(root: &Path) -> Vec<Address> {
    let drivers = fs::read_dir(root.join("sys/bus/pci/drivers")).into_iter().flatten().flatten();
    let vfio = drivers.filter(|driver| is_vfio(&driver.file_name().to_string_lossy()));
    let entries = vfio.flat_map(|driver| fs::read_dir(driver.path()).into_iter().flatten().flatten());
    let mut found: Vec<_> =
        entries.filter_map(|entry| entry.file_name().to_string_lossy().parse().ok()).collect();
    found.sort();
    found
}

/// Bytes that this process may lock, or `None` where nothing limits it.
pub fn memlock() -> Option<u64> {
    const CAP_IPC_LOCK: u32 = 14;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).unwrap_or(0);
    if effective & 1 << CAP_IPC_LOCK != 0 {
        return None;
    }
    let (soft, _) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_MEMLOCK).ok()?;
    (soft != libc::RLIM_INFINITY).then_some(soft)
}

fn is_vfio(driver: &str) -> bool {
    // Adapters have variants of their own: mlx5_vfio_pci, say.
    driver.contains("vfio")
}

fn id(path: &Path) -> String {
    let word = |name| text(&path.join(name)).unwrap_or_default().trim_start_matches("0x").to_owned();
    format!("{}:{}", word("vendor"), word("device"))
}

fn text(path: &Path) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

/// The last part of what a link leads to.
fn link(path: &Path) -> Option<String> {
    Some(fs::read_link(path).ok()?.file_name()?.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn address(text: &str) -> Address {
        text.parse().unwrap()
    }

    /// A sysfs with these functions: address, group, driver.
    fn host(functions: &[(&str, Option<u32>, Option<&str>)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let sys = root.path().join("sys");
        for (address, group, driver) in functions {
            let device = sys.join("bus/pci/devices").join(address);
            fs::create_dir_all(&device).unwrap();
            fs::write(device.join("vendor"), "0x15b3\n").unwrap();
            fs::write(device.join("device"), "0x101e\n").unwrap();
            fs::write(device.join("numa_node"), "1\n").unwrap();
            if let Some(group) = group {
                let group = sys.join("kernel/iommu_groups").join(group.to_string());
                fs::create_dir_all(group.join("devices").join(address)).unwrap();
                symlink(&group, device.join("iommu_group")).unwrap();
            }
            if let Some(driver) = driver {
                let driver = sys.join("bus/pci/drivers").join(driver);
                fs::create_dir_all(driver.join(address)).unwrap();
                symlink(&driver, device.join("driver")).unwrap();
            }
        }
        root
    }

    #[test]
    fn addresses_are_taken_as_lspci_prints_them() {
        assert_eq!(address("3b:00.2").to_string(), "0000:3b:00.2");
        assert_eq!(address("0001:3B:1f.7").to_string(), "0001:3b:1f.7");
        for wrong in ["", "3b", "3b:00", "3b:20.0", "3b:00.8", "../../etc:00.0", "1:2:3:4.0", "100:00.0"] {
            assert!(wrong.parse::<Address>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_device_that_vfio_has_alone_can_be_passed_through() {
        let root = host(&[
            ("0000:3b:00.2", Some(42), Some("vfio-pci")),
            ("0000:3a:00.0", Some(42), Some("pcieport")),
            ("0000:3b:00.3", Some(42), None),
        ]);
        let found = look(root.path(), &address("3b:00.2")).unwrap();
        assert_eq!((found.group, found.node, &*found.id), (42, Some(1), "15b3:101e"));
        assert_eq!(bound(root.path()), [address("3b:00.2")]);
    }

    #[test]
    fn every_refusal_names_what_is_wrong_and_the_cure() {
        let root = host(&[
            ("0000:01:00.0", Some(1), Some("mlx5_core")),
            ("0000:02:00.0", Some(2), Some("vfio-pci")),
            ("0000:02:00.1", Some(2), Some("snd_hda_intel")),
            ("0000:03:00.0", None, Some("vfio-pci")),
            ("0000:04:00.0", Some(4), None),
        ]);
        let text = |at: &str| look(root.path(), &address(at)).unwrap_err().to_string();
        let other = text("01:00.0");
        assert!(other.contains("driver mlx5_core") && other.contains("driver/unbind"), "{other}");
        assert!(other.contains("15b3:101e") && other.contains("modprobe vfio-pci"), "{other}");
        let group = text("02:00.0");
        assert!(group.contains("group 2 with 0000:02:00.1 (driver snd_hda_intel)"), "{group}");
        assert!(text("03:00.0").contains("in no IOMMU group"));
        let none = text("04:00.0");
        assert!(none.contains("has no driver") && !none.contains("unbind"), "{none}");
        assert!(text("05:00.0").contains("lspci -D"));
        assert!(text("01:00.1").contains("sriov_numvfs"));
        let bare = host(&[("0000:01:00.0", None, Some("vfio-pci"))]);
        let text = look(bare.path(), &address("01:00.0")).unwrap_err().to_string();
        assert!(text.contains("intel_iommu=on"), "{text}");
    }
}
