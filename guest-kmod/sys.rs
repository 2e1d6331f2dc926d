// SPDX-License-Identifier: GPL-2.0

//! All that is unsafe: thin wrappers over those of the kernel's functions that have no safe face
//! yet.
//!
//! One file for each kind of thing. Each type says what it promises. Nothing here knows what a
//! region is, or names what uses it: the kernel's calls come out by traits, [`File`],
//! [`FillsPages`], [`Interrupts`].

mod attribute;
mod eventfd;
mod files;
mod inode;
mod irq;
mod lock;
mod memory;
mod misc;
mod number;
mod pci;
mod private_data;
mod share;
mod smbios;
mod vma;
mod wait;

pub(crate) use attribute::{attributes, group, show, Attribute, Page, Table};
pub(crate) use eventfd::EventFd;
pub(crate) use files::{operations, File};
pub(crate) use inode::Inode;
pub(crate) use irq::{Interrupts, Irq, Vectors};
pub(crate) use lock::IrqLock;
pub(crate) use memory::Memory;
pub(crate) use misc::{Groups, Registration};
pub(crate) use number::{init as init_numbers, Number};
pub(crate) use pci::{memory_len, numa_node, Enabled, Region, Registers};
pub(crate) use share::ShareLock;
pub(crate) use smbios::product_uuid;
pub(crate) use vma::{Fault, FillsPages, Frames, NewVma, Outcome};
pub(crate) use wait::{PollTable, WaitQueue};
