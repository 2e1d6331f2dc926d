//! Ways of passing a message, and their times.

/// Lengths of single copies, bytes.
pub const SHORT: [usize; 7] = [256, 512, 1 << 10, 2 << 10, 4 << 10, 8 << 10, 16 << 10];

/// Way of passing a message, beside [`Way::Vectors`] where nothing else is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// By vectors into shared memory and out of it.
    Vectors,
    /// `rep movsb` into shared memory.
    StringInto,
    /// `rep movsb` out of shared memory.
    StringOutOf,
    /// Out of shared memory from four pages at a time.
    FourPages,
    /// Lines to be written owned ahead (`prefetchw`).
    OwnAhead,
    /// Lines just written demoted (`cldemote`).
    Demote,
    /// The message evicted from the sender's first level cache.
    Evict,
    /// By vectors, between CPUs of different last-level caches.
    Far,
    /// Past the caches into shared memory, beside [`Way::Far`].
    FarNonTemporal,
    /// In chunks that take so much memory in rotation, beside one another.
    Cut {
        /// Bytes of a chunk.
        chunk: usize,
        /// Bytes that the chunks take in rotation.
        rotation: usize,
    },
}

impl Way {
    /// The way that it is compared with.
    pub fn base(self) -> Self {
        match self {
            Self::Far | Self::FarNonTemporal => Self::Far,
            Self::Cut { .. } => self,
            _ => Self::Vectors,
        }
    }
}

/// The time of a way.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Row {
    /// The way.
    pub way: Way,
    /// Bytes of the message.
    pub len: usize,
    /// Nanoseconds that it takes one way, the median of all rounds.
    pub time: f64,
}
