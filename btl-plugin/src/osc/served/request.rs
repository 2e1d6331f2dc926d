//! Requests of one process of a served window to another one.

use std::mem::MaybeUninit;

use vmshm_transport::copy_from_shared;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::ompi;

/// The tag of requests: behind those of long messages.
pub const TAG: u8 = ompi::MCA_BTL_TAG_PML as u8 - 1;

/// The kind of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// To store the data.
    Put = 1,
    /// To change numbers, of which the data are the operands.
    Change,
    /// To change numbers likewise, and to reply what they were.
    Fetch,
    /// To replace a number if it is the first one of the data by the second, and to say what it was.
    Swap,
    /// The lock, with others.
    Lock,
    /// The lock, alone.
    LockAlone,
    /// To take the lock back.
    Unlock,
    /// To say what so many bytes are.
    Read,
}

/// A request, as it travels; the data follow.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Request {
    /// The window's name, see [`super::window::Served::name`].
    pub window: u32,
    /// The kind, see [`Kind`].
    pub kind: u16,
    /// The number of a datatype.
    pub number: u16,
    /// Where in the target's memory, bytes.
    pub offset: u64,
    /// The number of an operation.
    pub op: u32,
    /// How many numbers, or bytes.
    pub count: u32,
}

impl Request {
    /// A request at an offset, in bytes.
    pub fn new(window: u32, kind: Kind, offset: usize) -> Self {
        Self { window, kind: kind as u16, number: 0, offset: offset as u64, op: 0, count: 0 }
    }

    /// The kind; None for a number that is none.
    pub fn kind(&self) -> Option<Kind> {
        use Kind::*;
        [Put, Change, Fetch, Swap, Lock, LockAlone, Unlock, Read]
            .into_iter()
            .find(|kind| *kind as u16 == self.kind)
    }

    /// Takes a request apart: itself, and where its data are.
    ///
    /// # Safety
    /// `len` bytes can be read at `bytes`; the sender may change them meanwhile.
    pub unsafe fn read(bytes: *const u8, len: usize) -> Option<(Self, *const u8, usize)> {
        let size = size_of::<Self>();
        let rest = len.checked_sub(size)?;
        let mut request = MaybeUninit::<Self>::uninit();
        // SAFETY: so many bytes are there; a request may hold any.
        let request = unsafe {
            copy_from_shared(bytes, request.as_mut_ptr().cast(), size);
            request.assume_init()
        };
        Some((request, bytes.wrapping_add(size), rest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_read_as_it_was_written() {
        let sent = Request { count: 7, ..Request::new(3, Kind::Swap, 80) };
        let bytes = [sent.as_bytes(), &[1, 2, 3]].concat();
        // SAFETY: the bytes are there.
        let (request, data, len) = unsafe { Request::read(bytes.as_ptr(), bytes.len()) }.unwrap();
        assert_eq!(
            (request.window, request.kind(), request.offset, request.count),
            (3, Some(Kind::Swap), 80, 7)
        );
        assert_eq!((data, len), (bytes[24..].as_ptr(), 3));
        // SAFETY: 23 bytes are there, and more.
        assert!(unsafe { Request::read(bytes.as_ptr(), 23) }.is_none());
    }

    #[test]
    fn nothing_else_is_a_request() {
        for kind in [0, 9, u16::MAX] {
            assert_eq!(Request { kind, ..Request::new(0, Kind::Put, 0) }.kind(), None);
        }
    }
}
