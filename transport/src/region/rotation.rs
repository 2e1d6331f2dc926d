//! Memory that eager messages go through in turn.

use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use vmshm_abi::LINE;
use vmshm_abi::section::CHUNK;

use crate::memory::Memory;

/// The smallest page, bytes.
const PAGE: usize = 4096;

/// Where the first place in a chunk begins: in the middle of a page. Users' buffers begin with one, and copies between places that lie a
/// line or less apart in their pages are slow. Messages of whole pages and a header, one behind the other, do not come there.
const FIRST: u64 = PAGE as u64 / 2;

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
    /// A rotation through the chunks at these offsets. Each page is written to: the first write to one takes longer than many messages.
    pub fn new(memory: &impl Memory, chunks: impl Iterator<Item = u64>) -> Self {
        let touched = chunks.inspect(|start| {
            let pages = (*start..start + CHUNK).step_by(PAGE);
            pages.for_each(|page| memory.store(page, 0, Ordering::Relaxed));
        });
        let chunks = touched.map(|start| Used { start, in_flight: 0 }).collect();
        Self { chunks, filled: FIRST, last: FIRST, owned: FIRST, ..Self::default() }
    }

    /// Where the next place lies, which has room for `len` bytes; none where the next chunk is still in flight.
    #[inline(always)]
    pub fn find(&mut self, len: u64) -> Option<u64> {
        if self.filled + len > CHUNK {
            self.turn()?;
        }
        Some(self.chunks.get(self.current)?.start + self.filled)
    }

    /// Takes the place that was found, of no more bytes than that: the number of its chunk, for [`Rotation::free`].
    #[inline(always)]
    pub fn take(&mut self, len: u64) -> u32 {
        self.chunks[self.current].in_flight += 1;
        self.last = self.filled;
        self.filled += len.next_multiple_of(LINE);
        self.current as u32
    }

    /// Goes on to the next chunk of which nothing is in flight: what a silent peer holds is passed over.
    #[inline(never)]
    fn turn(&mut self) -> Option<()> {
        let (done, rest) = self.chunks.split_at_checked(self.current + 1)?;
        let next = rest.iter().chain(done).position(|chunk| chunk.in_flight == 0)?;
        let next = (self.current + 1 + next) % self.chunks.len();
        (self.current, self.filled, self.last, self.owned) = (next, FIRST, FIRST, FIRST);
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
