// SPDX-License-Identifier: GPL-2.0

//! The N of `/dev/vmshmN`: the smallest that is free.

use kernel::prelude::*;

/// Most devices at a time.
const MAX: u32 = u64::BITS;

kernel::sync::global_lock! {
    // SAFETY: `init` is called when the module is loaded, before the driver is registered.
    unsafe(uninit) static TAKEN: Mutex<u64> = 0;
}

/// Prepares the numbers; called once, when the module is loaded.
pub(crate) fn init() {
    // SAFETY: called exactly once.
    unsafe { TAKEN.init() };
}

/// A number that nobody else has while this lives.
pub(crate) struct Number(u32);

impl Number {
    /// Takes the smallest free number; `ENOSPC` if there is none.
    pub(crate) fn take() -> Result<Self> {
        let mut taken = TAKEN.lock();
        let number = taken.trailing_ones();
        if number >= MAX {
            return Err(ENOSPC);
        }
        *taken |= 1 << number;
        Ok(Self(number))
    }

    /// The number.
    pub(crate) fn get(&self) -> u32 {
        self.0
    }
}

impl Drop for Number {
    fn drop(&mut self) {
        *TAKEN.lock() &= !(1 << self.0);
    }
}
