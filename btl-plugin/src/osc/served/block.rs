//! Blocks of words: a process has one in its section for each other one, which that one reads.

use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes that a process has for each other one.
pub const BLOCK: usize = 1024;

/// Where in a block what was fetched lies.
pub const REPLY: usize = 128;

/// Bytes that are fetched at a time.
pub const REPLY_LEN: usize = BLOCK - REPLY;

/// Which word of a block, by its place.
#[derive(Debug, Clone, Copy)]
pub enum Word {
    /// Requests of the other one that were done.
    Done = 0,
    /// Locks that it was given.
    Granted = 8,
    /// How often `MPI_Win_post` was called for it.
    Posted = 16,
    /// How often `MPI_Win_complete` was.
    Completed = 24,
    /// Requests that are done and were for memory that is not attached.
    Refused = 32,
}

/// A block of words.
#[derive(Debug, Clone, Copy)]
pub struct Block(pub *mut u8);

impl Block {
    fn word(&self, word: Word) -> &AtomicU64 {
        // SAFETY: blocks are only made where a process of the window has mapped one.
        unsafe { AtomicU64::from_ptr(self.0.add(word as usize).cast()) }
    }

    /// A word of the other's, and all that it has written before.
    pub fn load(&self, word: Word) -> u64 {
        self.word(word).load(Ordering::Acquire)
    }

    /// Adds one, in a block of this process's.
    pub fn count(&self, word: Word) {
        let word = self.word(word);
        word.store(word.load(Ordering::Relaxed).wrapping_add(1), Ordering::Release);
    }

    /// Where what is fetched lies.
    pub fn reply(&self) -> *mut u8 {
        self.0.wrapping_add(REPLY)
    }
}
