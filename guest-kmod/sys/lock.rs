// SPDX-License-Identifier: GPL-2.0

//! A spin lock that interrupt handlers may take too.

use core::{
    cell::UnsafeCell,
    ops::{Deref, DerefMut},
};
use kernel::{
    bindings,
    prelude::*,
    sync::LockClassKey,
    types::{NotThreadSafe, Opaque},
};

/// Data behind a spin lock that is held with this processor's interrupts off. Linux 7.3 has such a
/// lock for Rust, `SpinLockIrq`; 7.2 has not.
#[pin_data]
pub(crate) struct IrqLock<T> {
    #[pin]
    lock: Opaque<bindings::spinlock_t>,
    data: UnsafeCell<T>,
}

// SAFETY: The lock lets one processor at a time come at the data.
unsafe impl<T: Send> Sync for IrqLock<T> {}
// SAFETY: An unlocked spin lock belongs to nobody.
unsafe impl<T: Send> Send for IrqLock<T> {}

impl<T> IrqLock<T> {
    /// A lock; `name` and `key` are for lockdep.
    pub(crate) fn new(
        data: T,
        name: &'static CStr,
        key: Pin<&'static LockClassKey>,
    ) -> impl PinInit<Self> {
        pin_init!(Self {
            // SAFETY: `slot` is where the lock will stay; `name` and `key` live for ever.
            lock <- Opaque::ffi_init(|slot| unsafe {
                bindings::__spin_lock_init(slot, name.as_char_ptr(), key.as_ptr())
            }),
            data: UnsafeCell::new(data),
        })
    }

    /// Waits, without sleeping, until nobody else has the lock.
    pub(crate) fn lock(&self) -> IrqGuard<'_, T> {
        #[cfg(not(CONFIG_PREEMPT_RT))]
        // SAFETY: The lock is initialised. A `spinlock_t` begins with its `raw_spinlock_t`.
        let flags = unsafe { bindings::_raw_spin_lock_irqsave(self.lock.get().cast()) };
        #[cfg(CONFIG_PREEMPT_RT)]
        let flags = {
            // SAFETY: The lock is initialised. With this option handlers run in threads, and such a
            // lock sleeps.
            unsafe { bindings::spin_lock(self.lock.get()) };
            0
        };
        IrqGuard {
            lock: self,
            flags,
            _not_send: NotThreadSafe,
        }
    }
}

/// The right to the data of an [`IrqLock`]. To be dropped soon, on the same processor, without
/// sleeping.
pub(crate) struct IrqGuard<'a, T> {
    lock: &'a IrqLock<T>,
    #[cfg_attr(CONFIG_PREEMPT_RT, allow(dead_code))]
    flags: c_ulong,
    _not_send: NotThreadSafe,
}

impl<T> Deref for IrqGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: We hold the lock.
        unsafe { &*self.lock.data.get() }
    }
}

impl<T> DerefMut for IrqGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: We hold the lock, and `self` is borrowed mutably.
        unsafe { &mut *self.lock.data.get() }
    }
}

impl<T> Drop for IrqGuard<'_, T> {
    fn drop(&mut self) {
        #[cfg(not(CONFIG_PREEMPT_RT))]
        // SAFETY: We hold the lock, which gave us `flags`.
        unsafe {
            bindings::_raw_spin_unlock_irqrestore(self.lock.lock.get().cast(), self.flags)
        };
        #[cfg(CONFIG_PREEMPT_RT)]
        // SAFETY: We hold the lock.
        unsafe {
            bindings::spin_unlock(self.lock.lock.get())
        };
    }
}
