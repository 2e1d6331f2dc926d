//! The memory that a process has attached to a dynamic window: what others may access by its addresses.

use std::collections::BTreeMap;
use std::ffi::c_int;

use crate::ompi;

/// Memory that can't be attached to this window, or not again.
pub const NOT_ATTACHED: c_int = ompi::MPI_ERR_RMA_ATTACH as c_int;

/// All that is attached. No byte is twice.
#[derive(Debug, Default)]
pub struct Attached {
    /// The length of each piece, by its address.
    pieces: BTreeMap<usize, usize>,
    /// Where pieces without bytes are: they can be detached, and that is all.
    empty: Vec<usize>,
}

impl Attached {
    /// Attaches so many bytes.
    ///
    /// # Errors
    /// Some are attached, or beyond the last address.
    pub fn attach(&mut self, start: usize, len: usize) -> Result<(), c_int> {
        if len == 0 {
            self.empty.push(start);
            return Ok(());
        }
        let end = start.checked_add(len).ok_or(NOT_ATTACHED)?;
        // The last piece that begins before the end is the only one that can reach into this one.
        if let Some((other, len)) = self.pieces.range(..end).next_back()
            && other + len > start
        {
            return Err(NOT_ATTACHED);
        }
        self.pieces.insert(start, len);
        Ok(())
    }

    /// Detaches the piece that begins there.
    ///
    /// # Errors
    /// There is none.
    pub fn detach(&mut self, start: usize) -> Result<(), c_int> {
        if self.pieces.remove(&start).is_some() {
            return Ok(());
        }
        let found = self.empty.iter().position(|empty| *empty == start);
        self.empty.swap_remove(found.ok_or(ompi::MPI_ERR_BASE as c_int)?);
        Ok(())
    }

    /// Whether all of so many bytes are attached, be it as several pieces that follow each other.
    pub fn has(&self, start: usize, len: usize) -> bool {
        let Some(end) = start.checked_add(len) else { return false };
        let mut next = start;
        while next < end {
            match self.pieces.range(..=next).next_back() {
                Some((piece, len)) if piece + len > next => next = piece + len,
                _ => return false,
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_byte_is_attached_twice() {
        let mut attached = Attached::default();
        attached.attach(1000, 100).unwrap();
        for (start, len) in [(1000, 100), (1099, 1), (900, 101), (900, 1000), (1050, 10), (usize::MAX, 2)] {
            assert_eq!(attached.attach(start, len), Err(NOT_ATTACHED), "{len} bytes at {start}");
        }
        attached.attach(900, 100).unwrap();
        attached.attach(1100, 100).unwrap();
        attached.detach(1000).unwrap();
        attached.attach(1010, 90).unwrap();
    }

    #[test]
    fn only_what_is_attached_is_there() {
        let mut attached = Attached::default();
        assert!(!attached.has(1000, 1));
        attached.attach(1000, 100).unwrap();
        attached.attach(1100, 50).unwrap();
        attached.attach(1200, 50).unwrap();
        for (start, len) in [(1000, 100), (1000, 150), (1099, 2), (1149, 1), (1200, 50), (5, 0)] {
            assert!(attached.has(start, len), "{len} bytes at {start}");
        }
        for (start, len) in [(999, 1), (999, 2), (1000, 151), (1150, 1), (1100, 150), (1250, 1)] {
            assert!(!attached.has(start, len), "{len} bytes at {start}");
        }
        for (start, len) in [(1000, usize::MAX), (usize::MAX, 2), (0, usize::MAX)] {
            assert!(!attached.has(start, len), "{len} bytes at {start}");
        }
        attached.detach(1000).unwrap();
        assert!(!attached.has(1000, 1) && attached.has(1100, 1));
    }

    #[test]
    fn a_piece_is_detached_once_and_by_its_first_byte() {
        let mut attached = Attached::default();
        attached.attach(1000, 100).unwrap();
        attached.attach(1050, 0).unwrap();
        attached.attach(1000, 0).unwrap();
        assert!(attached.detach(1001).is_err());
        for start in [1000, 1050, 1000] {
            attached.detach(start).unwrap();
        }
        assert!(attached.detach(1000).is_err() && attached.detach(1050).is_err());
        assert!(!attached.has(1000, 1));
    }
}
