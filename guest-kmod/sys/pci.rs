// SPDX-License-Identifier: GPL-2.0

//! Resources of a PCI device, each given back when it is dropped.

use kernel::{bindings, device::Core, pci, prelude::*, sync::aref::ARef};

/// The device as C knows it.
pub(super) fn raw(pdev: &pci::Device) -> *mut bindings::pci_dev {
    // CAST: `pci::Device` is a transparent wrapper of `struct pci_dev`.
    core::ptr::from_ref(pdev).cast_mut().cast()
}

/// A device that decodes its memory.
pub(crate) struct Enabled(ARef<pci::Device>);

impl Enabled {
    /// Enables memory decoding.
    pub(crate) fn new(pdev: &pci::Device<Core<'_>>) -> Result<Self> {
        pdev.enable_device_mem()?;
        Ok(Self(pdev.into()))
    }
}

impl Drop for Enabled {
    fn drop(&mut self) {
        // Ends bus mastering too.
        // SAFETY: The device is valid while we hold a reference, and was enabled once by `new`.
        unsafe { bindings::pci_disable_device(raw(&self.0)) };
    }
}

/// A BAR that no other driver can take while this lives.
pub(crate) struct Region {
    pdev: ARef<pci::Device>,
    bar: c_int,
}

impl Region {
    /// Takes a BAR; `EBUSY` if someone else has it.
    ///
    /// `name` says in `/proc/iomem` who has it.
    pub(crate) fn request(pdev: &pci::Device, bar: u32, name: &'static CStr) -> Result<Self> {
        let bar = bar as c_int;
        // SAFETY: The device is valid; `name` lives for ever.
        let error = unsafe { bindings::pci_request_region(raw(pdev), bar, name.as_char_ptr()) };
        kernel::error::to_result(error)?;
        Ok(Self {
            pdev: pdev.into(),
            bar,
        })
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: The device is valid while we hold a reference, and the BAR was taken by
        // `request`.
        unsafe { bindings::pci_release_region(raw(&self.pdev), self.bar) };
    }
}

/// A BAR of registers, mapped uncached.
///
/// # Invariants
///
/// `base` is a mapping of `len` bytes made by `pci_iomap`.
pub(crate) struct Registers {
    pdev: ARef<pci::Device>,
    base: *mut c_void,
    len: u64,
}

// SAFETY: The mapping belongs to no thread.
unsafe impl Send for Registers {}
// SAFETY: Registers are read and written one access at a time, which the device serialises.
unsafe impl Sync for Registers {}

impl Registers {
    /// Maps a BAR, which the caller has taken as a [`Region`].
    pub(crate) fn map(pdev: &pci::Device, bar: u32) -> Result<Self> {
        let len = pdev.resource_len(bar)?;
        // SAFETY: The device is valid.
        let base = unsafe { bindings::pci_iomap(raw(pdev), bar as c_int, 0) };
        if base.is_null() {
            return Err(ENOMEM);
        }
        // INVARIANT: `pci_iomap` with a limit of 0 maps the whole BAR.
        Ok(Self {
            pdev: pdev.into(),
            base,
            len,
        })
    }

    fn at(&self, offset: u64) -> Result<*mut c_void> {
        if offset % 4 != 0 || offset.checked_add(4).is_none_or(|end| end > self.len) {
            return Err(EINVAL);
        }
        Ok(self.base.wrapping_byte_add(offset as usize))
    }

    /// Reads a register of 32 bits.
    pub(crate) fn read(&self, offset: u64) -> Result<u32> {
        let register = self.at(offset)?;
        // SAFETY: `at` has checked that it lies within the mapping, which is valid by the type's
        // invariants.
        Ok(unsafe { bindings::readl(register) })
    }

    /// Writes a register of 32 bits. All memory that was written before is seen by others before
    /// this is.
    pub(crate) fn write(&self, offset: u64, value: u32) -> Result {
        let register = self.at(offset)?;
        // SAFETY: As in `read`.
        unsafe { bindings::writel(value, register) };
        Ok(())
    }
}

impl Drop for Registers {
    fn drop(&mut self) {
        // SAFETY: By the type's invariants; nobody can use the mapping any more.
        unsafe { bindings::pci_iounmap(raw(&self.pdev), self.base) };
    }
}

/// Bytes of memory behind a BAR; 0 if there are none, or if it is of another kind.
pub(crate) fn memory_len(pdev: &pci::Device, bar: u32) -> Result<u64> {
    let len = pdev.resource_len(bar)?;
    // SAFETY: The device is valid, and has such a BAR, or `resource_len` would have failed.
    let flags = unsafe {
        (*raw(pdev))
            .resource
            .get(bar as usize)
            .map_or(0, |bar| bar.flags)
    };
    Ok(if flags & bindings::IORESOURCE_MEM as c_ulong != 0 {
        len
    } else {
        0
    })
}

/// The NUMA node of this machine that the device is near to, or -1.
pub(crate) fn numa_node(pdev: &pci::Device) -> i32 {
    #[cfg(CONFIG_NUMA)]
    // SAFETY: The device is valid; the number only changes by an administrator's hand, and nothing
    // depends on it.
    return unsafe { (&raw const (*raw(pdev)).dev.numa_node).read_volatile() };
    #[cfg(not(CONFIG_NUMA))]
    {
        let _ = pdev;
        -1
    }
}
