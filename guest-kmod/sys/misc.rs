// SPDX-License-Identifier: GPL-2.0

//! The misc device behind `/dev/vmshmN`, and its attributes in sysfs.

use core::{cell::UnsafeCell, fmt, ptr};
use kernel::{
    bindings, container_of,
    page::PAGE_SIZE,
    pci,
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

/// The page that an attribute is shown on. What does not fit is left out.
pub(crate) struct Page {
    buffer: *mut u8,
    used: usize,
}

impl fmt::Write for Page {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let taken = text.len().min(PAGE_SIZE - self.used);
        // SAFETY: The buffer is a page by `show`, and `used + taken` is at most a page.
        unsafe { ptr::copy_nonoverlapping(text.as_ptr(), self.buffer.add(self.used), taken) };
        self.used += taken;
        if taken == text.len() {
            Ok(())
        } else {
            Err(fmt::Error)
        }
    }
}

/// Has an attribute written.
///
/// # Safety
///
/// `dev` is the device that `misc_register` made of a [`Registration`], which is kept from going
/// away, and `buffer` a page, as sysfs gives them to a `show` function.
pub(crate) unsafe fn show(
    dev: *mut bindings::device,
    buffer: *mut c_char,
    write: fn(&Device, &mut Page) -> fmt::Result,
) -> isize {
    // SAFETY: `misc_register` gives its device the misc device as driver data.
    let misc = unsafe { bindings::dev_get_drvdata(dev) };
    // SAFETY: Removal of the attributes, in `misc_deregister`, waits until nobody shows them.
    let device = unsafe { device(misc.cast()) };
    let mut page = Page {
        buffer: buffer.cast(),
        used: 0,
    };
    // It fails only where the page is full.
    let _ = write(&device, &mut page);
    page.used as isize
}

type Show = unsafe extern "C" fn(
    *mut bindings::device,
    *mut bindings::device_attribute,
    *mut c_char,
) -> isize;

/// A read-only attribute.
#[repr(transparent)]
pub(crate) struct Attribute(UnsafeCell<bindings::device_attribute>);

// SAFETY: Only sysfs touches it, and keeps order among its users.
unsafe impl Sync for Attribute {}

impl Attribute {
    /// See [`attributes!`].
    pub(crate) const fn new(name: &'static CStr, show: Show) -> Self {
        let mut attribute: bindings::device_attribute = pin_init::zeroed();
        attribute.attr.name = kernel::str::as_char_ptr_in_const_context(name);
        attribute.attr.mode = 0o444;
        attribute.__bindgen_anon_1.show = Some(show);
        Self(UnsafeCell::new(attribute))
    }

    /// For the list that ends in null.
    pub(crate) const fn as_ptr(&self) -> *mut bindings::attribute {
        // CAST: The attribute proper is the first field of `struct device_attribute`.
        self.0.get().cast()
    }
}

/// A static that holds pointers to other statics.
#[repr(transparent)]
pub(crate) struct Table<T>(UnsafeCell<T>);

// SAFETY: Only sysfs touches what is behind it, and keeps order among its users.
unsafe impl<T> Sync for Table<T> {}

impl<T> Table<T> {
    /// See [`attributes!`].
    pub(crate) const fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }
}

impl<T, const N: usize> Table<[T; N]> {
    /// The first entry.
    pub(crate) const fn as_ptr(&self) -> *mut T {
        self.0.get().cast()
    }
}

/// See [`attributes!`].
pub(crate) const fn group(attributes: *mut *mut bindings::attribute) -> bindings::attribute_group {
    let mut group: bindings::attribute_group = pin_init::zeroed();
    group.__bindgen_anon_2.attrs = attributes;
    group
}

/// Defines `GROUPS`, the attributes of the device: names, and the functions that write them.
macro_rules! attributes {
    ($count:literal: $($name:literal => $write:ident,)*) => {
        static ATTRIBUTES: [$crate::sys::Attribute; $count] = [$({
            /// # Safety
            ///
            /// Only called by sysfs.
            unsafe extern "C" fn show(
                dev: *mut kernel::bindings::device,
                _: *mut kernel::bindings::device_attribute,
                buffer: *mut c_char,
            ) -> isize {
                // SAFETY: Sysfs calls this for a device that has the attribute, with a page.
                unsafe { $crate::sys::show(dev, buffer, $write) }
            }
            $crate::sys::Attribute::new($name, show)
        }),*];

        static POINTERS: $crate::sys::Table<[*mut kernel::bindings::attribute; $count + 1]> = {
            let mut pointers = [core::ptr::null_mut(); $count + 1];
            let mut i = 0;
            while i < $count {
                pointers[i] = ATTRIBUTES[i].as_ptr();
                i += 1;
            }
            $crate::sys::Table::new(pointers)
        };

        static GROUP: $crate::sys::Table<[kernel::bindings::attribute_group; 1]> =
            $crate::sys::Table::new([$crate::sys::group(POINTERS.as_ptr())]);

        /// What the misc device is registered with.
        pub(crate) static GROUPS: $crate::sys::Table<[*const kernel::bindings::attribute_group; 2]> =
            $crate::sys::Table::new([GROUP.as_ptr(), core::ptr::null()]);
    };
}
pub(crate) use attributes;
