//! Memory that eager messages go through in turn.

use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use vmshm_abi::LINE;
use vmshm_abi::section::CHUNK;

use super::chunks::{Purpose, claim_for};
use super::table::Section;
use crate::memory::Memory;

/// The smallest page, bytes.
const PAGE: usize = 4096;

/// Chunks of the section that one endpoint's eager messages fill one after the other, and from the first one on again. In a stream
/// lines that their reader still holds are slow to write; those that both sides have evicted meanwhile are not.
#[derive(Debug, Default)]
pub struct Rotation {
    chunks: Vec<Used>,
    /// The chunk that is filled now, how far it is, and where the last place in it begins.
    current: usize,
    filled: u64,
    last: u64,
    /// How far lines are owned ahead.
    owned: u64,
}

/// A chunk, and how many messages in it are in flight.
#[derive(Debug)]
struct Used {
    start: u64,
    in_flight: u32,
}

impl Rotation {
    /// Takes `count` chunks in the name of `owner`, or as many as there are for what outlives messages. Each page is written to: the
    /// first write to one takes longer than many messages.
    pub fn new(memory: &impl Memory, section: &Section, owner: u64, mut hint: u64, count: usize) -> Self {
        let mut chunks = Vec::new();
        while chunks.len() < count
            && let Some(first) = claim_for(memory, section, owner, 1, hint, Purpose::Large)
        {
            hint = first + 1;
            let start = section.entry.offset + section.layout.chunk(first);
            for page in (start..start + CHUNK).step_by(PAGE) {
                memory.store(page, 0, Ordering::Relaxed);
            }
            chunks.push(Used { start, in_flight: 0 });
        }
        Self { chunks, ..Self::default() }
    }

    /// A place for `len` bytes, and the number of its chunk, for [`Rotation::free`]; none where the next chunk is still in flight.
    #[inline(always)]
    pub fn take(&mut self, len: u64) -> Option<(u64, u32)> {
        if self.filled + len > CHUNK {
            self.turn()?;
        }
        let chunk = self.chunks.get_mut(self.current)?;
        chunk.in_flight += 1;
        self.last = self.filled;
        self.filled += len.next_multiple_of(LINE);
        Some((chunk.start + self.last, self.current as u32))
    }

    /// Goes on to the next chunk of which nothing is in flight: what a silent peer holds is passed over.
    #[inline(never)]
    fn turn(&mut self) -> Option<()> {
        let (done, rest) = self.chunks.split_at_checked(self.current + 1)?;
        let next = rest.iter().chain(done).position(|chunk| chunk.in_flight == 0)?;
        let next = (self.current + 1 + next) % self.chunks.len();
        (self.current, self.filled, self.last, self.owned) = (next, 0, 0, 0);
        Some(())
    }

    /// Takes back a place in this chunk.
    #[inline(always)]
    pub fn free(&mut self, chunk: u32) {
        if let Some(chunk) = self.chunks.get_mut(chunk as usize) {
            chunk.in_flight -= 1;
        }
    }

    /// Owns the lines of the place that is taken next, if it is as long as the last one.
    pub fn prepare(&mut self, memory: &impl Memory) {
        let Some(chunk) = self.chunks.get(self.current) else { return };
        let (start, end) = (self.owned.max(self.filled), 2 * self.filled - self.last);
        if start < end && end <= CHUNK {
            memory.own(chunk.start + start, end - start);
            self.owned = end;
        }
    }
}
