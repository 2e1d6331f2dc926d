// SPDX-License-Identifier: GPL-2.0

//! Attributes of a misc device in sysfs.

use core::{cell::UnsafeCell, fmt, ptr};
use kernel::{bindings, page::PAGE_SIZE, prelude::*};

use super::misc;

/// The page that an attribute is shown on. Text that does not fit is left out.
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
/// `dev` is the device that `misc_register` made of a [`misc::Registration`] of a `D`, which is kept
/// from going away, and `buffer` a page, as sysfs gives them to a `show` function.
pub(crate) unsafe fn show<D>(
    dev: *mut bindings::device,
    buffer: *mut c_char,
    write: fn(&D, &mut Page) -> fmt::Result,
) -> isize {
    // SAFETY: `misc_register` gives its device the misc device as driver data.
    let misc = unsafe { bindings::dev_get_drvdata(dev) };
    // SAFETY: Removal of the attributes, in `misc_deregister`, waits until nobody shows them.
    let device = unsafe { misc::device::<D>(misc.cast()) };
    let mut page = Page {
        buffer: buffer.cast(),
        used: 0,
    };
    // It fails only where the page is full.
    let _ = write(device, &mut page);
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

/// Defines `GROUPS`, the attributes of a device: its type, and names with the functions that write
/// them.
macro_rules! attributes {
    ($device:ty, $count:literal: $($name:literal => $write:ident,)*) => {
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
                unsafe { $crate::sys::show::<$device>(dev, buffer, $write) }
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

        /// Attributes that the misc device is registered with.
        pub(crate) static GROUPS: $crate::sys::Groups<$device> =
            // SAFETY: The group is a static, and `show` above takes the device for this type.
            unsafe { $crate::sys::Groups::new(GROUP.as_ptr()) };
    };
}
pub(crate) use attributes;
