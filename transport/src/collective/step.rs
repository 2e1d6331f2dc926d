//! Steps: publishing, waiting for other ranks, finishing.

use core::sync::atomic::Ordering;

use super::error::CollError;
use super::group::{Group, Rank, Readers};
use super::layout::{
    DONE, EXPOSED, HEAD_SLOTS, LAG, MAX_BODY, MAX_HEAD, SLOTS, TAG, head, is_short, stamp, stamped,
};
use super::pause::Pause;
use crate::memory::Memory;
use crate::region::slot::says;

/// Prefetch distance, steps: a slot's line is prefetched for writing this long before its next use, when readers of its last use
/// have finished and those of the next do not look yet.
const AHEAD: u64 = 2;

/// Least value of a `done` word that means abortion: the rank finishes with no more steps. The rest is the reason.
const ABORTED: u64 = u64::MAX - u16::MAX as u64;

/// Pauses between two liveness checks of the rank that is waited for: more of them would take its words away too often.
const PATIENCE: u32 = 64;

impl<M: Memory> Group<M> {
    /// Waits until the former content of our slots for this step and a payload of `len` bytes has been read. Then they may be
    /// written.
    #[inline(always)]
    pub(super) fn await_slot(
        &mut self,
        step: u64,
        len: usize,
        pause: &mut impl Pause,
    ) -> Result<(), CollError> {
        // Their last use lies at least this many steps behind: there are no fewer chunks than bodies.
        let round = if len as u64 <= MAX_HEAD { HEAD_SLOTS } else { SLOTS };
        if step.saturating_sub(self.all_done) < round {
            Ok(())
        } else {
            self.await_slot_readers(step, len, pause)
        }
    }

    /// The rest of [`Group::await_slot`], where it is not yet known that all others have finished.
    #[inline(never)]
    fn await_slot_readers(&mut self, step: u64, len: usize, pause: &mut impl Pause) -> Result<(), CollError> {
        self.await_readers(self.published[(step % HEAD_SLOTS) as usize], pause)?;
        if len as u64 > MAX_BODY {
            self.await_readers(self.long[self.turn(step)], pause)?;
        } else if len as u64 > MAX_HEAD {
            self.await_readers(self.bodies[(step % SLOTS) as usize], pause)?;
        }
        let others = self.done.iter().enumerate().filter(|(rank, _)| *rank != self.me);
        self.all_done = others.map(|(_, done)| *done).min().unwrap_or(step);
        Ok(())
    }

    /// Waits until the readers of a step have finished with it.
    pub(super) fn await_readers(
        &mut self,
        (step, readers): (u64, Readers),
        pause: &mut impl Pause,
    ) -> Result<(), CollError> {
        let (size, me) = (self.ranks.len(), self.me);
        match readers {
            Readers::Nobody | Readers::Lenient => {}
            Readers::One(reader) => self.finished(reader, step, pause)?,
            Readers::All => {
                // A lost rank is reported only when the others, too, read no more.
                let mut result = Ok(());
                for reader in (0..size).filter(|reader| *reader != me) {
                    result = result.and(self.finished(reader, step, pause));
                }
                return result;
            }
        }
        Ok(())
    }

    /// Waits until a rank has finished with a step.
    #[inline]
    fn finished(&mut self, rank: usize, step: u64, pause: &mut impl Pause) -> Result<(), CollError> {
        if self.done[rank] <= step {
            self.done[rank] = self.at_least(rank, DONE, step + 1, pause)?;
        }
        Ok(())
    }

    /// Waits until a word of a rank's block has this value or a greater one, and returns it.
    #[inline(always)]
    fn at_least(&self, rank: usize, word: u64, value: u64, pause: &mut impl Pause) -> Result<u64, CollError> {
        let at = self.blocks[rank] + word;
        let found = self.memory.load(at, Ordering::Acquire);
        if found >= value { Ok(found) } else { self.wait(rank, at, value, pause) }
    }

    /// The rest of [`Group::at_least`], where the word is not there yet.
    #[inline(never)]
    fn wait(&self, rank: usize, at: u64, value: u64, pause: &mut impl Pause) -> Result<u64, CollError> {
        let spins = pause.spins(self.spins).max(1);
        // The caller has looked once already.
        let mut looks = spins - 1;
        let mut pauses = 0u32;
        loop {
            for _ in 0..looks {
                let found = self.memory.load(at, Ordering::Acquire);
                if found >= value {
                    return Ok(found);
                }
            }
            if at == self.blocks[rank] + DONE && self.has_left(rank) {
                return Ok(value);
            }
            pauses = pauses.wrapping_add(1);
            if pauses.is_multiple_of(PATIENCE) {
                let done = self.memory.load(self.blocks[rank] + DONE, Ordering::Acquire);
                self.confirm(rank)?;
                if done >= ABORTED {
                    // Its earlier stamps are seen now.
                    let found = self.memory.load(at, Ordering::Acquire);
                    let aborted = CollError::Aborted { rank, why: (u64::MAX - done) as u16 };
                    return if found >= value { Ok(found) } else { Err(aborted) };
                }
            }
            pause.pause(rank)?;
            looks = spins;
        }
    }

    /// Whether a rank has left the group, having finished: then its block may be used for something else by now. To be asked
    /// after its words were read.
    fn has_left(&self, rank: usize) -> bool {
        let Rank { block, tag, .. } = self.ranks[rank];
        self.memory.load(block + TAG, Ordering::Acquire) != tag
    }

    /// Liveness check of a rank, after its bytes were read and before anything is done for which they must be its own: when its
    /// life has ended, its memory may be another's. A rank that leaves the group alive waits for its readers.
    #[inline(always)]
    pub(super) fn confirm(&self, rank: usize) -> Result<(), CollError> {
        let (slot, word) = self.lives[rank];
        if says(&self.memory, slot, word) { Ok(()) } else { Err(CollError::PeerLost(rank)) }
    }

    /// [`Group::confirm`] for all other ranks.
    #[inline(always)]
    pub(super) fn confirm_all(&self) -> Result<(), CollError> {
        if self.lives.len() == 2 {
            return self.confirm(1 - self.me);
        }
        match self.lives.iter().all(|(slot, word)| says(&self.memory, *slot, *word)) {
            true => Ok(()),
            false => Err(self.lost()),
        }
    }

    /// Error for the lost rank.
    #[cold]
    fn lost(&self) -> CollError {
        (0..self.size()).find_map(|rank| self.confirm(rank).err()).unwrap_or(CollError::PeerLost(self.me))
    }

    /// Error for wrong words of a rank: if its life has ended, they need not be its own.
    #[cold]
    pub(super) fn fault(&self, broken: CollError, rank: usize) -> CollError {
        self.confirm(rank).err().unwrap_or(broken)
    }

    /// Publishes our payload of a step, which lies in its slot.
    #[inline(always)]
    pub(super) fn publish(&mut self, step: u64, len: usize, readers: Readers) {
        if len as u64 > MAX_BODY {
            let turn = self.turn(step);
            self.long[turn] = (step, readers);
        } else if len as u64 > MAX_HEAD {
            self.bodies[(step % SLOTS) as usize] = (step, readers);
        }
        self.store_stamp(step, len, readers);
    }

    /// Stores the stamp of a step, and demotes its line.
    #[inline(always)]
    pub(super) fn store_stamp(&mut self, step: u64, len: usize, readers: Readers) {
        self.published[(step % HEAD_SLOTS) as usize] = (step, readers);
        let at = self.block + head(step);
        self.memory.store(at, stamp(step, len), Ordering::Release);
        self.memory.demote(at, 1);
    }

    /// Whether we have published anything at a step.
    #[inline]
    pub(super) fn has_published(&self, step: u64) -> bool {
        self.published[(step % HEAD_SLOTS) as usize].0 == step
    }

    /// Backs off after a step was published, before the stamps of ranks that publish at the same time are looked for.
    #[inline]
    pub(super) fn back_off(&self, step: u64, pause: &impl Pause) {
        self.memory.prefetch_write(self.block + head(step + AHEAD), 1);
        pause.back_off();
    }

    /// Waits for a rank's payload of a step.
    #[inline(always)]
    pub(super) fn expect(
        &mut self,
        rank: usize,
        step: u64,
        len: usize,
        pause: &mut impl Pause,
    ) -> Result<(), CollError> {
        let found = self.reached(rank, step, pause)?;
        if found != stamp(step, len) {
            return Err(self.mismatch(rank, step, len, found));
        }
        Ok(())
    }

    /// Waits until a rank has published a step or a later one, and returns its stamp.
    #[inline(always)]
    pub(super) fn reached(
        &mut self,
        rank: usize,
        step: u64,
        pause: &mut impl Pause,
    ) -> Result<u64, CollError> {
        let found = self.at_least(rank, head(step), stamp(step, 0), pause)?;
        let known = &mut self.done[rank];
        *known = (*known).max(step.saturating_sub(LAG));
        if self.blocks.len() == 2 {
            // There are no other ranks.
            self.all_done = *known;
        }
        Ok(found)
    }

    #[cold]
    pub(super) fn mismatch(&self, rank: usize, step: u64, len: usize, found: u64) -> CollError {
        let (found_step, mut found) = stamped(found);
        if found_step == step && found == EXPOSED {
            found = self.exposed_at(rank, step).1;
        }
        let broken = match found_step == step {
            true => CollError::LengthMismatch { rank, expected: len, found },
            false => CollError::OutOfStep { rank, expected: step, found: found_step },
        };
        self.fault(broken, rank)
    }

    /// Stores our `done` word: we have finished with all steps before this one.
    #[inline]
    pub(super) fn finish(&mut self, step: u64) {
        self.memory.store(self.block + DONE, step, Ordering::Release);
    }

    /// Ends an operation: the next one begins with this step.
    #[inline]
    pub(super) fn end(&mut self, step: u64) {
        self.step = step;
        self.finish(step);
    }

    /// Pipeline of `len` bytes in pieces, each a step: `work` gets the step, the offset of its piece, and its length.
    #[inline]
    pub(super) fn in_pieces(
        &mut self,
        len: usize,
        piece: usize,
        mut work: impl FnMut(&mut Self, u64, usize, usize) -> Result<(), CollError>,
    ) -> Result<(), CollError> {
        let mut at = 0;
        while at < len {
            let (step, now) = (self.step, piece.min(len - at));
            work(self, step, at, now)?;
            self.end(step + 1);
            at += now;
        }
        Ok(())
    }

    /// Copies our payload of a step to its slot, and publishes it.
    ///
    /// # Safety
    ///
    /// `from` is valid for reads of `len` bytes.
    #[inline]
    pub(super) unsafe fn publish_copy(
        &mut self,
        step: u64,
        from: *const u8,
        len: usize,
        readers: Readers,
        pause: &mut impl Pause,
    ) -> Result<(), CollError> {
        if is_short(len) {
            // SAFETY: the caller vouches for `from`.
            return unsafe { self.publish_short(step, from, len, readers, pause) };
        }
        self.await_slot(step, len, pause)?;
        // SAFETY: the caller vouches for `len` bytes at `from`; `copy_in` checks the other side.
        unsafe { self.memory.copy_in(self.place(self.me, step, len), from, len) };
        self.publish(step, len, readers);
        Ok(())
    }
}
