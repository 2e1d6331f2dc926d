//! Verdicts on peers' lives, from a monitor outside the endpoint.

use alloc::boxed::Box;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use vmshm_abi::EndpointId;

use crate::error::PeerError;

/// Peers to watch, named by an endpoint, and verdicts on their lives, reported by a monitor (a thread, a device).
#[derive(Debug)]
pub struct Verdicts {
    lives: Box<[AtomicU64]>,
    /// Owner of each peer's section when it was met, see [`crate::Section::owner`].
    owners: Box<[AtomicU64]>,
    /// Incarnation and verdict in one word, so that a late verdict on one life is never taken for one on the next.
    verdicts: Box<[AtomicU64]>,
    /// [`NEWS`], [`CURIOUS`] and [`RESTS`], added up: one word, so that a poll with nothing to hear makes one load.
    word: AtomicU32,
    /// The monitor's thread.
    #[cfg(feature = "std")]
    monitor: std::sync::OnceLock<std::thread::Thread>,
}

/// There is a verdict to fetch.
const NEWS: u32 = 1;
/// The monitor wants to know whether the endpoint polls: the next poll takes the bit away.
#[cfg(feature = "std")]
const CURIOUS: u32 = 2;
/// The monitor rests, because the endpoint does not poll: the next poll wakes it.
#[cfg(feature = "std")]
const RESTS: u32 = 4;

const LEFT: u64 = 1;
const DIED: u64 = 2;
const SILENT: u64 = 3;
const DEVICE_LOST: u64 = 4;

impl Verdicts {
    /// Verdicts for a region with room for `endpoints` endpoints, no peer known yet.
    pub fn new(endpoints: u32) -> Self {
        Self {
            lives: (0..endpoints).map(|_| AtomicU64::new(0)).collect(),
            owners: (0..endpoints).map(|_| AtomicU64::new(0)).collect(),
            verdicts: (0..endpoints).map(|_| AtomicU64::new(0)).collect(),
            word: AtomicU32::new(0),
            #[cfg(feature = "std")]
            monitor: std::sync::OnceLock::new(),
        }
    }

    /// The endpoints to watch, with the incarnation that is known.
    pub fn watched(&self) -> impl Iterator<Item = (EndpointId, u64)> + '_ {
        (0..).zip(&self.lives).filter_map(|(id, life)| match life.load(Ordering::Acquire) {
            0 => None,
            incarnation => Some((EndpointId(id), incarnation)),
        })
    }

    /// Owner of a watched endpoint's section when the endpoint was met, as of [`crate::Section::owner`].
    pub fn owner(&self, id: EndpointId) -> u64 {
        self.owners[id.0 as usize].load(Ordering::Relaxed)
    }

    /// Reports that the life `incarnation` of a watched endpoint has ended.
    pub fn report(&self, id: EndpointId, incarnation: u64, why: PeerError) {
        let verdict = match why {
            PeerError::Left => LEFT,
            PeerError::Silent => SILENT,
            PeerError::DeviceLost => DEVICE_LOST,
            PeerError::Died | PeerError::Closed | PeerError::Protocol(_) => DIED,
        };
        self.verdicts[id.0 as usize].store(incarnation << 8 | verdict, Ordering::Release);
        self.word.fetch_or(NEWS, Ordering::Release);
    }

    pub(crate) fn begin(&self, id: EndpointId, incarnation: u64, owner: u64) {
        self.owners[id.0 as usize].store(owner, Ordering::Relaxed);
        self.lives[id.0 as usize].store(incarnation, Ordering::Release);
    }

    pub(crate) fn end(&self, id: EndpointId) {
        self.lives[id.0 as usize].store(0, Ordering::Release);
    }

    /// Whether there is any verdict to fetch, which stays to be fetched.
    pub(crate) fn would_have_news(&self) -> bool {
        self.word.load(Ordering::Acquire) & NEWS != 0
    }

    /// Whether there is any verdict to fetch; a plain load in the usual case. Called by the endpoint's polls: the monitor learns
    /// of them.
    #[inline]
    pub(crate) fn has_news(&self) -> bool {
        self.word.load(Ordering::Relaxed) != 0 && self.take_word()
    }

    #[inline(never)]
    fn take_word(&self) -> bool {
        let word = self.word.swap(0, Ordering::AcqRel);
        #[cfg(feature = "std")]
        if word & RESTS != 0
            && let Some(monitor) = self.monitor.get()
        {
            monitor.unpark();
        }
        word & NEWS != 0
    }

    /// Whether the endpoint has polled since this was called last.
    #[cfg(feature = "std")]
    pub(crate) fn was_polled(&self) -> bool {
        self.word.fetch_or(CURIOUS, Ordering::AcqRel) & CURIOUS == 0
    }

    /// Waits as long as given at most, but only until the endpoint polls. Called by one thread, always the same.
    #[cfg(feature = "std")]
    pub(crate) fn rest(&self, time: core::time::Duration) {
        self.monitor.get_or_init(std::thread::current);
        // Without the other bit the endpoint has polled just now.
        if self.word.fetch_or(RESTS, Ordering::AcqRel) & CURIOUS != 0 {
            std::thread::park_timeout(time);
        }
        self.word.fetch_and(!RESTS, Ordering::AcqRel);
    }

    pub(crate) fn verdict(&self, id: EndpointId, incarnation: u64) -> Option<PeerError> {
        let word = self.verdicts[id.0 as usize].load(Ordering::Acquire);
        if word >> 8 != incarnation {
            return None;
        }
        match word & 0xff {
            LEFT => Some(PeerError::Left),
            DIED => Some(PeerError::Died),
            SILENT => Some(PeerError::Silent),
            DEVICE_LOST => Some(PeerError::DeviceLost),
            _ => None,
        }
    }
}
