//! Errors of attaching, with what to do.

use std::io;
use std::path::{Path, PathBuf};

use vmshm_abi::driver::VERSION;
use vmshm_abi::region::HeaderError;

use crate::error::AttachError as SectionError;

/// Reason why no region could be attached to.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// Nothing to attach to.
    #[error(
        "no vmshm region found: a guest needs an ivshmem device (on its host: `vmshm qemu-args`), processes on a host \
         need a region (`vmshm region create`)"
    )]
    NoDevice,
    /// The named device or region does not exist.
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
        /// The file that could not be opened.
        path: PathBuf,
    },
    /// The header is foreign, damaged or of another version.
    #[error("{} can't be used as a vmshm region: {error}", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// The error of the header.
        error: HeaderError,
    },
    /// The machine is not in the region's table.
    #[error(
        "no section of the region is assigned to this machine (SMBIOS UUID {uuid}): start it with the arguments that \
         `vmshm qemu-args` prints, and keep that UUID"
    )]
    NotAssigned {
        /// The machine's UUID.
        uuid: String,
    },
    /// The guest driver knows no section of this machine's.
    #[error(
        "the host gives this machine no section of {}: start it with the arguments that `vmshm qemu-args` prints, and \
         keep its SMBIOS UUID",
        path.display()
    )]
    NoSection {
        /// The device.
        path: PathBuf,
    },
    /// Another section was asked for than the one that the host gives this machine.
    #[error(
        "section {wanted} was asked for, but this machine has section {section} of {}: unset VMSHM_SECTION",
        path.display()
    )]
    OtherSection {
        /// The device.
        path: PathBuf,
        /// The section that was asked for.
        wanted: u32,
        /// The machine's section.
        section: u32,
    },
    /// A device that some other driver has made.
    #[error("{} is no device of the vmshm guest driver: name another in VMSHM_DEVICE, or none", path.display())]
    Foreign {
        /// The device.
        path: PathBuf,
    },
    /// The guest driver is of another version.
    #[error(
        "the guest driver behind {} has version {found} of its interface, this vmshm speaks version {VERSION}: use the \
         same vmshm release for both",
        path.display()
    )]
    DriverVersion {
        /// The device.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// The device was removed from this machine, or taken from its driver.
    #[error(
        "{} was removed from this machine: plug it in again, or bind it to its driver; `vmshm doctor` shows when it is \
         back",
        path.display()
    )]
    Lost {
        /// The device.
        path: PathBuf,
    },
    /// The kernel does not tell which boot this is.
    #[error(
        "{} can't be read ({error}), by which the living of this machine are told from what an earlier boot left: have \
         /proc mounted with this file readable and unmasked (see what the container or sandbox hides)",
        path.display()
    )]
    BootId {
        /// The file.
        path: PathBuf,
        /// The reason.
        error: io::Error,
    },
    /// All sections belong to VMs.
    #[error(
        "all {0} sections of the region are kept for virtual machines: release one with `vmshm region release`"
    )]
    AllAssigned(u32),
    /// The host gives the section to a VM at this moment.
    #[error("section {0} is being given to a virtual machine: choose another in VMSHM_SECTION")]
    Taken(u32),
    /// The host keeps the section for a VM.
    #[error(
        "section {section} is kept for the virtual machine of {owner}: unset VMSHM_SECTION, or choose a section that \
         `vmshm region inspect` calls free; `vmshm region release` frees one"
    )]
    Assigned {
        /// The section that was asked for.
        section: u32,
        /// The VM, as the host knows it.
        owner: String,
    },
    /// The ivshmem server has given the device no id.
    #[error(
        "{}: the host's server has not told which section this machine has: is `vmshm serve` running there?",
        path.display()
    )]
    NotJoined {
        /// The device.
        path: PathBuf,
    },
    /// The host's table does not name this machine.
    #[error(
        "the host does not keep section {section} for this machine (id {position} of the ivshmem server) any more: restart \
         this machine"
    )]
    Released {
        /// The section that the server had given.
        section: u32,
        /// The machine's id.
        position: u32,
    },
    /// The section variable is no number.
    #[error("VMSHM_SECTION is {0:?}, which is no section number")]
    SectionNumber(String),
    /// The section is unknown or full.
    #[error(transparent)]
    Section(#[from] SectionError),
    /// The system refused something.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file that it was about.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
}

fn cure(path: &Path) -> &'static str {
    if path.starts_with("/sys") {
        "without the vmshm guest driver only root can map the device"
    } else if path.starts_with("/dev") && !path.starts_with("/dev/shm") && !path.starts_with("/dev/hugepages")
    {
        "become a member of the group vmshm (`sudo usermod -aG vmshm $USER`, then log in again); where `ls -l` shows \
         another group, install vmshm's udev rule and run `sudo udevadm trigger`"
    } else {
        "ask for membership in its group (see `ls -l`)"
    }
}

pub(super) fn io_error(path: &Path) -> impl FnOnce(io::Error) -> AttachError + '_ {
    move |error| match error.kind() {
        io::ErrorKind::NotFound => AttachError::Unknown(path.display().to_string()),
        io::ErrorKind::PermissionDenied => AttachError::Denied { path: path.into() },
        _ => AttachError::Io { path: path.into(), error },
    }
}
