// SPDX-License-Identifier: GPL-2.0

//! `/dev/vmshmN`: the guest driver for vmshm regions, which an ivshmem PCI device shows as its BAR
//! 2.
//!
//! A region is memory that several virtual machines share. The driver maps it write-back cached,
//! lets a process write only the section of its own virtual machine, passes doorbells on, and notes
//! in the section which processes have ended. Its interface for programs is written down in
//! `abi/src/driver.rs`, what lies in a region in `abi/src/region.rs` and `abi/src/section.rs`: the
//! same files from which the library and the host's tools are built.
//!
//! | file | subject |
//! |---|---|
//! | `abi.rs` | the words shared with the host and the library |
//! | `probe.rs` | a PCI device comes and goes |
//! | `device.rs` | what all open files of one device share |
//! | `file.rs` | one open file, and its ioctls |
//! | `waiter.rs` | an open file as its device knows it: its endpoint slot, and what it waits for |
//! | `bars.rs` | the device's memory and registers |
//! | `mmap.rs` | mappings, and the faults that fill them |
//! | `doorbell.rs` | who listens to which interrupt, and ringing others |
//! | `section.rs` | which section is ours, and the lives in it |
//! | `attributes.rs` | sysfs |
//! | `sys/` | all that is unsafe: thin wrappers over the kernel's functions |

use kernel::{driver, pci, prelude::*};

// Not all of it is for the driver, and its optional feature is unknown to the kernel's compiler.
#[allow(dead_code, missing_docs, unexpected_cfgs, unreachable_pub)]
mod abi;
mod attributes;
mod bars;
mod device;
mod doorbell;
mod file;
mod mmap;
mod probe;
mod section;
mod sys;
mod waiter;

#[pin_data]
struct Vmshm {
    #[pin]
    driver: driver::Registration<pci::Adapter<probe::Driver>>,
}

impl kernel::InPlaceModule for Vmshm {
    fn init(module: &'static ThisModule) -> impl PinInit<Self, Error> {
        sys::init_numbers();
        try_pin_init!(Self {
            driver <- driver::Registration::new(<Self as kernel::ModuleMetadata>::NAME, module),
        })
    }
}

module! {
    type: Vmshm,
    name: "vmshm",
    authors: ["The vmshm authors"],
    description: "Memory shared by virtual machines on one host: /dev/vmshmN",
    license: "GPL",
}

/// Version, as `modinfo` shows it; `module!` has no field for it.
#[used]
#[link_section = ".modinfo"]
static VERSION: [u8; 14] = *b"version=0.1.0\0";
