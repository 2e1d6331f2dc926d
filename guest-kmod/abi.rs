// SPDX-License-Identifier: GPL-2.0

//! The words shared with the host, the library and the programs: the very files that these are
//! built from.

#[rustfmt::skip] // it is formatted as the rest of its crate
#[path = "../abi/src/driver.rs"]
pub(crate) mod driver;
#[rustfmt::skip]
#[path = "../abi/src/ivshmem.rs"]
pub(crate) mod ivshmem;
#[rustfmt::skip]
#[path = "../abi/src/line.rs"]
pub(crate) mod line;
#[rustfmt::skip]
#[path = "../abi/src/region.rs"]
pub(crate) mod region;
#[rustfmt::skip]
#[path = "../abi/src/section.rs"]
pub(crate) mod section;

impl kernel::fmt::Display for region::HeaderError {
    fn fmt(&self, f: &mut kernel::fmt::Formatter<'_>) -> kernel::fmt::Result {
        core::fmt::Display::fmt(self, f)
    }
}
