//! One endpoint's memory: blocks cut from the chunks that it holds.

use alloc::vec::Vec;

use vmshm_abi::LINE_PAIR;
use vmshm_abi::section::CHUNK;

use crate::heap;
use crate::memory::Memory;
use crate::region::Section;

/// Hands out blocks of the section's heap. Blocks of one size come from chunks of their own; blocks of more than a chunk
/// are runs of chunks. All are aligned to a line pair.
#[derive(Debug)]
pub struct Arena {
    owner: u64,
    hint: u64,
    classes: Vec<Class>,
}

#[derive(Debug)]
struct Class {
    size: u64,
    free: Vec<u64>,
}

impl Arena {
    /// An arena whose chunks carry the name `owner`, looked for from chunk `hint` on.
    pub fn new(owner: u64, hint: u64) -> Self {
        Self { owner, hint, classes: Vec::new() }
    }

    /// A block of `len` bytes or a little more, as an offset from the start of the region; `None` when the section is
    /// full.
    pub fn allocate(&mut self, memory: &impl Memory, section: &Section, len: u64) -> Option<u64> {
        let size = len.max(1).checked_next_multiple_of(LINE_PAIR)?;
        if size > CHUNK {
            return self.chunks(memory, section, size.div_ceil(CHUNK));
        }
        let index = match self.classes.iter().position(|class| class.size == size) {
            Some(index) => index,
            None => {
                self.classes.push(Class { size, free: Vec::new() });
                self.classes.len() - 1
            }
        };
        if let Some(block) = self.classes[index].free.pop() {
            return Some(block);
        }
        let chunk = self.chunks(memory, section, 1)?;
        let blocks = (0..CHUNK / size).rev().map(|n| chunk + n * size);
        let free = &mut self.classes[index].free;
        free.extend(blocks);
        free.pop()
    }

    /// Takes back a block that [`Arena::allocate`] gave for the same `len`.
    pub fn free(&mut self, memory: &impl Memory, section: &Section, block: u64, len: u64) {
        let size = len.max(1).next_multiple_of(LINE_PAIR);
        if size > CHUNK {
            let first = (block - section.entry.offset - section.layout.heap) / CHUNK;
            heap::free_run(memory, section, self.owner, first, size.div_ceil(CHUNK));
        } else if let Some(class) = self.classes.iter_mut().find(|class| class.size == size) {
            class.free.push(block);
        }
    }

    fn chunks(&mut self, memory: &impl Memory, section: &Section, count: u64) -> Option<u64> {
        let first = heap::claim_run(memory, section, self.owner, count, self.hint)?;
        self.hint = first + count;
        Some(section.entry.offset + section.layout.chunk(first))
    }
}
