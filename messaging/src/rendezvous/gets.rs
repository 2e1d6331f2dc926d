//! Gets: what this process wants from one peer's sources, in the order of its requests.

use std::collections::VecDeque;

use vmshm_transport::Peer;

use super::prefix::Prefix;
use super::request::{ACTIVE, distance};

/// A get of a peer's source; `done` completes it.
#[derive(Debug)]
pub struct Get<G> {
    /// The source's number, as its owner has said; or [`BY_KEY`](crate::BY_KEY).
    pub source: u64,
    /// The key of a keyed source.
    pub key: Option<u64>,
    /// The source's first byte that is wanted.
    pub offset: u64,
    /// The source's prefix, as its owner has said.
    pub prefix: Prefix,
    /// Where the bytes are wanted.
    pub local: *mut u8,
    /// Bytes.
    pub len: usize,
    /// The get's completion.
    pub done: G,
}

/// A get that is not complete.
#[derive(Debug)]
pub(crate) struct PartialGet<G> {
    pub peer: Peer,
    pub get: Get<G>,
    /// Bytes of it that the prefix holds; the others are requested.
    pub prefix: usize,
    /// Bytes that are here.
    pub done: usize,
}

impl<G> PartialGet<G> {
    /// Whether all of the prefix is here.
    pub fn has_prefix(&self) -> bool {
        self.done >= self.prefix
    }
}

/// Gets from one peer that were requested.
#[derive(Debug)]
pub(crate) struct Gets<G> {
    /// In the order of their requests; none where all of it is here.
    list: VecDeque<Option<PartialGet<G>>>,
    /// The number of the first of these.
    first: u64,
}

impl<G> Gets<G> {
    pub const fn new() -> Self {
        Self { list: VecDeque::new(), first: 0 }
    }

    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// How many requests are not known to be over.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Adds a get that was just requested.
    pub fn add(&mut self, get: PartialGet<G>) {
        self.list.push_back(Some(get));
    }

    /// Takes all that will not come from a lost peer.
    pub fn drain(&mut self) -> impl Iterator<Item = Get<G>> + '_ {
        self.list.drain(..).flatten().map(|partial| partial.get)
    }

    /// The get that a chunk belongs to: all chunks of one come before any of the next with that tag.
    fn position(&self, tag: u8) -> Option<usize> {
        let first = distance(self.first, tag);
        (first..self.list.len()).step_by(ACTIVE as usize).find(|index| self.list[*index].is_some())
    }

    /// Takes the get that a chunk with this tag belongs to, and its place.
    pub fn take(&mut self, tag: u8) -> Option<(usize, PartialGet<G>)> {
        let index = self.position(tag)?;
        Some((index, self.list[index].take()?))
    }

    /// Puts back what [`Gets::take`] took.
    pub fn put(&mut self, index: usize, get: PartialGet<G>) {
        self.list[index] = Some(get);
    }

    /// Notes that a chunk was copied to its place; returns the completion of a get that this makes complete.
    pub fn landed(&mut self, tag: u8, len: usize) -> Option<G> {
        let index = self.position(tag)?;
        let found = &mut self.list[index];
        let partial = found.as_mut()?;
        partial.done += len;
        if partial.done < partial.get.len {
            return None;
        }
        let complete = found.take().map(|partial| partial.get.done);
        while let Some(None) = self.list.front() {
            self.list.pop_front();
            self.first += 1;
        }
        complete
    }
}
