// SPDX-License-Identifier: GPL-2.0

//! A lock that many may hold at once to look, and one alone to change.

use core::cell::UnsafeCell;
use kernel::{bindings, prelude::*, sync::LockClassKey, types::Opaque};

/// Data behind a semaphore of readers and writers. Both sleep until they get it.
#[pin_data]
pub(crate) struct ShareLock<T> {
    #[pin]
    lock: Opaque<bindings::rw_semaphore>,
    data: UnsafeCell<T>,
}

// SAFETY: The lock gives out the data to many only to look at, which `T: Sync` permits, and to one
// alone to change it.
unsafe impl<T: Send + Sync> Sync for ShareLock<T> {}
// SAFETY: An unlocked semaphore belongs to nobody.
unsafe impl<T: Send> Send for ShareLock<T> {}

impl<T> ShareLock<T> {
    /// A lock; `name` and `key` are for lockdep.
    pub(crate) fn new(
        data: T,
        name: &'static CStr,
        key: Pin<&'static LockClassKey>,
    ) -> impl PinInit<Self> {
        pin_init!(Self {
            // SAFETY: `slot` is where the lock will stay; `name` and `key` live for ever.
            lock <- Opaque::ffi_init(|slot| unsafe {
                bindings::__init_rwsem(slot, name.as_char_ptr(), key.as_ptr())
            }),
            data: UnsafeCell::new(data),
        })
    }

    /// Looks at the data, beside others who do. `look` must not take this lock: a writer may wait
    /// between the two.
    pub(crate) fn read<R>(&self, look: impl FnOnce(&T) -> R) -> R {
        // SAFETY: The lock is initialised.
        unsafe { bindings::down_read(self.lock.get()) };
        // SAFETY: We hold the lock, so that nobody changes the data.
        let result = look(unsafe { &*self.data.get() });
        // SAFETY: We hold the lock.
        unsafe { bindings::up_read(self.lock.get()) };
        result
    }

    /// Puts other data in the place, when all who look at it have done so.
    pub(crate) fn replace(&self, data: T) -> T {
        // SAFETY: The lock is initialised.
        unsafe { bindings::down_write(self.lock.get()) };
        // SAFETY: We hold the lock alone.
        let before = core::mem::replace(unsafe { &mut *self.data.get() }, data);
        // SAFETY: We hold the lock.
        unsafe { bindings::up_write(self.lock.get()) };
        before
    }
}
