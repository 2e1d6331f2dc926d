//! Memory of C's allocator that knows what is in it.

use std::ffi::c_void;

/// Bytes of a piece that is to lie in the section.
pub const LARGE: usize = 1 << 20;

/// A piece of C's memory, all of whose bytes are the same.
#[derive(Debug)]
pub struct Piece {
    memory: *mut c_void,
    len: usize,
    /// The value of all its bytes.
    pub byte: u8,
}

// SAFETY: C's memory may be used and freed by any thread.
unsafe impl Send for Piece {}

impl Piece {
    /// Memory of `malloc`.
    pub fn new(len: usize, byte: u8) -> Self {
        // SAFETY: malloc takes any length.
        Self::over(unsafe { libc::malloc(len) }, len, byte)
    }

    /// Memory of `posix_memalign`.
    pub fn aligned(align: usize, len: usize, byte: u8) -> Self {
        let mut memory = std::ptr::null_mut();
        // SAFETY: there is room for a pointer.
        assert_eq!(unsafe { libc::posix_memalign(&raw mut memory, align, len) }, 0);
        assert!(memory.addr().is_multiple_of(align));
        Self::over(memory, len, byte)
    }

    /// Memory of `calloc`, which has to be zero.
    pub fn zeroed(len: usize) -> Self {
        // SAFETY: calloc takes any length.
        let memory = unsafe { libc::calloc(1, len) };
        assert!(!memory.is_null());
        let piece = Self { memory, len, byte: 0 };
        piece.check();
        piece
    }

    fn over(memory: *mut c_void, len: usize, byte: u8) -> Self {
        assert!(!memory.is_null(), "no memory for {len} bytes");
        assert!(memory.addr().is_multiple_of(16));
        let mut piece = Self { memory, len, byte };
        piece.fill(byte);
        piece
    }

    /// Writes to all of it.
    pub fn fill(&mut self, byte: u8) {
        // SAFETY: the piece has len bytes.
        unsafe { self.memory.write_bytes(byte, self.len) };
        self.byte = byte;
    }

    /// All of it.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the piece has len bytes, all of them written.
        unsafe { std::slice::from_raw_parts(self.memory.cast(), self.len) }
    }

    /// Panics where it is not as it was filled.
    pub fn check(&self) {
        let wrong = self.bytes().iter().position(|found| *found != self.byte);
        assert!(wrong.is_none(), "byte {wrong:?} of {} is not {:#x}", self.len, self.byte);
    }

    /// `realloc`; what was there has to stay.
    pub fn resize(&mut self, len: usize) {
        // SAFETY: the memory is C's, and used no more under its old address.
        self.memory = unsafe { libc::realloc(self.memory, len) };
        assert!(!self.memory.is_null());
        self.len = self.len.min(len);
        self.check();
        self.len = len;
        self.fill(self.byte);
    }

    /// Whether it lies in memory that is shared with others, as the kernel sees it.
    pub fn is_shared(&self) -> bool {
        is_shared_at(self.memory.addr())
    }
}

/// Whether this process may write at an address, and others see it.
pub fn is_shared_at(address: usize) -> bool {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("the kernel shows its maps");
    let line = maps.lines().find(|line| {
        let range = line.split(' ').next().and_then(|range| range.split_once('-'));
        let number = |text| usize::from_str_radix(text, 16).unwrap_or(0);
        range.is_some_and(|(start, end)| (number(start)..number(end)).contains(&address))
    });
    line.and_then(|line| line.split(' ').nth(1)).is_some_and(|rights| rights == "rw-s")
}

impl Drop for Piece {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.check();
        }
        // SAFETY: the memory is C's and freed once.
        unsafe { libc::free(self.memory) };
    }
}
