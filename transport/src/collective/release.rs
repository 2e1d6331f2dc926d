//! Leaving a group, and the release of its block by readers.

use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use super::group::{Group, Rank, Readers};
use super::layout::{DONE, TAG};
use crate::memory::Memory;
use crate::region::slot::lives;

impl<M: Memory> Group<M> {
    /// Aborts: leaves the group for ever, after an operation has failed. The `done` word tells the others not to wait for our
    /// reads, and `why`, a number of the caller's. Our block and chunks must stay as they are.
    pub fn abort(mut self, why: u16) {
        self.finish(u64::MAX - u64::from(why));
    }

    /// Leaves the group. Our block and chunks must stay as they are until [`PendingRelease::is_released`].
    pub fn leave(self) -> PendingRelease {
        let (me, ranks) = (self.me, self.ranks);
        let waits = |reader: usize| {
            let last = self.published.iter().filter(|(_, readers)| match readers {
                Readers::Nobody => false,
                Readers::One(one) => *one == reader,
                Readers::All | Readers::Lenient => reader != me,
            });
            let last = last.map(|(step, _)| *step).max()?;
            (self.done[reader] <= last).then_some((ranks[reader], last))
        };
        let readers = (0..ranks.len()).filter_map(waits).collect();
        PendingRelease { block: ranks[me].block, readers }
    }
}

/// Block of a rank that has left its group: readers may not have read yet what was published last.
#[derive(Debug)]
pub struct PendingRelease {
    block: u64,
    readers: Vec<(Rank, u64)>,
}

impl PendingRelease {
    /// Whether all readers have finished. Then the block's memory may be used for something else, and peers see that it is.
    pub fn is_released(&mut self, memory: &impl Memory) -> bool {
        self.readers.retain(|(reader, last)| {
            let done = memory.load(reader.block + DONE, Ordering::Acquire);
            // The tag is read after the word: if it is not the reader's any more, the reader has left, having finished, or is
            // dead.
            let is_there = memory.load(reader.block + TAG, Ordering::Acquire) == reader.tag
                && lives(memory, reader.slot, reader.incarnation);
            is_there && done <= *last
        });
        let is_released = self.readers.is_empty();
        if is_released {
            memory.store(self.block + TAG, 0, Ordering::Release);
            memory.fence(Ordering::Release);
        }
        is_released
    }
}
