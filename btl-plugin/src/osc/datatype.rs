//! Predefined datatypes, whose elements an accumulate works on.
//!
//! A *number* is an element of a predefined datatype. It may consist of parts with gaps between them or behind them, as those of
//! `MPI_SHORT_INT` and `MPI_DOUBLE_INT` do. Packed, it has no gaps; nothing is written to the gaps of its place in memory,
//! where a derived datatype may have another number.

use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;

use crate::ompi::{self, Count, ompi_datatype_t};

/// Elements are not all of one predefined datatype, or not of the other side's.
pub const WRONG_TYPE: c_int = ompi::MPI_ERR_TYPE as c_int;

/// A predefined datatype, of which each element is a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Number {
    /// The datatype's name, the same in all processes.
    pub name: u16,
    /// Bytes of data.
    pub size: usize,
    /// Bytes from one to the next.
    pub extent: usize,
    /// Bytes of memory that one takes up.
    pub held: usize,
    pub datatype: *mut ompi_datatype_t,
}

impl Number {
    /// The bytes of an element, which are moved one by one.
    pub const BYTE: Self = Self { name: 0, size: 1, extent: 1, held: 1, datatype: std::ptr::null_mut() };

    /// One of a datatype that is called so, if there is one.
    pub fn called(name: u16) -> Option<Self> {
        let mut number = MaybeUninit::uninit();
        // SAFETY: any name may be asked for; the number is there if this is true.
        unsafe {
            let is_there = ompi::vmshm_osc_number(name.into(), number.as_mut_ptr());
            is_there.then(|| Self::new(number.assume_init()))
        }
    }

    fn new(number: ompi::vmshm_osc_number) -> Self {
        let ompi::vmshm_osc_number { datatype, size, extent, held, name } = number;
        Self { name: name as u16, size, extent, held, datatype }
    }

    /// The predefined datatype that a datatype's elements consist of, and whether it is that datatype itself. For a mere move
    /// (`is_moved`), elements may consist of bytes.
    ///
    /// # Errors
    /// The datatype has several predefined datatypes, or one that this machine does not know.
    ///
    /// # Safety
    /// The datatype is Open MPI's.
    pub unsafe fn of(datatype: *mut ompi_datatype_t, is_moved: bool) -> Result<(Self, bool), c_int> {
        let (mut number, mut is_predefined) = (MaybeUninit::uninit(), false);
        // SAFETY: the caller vouches for it; the number is there if this is true.
        unsafe {
            let to = number.as_mut_ptr();
            if !ompi::vmshm_osc_number_of(datatype, is_moved, to, &mut is_predefined) {
                return Err(WRONG_TYPE);
            }
            Ok((Self::new(number.assume_init()), is_predefined))
        }
    }

    /// Whether there are bytes between numbers that follow each other, or within them.
    pub fn has_gaps(&self) -> bool {
        self.size != self.extent
    }

    /// Bytes of memory that so many take up; None for more than can be.
    pub fn span(&self, count: usize) -> Option<usize> {
        let Some(others) = count.checked_sub(1) else { return Some(0) };
        self.extent.checked_mul(others)?.checked_add(self.held)
    }

    /// The packed bytes of so many numbers.
    ///
    /// # Safety
    /// The numbers are at `from`.
    pub unsafe fn pack(&self, from: *const u8, count: Count) -> Vec<u8> {
        let mut bytes = vec![0; self.size * ompi::non_negative(count)];
        // SAFETY: the caller vouches for the numbers; there is room for what they pack to, which cannot fail.
        unsafe {
            let to = bytes.as_mut_ptr().cast();
            ompi::vmshm_coll_pack(self.datatype, count, from.cast(), to, bytes.len());
        }
        bytes
    }

    /// Does an operation, by its number, on so many numbers, with packed operands. False if it is not defined for them.
    ///
    /// # Safety
    /// The numbers are at `to`, nobody else works on them, and there are as many operands.
    pub unsafe fn apply(&self, op: c_int, operands: &[u8], to: *mut u8, count: Count) -> bool {
        let mut apart: Vec<u128>;
        let mut from: *const c_void = operands.as_ptr().cast();
        // SAFETY: the caller vouches for all; apart from each other, operands take up as much as the numbers.
        unsafe {
            if self.has_gaps() {
                let span = self.span(ompi::non_negative(count)).unwrap_or(0);
                apart = vec![0; span.div_ceil(size_of::<u128>())];
                let at: *mut c_void = apart.as_mut_ptr().cast();
                ompi::vmshm_coll_unpack(self.datatype, count, at, from, operands.len());
                from = at;
            }
            ompi::vmshm_osc_apply(op, self.name.into(), from, to.cast(), count)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_several_numbers_has_no_gap_behind_it() {
        let pair = Number { size: 12, extent: 16, held: 12, ..Number::BYTE };
        assert_eq!((pair.span(0), pair.span(1), pair.span(3)), (Some(0), Some(12), Some(44)));
        assert_eq!(pair.span(usize::MAX / 8), None);
    }

    #[test]
    fn there_is_no_such_number() {
        assert_eq!(Number::called(u16::MAX), None);
        assert_eq!(Number::called(0), None, "a datatype without data");
    }
}
