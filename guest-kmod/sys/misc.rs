// SPDX-License-Identifier: GPL-2.0

//! The misc device behind `/dev/vmshmN`.

use core::ptr;
use kernel::{
    bindings, container_of, pci,
    prelude::*,
    sync::{
        atomic::{Atomic, Full},
        Arc, ArcBorrow,
    },
    types::Opaque,
};

use super::{files::OPERATIONS, pci::raw};
use crate::{attributes::GROUPS, device::Device};

/// Room for the C structure, as a part of a [`Device`].
#[pin_data]
pub(crate) struct MiscDevice {
    #[pin]
    raw: Opaque<bindings::miscdevice>,
    /// Not 0 once it has been registered, be it given up since.
    used: Atomic<i32>,
}

// SAFETY: The C structure is only touched by the kernel's misc device code, under its lock.
unsafe impl Send for MiscDevice {}
// SAFETY: As above.
unsafe impl Sync for MiscDevice {}

impl MiscDevice {
    /// Not registered yet.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            raw: Opaque::zeroed(),
            used: Atomic::new(0)
        })
    }
}

/// `/dev/vmshmN` is there while this lives. Those who have opened it keep the [`Device`] beyond
/// that.
pub(crate) struct Registration(Arc<Device>);

impl Registration {
    /// Makes the device file, below `parent` in sysfs. It can be opened before this returns.
    pub(crate) fn new(device: Arc<Device>, parent: &pci::Device) -> Result<Self> {
        if device.misc.used.xchg(1, Full) != 0 {
            return Err(EBUSY);
        }
        let misc = device.misc.raw.get();
        // SAFETY: Nobody else knows the structure, since it was never registered. The name lies in
        // the device; operations and groups are static.
        unsafe {
            misc.write(bindings::miscdevice {
                minor: bindings::MISC_DYNAMIC_MINOR as c_int,
                name: device.name().as_char_ptr(),
                fops: ptr::from_ref(OPERATIONS.get()),
                parent: &raw mut (*raw(parent)).dev,
                groups: GROUPS.as_ptr(),
                // Which group that is, a rule of udev says.
                mode: 0o660,
                ..Default::default()
            })
        };
        // SAFETY: Filled in above, pinned in its `Arc`, which the new registration holds until
        // `misc_deregister`.
        kernel::error::to_result(unsafe { bindings::misc_register(misc) })?;
        Ok(Self(device))
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        // SAFETY: Registered by `new`. Waits for `open`s and attribute reads that run; there are no
        // new ones after it.
        unsafe { bindings::misc_deregister(self.0.misc.raw.get()) };
    }
}

/// The device that a registered misc device is a part of.
///
/// # Safety
///
/// `misc` is that of a [`Registration`] that lives as long as `'a`.
pub(super) unsafe fn device<'a>(misc: *mut bindings::miscdevice) -> ArcBorrow<'a, Device> {
    let opaque = Opaque::cast_from(misc).cast_mut();
    // SAFETY: The caller says that it is a part of a `MiscDevice`, which is a part of a `Device`.
    let device = unsafe { container_of!(container_of!(opaque, MiscDevice, raw), Device, misc) };
    // SAFETY: The registration holds an `Arc` of the device, and lives long enough.
    unsafe { ArcBorrow::from_raw(device) }
}
