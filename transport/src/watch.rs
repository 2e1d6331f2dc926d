//! What a watcher outside the endpoint has found out about its peers' lives.

use alloc::boxed::Box;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use vmshm_abi::EndpointId;

use crate::link::PeerError;

/// Shared by an endpoint, which says whom it knows, and a watcher (a thread, a device), which says who has died.
#[derive(Debug)]
pub struct Watch {
    lives: Box<[AtomicU64]>,
    /// Which VM each belongs to, see [`crate::Section::member`].
    members: Box<[AtomicU64]>,
    /// Incarnation and verdict in one word, so that a late verdict on one life is never taken for one on the next.
    verdicts: Box<[AtomicU64]>,
    news: AtomicBool,
}

const LEFT: u64 = 1;
const DIED: u64 = 2;
const SILENT: u64 = 3;
const DEVICE_LOST: u64 = 4;

impl Watch {
    /// A watch over a region with room for `endpoints` endpoints, nobody known yet.
    pub fn new(endpoints: u32) -> Self {
        Self {
            lives: (0..endpoints).map(|_| AtomicU64::new(0)).collect(),
            members: (0..endpoints).map(|_| AtomicU64::new(0)).collect(),
            verdicts: (0..endpoints).map(|_| AtomicU64::new(0)).collect(),
            news: AtomicBool::new(false),
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
        self.news.store(true, Ordering::Release);
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
        self.news.load(Ordering::Acquire)
    }

    /// Whether there is any verdict to fetch; a plain load in the usual case.
    pub(crate) fn has_news(&self) -> bool {
        self.news.load(Ordering::Relaxed) && self.news.swap(false, Ordering::AcqRel)
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
