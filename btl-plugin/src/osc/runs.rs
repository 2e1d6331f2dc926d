//! Runs: where the data of a datatype's elements lie in memory, as bytes to be moved or as numbers for an operation.

use std::ffi::{c_int, c_void};
use std::ops::Range;

use super::access::Local;
use super::datatype::Number;
use super::window::checked;
use crate::ompi::{self, Count, ompi_datatype_t};

/// There are more elements than those that they are for.
pub const TOO_MANY: c_int = ompi::MPI_ERR_TRUNCATE as c_int;

/// All data of the target's elements.
pub struct Runs {
    /// The unit of the runs: a byte, or a number for an operation.
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

    /// So many numbers, one behind the other.
    pub fn of_numbers(start: usize, count: usize, number: Number) -> Self {
        Self { number, one: Some((start, count * number.size)), many: Vec::new() }
    }

    /// The bytes of so many elements of a datatype, counted from where they begin.
    ///
    /// # Safety
    /// The datatype is Open MPI's.
    pub unsafe fn new(start: usize, count: Count, datatype: *mut ompi_datatype_t) -> Self {
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

    /// These runs of bytes as runs of whole numbers, each of which is in one place.
    pub fn numbers(self, number: Number) -> Self {
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
    fn bytes_come_in_pieces() {
        let runs = Runs { number: Number::BYTE, one: None, many: vec![(10, 3), (20, 5)] };
        assert_eq!(pieces(&runs, 4, 0..8), [(10, 0..3), (20, 3..7), (24, 7..8)]);
        assert_eq!(pieces(&runs, 4, 2..6), [(12, 2..3), (20, 3..6)]);
    }
}
