//! Finding the region of this host or guest, and attaching to it.
//!
//! A program names no device in the normal case. The order is: the device that the options name; the guest driver's
//! device; an ivshmem PCI device that holds a region and has no driver (through sysfs); the one region file of this host
//! (processes without any VM).

mod attached;
mod error;
mod find;
mod lease;
mod liveness;
mod lock;
mod section;
mod sleeper;
mod source;

pub use attached::{Attached, Options, open_endpoint};
pub use error::AttachError;
pub use find::{driver_nodes, find, pci_devices, region_dirs};
pub use section::section_of_machine;
pub use sleeper::Sleeper;
pub use source::{Source, driver_info, read_region};
