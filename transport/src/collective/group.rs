//! A group: its ranks' blocks, and the steps that they go through together.

use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use super::error::CollError;
use super::layout::{
    BLOCK, DONE, EXPOSED, HEAD_SLOTS, LAG, MAX_BODY, MAX_HEAD, SLOTS, TAG, body, chunks_len, head,
    head_payload, is_chunk, is_count, is_short, stamp, stamped,
};
use super::pause::Pause;
use crate::memory::Memory;
use crate::region::Section;
use crate::region::slot::{live, lives, says};

/// Place of a rank's block, and the life of the endpoint behind it.
#[derive(Debug, Clone, Copy)]
pub struct Rank {
    /// Its section.
    pub section: Section,
    /// Offset of its block in the region, [`BLOCK`] bytes.
    pub block: u64,
    /// Tag: the block's first word as long as the rank is in the group; not zero.
    pub tag: u64,
    /// Offset of its endpoint's slot in the region.
    pub slot: u64,
    /// Incarnation of its endpoint. When that life has ended, its memory is given to others.
    pub incarnation: u64,
}

/// Readers of a published slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Readers {
    /// Nobody.
    Nobody,
    /// All ranks, to which a later stamp does as well.
    Lenient,
    /// One rank.
    One(usize),
    /// All ranks.
    All,
}

/// Prefetch distance, steps: a slot's line is prefetched for writing this long before its next use, when readers of its last use
/// have finished and those of the next do not look yet.
const AHEAD: u64 = 2;

/// Least value of a `done` word that means abortion: the rank finishes with no more steps. The rest is the reason.
const GAVE_UP: u64 = u64::MAX - u16::MAX as u64;

/// Pauses between two liveness checks of the rank that is waited for: more of them would take its words away too often.
const PATIENCE: u32 = 64;

/// Bytes of the smallest page.
const PAGE: usize = 4096;

/// The ranks' blocks as one rank sees them.
#[derive(Debug)]
pub struct Group<M> {
    pub(super) memory: M,
    pub(super) me: usize,
    pub(super) ranks: Vec<Rank>,
    /// Offset of our block.
    pub(super) block: u64,
    /// Offsets of all ranks' blocks.
    blocks: Vec<u64>,
    /// Offsets of all ranks' endpoint slots, and their state words as long as the ranks live.
    lives: Vec<(u64, u64)>,
    /// Offsets of the ranks' chunks; empty where there are none.
    chunks: Vec<u64>,
    chunk: usize,
    /// The next step.
    pub(super) step: u64,
    /// The last step that was published in each slot for stamps, and its readers.
    published: [(u64, Readers); HEAD_SLOTS as usize],
    /// The same of the bodies.
    bodies: [(u64, Readers); SLOTS as usize],
    /// The same of the chunks.
    long: Vec<(u64, Readers)>,
    /// The first step that each rank may not have finished with, as far as known.
    done: Vec<u64>,
    /// The step of our last short payload.
    pub(super) said: u64,
    /// All other ranks have finished with the steps before this one, as far as known.
    all_done: u64,
    /// Offsets of the ranks' operands of an operation, as far as they are exposed.
    pub(super) exposed: Vec<Option<u64>>,
    /// See [`Group::expose_to_root`].
    pub(super) exposes_to_root: usize,
    spins: u32,
}

impl<M: Memory> Group<M> {
    /// Prepares the block at offset `block` of our own section, with this tag. To be called before any other rank learns of it.
    pub fn prepare(memory: &M, block: u64, tag: u64) {
        for step in 0..HEAD_SLOTS {
            memory.store(block + head(step), 0, Ordering::Relaxed);
        }
        memory.store(block + DONE, 1, Ordering::Relaxed);
        memory.store(block + TAG, tag, Ordering::Release);
    }

    /// The group of these ranks, of which we are number `me`; None where a rank's block lies outside of its section
    /// or is not aligned. A rank looks for others' steps `spins` times before it pauses.
    pub fn new(memory: M, me: usize, ranks: Vec<Rank>, spins: u32) -> Option<Self> {
        let is_sound =
            |rank: &Rank| rank.block.is_multiple_of(64) && rank.section.contains(rank.block, BLOCK as u64);
        if me >= ranks.len() || !ranks.iter().all(is_sound) {
            return None;
        }
        Some(Self {
            memory,
            me,
            done: ranks.iter().map(|_| 0).collect(),
            said: 0,
            all_done: 0,
            exposed: ranks.iter().map(|_| None).collect(),
            block: ranks[me].block,
            blocks: ranks.iter().map(|rank| rank.block).collect(),
            lives: ranks.iter().map(|rank| (rank.slot, live(rank.incarnation))).collect(),
            ranks,
            chunks: Vec::new(),
            chunk: 0,
            step: 1,
            published: [(0, Readers::Nobody); HEAD_SLOTS as usize],
            bodies: [(0, Readers::Nobody); SLOTS as usize],
            long: Vec::new(),
            exposes_to_root: usize::MAX,
            spins: spins.max(1),
        })
    }

    /// Number of ranks.
    pub fn size(&self) -> usize {
        self.ranks.len()
    }

    /// Our own rank.
    pub fn me(&self) -> usize {
        self.me
    }

    /// The region's memory.
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// A rank, as the group was made with it.
    ///
    /// # Panics
    ///
    /// Where there is no such rank.
    pub fn rank(&self, number: usize) -> Rank {
        self.ranks[number]
    }

    /// Longest payload of one step.
    pub fn chunk(&self) -> usize {
        if self.chunks.is_empty() { MAX_BODY as usize } else { self.chunk }
    }

    /// Longest payload of one step that needs no chunks.
    pub fn short(&self) -> usize {
        MAX_BODY as usize
    }

    /// Whether the ranks have chunks for long payloads.
    pub fn has_chunks(&self) -> bool {
        !self.chunks.is_empty()
    }

    /// Publishes the offset of our chunks, [`chunks_len`] bytes for `count` chunks of `chunk` bytes each; 0 where we have
    /// none. All ranks call this at the same step, with the same `chunk`, and use as many as all have. Returns whether
    /// there are chunks now: either all ranks have them, or none uses them, as where [`is_chunk`] is not true of `chunk`
    /// or a count is none.
    ///
    /// # Errors
    ///
    /// A rank that is gone or out of step.
    pub fn add_chunks(
        &mut self,
        mine: u64,
        chunk: usize,
        count: u64,
        pause: &mut impl Pause,
    ) -> Result<bool, CollError> {
        const WORDS: usize = size_of::<[u64; 2]>();
        let mut all: Vec<[u64; 2]> = self.ranks.iter().map(|_| [mine, count]).collect();
        let mine = all[self.me];
        let parts: Vec<_> =
            all.iter_mut().map(|words| (core::ptr::from_mut(words).cast::<u8>(), WORDS)).collect();
        // SAFETY: each part is an array of its own, and so is `mine`.
        unsafe { self.all_gather(core::ptr::from_ref(&mine).cast(), WORDS, |rank| parts[rank], pause)? };
        let told: Vec<u64> = core::iter::once(chunk as u64).chain(all.iter().flatten().copied()).collect();
        self.compare(&told, pause)?;
        let count = all.iter().map(|[_, count]| *count).min().unwrap_or(0);
        let is_sound = |(rank, [offset, _]): (&Rank, &[u64; 2])| {
            offset.is_multiple_of(64) && rank.section.contains(*offset, chunks_len(chunk, count) as u64)
        };
        if is_chunk(chunk) && is_count(count) && self.ranks.iter().zip(&all).all(is_sound) {
            self.chunks = all.iter().map(|[offset, _]| *offset).collect();
            self.chunk = chunk;
            self.long = (0..count).map(|_| (0, Readers::Nobody)).collect();
        }
        Ok(self.has_chunks())
    }

    /// Compares the words that all ranks have seen: a hostile rank that shows each of the others different ones could have two of
    /// them read one another's chunks at the wrong places.
    fn compare(&mut self, words: &[u64], pause: &mut impl Pause) -> Result<(), CollError> {
        let (len, mine) = (size_of_val(words), words.as_ptr().cast());
        let mut all: Vec<u64> = words.repeat(self.size());
        let parts: Vec<_> =
            all.chunks_mut(words.len()).map(|told| (told.as_mut_ptr().cast::<u8>(), len)).collect();
        // SAFETY: each part is an array of its own, and so is `words`.
        unsafe { self.all_gather(mine, len, |rank| parts[rank], pause)? };
        match all.chunks(words.len()).position(|told| told != words) {
            Some(rank) => Err(CollError::Disagreement(rank)),
            None => Ok(()),
        }
    }

    /// Touches each page of all ranks' chunks, so that no operation waits for a page fault later.
    pub fn touch_chunks(&self) {
        let len = chunks_len(self.chunk, self.long.len() as u64) as u64;
        for at in self.chunks.iter().flat_map(|start| (*start..start + len).step_by(PAGE)) {
            self.memory.load(at, Ordering::Relaxed);
        }
    }

    /// Limits the operands that are exposed to the root of a reduction to `most` bytes. They should fit its second level cache
    /// together with its own and the result: else the root takes as long with them as with slots, and the exposing rank waits for
    /// all of that.
    pub fn expose_to_root(&mut self, most: usize) {
        self.exposes_to_root = most;
    }

    /// The chunk of a step.
    #[inline]
    fn turn(&self, step: u64) -> usize {
        // A power of two.
        step as usize & (self.long.len() - 1)
    }

    /// Offset of a rank's payload of a step.
    #[inline]
    pub(super) fn place(&self, rank: usize, step: u64, len: usize) -> u64 {
        let block = self.blocks[rank];
        if len as u64 <= MAX_HEAD {
            block + head_payload(step)
        } else if len as u64 <= MAX_BODY {
            block + body(step)
        } else {
            self.chunks[rank] + (self.turn(step) * self.chunk) as u64
        }
    }

    /// Address of the payload of a step in this process.
    #[inline]
    pub(super) fn address(&self, rank: usize, step: u64, len: usize) -> *mut u8 {
        self.memory.address(self.place(rank, step, len), len as u64)
    }

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
                if done >= GAVE_UP {
                    // Its earlier stamps are seen now.
                    let found = self.memory.load(at, Ordering::Acquire);
                    let gave_up = CollError::Aborted { rank, why: (u64::MAX - done) as u16 };
                    return if found >= value { Ok(found) } else { Err(gave_up) };
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
