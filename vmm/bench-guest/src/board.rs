//! Board: the program's orders and answers, and where they lie. The program and those who start it both include this file.

/// Where the [`Board`] lies. The image and its stack lie below, as `bare.rs` of the VMM says.
pub const BOARD: u64 = 0x20_0000;
/// Where the samples lie, behind the board: ticks of a round trip each, of 4 bytes.
pub const SAMPLES: u64 = BOARD + 4096;
/// Where the memory for all else begins.
pub const HEAP: u64 = 0x60_0000;
/// Where the RAM ends.
pub const RAM_END: u64 = 0x100_0000;
/// Most turns that there is room for.
pub const MAX_TURNS: u64 = 100_000;

/// Messages, bytes.
pub const SIZES: [usize; 7] = [8, 64, 512, 4 << 10, 32 << 10, 256 << 10, 1 << 20];
/// Streams of each size. One that is interrupted says nothing of the others.
pub const STREAMS: usize = 21;
/// Turns in which every byte of a message is checked, each way.
pub const CHECKED_TURNS: u64 = 3;

/// Orders and answers.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Board {
    /// Address of the region.
    pub region: u64,
    /// Its bytes.
    pub region_len: u64,
    /// The own section, 0 or 1. Section 0 begins and takes the times.
    pub section: u64,
    /// Whether there is a VM to switch off in the end.
    pub in_vm: u64,
    /// Round trips of short messages.
    pub turns: u64,
    /// 1 when all is done.
    pub done: u64,
    /// Bytes that came and were looked at.
    pub checked: u64,
    /// Those of them that were others than were sent.
    pub wrong: u64,
    /// Ticks of each stream, from the first message to the answer to the last.
    pub streams: [[u64; STREAMS]; SIZES.len()],
    /// Text of a panic.
    pub text: [u8; 256],
}

const _: () = assert!(size_of::<Board>() as u64 <= SAMPLES - BOARD);

/// Round trips of messages of this length: fewer of long ones.
pub const fn turns_of(size: usize, turns: u64) -> u64 {
    let few = if size > 4096 { turns * 4096 / size as u64 } else { turns };
    if few < 4 { 4 } else { few }
}

/// Messages of a stream.
pub const fn stream_of(size: usize, turns: u64) -> u64 {
    let few = turns_of(size, turns) / 4;
    if few < 4 { 4 } else { few }
}
