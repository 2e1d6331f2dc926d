//! Cache lines.

/// Bytes of a cache line; what two writers touch never shares one.
pub const LINE: u64 = 64;

/// Bytes of a line pair: adjacent-line prefetch makes two lines travel together.
pub const LINE_PAIR: u64 = 128;
