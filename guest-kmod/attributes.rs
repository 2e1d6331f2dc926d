// SPDX-License-Identifier: GPL-2.0

//! Attributes in `/sys/class/misc/vmshmN/`.

use core::fmt::{Result, Write};
use kernel::ffi::c_char;

use crate::{
    abi::driver::{UNCACHED, WRITE_BACK},
    device::Device,
    section,
    sys::{self, attributes, Page},
};

attributes! { Device, 8:
    c"region_id" => region_id,
    c"size" => size,
    c"sections" => sections,
    c"section" => own_section,
    c"numa_node" => numa_node,
    c"host_node" => host_node,
    c"memory_type" => memory_type,
    c"vectors" => vectors,
}

/// The region's random number, as a UUID.
fn region_id(device: &Device, page: &mut Page) -> Result {
    for (index, byte) in device.header().region_id.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            page.write_char('-')?;
        }
        write!(page, "{byte:02x}")?;
    }
    page.write_char('\n')
}

/// Bytes of the region.
fn size(device: &Device, page: &mut Page) -> Result {
    writeln!(page, "{}", device.header().region_len)
}

/// Number of sections.
fn sections(device: &Device, page: &mut Page) -> Result {
    writeln!(page, "{}", device.header().sections)
}

/// The section that this machine may write, or `none`.
fn own_section(device: &Device, page: &mut Page) -> Result {
    match device.state().section() {
        Some(section) => writeln!(page, "{}", section.number),
        None => writeln!(page, "none"),
    }
}

/// This machine's NUMA node that the device is near to, or -1.
fn numa_node(device: &Device, page: &mut Page) -> Result {
    writeln!(page, "{}", sys::numa_node(device.pdev()))
}

/// The host's NUMA node that the memory of our section was bound to, or -1.
fn host_node(device: &Device, page: &mut Page) -> Result {
    let number = device.state().section().map(|section| section.number);
    let node = number.and_then(|number| {
        let entry = device
            .bars
            .try_access_with(|bars| section::entry(&bars.memory, device.header(), number));
        Some(entry??.node)
    });
    writeln!(page, "{}", node.unwrap_or(-1))
}

/// How the region is really mapped: `write-back` or `uncached`.
fn memory_type(device: &Device, page: &mut Page) -> Result {
    match device.memory_type() {
        WRITE_BACK => writeln!(page, "write-back"),
        UNCACHED => writeln!(page, "uncached"),
        other => writeln!(page, "{other}"),
    }
}

/// Number of doorbells.
fn vectors(device: &Device, page: &mut Page) -> Result {
    writeln!(page, "{}", device.vectors())
}
