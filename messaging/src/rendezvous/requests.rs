//! Requests of one peer for this process's sources, in the order in which they came.

use std::collections::VecDeque;

use super::request::{ACTIVE, Request};

/// Requests of a peer that are not served yet.
#[derive(Debug)]
pub(crate) struct Requests {
    /// With their numbers. Served bytes are taken off their beginnings.
    list: VecDeque<(u64, Request)>,
    /// The number of the next one.
    next_seq: u64,
    /// Which of the active ones is served next.
    turn: usize,
}

impl Requests {
    pub const fn new() -> Self {
        Self { list: VecDeque::new(), next_seq: 0, turn: 0 }
    }

    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub fn len(&self) -> usize {
        self.list.len()
    }

    pub fn add(&mut self, request: Request) {
        self.list.push_back((self.next_seq, request));
        self.next_seq += 1;
    }

    /// Forgets what a lost peer wanted.
    pub fn clear(&mut self) {
        self.list.clear();
    }

    /// The place of the request to be served next, its number and what of it is not served. Two that share a tag are never
    /// active at a time.
    pub fn next(&mut self) -> Option<(usize, u64, Request)> {
        let (oldest, _) = self.list.front()?;
        if self.list.get(self.turn).is_none_or(|(number, _)| number - oldest >= ACTIVE) {
            self.turn = 0;
        }
        let (number, request) = self.list[self.turn];
        Some((self.turn, number, request))
    }

    /// Notes that `len` bytes of a request were served.
    pub fn served(&mut self, index: usize, len: u64) {
        let (_, request) = &mut self.list[index];
        request.offset += len;
        request.len -= len;
        if request.len == 0 {
            self.list.remove(index);
        } else {
            self.turn += 1;
        }
    }
}
