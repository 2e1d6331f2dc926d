//! Runs virtual machines around one shared region, on this host's KVM.
//!
//! A VM gets the region as a PCI BAR that consists of several memory slots: its own section is writable, all others are
//! read-only (unless the region is an open one). See `docs/vmm.md` for addresses, threads and what is trusted.

#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

mod acpi;
pub mod bare;
mod beginning;
pub mod boot;
mod bus;
mod client;
mod control;
mod counters;
mod cpuid;
mod disk;
mod error;
mod filters;
mod host;
mod host_device;
#[cfg(any(test, feature = "fuzz"))]
pub mod hostile;
mod hvc;
mod interrupts;
mod ivshmem;
pub mod layout;
mod long_mode;
mod machine;
mod memory;
mod msix;
mod net;
mod numa;
pub mod pci;
pub mod place;
pub mod port;
pub mod power;
mod random;
#[cfg(any(test, feature = "fuzz"))]
mod recorder;
mod rights;
pub mod serial;
mod shared;
pub mod smbios;
mod socket_name;
mod space;
mod stream;
mod sysfs;
pub mod thread;
mod topology;
mod vcpu;
pub mod vfio;
mod vhost;
mod virtio;
mod vm;

pub use bus::{Bus, Device};
pub use control::End;
pub use counters::{Counters, Counts};
pub use disk::Disk;
pub use error::Error;
pub use host::Host;
pub use hvc::Hvc;
pub use machine::{Attachment, Guest, Machine, Plan};
pub use memory::{Ram, RamOptions};
pub use net::Net;
pub use shared::{Part, Shared};
pub use topology::Topology;
pub use vm::{Running, Stats, Stopper, Vm};
