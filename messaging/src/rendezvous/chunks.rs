//! Chunks: the memory of long messages in flight.

use std::collections::VecDeque;

use vmshm_transport::Fragment;

/// Chunks of a process that no prefix gets, and that messages get before they starve. A prefix's chunk comes back only when the
/// receiver has asked for the message, which may wait for what others are yet to get.
pub(crate) const RESERVED: usize = 2;

/// The memory of chunks, used in turn.
#[derive(Debug, Default)]
pub(crate) struct Chunks {
    /// Those that are not in flight; the one that came back first is the next.
    pub free: VecDeque<Fragment>,
    /// How many are in flight, but for prefixes.
    pub in_flight: usize,
    /// How many hold prefixes.
    pub prefixes: usize,
    /// Up to [`RESERVED`], for messages that would starve.
    pub reserve: Vec<Fragment>,
    /// Progress words that no prefix uses.
    pub words: Vec<Fragment>,
}

impl Chunks {
    /// A chunk comes back, or is new.
    fn add(&mut self, chunk: Fragment) {
        if self.reserve.len() < RESERVED {
            self.reserve.push(chunk);
        } else {
            self.free.push_back(chunk);
        }
    }

    /// A chunk comes back.
    pub fn put(&mut self, chunk: Fragment) {
        self.in_flight -= 1;
        self.add(chunk);
    }

    /// A chunk comes back that held a prefix, and its progress word.
    pub fn put_prefix(&mut self, chunk: Fragment, word: Fragment) {
        self.prefixes -= 1;
        self.add(chunk);
        self.words.push(word);
    }

    /// Takes all that is not in flight, but for the reserve.
    pub fn take_free(&mut self) -> impl Iterator<Item = Fragment> + use<> {
        std::mem::take(&mut self.free).into_iter()
    }
}
