//! A group: its ranks' blocks, and the steps that they go through together.

use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use super::error::CollError;
use super::layout::{
    BLOCK, DONE, HEAD_SLOTS, MAX_BODY, MAX_HEAD, SLOTS, TAG, body, chunks_len, head, head_payload, is_chunk,
    is_count,
};
use super::pause::Pause;
use crate::memory::Memory;
use crate::region::Section;
use crate::region::slot::live;

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
    pub(super) blocks: Vec<u64>,
    /// Offsets of all ranks' endpoint slots, and their state words as long as the ranks live.
    pub(super) lives: Vec<(u64, u64)>,
    /// Offsets of the ranks' chunks; empty where there are none.
    pub(super) chunks: Vec<u64>,
    pub(super) chunk: usize,
    /// The next step.
    pub(super) step: u64,
    /// The last step that was published in each slot for stamps, and its readers.
    pub(super) published: [(u64, Readers); HEAD_SLOTS as usize],
    /// The same of the bodies.
    pub(super) bodies: [(u64, Readers); SLOTS as usize],
    /// The same of the chunks.
    pub(super) long: Vec<(u64, Readers)>,
    /// The first step that each rank may not have finished with, as far as known.
    pub(super) done: Vec<u64>,
    /// The step of our last short payload.
    pub(super) said: u64,
    /// All other ranks have finished with the steps before this one, as far as known.
    pub(super) all_done: u64,
    /// Offsets of the ranks' operands of an operation, as far as they are exposed.
    pub(super) exposed: Vec<Option<u64>>,
    /// See [`Group::expose_to_root`].
    pub(super) exposes_to_root: usize,
    pub(super) spins: u32,
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
    pub(super) fn turn(&self, step: u64) -> usize {
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
}
