//! Messages that come by other transports.
//!
//! Progress sees only what comes by vmshm. A process that is busy with messages of others would seem idle, and a sleep
//! would delay them. All transports deliver messages by one table of Open MPI's: its callbacks are replaced by one of
//! ours, which counts and calls what was there.

use std::ffi::c_void;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

use parking_lot::RwLock;
use vmshm_messaging::Waker;

use crate::ompi::{
    self, Callback, Observer, mca_btl_active_message_callback_t, mca_btl_base_module_recv_cb_fn_t,
};

const TAGS: usize = ompi::MCA_BTL_TAG_MAX as usize;

/// The callbacks that were in the table.
static OTHERS: [AtomicPtr<c_void>; TAGS] = [const { AtomicPtr::new(ptr::null_mut()) }; TAGS];

static COUNT: AtomicU32 = AtomicU32::new(0);

/// Bell of the thread that sleeps.
static WAKER: RwLock<Option<Arc<Waker>>> = RwLock::new(None);

/// Knowledge of a process that may sleep of the messages of other transports; without it, the table is as it would be.
#[derive(Debug)]
pub struct OtherTraffic {
    /// Their count, when last looked at.
    seen: u32,
    is_listening: bool,
}

impl OtherTraffic {
    /// Nothing is counted yet. Each message that is will wake a thread that sleeps.
    pub fn new(waker: Option<Arc<Waker>>) -> Self {
        *WAKER.write() = waker;
        Self { seen: count(), is_listening: false }
    }

    /// The count, when last looked at.
    pub fn seen(&self) -> u32 {
        self.seen
    }

    /// Whether messages came since this was asked the last time.
    pub fn has_come(&mut self) -> bool {
        let count = count();
        std::mem::replace(&mut self.seen, count) != count
    }

    /// Counts from now on also what was registered since the process was last busy.
    pub fn listen(&mut self) {
        if !self.is_listening {
            listen();
            self.is_listening = true;
        }
    }

    /// Notes that the process is busy.
    pub fn is_busy(&mut self) {
        self.is_listening = false;
    }
}

impl Drop for OtherTraffic {
    fn drop(&mut self) {
        stop();
        *WAKER.write() = None;
    }
}

/// Changes with each message that any transport delivers, from [`listen`] on.
pub fn count() -> u32 {
    COUNT.load(Ordering::Relaxed)
}

/// A row's callback, as one word.
fn row(tag: usize) -> &'static AtomicPtr<c_void> {
    const {
        assert!(size_of::<mca_btl_base_module_recv_cb_fn_t>() == size_of::<AtomicPtr<c_void>>());
    }
    assert!(tag < TAGS);
    // SAFETY: the table is a static of Open MPI with TAGS rows; a callback is an aligned pointer. C reads it as such, and
    // writes it only where a callback is registered.
    unsafe {
        let table =
            (&raw mut ompi::mca_btl_base_active_message_trigger).cast::<mca_btl_active_message_callback_t>();
        AtomicPtr::from_ptr((&raw mut (*table.add(tag)).cbfunc).cast::<*mut c_void>())
    }
}

fn own() -> *mut c_void {
    let own: Callback = ompi::observed::<Counter>;
    own as *mut c_void
}

/// Begins to count what is registered by now, beside what was counted before.
fn listen() {
    for (tag, other) in OTHERS.iter().enumerate() {
        let callback = row(tag).load(Ordering::Relaxed);
        if !callback.is_null() && callback != own() {
            other.store(callback, Ordering::Relaxed);
            // A callback registered just now is counted the next time.
            let _ = row(tag).compare_exchange(callback, own(), Ordering::Release, Ordering::Relaxed);
        }
    }
}

/// Leaves the table as it would be without us.
fn stop() {
    for (tag, other) in OTHERS.iter().enumerate() {
        let _ = row(tag).compare_exchange(
            own(),
            other.load(Ordering::Relaxed),
            Ordering::Relaxed,
            Ordering::Relaxed,
        );
    }
}

struct Counter;

impl Observer for Counter {
    fn see(tag: u8, _: *mut c_void, forward: impl FnOnce(Callback)) {
        // Two threads may count as one: it changes all the same.
        COUNT.store(count().wrapping_add(1), Ordering::Relaxed);
        let other = OTHERS[usize::from(tag)].load(Ordering::Relaxed);
        // SAFETY: listen stored what was in the table: a callback of this type, or null.
        let other = unsafe { std::mem::transmute::<*mut c_void, mca_btl_base_module_recv_cb_fn_t>(other) };
        if let Some(other) = other {
            forward(other);
        }
        // It may be what a sleeping thread waits for.
        if let Some(waker) = &*WAKER.read() {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::ompi::Received;

    /// A tag that no other test uses.
    const TAG: u8 = 0xe7;

    static DELIVERED: AtomicUsize = AtomicUsize::new(0);

    struct Taker;

    impl Observer for Taker {
        fn see(tag: u8, data: *mut c_void, _: impl FnOnce(Callback)) {
            assert_eq!((tag, data.addr()), (TAG, 5));
            DELIVERED.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Delivers as any transport does: what is in the table is called.
    fn deliver() {
        let callback = row(TAG.into()).load(Ordering::Relaxed);
        // SAFETY: the row holds the callback of one of both observers.
        unsafe {
            let callback = std::mem::transmute::<*mut c_void, mca_btl_base_module_recv_cb_fn_t>(callback);
            let data = ptr::without_provenance_mut(5);
            Received::default().give(callback.unwrap(), data, ptr::null_mut(), ptr::null_mut(), TAG, &mut []);
        }
    }

    #[test]
    fn messages_are_counted_and_still_delivered() {
        let take: Callback = ompi::observed::<Taker>;
        row(TAG.into()).store(take as *mut c_void, Ordering::Relaxed);
        deliver();
        listen();
        listen();
        let before = count();
        deliver();
        assert_ne!(count(), before);
        assert_eq!(DELIVERED.load(Ordering::Relaxed), 2);
        stop();
        assert_eq!(row(TAG.into()).load(Ordering::Relaxed), take as *mut c_void);
        deliver();
        assert_eq!(DELIVERED.load(Ordering::Relaxed), 3);
        row(TAG.into()).store(ptr::null_mut(), Ordering::Relaxed);
    }
}
