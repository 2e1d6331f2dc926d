//! Chunks of the section for other things than messages: a program's memory.

use core::ops::Range;
use core::sync::atomic::Ordering;

use vmshm_abi::section::{CHUNK, chunk_owner};

use super::Endpoint;
use crate::memory::Memory;
use crate::region::Section;
use crate::region::chunks::{Purpose, claim_for, free_run, word};

/// Holder of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    /// Nobody: it is free.
    Nobody,
    /// The endpoint's, also by other ways than [`ChunkAllocator`].
    Endpoint,
    /// Another process's of the section.
    Other,
}

/// Allocator of chunks of the section, in an endpoint's name, for other things than messages.
///
/// The chunks are given back with all else that the endpoint holds, when it leaves or dies. Unlike the endpoint the allocator
/// may be used beside it: by any thread at any time, also from within the endpoint's methods.
#[derive(Debug)]
pub struct ChunkAllocator<M: Memory> {
    memory: M,
    section: Section,
    owner: u64,
    /// The chunk to look at first.
    hint: u64,
}

impl<M: Memory + Clone> ChunkAllocator<M> {
    /// The allocator of an endpoint.
    pub fn of(endpoint: &Endpoint<M>) -> Self {
        let section = *endpoint.section();
        let owner = chunk_owner(endpoint.slot(), endpoint.name().incarnation);
        let end = Purpose::Large.end(&section);
        // Each process begins at a place of its own, so that it seldom waits for the words of others.
        let hint = end * u64::from(endpoint.slot() + 1) / u64::from(section.layout.endpoints);
        Self { memory: endpoint.memory().clone(), section, owner, hint }
    }
}

impl<M: Memory> ChunkAllocator<M> {
    /// Granularity: bytes of a chunk.
    pub const GRAIN: usize = CHUNK as usize;

    /// Addresses of the whole section in this process.
    pub fn addresses(&self) -> Range<usize> {
        let start = self.memory.address(self.section.entry.offset, self.section.entry.len).addr();
        start..start + self.section.entry.len as usize
    }

    /// All chunks of the section's heap: the address of each in this process, and its present holder.
    pub fn holders(&self) -> impl Iterator<Item = (usize, Holder)> + '_ {
        let layout = &self.section.layout;
        let start = self.addresses().start;
        (0..layout.chunks).map(move |chunk| {
            let holder = match self.memory.load(word(&self.section, chunk), Ordering::Relaxed) {
                0 => Holder::Nobody,
                owner if owner == self.owner => Holder::Endpoint,
                _ => Holder::Other,
            };
            (start + layout.chunk(chunk) as usize, holder)
        })
    }

    /// At least `len` bytes, rounded up to [`ChunkAllocator::GRAIN`], with any content; `None` when too little would be left for
    /// messages.
    pub fn take(&mut self, len: usize) -> Option<*mut u8> {
        let chunks = (len as u64).max(1).div_ceil(CHUNK);
        let large = Purpose::Large;
        let first = claim_for(&self.memory, &self.section, self.owner, chunks, self.hint, large)?;
        self.hint = first + chunks;
        Some(
            self.memory.address(self.section.entry.offset + self.section.layout.chunk(first), chunks * CHUNK),
        )
    }

    /// Gives back what [`ChunkAllocator::take`] gave for `len` bytes.
    pub fn give_back(&mut self, address: *mut u8, len: usize) {
        let start = self.section.entry.offset + self.section.layout.heap;
        let Some(first) = self.memory.offset_of(address, len as u64).and_then(|at| at.checked_sub(start))
        else {
            return;
        };
        let chunks = (len as u64).max(1).div_ceil(CHUNK);
        free_run(&self.memory, &self.section, self.owner, first / CHUNK, chunks);
        // The chunks just used are the warmest.
        self.hint = first / CHUNK;
    }
}
