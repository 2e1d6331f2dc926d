//! Where the data of elements lie: as runs of bytes, to be moved, or of numbers, for an operation.
//!
//! A number is an element of a predefined datatype. It may consist of parts with gaps between them or behind them, as those of
//! `MPI_SHORT_INT` and `MPI_DOUBLE_INT` do. Packed, it has no gaps; nothing is written to the gaps of its place in memory,
//! where a derived datatype may have another number.

use std::borrow::Cow;
use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::ops::Range;
use std::slice;

use super::access::Local;
use super::members::checked;
use crate::ompi::{self, ompi_datatype_t, ompi_op_t};

/// There are more elements than those that they are for.
pub const TOO_MANY: c_int = ompi::MPI_ERR_TRUNCATE as c_int;

/// Elements are not all of one predefined datatype, or not of the other side's.
pub const WRONG_TYPE: c_int = ompi::MPI_ERR_TYPE as c_int;

/// What one number is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Number {
    /// What all processes call the datatype.
    pub name: u16,
    /// Bytes of data.
    pub size: usize,
    /// Bytes from one to the next.
    extent: usize,
    /// Bytes of memory that one takes up.
    held: usize,
    datatype: *mut ompi_datatype_t,
}

impl Number {
    /// The bytes of an element, which are moved one by one.
    const BYTE: Self = Self { name: 0, size: 1, extent: 1, held: 1, datatype: std::ptr::null_mut() };

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

    /// What each of a datatype's elements consists of, and whether it is one itself. To be moved, it may consist of bytes.
    ///
    /// # Errors
    /// It has several predefined datatypes, or one that this machine does not know.
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
    pub unsafe fn pack(&self, from: *const u8, count: c_int) -> Vec<u8> {
        let mut bytes = vec![0; self.size * usize::try_from(count).unwrap_or(0)];
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
    pub unsafe fn apply(&self, op: c_int, operands: &[u8], to: *mut u8, count: c_int) -> bool {
        let mut apart: Vec<u128>;
        let mut from: *const c_void = operands.as_ptr().cast();
        // SAFETY: the caller vouches for all; apart from each other, operands take up as much as the numbers.
        unsafe {
            if self.has_gaps() {
                let span = self.span(usize::try_from(count).unwrap_or(0)).unwrap_or(0);
                apart = vec![0; span.div_ceil(size_of::<u128>())];
                let at: *mut c_void = apart.as_mut_ptr().cast();
                ompi::vmshm_coll_unpack(self.datatype, count, at, from, operands.len());
                from = at;
            }
            ompi::vmshm_osc_apply(op, self.name.into(), from, to.cast(), count)
        }
    }
}

/// All data of the target's elements.
pub struct Runs {
    /// What they consist of.
    number: Number,
    /// Where each run begins, and how many bytes of data it has.
    many: Vec<(usize, usize)>,
    /// The only one, which needs no allocation.
    one: Option<(usize, usize)>,
}

impl Runs {
    /// So many bytes.
    pub fn one(start: usize, len: usize) -> Self {
        Self { number: Number::BYTE, one: Some((start, len)), many: Vec::new() }
    }

    /// The bytes of so many elements of a datatype, counted from where they begin.
    ///
    /// # Safety
    /// The datatype is Open MPI's.
    pub unsafe fn new(start: usize, count: c_int, datatype: *mut ompi_datatype_t) -> Self {
        unsafe extern "C" fn each(runs: *mut c_void, at: isize, len: usize) {
            // SAFETY: the context is that given below.
            unsafe { (*runs.cast::<Vec<(isize, usize)>>()).push((at, len)) };
        }
        let mut runs: Vec<(isize, usize)> = Vec::new();
        // SAFETY: the caller vouches for the datatype.
        unsafe { ompi::vmshm_osc_runs(count, datatype, Some(each), (&raw mut runs).cast()) };
        let many = runs.into_iter().map(|(at, len)| (start.wrapping_add_signed(at), len)).collect();
        Self { number: Number::BYTE, one: None, many }
    }

    fn iter(&self) -> impl Iterator<Item = &(usize, usize)> {
        self.one.iter().chain(&self.many)
    }

    /// The same data as whole numbers, each of which is in one place.
    fn numbers(self, number: Number) -> Self {
        let mut many: Vec<(usize, usize)> = Vec::new();
        // Bytes of a number that began in a run before.
        let mut rest = 0;
        for (at, len) in self.iter().copied() {
            if !number.has_gaps() && rest == 0 && len.is_multiple_of(number.size) {
                many.push((at, len));
                continue;
            }
            let mut next = rest;
            while next < len {
                let place = at.wrapping_add(next);
                match many.last_mut() {
                    Some((start, len)) if *start + *len / number.size * number.extent == place => {
                        *len += number.size;
                    }
                    _ => many.push((place, number.size)),
                }
                next += number.size;
            }
            rest = next - len;
        }
        Self { number, one: None, many }
    }

    /// Calls `work` for these of the packed bytes, in pieces of at most `most`: where each lies, and which bytes it is. Pieces
    /// of numbers are whole ones.
    ///
    /// # Errors
    /// The first of `work`.
    pub fn each(
        &self,
        most: usize,
        wanted: Range<usize>,
        mut work: impl FnMut(usize, Range<usize>) -> Result<(), c_int>,
    ) -> Result<(), c_int> {
        if let Some((at, len)) = self.one
            && (1..=len.min(most)).contains(&wanted.end)
            && wanted.start == 0
        {
            return work(at, wanted);
        }
        let Number { size, extent, .. } = self.number;
        let most = if size > 1 { most / size * size } else { most }.max(size);
        let mut packed = 0;
        for &(at, len) in self.iter() {
            let end = wanted.end.min(packed + len);
            for start in (wanted.start.max(packed)..end).step_by(most) {
                let before = start - packed;
                let before = if size == extent { before } else { before / size * extent };
                work(at.wrapping_add(before), start..end.min(start + most))?;
            }
            packed += len;
        }
        Ok(())
    }

    /// Bytes of data.
    pub fn len(&self) -> usize {
        self.iter().map(|run| run.1).sum()
    }
}

/// The bytes of so many elements, one behind the other.
///
/// # Errors
/// Open MPI's code.
///
/// # Safety
/// The datatype is Open MPI's, and has its elements there.
pub unsafe fn packed(from: Local) -> Result<Vec<u8>, c_int> {
    // SAFETY: the caller vouches for it; there is room for what is packed.
    unsafe {
        let mut bytes = vec![0; ompi::vmshm_osc_size(from.count, from.datatype)];
        if !bytes.is_empty() {
            let to = bytes.as_mut_ptr().cast();
            checked(ompi::vmshm_coll_pack(from.datatype, from.count, from.at, to, bytes.len()))?;
        }
        Ok(bytes)
    }
}

/// Takes bytes that lie one behind the other apart, to elements.
///
/// # Errors
/// There are more of them; or Open MPI's code.
///
/// # Safety
/// The datatype is Open MPI's, and has room for its elements there.
pub unsafe fn unpack(bytes: &[u8], to: Local) -> Result<(), c_int> {
    // SAFETY: the caller vouches for it.
    unsafe {
        if ompi::vmshm_osc_size(to.count, to.datatype) < bytes.len() {
            return Err(TOO_MANY);
        }
        if bytes.is_empty() {
            return Ok(());
        }
        let from = bytes.as_ptr().cast();
        checked(ompi::vmshm_coll_unpack(to.datatype, to.count, to.at, from, bytes.len()))
    }
}

/// Numbers of the target's that an operation is for.
pub struct Numbers {
    /// What each of them is.
    pub number: Number,
    /// Where they are.
    pub runs: Runs,
    datatype: *mut ompi_datatype_t,
    is_predefined: bool,
    is_moved: bool,
}

impl Numbers {
    /// So many elements of a datatype, counted from where they begin.
    ///
    /// # Errors
    /// They are not all of one predefined datatype, or the operation is not defined for it.
    ///
    /// # Safety
    /// The datatype and the operation are Open MPI's.
    pub unsafe fn new(
        start: usize,
        count: c_int,
        datatype: *mut ompi_datatype_t,
        op: *mut ompi_op_t,
    ) -> Result<Self, c_int> {
        // SAFETY: the caller vouches for it.
        unsafe {
            let is_moved = ompi::vmshm_osc_is_move(op);
            let (number, is_predefined) = Number::of(datatype, is_moved)?;
            if !ompi::vmshm_osc_is_defined(op, number.name.into()) {
                return Err(ompi::MPI_ERR_OP as c_int);
            }
            let runs = if is_predefined {
                let len = usize::try_from(count).unwrap_or(0) * number.size;
                Runs { number, one: Some((start, len)), many: Vec::new() }
            } else {
                Runs::new(start, count, datatype).numbers(number)
            };
            Ok(Self { number, runs, datatype, is_predefined, is_moved })
        }
    }

    /// Whether elements of the origin's are such numbers, and lie in memory as if packed.
    ///
    /// # Errors
    /// They are others.
    ///
    /// # Safety
    /// The datatype is Open MPI's.
    unsafe fn is_plain(&self, datatype: *mut ompi_datatype_t) -> Result<bool, c_int> {
        if datatype == self.datatype {
            return Ok(self.is_predefined && !self.number.has_gaps());
        }
        // SAFETY: the caller vouches for it.
        let (number, is_predefined) = unsafe { Number::of(datatype, self.is_moved)? };
        if number == self.number { Ok(is_predefined && !number.has_gaps()) } else { Err(WRONG_TYPE) }
    }

    /// The packed operands for them.
    ///
    /// # Errors
    /// They are others, or more.
    ///
    /// # Safety
    /// The datatype is Open MPI's, and has its elements there.
    pub unsafe fn operands<'a>(&self, from: Local) -> Result<Cow<'a, [u8]>, c_int> {
        // SAFETY: the caller vouches for it.
        let bytes = unsafe {
            if self.is_plain(from.datatype)? {
                let len = usize::try_from(from.count).unwrap_or(0) * self.number.size;
                Cow::Borrowed(if len == 0 {
                    &[][..]
                } else {
                    slice::from_raw_parts(from.at.cast::<u8>(), len)
                })
            } else {
                Cow::Owned(packed(from)?)
            }
        };
        if bytes.len() <= self.runs.len() { Ok(bytes) } else { Err(TOO_MANY) }
    }

    /// Gives what they were to the origin, from packed bytes.
    ///
    /// # Errors
    /// It wants others, or has no room for them.
    ///
    /// # Safety
    /// The datatype is Open MPI's, and has room for its elements there.
    pub unsafe fn give(&self, found: &[u8], result: Local) -> Result<(), c_int> {
        // SAFETY: the caller vouches for it.
        unsafe {
            if !self.is_plain(result.datatype)? {
                return unpack(found, result);
            }
            if usize::try_from(result.count).unwrap_or(0) * self.number.size < found.len() {
                return Err(TOO_MANY);
            }
            result.at.cast::<u8>().copy_from_nonoverlapping(found.as_ptr(), found.len());
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(size: usize, extent: usize, held: usize) -> Number {
        Number { size, extent, held, ..Number::BYTE }
    }

    fn pieces(runs: &Runs, most: usize, wanted: Range<usize>) -> Vec<(usize, Range<usize>)> {
        let mut pieces = Vec::new();
        runs.each(most, wanted, |at, part| {
            pieces.push((at, part));
            Ok(())
        })
        .unwrap();
        pieces
    }

    #[test]
    fn runs_of_parts_are_runs_of_numbers() {
        // Two of MPI_SHORT_INT at 100, and one at 130: a short, two bytes, an int.
        let runs = Runs {
            number: Number::BYTE,
            one: None,
            many: vec![(100, 2), (104, 6), (112, 4), (130, 2), (134, 4)],
        };
        let numbers = runs.numbers(number(6, 8, 8));
        assert_eq!(numbers.many, [(100, 12), (130, 6)]);
        assert_eq!(pieces(&numbers, 100, 0..18), [(100, 0..12), (130, 12..18)]);
        assert_eq!(pieces(&numbers, 11, 6..18), [(108, 6..12), (130, 12..18)]);
    }

    #[test]
    fn parts_of_numbers_without_gaps_are_joined_too() {
        // MPI_FLOAT_INT, whose parts Open MPI gives apart.
        let runs = Runs { number: Number::BYTE, one: None, many: vec![(0, 4), (4, 4), (8, 12), (20, 4)] };
        assert_eq!(runs.numbers(number(8, 8, 8)).many, [(0, 24)]);
    }

    #[test]
    fn the_last_of_several_numbers_has_no_gap_behind_it() {
        let pair = number(12, 16, 12);
        assert_eq!((pair.span(0), pair.span(1), pair.span(3)), (Some(0), Some(12), Some(44)));
        assert_eq!(pair.span(usize::MAX / 8), None);
    }

    #[test]
    fn bytes_come_in_pieces() {
        let runs = Runs { number: Number::BYTE, one: None, many: vec![(10, 3), (20, 5)] };
        assert_eq!(pieces(&runs, 4, 0..8), [(10, 0..3), (20, 3..7), (24, 7..8)]);
        assert_eq!(pieces(&runs, 4, 2..6), [(12, 2..3), (20, 3..6)]);
    }

    #[test]
    fn there_is_no_such_number() {
        assert_eq!(Number::called(u16::MAX), None);
        assert_eq!(Number::called(0), None, "a datatype without data");
    }
}
