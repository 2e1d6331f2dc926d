//! Messages that ask the owner of memory to change it, and its answers. Memory of a section needs none: it is changed in place.

use std::ffi::c_void;

use vmshm_messaging::is_reserved;
use vmshm_transport::Peer;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::ucx::*;

/// Tag of a [`Put`], with its bytes.
pub const PUT: u8 = 0x40;
/// Tag of a [`Change`] of a word.
pub const CHANGE: u8 = 0x41;
/// Tag of an [`Answer`].
pub const ANSWER: u8 = 0x42;

const _: () = assert!(!is_reserved(PUT) && !is_reserved(CHANGE) && !is_reserved(ANSWER));

/// Most operations of an interface that wait for one peer's answers, which so have bounded room there. A peer that never answers
/// keeps none of others.
pub const MOST: usize = 1024;

/// Bytes for memory with a key. They follow.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Put {
    pub key: u64,
    /// Of the first byte, in the memory.
    pub offset: u64,
    /// Of the operation, for the answer.
    pub number: u64,
}

/// An atomic operation on a word of memory with a key.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Change {
    pub key: u64,
    pub offset: u64,
    pub number: u64,
    pub update: Update,
}

/// That which has become of an operation.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Answer {
    pub number: u64,
    /// Word as it was, for a [`Change`].
    pub found: u64,
}

/// The new value of a word, by what it was.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Update {
    pub operand: u64,
    /// Value that [`UCT_ATOMIC_OP_CSWAP`] wants to find.
    pub compare: u64,
    /// One of UCX's operations.
    pub op: u32,
    /// Bytes of the word: 4 or 8.
    pub len: u32,
}

impl Update {
    /// Whether operation and length are some of UCX's.
    pub fn is_valid(&self) -> bool {
        self.op < UCT_ATOMIC_OP_LAST && matches!(self.len, 4 | 8)
    }

    /// The new value of a valid update. Of a word of 4 bytes the lower half counts.
    pub fn apply(&self, found: u64) -> u64 {
        match self.op {
            UCT_ATOMIC_OP_ADD => found.wrapping_add(self.operand),
            UCT_ATOMIC_OP_AND => found & self.operand,
            UCT_ATOMIC_OP_OR => found | self.operand,
            UCT_ATOMIC_OP_XOR => found ^ self.operand,
            UCT_ATOMIC_OP_CSWAP if found != self.compare => found,
            _ => self.operand,
        }
    }
}

/// An operation that is under way: its peer, the number of its endpoint, and UCX's completion, if it wants one.
#[derive(Debug, Clone, Copy)]
pub struct Operation {
    pub peer: Peer,
    pub endpoint: u64,
    pub completion: *mut uct_completion_t,
    /// Of what it was [`Asked`]; none of a get that goes to its place by itself.
    pub number: Option<u64>,
}

/// That which an answer is for.
#[derive(Debug)]
pub struct Asked {
    pub operation: Operation,
    pub wanted: Wanted,
}

/// That which an operation gives.
#[derive(Debug)]
pub enum Wanted {
    Nothing,
    /// The word as it was, at this place, of 4 or 8 bytes.
    Word(*mut c_void, u32),
    /// Bytes for a function of UCX's. They come by the engine, not by an answer.
    Bytes(Box<[u8]>, uct_unpack_callback_t, *mut c_void),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn updates_do_what_their_names_say() {
        let apply = |op, found, operand| Update { operand, compare: 6, op, len: 8 }.apply(found);
        assert_eq!(apply(UCT_ATOMIC_OP_ADD, 7, 5u64.wrapping_neg()), 2);
        assert_eq!(apply(UCT_ATOMIC_OP_AND, 6, 3), 2);
        assert_eq!(apply(UCT_ATOMIC_OP_OR, 6, 3), 7);
        assert_eq!(apply(UCT_ATOMIC_OP_XOR, 6, 3), 5);
        assert_eq!(apply(UCT_ATOMIC_OP_SWAP, 6, 3), 3);
        assert_eq!(apply(UCT_ATOMIC_OP_CSWAP, 6, 3), 3);
        assert_eq!(apply(UCT_ATOMIC_OP_CSWAP, 7, 3), 7);
    }
}
