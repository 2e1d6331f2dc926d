// SPDX-License-Identifier: GPL-2.0

//! Mappings: what may be mapped, and the pages that appear when it is touched.

use kernel::prelude::*;

use crate::{
    device::Device,
    sys::{Fault, FillsPages, NewVma, Outcome},
};

/// Makes a mapping of the region, or refuses it.
///
/// `ENODEV` if the device is gone, `EINVAL` for a private mapping and for what lies outside of the
/// region, `EACCES` for what must not be written or executed.
pub(crate) fn map<F: FillsPages>(device: &Device, vma: NewVma<'_, F>) -> Result {
    if device.is_gone() {
        return Err(ENODEV);
    }
    if !vma.is_shared() {
        return Err(EINVAL);
    }
    if vma.is_executable() {
        return Err(EACCES);
    }
    let (offset, len) = (vma.offset()?, vma.len());
    let end = offset.checked_add(len).ok_or(EINVAL)?;
    if end > device.header().region_len {
        return Err(EINVAL);
    }
    let writable = device.state().writable(device.header());
    let may_write = writable.is_some_and(|ours| ours.start <= offset && end <= ours.end);
    if vma.is_writable() && !may_write {
        return Err(EACCES);
    }
    vma.finish(may_write)
}

/// Fills in a page.
///
/// Once the device is gone, nothing is filled in any more. The device's locks come after the
/// process's lock of its mappings: whoever holds one must not touch the memory of a process.
pub(crate) fn fault(device: &Device, fault: &Fault) -> Outcome {
    let filled = device.fill(|frames| fault.insert(frames));
    filled.unwrap_or(Outcome::SIGBUS)
}
