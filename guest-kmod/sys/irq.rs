// SPDX-License-Identifier: GPL-2.0

//! Message-signalled interrupts.

use core::ptr;
use kernel::{bindings, pci, prelude::*, str::CString, sync::aref::ARef, sync::Arc};

use super::pci::raw;

/// The interrupt vectors of a device.
pub(crate) struct Vectors {
    pdev: ARef<pci::Device>,
    count: u32,
}

impl Vectors {
    /// Number of MSI-X vectors that the device has; 0 if it has none.
    pub(crate) fn available(pdev: &pci::Device) -> u32 {
        // SAFETY: The device is valid.
        let count = unsafe { bindings::pci_msix_vec_count(raw(pdev)) };
        u32::try_from(count).unwrap_or(0)
    }

    /// Takes all `count` vectors, or none.
    pub(crate) fn allocate(pdev: &pci::Device, count: u32) -> Result<Self> {
        // SAFETY: The device is valid, and enabled by the caller (the call fails otherwise).
        let got = unsafe {
            bindings::pci_alloc_irq_vectors(raw(pdev), count, count, bindings::PCI_IRQ_MSIX)
        };
        kernel::error::to_result(got)?;
        Ok(Self {
            pdev: pdev.into(),
            count,
        })
    }

    /// Number of vectors.
    pub(crate) fn count(&self) -> u32 {
        self.count
    }
}

impl Drop for Vectors {
    fn drop(&mut self) {
        // SAFETY: They were allocated by `allocate`, and all handlers are freed: the caller holds
        // `Irq`s no longer than this.
        unsafe { bindings::pci_free_irq_vectors(raw(&self.pdev)) };
    }
}

#[cfg(not(linux_7_3))]
const HANDLED: bindings::irqreturn_t = bindings::irqreturn_IRQ_HANDLED;
#[cfg(linux_7_3)]
const HANDLED: bindings::irqreturn_t = bindings::irqreturn::IRQ_HANDLED;

/// A device that interrupts.
pub(crate) trait Interrupts: Send + Sync + 'static {
    /// An interrupt has come. Called by its handler, which must not sleep.
    fn interrupt(&self, vector: u32);
}

/// Argument of a handler.
struct Cookie<D> {
    device: Arc<D>,
    vector: u32,
    /// As `/proc/interrupts` shows it.
    name: CString,
}

/// A handler of one vector, which calls [`Interrupts::interrupt`]. When this is dropped, the handler
/// has run for the last time.
///
/// To be dropped before its [`Vectors`].
pub(crate) struct Irq<D> {
    irq: c_uint,
    cookie: KBox<Cookie<D>>,
}

impl<D: Interrupts> Irq<D> {
    /// Has `device` told of each interrupt of a vector.
    pub(crate) fn request(
        vectors: &Vectors,
        vector: u32,
        name: &CStr,
        device: Arc<D>,
    ) -> Result<Self> {
        // SAFETY: The device is valid; a vector that it does not have gives an error.
        let irq = unsafe { bindings::pci_irq_vector(raw(&vectors.pdev), vector) };
        kernel::error::to_result(irq)?;
        let irq = irq as c_uint;
        let cookie = Cookie {
            device,
            vector,
            name: CString::try_from(name)?,
        };
        let cookie = KBox::new(cookie, GFP_KERNEL)?;
        // SAFETY: The cookie is in a box of its own, with the name, and freed after `free_irq`.
        let error = unsafe {
            bindings::request_threaded_irq(
                irq,
                Some(handle::<D>),
                None,
                0,
                cookie.name.as_char_ptr(),
                ptr::from_ref(&*cookie).cast_mut().cast(),
            )
        };
        kernel::error::to_result(error)?;
        Ok(Self { irq, cookie })
    }
}

impl<D> Drop for Irq<D> {
    fn drop(&mut self) {
        // SAFETY: Requested by `request` with this very cookie. Waits for a handler that runs.
        unsafe { bindings::free_irq(self.irq, ptr::from_ref(&*self.cookie).cast_mut().cast()) };
    }
}

/// # Safety
///
/// Only called by the kernel, with the cookie given to `request_threaded_irq`.
unsafe extern "C" fn handle<D: Interrupts>(
    _irq: c_int,
    cookie: *mut c_void,
) -> bindings::irqreturn_t {
    // SAFETY: The cookie lives until `free_irq` has returned; it is only ever read.
    let cookie = unsafe { &*cookie.cast::<Cookie<D>>() };
    cookie.device.interrupt(cookie.vector);
    HANDLED
}
