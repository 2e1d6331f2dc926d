// SPDX-License-Identifier: GPL-2.0

//! The BARs of a device, as the kernel sees them.

use crate::sys::{Memory, Registers};

/// All of them.
pub(crate) struct Bars {
    pub(crate) memory: Memory,
    /// Only on a device with doorbells.
    pub(crate) registers: Option<Registers>,
}
