// SPDX-License-Identifier: GPL-2.0

//! Eventfds given to us by processes.

use core::ptr::NonNull;
use kernel::{bindings, prelude::*};

/// A reference to an eventfd.
///
/// # Invariants
///
/// The pointer is valid, and one of its references is ours.
pub(crate) struct EventFd(NonNull<bindings::eventfd_ctx>);

// SAFETY: An eventfd has a lock of its own and a reference count.
unsafe impl Send for EventFd {}

impl EventFd {
    /// That of descriptor `fd` of the calling process; `EBADF` if it is no eventfd.
    pub(crate) fn from_fd(fd: i32) -> Result<Self> {
        // SAFETY: Any number may be asked for.
        let context = unsafe { bindings::eventfd_ctx_fdget(fd) };
        let context = kernel::error::from_err_ptr(context).map_err(|_| EBADF)?;
        // INVARIANT: No error, so it is valid, and the reference is ours.
        NonNull::new(context).map(Self).ok_or(EBADF)
    }

    /// Adds 1. Never sleeps.
    pub(crate) fn signal(&self) {
        // SAFETY: By the type's invariants.
        unsafe { bindings::eventfd_signal_mask(self.0.as_ptr(), 0) };
    }
}

impl Drop for EventFd {
    fn drop(&mut self) {
        // SAFETY: By the type's invariants; the reference is given up here.
        unsafe { bindings::eventfd_ctx_put(self.0.as_ptr()) };
    }
}
