//! Errors of collective operations.

/// Reason why an operation did not complete. The group is of no use any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CollError {
    /// A rank is gone.
    #[error("rank {0} is gone")]
    PeerLost(usize),
    /// A rank is at a step where it cannot be.
    #[error("rank {rank} is at step {found} where {expected} was expected")]
    OutOfStep {
        /// The rank.
        rank: usize,
        /// The step that was waited for.
        expected: u64,
        /// The value in its stamp.
        found: u64,
    },
    /// A rank takes part in the operation with another length.
    #[error("rank {rank} takes part with {found} bytes, not with {expected}")]
    LengthMismatch {
        /// The rank.
        rank: usize,
        /// Bytes that were expected.
        expected: usize,
        /// The value in its stamp.
        found: usize,
    },
    /// A rank has exposed memory that is not its own.
    #[error(
        "rank {rank} exposes {len} bytes at {offset}, which are not in its section, or begin at no multiple of 16"
    )]
    OutsideSection {
        /// The rank.
        rank: usize,
        /// Their offset in the region.
        offset: u64,
        /// Their number.
        len: usize,
    },
    /// A rank has seen other words of the ranks' memory than we have.
    #[error("rank {0} was told something else of the ranks' memory than this process")]
    Disagreement(usize),
    /// A rank has aborted, since an operation of it failed before.
    #[error("an operation of rank {rank} failed before this one")]
    Aborted {
        /// The rank.
        rank: usize,
        /// The reason that it gave to `Group::abort`.
        why: u16,
    },
    /// The caller has no memory for its work on operands.
    #[error("there is no memory for the operands")]
    NoMemory,
}
