// SPDX-License-Identifier: GPL-2.0

//! Wait queues that `poll` registers with.

use kernel::{bindings, prelude::*, sync::LockClassKey, types::Opaque};

/// Arguments of a call of `poll`.
///
/// # Invariants
///
/// Both pointers are valid, or that of the table null, while this lives.
pub(crate) struct PollTable {
    file: *mut bindings::file,
    table: *mut bindings::poll_table,
}

impl PollTable {
    /// # Safety
    ///
    /// Both are those of a call of `poll` that lasts as long as this lives.
    pub(super) unsafe fn from_raw(
        file: *mut bindings::file,
        table: *mut bindings::poll_table,
    ) -> Self {
        // INVARIANT: By this function's contract.
        Self { file, table }
    }
}

/// Those who wait in `poll`, `select` or `epoll` for one open file.
///
/// It belongs to an open file, and is not freed before `release`: all of them have let go of it by
/// then, since they hold the file (`epoll` is told of its end before).
#[pin_data]
pub(crate) struct WaitQueue {
    #[pin]
    head: Opaque<bindings::wait_queue_head>,
}

// SAFETY: A wait queue has a lock of its own.
unsafe impl Send for WaitQueue {}
// SAFETY: As above.
unsafe impl Sync for WaitQueue {}

impl WaitQueue {
    /// An empty queue; `name` and `key` are for lockdep.
    pub(crate) fn new(name: &'static CStr, key: Pin<&'static LockClassKey>) -> impl PinInit<Self> {
        pin_init!(Self {
            // SAFETY: `slot` is where the queue will stay; `name` and `key` live for ever.
            head <- Opaque::ffi_init(|slot| unsafe {
                bindings::__init_waitqueue_head(slot, name.as_char_ptr(), key.as_ptr())
            }),
        })
    }

    /// Has whoever calls `poll` woken by the next [`WaitQueue::wake`]. To be called before looking
    /// at what is waited for.
    pub(crate) fn register(&self, table: &PollTable) {
        // SAFETY: File and table are valid by the invariants of `PollTable`. The queue outlives the
        // file, see above.
        unsafe { bindings::poll_wait(table.file, self.head.get(), table.table) };
    }

    /// Wakes all, saying that `events` have come. To be called after what they wait for was
    /// written. Never sleeps.
    pub(crate) fn wake(&self, events: u32) {
        // From `linux/sched.h`: TASK_INTERRUPTIBLE | TASK_UNINTERRUPTIBLE.
        const TASK_NORMAL: c_uint = 3;
        // SAFETY: The queue is initialised. The key is a number, by convention.
        unsafe {
            bindings::__wake_up(
                self.head.get(),
                TASK_NORMAL,
                0,
                events as usize as *mut c_void,
            )
        };
    }
}
