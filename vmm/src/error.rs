//! Reasons why a VM cannot be made, each with its cure.

use std::io;
use std::path::PathBuf;

/// Why something about a VM could not be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel has no KVM.
    #[error(
        "there is no /dev/kvm: load the module (`sudo modprobe kvm_intel` or `kvm_amd`), and see that virtualization \
         is switched on in the firmware; inside a VM, its host must allow nested ones"
    )]
    NoKvm,
    /// The user may not use KVM.
    #[error(
        "/dev/kvm may not be opened by this user: join its group (`sudo usermod -aG kvm $USER`, then log in again), \
         or run as root"
    )]
    KvmPermission,
    /// KVM does not offer what a VM needs.
    #[error("this host's KVM lacks {capability}: {cure}")]
    Capability {
        /// KVM's name of it.
        capability: &'static str,
        /// The cure.
        cure: &'static str,
    },
    /// KVM or the operating system refused.
    #[error("cannot {doing}: {cause}")]
    Io {
        /// The attempt, as a verb with its object.
        doing: String,
        /// Its answer.
        cause: io::Error,
    },
    /// An argument makes no sense.
    #[error("{what} {value} {why}")]
    Invalid {
        /// Which argument.
        what: &'static str,
        /// Its value.
        value: String,
        /// The fault, and what to give instead.
        why: String,
    },
    /// Something is wrong with the region.
    #[error(transparent)]
    Region(#[from] vmshm_host::Error),
    /// The region's file may only be read.
    #[error(
        "{path} may not be written by this user: a VM needs that for its own section; ask the owner to add you to the file's group"
    )]
    RegionReadOnly {
        /// The file.
        path: String,
    },
    /// Nobody serves the region.
    #[error(
        "no ivshmem server answers at {}: start one with `vmshm serve NAME`, or leave the doorbells out",
        path.display()
    )]
    NoServer {
        /// The socket.
        path: PathBuf,
    },
    /// The server has no section for this VM.
    #[error(
        "the ivshmem server at {} turned the VM away: another VM or process has the section (`vmshm region inspect` \
         shows who)",
        path.display()
    )]
    TurnedAway {
        /// The socket.
        path: PathBuf,
    },
    /// A device cannot be passed through.
    #[error(transparent)]
    Device(#[from] crate::host_device::Refusal),
    /// Memory does not suffice.
    #[error("{wanted} are wanted {place}, but {free} free there: {cure}")]
    NoRoom {
        /// Number of pages, and their length.
        wanted: String,
        /// Where.
        place: String,
        /// Number of free ones with its verb: `120 are`, say.
        free: String,
        /// The cure.
        cure: String,
    },
}

impl Error {
    /// Says what was tried when the operating system refused.
    pub(crate) fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |cause| Self::Io { doing, cause }
    }

    /// The same for the crate `nix`.
    pub(crate) fn sys(doing: impl Into<String>) -> impl FnOnce(nix::Error) -> Self {
        let doing = doing.into();
        move |errno| Self::Io { doing, cause: errno.into() }
    }

    /// The same for KVM's calls.
    pub(crate) fn kvm(doing: impl Into<String>) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        let doing = doing.into();
        move |errno| Self::Io { doing, cause: errno.into() }
    }
}
