// SPDX-License-Identifier: GPL-2.0

//! The firmware's description of this machine.

use kernel::prelude::*;

// `linux/dmi.h` is not among the headers that the kernel's Rust bindings are made of.
#[cfg(CONFIG_DMI)]
extern "C" {
    fn dmi_get_system_info(field: c_int) -> *const c_char;
}

/// `DMI_PRODUCT_UUID` of `enum dmi_field`. Were it to change, another text would be found, which is
/// no UUID.
#[cfg(CONFIG_DMI)]
const PRODUCT_UUID: c_int = 10;

/// The machine's UUID as text, if its firmware tells one.
#[cfg(CONFIG_DMI)]
pub(crate) fn product_uuid() -> Option<&'static CStr> {
    // SAFETY: Any small number may be asked for.
    let text = unsafe { dmi_get_system_info(PRODUCT_UUID) };
    if text.is_null() {
        return None;
    }
    // SAFETY: A string that was saved when the kernel booted and is never freed.
    Some(unsafe { CStr::from_char_ptr(text) })
}

/// Without this option the kernel does not ask the firmware.
#[cfg(not(CONFIG_DMI))]
pub(crate) fn product_uuid() -> Option<&'static CStr> {
    None
}
