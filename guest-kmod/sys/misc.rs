// SPDX-License-Identifier: GPL-2.0

//! The misc device behind `/dev/vmshmN`.

use core::{marker::PhantomData, ptr};
use kernel::{bindings, container_of, pci, prelude::*, str::CString, sync::Arc, types::Opaque};

use super::pci::raw;

/// File operations of a misc device that stands for a `D`.
///
/// # Invariants
///
/// They take the misc device for a `D`, if for anything, as [`device`] does.
pub(crate) struct Operations<D> {
    pub(super) raw: bindings::file_operations,
    pub(super) device: PhantomData<fn(D)>,
}

/// Groups of sysfs attributes of a misc device that stands for a `D`; the last is null.
pub(crate) struct Groups<D>([*const bindings::attribute_group; 2], PhantomData<fn(D)>);

// SAFETY: Only sysfs touches what is behind the pointers, and keeps order among its users.
unsafe impl<D> Sync for Groups<D> {}

impl<D> Groups<D> {
    /// # Safety
    ///
    /// `group` lives for ever. Its attributes take the misc device for a `D`, as [`device`] does.
    pub(crate) const unsafe fn new(group: *const bindings::attribute_group) -> Self {
        Self([group, ptr::null()], PhantomData)
    }
}

/// `/dev/vmshmN` is there while this lives. Those who have opened it keep the `D` beyond that.
pub(crate) struct Registration<D>(KBox<Registered<D>>);

struct Registered<D> {
    misc: Opaque<bindings::miscdevice>,
    name: CString,
    device: Arc<D>,
}

// SAFETY: The C structure is only touched by the kernel's misc device code, under its lock.
unsafe impl<D: Send + Sync> Send for Registration<D> {}
// SAFETY: As above.
unsafe impl<D: Send + Sync> Sync for Registration<D> {}

impl<D> Registration<D> {
    /// Makes the device file, below `parent` in sysfs. It can be opened before this returns.
    pub(crate) fn new(
        name: &CStr,
        device: Arc<D>,
        parent: &pci::Device,
        operations: &'static Operations<D>,
        groups: &'static Groups<D>,
    ) -> Result<Self> {
        let registered = KBox::new(
            Registered {
                misc: Opaque::zeroed(),
                name: CString::try_from(name)?,
                device,
            },
            GFP_KERNEL,
        )?;
        let misc = registered.misc.get();
        // SAFETY: Nobody else knows the structure yet. The name lies beside it; operations and
        // groups are static.
        unsafe {
            misc.write(bindings::miscdevice {
                minor: bindings::MISC_DYNAMIC_MINOR as c_int,
                name: registered.name.as_char_ptr(),
                fops: &operations.raw,
                parent: &raw mut (*raw(parent)).dev,
                groups: groups.0.as_ptr().cast_mut(),
                // Which group that is, a rule of udev says.
                mode: 0o660,
                ..Default::default()
            })
        };
        // SAFETY: Filled in above, in a box of its own, which is freed after `misc_deregister`.
        kernel::error::to_result(unsafe { bindings::misc_register(misc) })?;
        Ok(Self(registered))
    }
}

impl<D> Drop for Registration<D> {
    fn drop(&mut self) {
        // SAFETY: Registered by `new`. Waits for `open`s and attribute reads that run; there are no
        // new ones after it.
        unsafe { bindings::misc_deregister(self.0.misc.get()) };
    }
}

/// The device behind a registered misc device.
///
/// # Safety
///
/// `misc` is that of a [`Registration`] of a `D` that lives as long as `'a`.
pub(super) unsafe fn device<'a, D>(misc: *mut bindings::miscdevice) -> &'a Arc<D> {
    let opaque = Opaque::cast_from(misc).cast_mut();
    // SAFETY: By this function's contract it is a part of a `Registered<D>`, which lives.
    unsafe { &(*container_of!(opaque, Registered<D>, misc)).device }
}
