//! Why a collective operation did not come to its end.

/// Why an operation did not come to its end. The group is of no use any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CollError {
    /// A rank is gone.
    #[error("rank {0} is gone")]
    PeerLost(usize),
    /// A rank is at another step than it can be.
    #[error("rank {rank} is at step {found} where {expected} was expected")]
    OutOfStep {
        /// Which rank.
        rank: usize,
        /// The step that was waited for.
        expected: u64,
        /// What its stamp says.
        found: u64,
    },
    /// A rank takes part in the operation with another length.
    #[error("rank {rank} takes part with {found} bytes, not with {expected}")]
    LengthMismatch {
        /// Which rank.
        rank: usize,
        /// Bytes that were expected.
        expected: usize,
        /// What its stamp says.
        found: usize,
    },
    /// A rank has lent memory that is not its own.
    #[error(
        "rank {rank} lends {len} bytes at {offset}, which are not in its section, or begin at no multiple of 16"
    )]
    OutsideSection {
        /// Which rank.
        rank: usize,
        /// Where they begin in the region.
        offset: u64,
        /// How many they are.
        len: usize,
    },
    /// A rank was told something else of the others' memory than we were.
    #[error("rank {0} was told something else of the ranks' memory than this process")]
    Disagreement(usize),
    /// A rank whose operation failed before, and who takes part in no more.
    #[error("an operation of rank {rank} failed before this one")]
    Aborted {
        /// Which rank.
        rank: usize,
        /// What it gave to [`Group::abort`].
        why: u16,
    },
    /// There is no memory for what the caller does with operands.
    #[error("there is no memory for the operands")]
    NoMemory,
}
