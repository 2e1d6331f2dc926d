//! What a watcher outside the endpoint has found out about its peers' lives.

use alloc::boxed::Box;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use vmshm_abi::EndpointId;

use crate::error::PeerError;

/// Shared by an endpoint, which says whom it knows, and a watcher (a thread, a device), which says who has died.
#[derive(Debug)]
pub struct Verdicts {
    lives: Box<[AtomicU64]>,
    /// Which VM each belongs to, see [`crate::Section::member`].
    members: Box<[AtomicU64]>,
    /// Incarnation and verdict in one word, so that a late verdict on one life is never taken for one on the next.
    verdicts: Box<[AtomicU64]>,
    /// [`NEWS`], [`CURIOUS`] and [`RESTS`], added up: one word, so that a poll with nothing to hear makes one load.
    word: AtomicU32,
    /// The watcher's thread.
    #[cfg(feature = "std")]
    watcher: std::sync::OnceLock<std::thread::Thread>,
}

/// There is a verdict to fetch.
const NEWS: u32 = 1;
/// The watcher wants to know whether the endpoint polls: the next poll takes the bit away.
#[cfg(feature = "std")]
const CURIOUS: u32 = 2;
/// The watcher rests, because nobody polls, and is to be woken by who does.
#[cfg(feature = "std")]
const RESTS: u32 = 4;

const LEFT: u64 = 1;
const DIED: u64 = 2;
const SILENT: u64 = 3;
const DEVICE_LOST: u64 = 4;

impl Verdicts {
    /// A watch over a region with room for `endpoints` endpoints, nobody known yet.
    pub fn new(endpoints: u32) -> Self {
        Self {
            lives: (0..endpoints).map(|_| AtomicU64::new(0)).collect(),
            members: (0..endpoints).map(|_| AtomicU64::new(0)).collect(),
            verdicts: (0..endpoints).map(|_| AtomicU64::new(0)).collect(),
            word: AtomicU32::new(0),
            #[cfg(feature = "std")]
            watcher: std::sync::OnceLock::new(),
        }
    }

    /// The endpoints to watch, with the incarnation that is known.
    pub fn watched(&self) -> impl Iterator<Item = (EndpointId, u64)> + '_ {
        (0..).zip(&self.lives).filter_map(|(id, life)| match life.load(Ordering::Acquire) {
            0 => None,
            incarnation => Some((EndpointId(id), incarnation)),
        })
    }

    /// What [`crate::Section::member`] said of a watched endpoint's section when the endpoint was met.
    pub fn member(&self, id: EndpointId) -> u64 {
        self.members[id.0 as usize].load(Ordering::Relaxed)
    }

    /// Says that the life `incarnation` of a watched endpoint has ended.
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

    pub(crate) fn begin(&self, id: EndpointId, incarnation: u64, member: u64) {
        self.members[id.0 as usize].store(member, Ordering::Relaxed);
        self.lives[id.0 as usize].store(incarnation, Ordering::Release);
    }

    pub(crate) fn end(&self, id: EndpointId) {
        self.lives[id.0 as usize].store(0, Ordering::Release);
    }

    /// Whether there is any verdict to fetch, which stays to be fetched.
    pub(crate) fn would_have_news(&self) -> bool {
        self.word.load(Ordering::Acquire) & NEWS != 0
    }

    /// Whether there is any verdict to fetch; a plain load in the usual case. Called by the endpoint's polls, which the
    /// watcher learns.
    #[inline]
    pub(crate) fn has_news(&self) -> bool {
        self.word.load(Ordering::Relaxed) != 0 && self.take_word()
    }

    #[inline(never)]
    fn take_word(&self) -> bool {
        let word = self.word.swap(0, Ordering::AcqRel);
        #[cfg(feature = "std")]
        if word & RESTS != 0
            && let Some(watcher) = self.watcher.get()
        {
            watcher.unpark();
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
        self.watcher.get_or_init(std::thread::current);
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
