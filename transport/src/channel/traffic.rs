//! Traffic of a connection, counted by the way that it takes.

/// Messages, or accesses, and their bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amount {
    /// How many.
    pub count: u64,
    /// Bytes of all of them.
    pub bytes: u64,
}

impl Amount {
    /// Counts one more.
    #[inline]
    pub(crate) fn add(&mut self, bytes: usize) {
        self.count += 1;
        self.bytes += bytes as u64;
    }
}

/// Traffic between an endpoint and one peer since they have connected, by the way that it took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Messages in the ring itself that were sent. Their bytes are those of the ring: whole slots, with the stamps and what is skipped.
    pub inline_sent: Amount,
    /// Messages in the ring itself that were received, their bytes as of those that were sent.
    pub inline_received: Amount,
    /// Messages in memory of the section that were sent, the chunks of long messages among them.
    pub fragments_sent: Amount,
    /// Messages in memory of the section that were received.
    pub fragments_received: Amount,
    /// Reads of the peer's section in place, those of the prefixes of long messages among them.
    pub gets: Amount,
    /// Writes to the peer's section, and atomic operations on it.
    pub puts: Amount,
}
