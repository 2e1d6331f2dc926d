//! The chunks of a section's heap, shared by its processes.
//!
//! Each chunk has an owner word, taken and given back by compare-and-exchange. There is no lock that a dying process could
//! leave closed: its chunks carry its name, and reaping it gives them back.

use core::sync::atomic::Ordering;

use super::table::Section;
use crate::memory::Memory;

/// The part of a section that eager messages of all its processes go through in turn at most, as a fraction: its first chunks.
const EAGER: u64 = 4;

/// The reserve, as a fraction of a section: one part in this many, its last chunks, stays for messages and connections.
const RESERVE: u64 = 16;

/// Purpose of an allocation, and so its low-water mark: the part of a section that it may be taken from. The marks are places,
/// not amounts: the processes of a section allocate at the same time, and none knows how much the others are about to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A message, which ends: all of the section.
    Message,
    /// A connection, without which no message could be sent: the reserve too, if need be.
    Connection,
    /// A small allocation that outlives messages: half of the reserve if need be.
    Small,
    /// A large allocation that outlives messages: none of the reserve.
    Large,
    /// Memory that each process has for its eager messages from its start, and can do without: a quarter, since there may be hundreds.
    Eager,
}

impl Purpose {
    /// The chunk behind the last that may be taken.
    pub fn end(self, section: &Section) -> u64 {
        let chunks = section.layout.chunks;
        match self {
            Self::Message | Self::Connection => chunks,
            Self::Small => chunks - chunks.div_ceil(2 * RESERVE),
            Self::Large => chunks - chunks.div_ceil(RESERVE),
            Self::Eager => chunks / EAGER,
        }
    }
}

/// Takes `count` free chunks in a row for `owner`, looking from chunk `hint` on, and returns the first.
pub fn claim_run(memory: &impl Memory, section: &Section, owner: u64, count: u64, hint: u64) -> Option<u64> {
    claim_for(memory, section, owner, count, hint, Purpose::Message)
}

/// As [`claim_run`], of what there is for a purpose.
pub fn claim_for(
    memory: &impl Memory,
    section: &Section,
    owner: u64,
    count: u64,
    hint: u64,
    purpose: Purpose,
) -> Option<u64> {
    let (most, least) = (purpose.end(section), Purpose::Large.end(section));
    let claim = |end| claim_below(memory, section, owner, count, hint, end);
    if purpose == Purpose::Message || most <= least {
        claim(most)
    } else {
        claim(least).or_else(|| claim(most))
    }
}

/// As [`claim_run`], among the chunks below `end`.
fn claim_below(
    memory: &impl Memory,
    section: &Section,
    owner: u64,
    count: u64,
    hint: u64,
    end: u64,
) -> Option<u64> {
    if count == 0 || count > end {
        return None;
    }
    let hint = hint % end;
    claim_between(memory, section, owner, count, hint, end)
        .or_else(|| claim_between(memory, section, owner, count, 0, end.min(hint + count - 1)))
}

fn claim_between(
    memory: &impl Memory,
    section: &Section,
    owner: u64,
    count: u64,
    mut first: u64,
    end: u64,
) -> Option<u64> {
    while first + count <= end {
        let taken =
            (first..first + count).take_while(|chunk| take(memory, section, owner, *chunk)).count() as u64;
        if taken == count {
            // A reader of the chunk's former life that sees bytes of the new one must also see that the former has ended (see
            // `slot::lives`): this pairs with the reader's acquire fence.
            memory.fence(Ordering::Release);
            return Some(first);
        }
        free_run(memory, section, owner, first, taken);
        first += taken + 1;
    }
    None
}

/// Offset in the region of a chunk's owner word.
pub fn word(section: &Section, chunk: u64) -> u64 {
    section.entry.offset + section.layout.owner(chunk)
}

fn take(memory: &impl Memory, section: &Section, owner: u64, chunk: u64) -> bool {
    let at = word(section, chunk);
    memory.load(at, Ordering::Relaxed) == 0 && memory.compare_exchange(at, 0, owner).is_ok()
}

/// Gives back `count` chunks that `owner` holds from chunk `first` on.
pub fn free_run(memory: &impl Memory, section: &Section, owner: u64, first: u64, count: u64) {
    for chunk in first..first + count {
        let _ = memory.compare_exchange(word(section, chunk), owner, 0);
    }
}

/// Gives back all that `owner` holds.
pub fn free_all(memory: &impl Memory, section: &Section, owner: u64) {
    for chunk in 0..section.layout.chunks {
        let at = word(section, chunk);
        if memory.load(at, Ordering::Relaxed) == owner {
            let _ = memory.compare_exchange(at, owner, 0);
        }
    }
}
