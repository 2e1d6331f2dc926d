//! One endpoint's memory: blocks cut from the chunks that it holds.

use alloc::vec::Vec;

use vmshm_abi::LINE_PAIR;
use vmshm_abi::section::CHUNK;

use super::chunks::{self, Purpose};
use super::table::Section;
use crate::memory::Memory;

/// Hands out blocks of the section's heap. Blocks of one size class come from chunks of their own, which stay with the class
/// until the section is full; blocks of more than a chunk are runs of chunks. All are aligned to a line pair.
///
/// Blocks that outlive messages share no chunk with messages, and get none that is [held](Arena::hold) for them. So a message
/// that finds no room waits for others of its size only, which end.
#[derive(Debug)]
pub struct Arena {
    owner: u64,
    hint: u64,
    messages: Vec<Class>,
    lasting: Vec<Class>,
}

/// Blocks of one size.
#[derive(Debug, Default)]
struct Class {
    size: u64,
    free: Vec<u64>,
    /// Runs of chunks that they were cut from: the first chunk, and how many.
    runs: Vec<(u64, u64)>,
    /// Number of runs that stay with the class.
    held: usize,
}

/// Three of this size lie in two chunks, where one chunk would have room for one.
const THIRD: u64 = 2 * CHUNK / 3 / LINE_PAIR * LINE_PAIR;

/// The size of the blocks that hold `len` bytes: four classes to a doubling, so that few chunks serve all lengths and
/// little is lost in each block. More than a chunk is rounded to chunks.
fn class_of(len: u64) -> u64 {
    if len > CHUNK {
        return len.next_multiple_of(CHUNK);
    }
    if len > CHUNK / 2 && len <= THIRD {
        return THIRD;
    }
    let len = len.max(LINE_PAIR);
    let step = (len.next_power_of_two() / 8).max(LINE_PAIR);
    len.next_multiple_of(step)
}

/// Number of the class of blocks that hold `len` bytes, at most a chunk.
#[inline(always)]
fn number_of(len: u64) -> usize {
    // The blocks of a third are one class, and stand for two.
    let len = if len > CHUNK / 2 && len <= THIRD { CHUNK / 2 + 1 } else { len };
    let pairs = len.saturating_sub(1) / LINE_PAIR;
    let doublings = pairs.max(4).ilog2() - 2;
    (u64::from(doublings) * 4 + (pairs >> doublings)) as usize
}

/// The class of blocks that hold `len` bytes, at most a chunk.
#[inline]
fn class(classes: &mut Vec<Class>, len: u64) -> &mut Class {
    let number = number_of(len);
    if number >= classes.len() {
        classes.resize_with(number + 1, Class::default);
    }
    let class = &mut classes[number];
    class.size = class_of(len);
    class
}

impl Class {
    /// Cuts a run of chunks into blocks, and returns the first of them.
    fn cut(&mut self, section: &Section, first: u64, chunks: u64) -> Option<u64> {
        let start = section.entry.offset + section.layout.chunk(first);
        self.runs.push((first, chunks));
        self.free.extend((0..chunks * CHUNK / self.size).rev().map(|n| start + n * self.size));
        self.free.pop()
    }

    /// Takes runs without a block in use out of the class, but for those that are held, and gives them to `take`.
    fn dissolve(&mut self, section: &Section, mut take: impl FnMut(u64, u64)) {
        self.free.sort_unstable();
        for index in (self.held..self.runs.len()).rev() {
            let (first, chunks) = self.runs[index];
            let start = section.entry.offset + section.layout.chunk(first);
            let begin = self.free.partition_point(|block| *block < start);
            let end = self.free.partition_point(|block| *block < start + chunks * CHUNK);
            if (end - begin) as u64 == chunks * CHUNK / self.size {
                self.free.drain(begin..end);
                self.runs.remove(index);
                take(first, chunks);
            }
        }
    }
}

impl Arena {
    /// An arena whose chunks carry the name `owner`, looked for from chunk `hint` on.
    pub fn new(owner: u64, hint: u64) -> Self {
        Self { owner, hint, messages: Vec::new(), lasting: Vec::new() }
    }

    /// Holds for each class, for ever, the chunks that it has for messages now.
    pub fn hold(&mut self) {
        self.messages.iter_mut().for_each(|class| class.held = class.runs.len());
    }

    /// A block of `len` bytes or a little more, as an offset from the start of the region; `None` when the section is
    /// full.
    #[inline]
    pub fn allocate(
        &mut self,
        memory: &impl Memory,
        section: &Section,
        len: u64,
        purpose: Purpose,
    ) -> Option<u64> {
        let block = self.try_allocate(memory, section, len, purpose);
        if block.is_some() { block } else { self.allocate_by_reclaim(memory, section, len, purpose) }
    }

    /// The rest of [`Arena::allocate`], where there is nothing free.
    #[cold]
    fn allocate_by_reclaim(
        &mut self,
        memory: &impl Memory,
        section: &Section,
        len: u64,
        purpose: Purpose,
    ) -> Option<u64> {
        let size = class_of(len.min(section.entry.len));
        let needs_one = purpose == Purpose::Message && size <= CHUNK;
        match self.give_back(memory, section, needs_one) {
            Some(spare) => class(&mut self.messages, size).cut(section, spare, 1),
            None => self.try_allocate(memory, section, len, purpose),
        }
    }

    /// A free block among those that outlive messages, for a message that finds no other: it ends, and gives it back there.
    #[cold]
    pub fn borrow(&mut self, len: u64) -> Option<u64> {
        class(&mut self.lasting, len).free.pop()
    }

    /// As [`Arena::allocate`], but `None` also where free chunks of other classes would have to be given back first.
    #[inline]
    pub fn try_allocate(
        &mut self,
        memory: &impl Memory,
        section: &Section,
        len: u64,
        purpose: Purpose,
    ) -> Option<u64> {
        if len > section.entry.len {
            return None;
        }
        if len <= CHUNK
            && let Some(class) = self.classes(purpose == Purpose::Message).get_mut(number_of(len))
            && let Some(block) = class.free.pop()
        {
            return Some(block);
        }
        self.claim(memory, section, class_of(len), purpose)
    }

    /// A block of this size from chunks that nobody has.
    #[inline(never)]
    fn claim(&mut self, memory: &impl Memory, section: &Section, size: u64, purpose: Purpose) -> Option<u64> {
        let (owner, hint) = (self.owner, &mut self.hint);
        let mut claim = |chunks| {
            let first = chunks::claim_for(memory, section, owner, chunks, *hint, purpose)?;
            *hint = first + chunks;
            Some((first, chunks))
        };
        if size > CHUNK {
            let (first, _) = claim(size / CHUNK)?;
            return Some(section.entry.offset + section.layout.chunk(first));
        }
        let two = if size == THIRD { claim(2) } else { None };
        let (first, chunks) = two.or_else(|| claim(1))?;
        class(self.classes(purpose == Purpose::Message), size).cut(section, first, chunks)
    }

    fn classes(&mut self, is_message: bool) -> &mut Vec<Class> {
        if is_message { &mut self.messages } else { &mut self.lasting }
    }

    /// Takes back a block that [`Arena::allocate`] gave for the same `len`, for a message or not.
    pub fn free(&mut self, memory: &impl Memory, section: &Section, block: u64, len: u64, is_message: bool) {
        if len > CHUNK {
            let first = (block - section.entry.offset - section.layout.heap) / CHUNK;
            chunks::free_run(memory, section, self.owner, first, class_of(len) / CHUNK);
        } else if let Some(class) = self.classes(is_message).get_mut(number_of(len)) {
            class.free.push(block);
        }
    }

    /// Gives back the chunks that have no block in use and are not held: the section is full, and another class needs them, or
    /// another process. If a message needs one, the first is returned instead: were it given back too, another process could
    /// be faster.
    fn give_back(&mut self, memory: &impl Memory, section: &Section, needs_one: bool) -> Option<u64> {
        let mut spare = None;
        for class in self.lasting.iter_mut().chain(&mut self.messages) {
            class.dissolve(section, |first, chunks| {
                let kept = u64::from(needs_one && spare.is_none());
                spare = spare.or((kept > 0).then_some(first));
                chunks::free_run(memory, section, self.owner, first + kept, chunks - kept);
            });
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
        let mut numbers = alloc::collections::BTreeMap::new();
        for len in 0..=CHUNK {
            let size = class_of(len);
            assert!(size >= len && size <= CHUNK && size.is_multiple_of(LINE_PAIR));
            numbers.insert(number_of(len), size);
            assert_eq!(numbers[&number_of(len)], size);
            assert!(len < 512 || size <= len + len / 3 + 1, "{len} bytes in a block of {size}");
            classes.insert(size);
        }
        assert!(classes.len() <= 32, "{} classes", classes.len());
        assert_eq!(numbers.len(), classes.len());
        assert!(numbers.last_key_value().is_some_and(|(last, _)| *last < 40));
        assert_eq!(class_of(CHUNK + 1), 2 * CHUNK);
    }
}
