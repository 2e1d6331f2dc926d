//! One endpoint's memory: blocks cut from the chunks that it holds.

use alloc::vec::Vec;

use vmshm_abi::LINE_PAIR;
use vmshm_abi::section::CHUNK;

use crate::heap;
use crate::memory::Memory;
use crate::region::Section;

/// Hands out blocks of the section's heap. Blocks of one size class come from chunks of their own, which stay with the class
/// until the section is full; blocks of more than a chunk are runs of chunks. All are aligned to a line pair.
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

/// The size of the blocks that hold `len` bytes: four classes to a doubling, so that few chunks serve all lengths and
/// little is lost in each block. More than a chunk is rounded to chunks.
fn class_of(len: u64) -> u64 {
    if len > CHUNK {
        return len.next_multiple_of(CHUNK);
    }
    let len = len.max(LINE_PAIR);
    let step = (len.next_power_of_two() / 8).max(LINE_PAIR);
    len.next_multiple_of(step)
}

impl Arena {
    /// An arena whose chunks carry the name `owner`, looked for from chunk `hint` on.
    pub fn new(owner: u64, hint: u64) -> Self {
        Self { owner, hint, classes: Vec::new() }
    }

    /// A block of `len` bytes or a little more, as an offset from the start of the region; `None` when the section is
    /// full.
    pub fn allocate(&mut self, memory: &impl Memory, section: &Section, len: u64) -> Option<u64> {
        if len > section.entry.len {
            return None;
        }
        let size = class_of(len);
        if size > CHUNK {
            return self.chunks(memory, section, size / CHUNK);
        }
        let index = self.class(size);
        if let Some(block) = self.classes[index].free.pop() {
            return Some(block);
        }
        let chunk = self.chunks(memory, section, 1)?;
        self.cut(index, chunk)
    }

    /// As [`Arena::allocate`], for a block that may stay away for long: `None` where others may soon need the memory more.
    /// It takes neither the last free block of a class nor the last part of the section, and gives no free chunks back.
    pub fn allocate_spare(&mut self, memory: &impl Memory, section: &Section, len: u64) -> Option<u64> {
        if len > section.entry.len {
            return None;
        }
        let size = class_of(len);
        let index = (size <= CHUNK).then(|| self.class(size));
        if let Some(index) = index
            && self.classes[index].free.len() > 1
        {
            return self.classes[index].free.pop();
        }
        let count = size.div_ceil(CHUNK);
        let end = heap::spare_end(section);
        let first = heap::claim_below(memory, section, self.owner, count, self.hint, end)?;
        self.hint = first + count;
        let chunk = section.entry.offset + section.layout.chunk(first);
        match index {
            Some(index) => self.cut(index, chunk),
            None => Some(chunk),
        }
    }

    /// The index of the class with this size.
    fn class(&mut self, size: u64) -> usize {
        self.classes.iter().position(|class| class.size == size).unwrap_or_else(|| {
            self.classes.push(Class { size, free: Vec::new() });
            self.classes.len() - 1
        })
    }

    /// Cuts a chunk into blocks of a class, and returns the first of them.
    fn cut(&mut self, index: usize, chunk: u64) -> Option<u64> {
        let Class { size, free } = &mut self.classes[index];
        free.extend((0..CHUNK / *size).rev().map(|n| chunk + n * *size));
        free.pop()
    }

    /// Takes back a block that [`Arena::allocate`] gave for the same `len`.
    pub fn free(&mut self, memory: &impl Memory, section: &Section, block: u64, len: u64) {
        let size = class_of(len);
        if size > CHUNK {
            let first = (block - section.entry.offset - section.layout.heap) / CHUNK;
            heap::free_run(memory, section, self.owner, first, size / CHUNK);
        } else if let Some(class) = self.classes.iter_mut().find(|class| class.size == size) {
            class.free.push(block);
        }
    }

    fn chunks(&mut self, memory: &impl Memory, section: &Section, count: u64) -> Option<u64> {
        let owner = self.owner;
        let claim = |hint| heap::claim_run(memory, section, owner, count, hint);
        let first = match claim(self.hint) {
            Some(first) => first,
            None => {
                let spare = self.give_back(memory, section);
                match spare {
                    Some(spare) if count == 1 => spare,
                    Some(spare) => {
                        heap::free_run(memory, section, owner, spare, 1);
                        claim(0)?
                    }
                    None => claim(0)?,
                }
            }
        };
        self.hint = first + count;
        Some(section.entry.offset + section.layout.chunk(first))
    }

    /// Gives back the chunks that have no block in use: the section is full, and another class needs them, or another
    /// process. One of them is kept and returned: were it given back too, another process could be faster.
    fn give_back(&mut self, memory: &impl Memory, section: &Section) -> Option<u64> {
        let mut spare = None;
        let chunk_of = |block: u64| (block - section.entry.offset - section.layout.heap) / CHUNK;
        for class in &mut self.classes {
            class.free.sort_unstable();
            let mut kept = Vec::new();
            for blocks in class.free.chunk_by(|one, other| chunk_of(*one) == chunk_of(*other)) {
                match blocks.len() as u64 == CHUNK / class.size {
                    true => match spare {
                        None => spare = Some(chunk_of(blocks[0])),
                        Some(_) => heap::free_run(memory, section, self.owner, chunk_of(blocks[0]), 1),
                    },
                    false => kept.extend_from_slice(blocks),
                }
            }
            class.free = kept;
        }
        spare
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_hold_what_they_promise_and_are_few() {
        let mut classes = alloc::collections::BTreeSet::new();
        for len in 0..=CHUNK {
            let size = class_of(len);
            assert!(size >= len && size <= CHUNK && size.is_multiple_of(LINE_PAIR));
            assert!(len < 512 || size <= len + len / 4 + 1, "{len} bytes in a block of {size}");
            classes.insert(size);
        }
        assert!(classes.len() <= 32, "{} classes", classes.len());
        assert_eq!(class_of(CHUNK + 1), 2 * CHUNK);
    }
}
