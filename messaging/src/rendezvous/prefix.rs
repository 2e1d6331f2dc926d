//! The prefix of a message, which its sender copies before anyone requests it.

use vmshm_transport::Fragment;
use vmshm_transport::abi::LINE_PAIR;

/// Where the prefix of a message lies in its sender's section, as it travels. Without any, all are 0.
///
/// Offsets in the region count pairs of cache lines: with whole ones ob1's header would take another slot of the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Prefix {
    pub(crate) data: u32,
    pub(crate) progress: u32,
    /// Bytes.
    pub(crate) len: u64,
}

impl Prefix {
    /// `None` where the region is too large.
    pub(crate) fn new(data: &Fragment, progress: &Fragment, len: usize) -> Option<Self> {
        let pairs = |fragment: &Fragment| u32::try_from(fragment.offset() / LINE_PAIR).ok();
        Some(Self { data: pairs(data)?, progress: pairs(progress)?, len: len as u64 })
    }

    /// Offset of the data in the region.
    pub(crate) fn data(&self) -> u64 {
        u64::from(self.data) * LINE_PAIR
    }

    /// Offset of the progress word in the region.
    pub(crate) fn progress(&self) -> u64 {
        u64::from(self.progress) * LINE_PAIR
    }

    /// Bytes of the prefix among the `len` from `offset` on. It has at most `longest` bytes, whatever the sender says.
    pub(crate) fn part(&self, offset: u64, len: usize, longest: usize) -> usize {
        let all = self.len.min(longest as u64);
        all.saturating_sub(offset).min(len as u64) as usize
    }
}

/// The sender's side of a prefix.
#[derive(Debug)]
pub(crate) struct PrefixBuffer {
    pub chunk: Fragment,
    /// The word that counts the bytes in the chunk.
    pub progress: Fragment,
    /// The part that the peer must know.
    pub prefix: Prefix,
}
