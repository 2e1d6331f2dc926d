//! Tuning of an engine, as plain values.

use std::time::Duration;

use vmshm_transport::tune::Tuning;

/// The part of a section that the chunks of one process are at most.
const CHUNKS_PART: u64 = 64;

/// Tuning of an [`Engine`](crate::Engine).
#[derive(Debug, Clone)]
pub struct Params {
    /// Longest message, bytes. A peer that claims more is refused.
    pub max_message: usize,
    /// Longest message for which memory is set aside from the start, bytes.
    pub reserve: usize,
    /// Memory that eager messages go through in turn, bytes; without any there are none.
    pub eager: usize,
    /// How long messages from ordinary memory are cut.
    pub pipeline: Pipeline,
    /// Whether the beginnings of exposed memory are sent ahead of the request: see [`Prefix`](crate::Prefix).
    pub sends_prefix: bool,
    /// Written bytes from which on an idle process evicts them from its nearest cache; `usize::MAX`: never.
    pub evict_from: usize,
    /// Wait after which the process sleeps; it polls all the time where there is none.
    pub sleep_after: Option<Duration>,
}

impl Params {
    /// Longest message that any engine takes, bytes. A larger fragment would not fit small sections more than a few times.
    pub const MAX_MESSAGE: usize = 1 << 20;

    /// Parameters that suit this machine and a section of so many bytes.
    pub fn of_this_machine(section: u64) -> Self {
        let tuning = Tuning::of_this_machine();
        Self {
            max_message: Self::MAX_MESSAGE,
            reserve: 32 << 10,
            eager: 0,
            pipeline: Pipeline::new(tuning, None, None, section),
            sends_prefix: false,
            evict_from: tuning.evict_from,
            sleep_after: None,
        }
    }
}

/// How long messages are cut into chunks, which sender and receiver copy at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pipeline {
    /// Bytes of a chunk.
    pub chunk_size: usize,
    /// Bytes of the last chunks of a message that is alone in flight, and of the steps in which its prefix is copied. Less than
    /// a chunk, since the other side then waits; many messages overlap anyhow, and each chunk costs the time of some kilobytes.
    pub tail_size: usize,
    /// Chunks in flight for many messages.
    pub window: usize,
    /// Chunks in flight for a single message.
    pub window_single: usize,
}

impl Pipeline {
    /// Chunks of `chunk_size` bytes, `window` at a time, where given: else as suits the machine. The chunks of one process are a
    /// small part of its section, which it shares with others.
    pub fn new(tuning: &Tuning, chunk_size: Option<usize>, window: Option<usize>, section: u64) -> Self {
        let chunk_size = chunk_size.unwrap_or(tuning.chunk_size).max(1);
        let window = window.unwrap_or(tuning.window / chunk_size);
        let most = usize::try_from(section / CHUNKS_PART).unwrap_or(usize::MAX) / chunk_size;
        let window = window.min(most).max(2);
        Self {
            chunk_size,
            tail_size: chunk_size.min(tuning.tail_size),
            window,
            window_single: (tuning.window_single / chunk_size).clamp(2, window),
        }
    }

    /// Bytes of memory that eager messages go through in turn: as much as the chunks of a single message.
    pub fn eager(&self) -> usize {
        self.chunk_size * self.window_single
    }

    /// Bytes of the next chunk of a message that is alone and has `rest` bytes to go: the last chunks short, the others long.
    pub(crate) fn next_chunk(&self, rest: usize) -> usize {
        (rest / 2).clamp(self.tail_size, self.chunk_size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_a_small_part_of_the_section() {
        let tuning = Tuning::of_this_machine();
        let default = Pipeline::new(tuning, None, None, 1 << 40);
        assert_eq!((default.chunk_size, default.tail_size), (tuning.chunk_size, tuning.tail_size));
        let small = Pipeline::new(tuning, Some(4096), Some(1000), 16 << 20);
        assert_eq!((small.chunk_size, small.window), (4096, (16 << 20) / 64 / 4096));
        assert!(small.tail_size <= 4096 && (2..=small.window).contains(&small.window_single));
        assert_eq!(Pipeline::new(tuning, Some(1 << 20), Some(50), 1 << 20).window, 2, "two at least");
    }
}
