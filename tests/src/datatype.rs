//! MPI datatypes, each with its own description of which bytes it covers.
//!
//! The description is computed here, not asked from MPI, so that a test can tell what a transfer
//! should have moved.

use std::ffi::c_int;

use mpi::ffi;

use crate::universe::{int, succeed};

/// A committed datatype. Offsets never are negative.
#[derive(Debug)]
pub struct Datatype {
    raw: ffi::MPI_Datatype,
    predefined: bool,
    /// (offset, length) of each run of bytes of one element, in the order of the message.
    blocks: Vec<(usize, usize)>,
    extent: usize,
}

// SAFETY: a committed datatype is only read, and with MPI_THREAD_MULTIPLE any thread may use it.
unsafe impl Send for Datatype {}
// SAFETY: a committed datatype is only read, and with MPI_THREAD_MULTIPLE any thread may use it.
unsafe impl Sync for Datatype {}

impl Datatype {
    /// One byte.
    pub fn byte() -> Datatype {
        // SAFETY: a constant of the MPI library.
        Datatype::predefined(unsafe { ffi::RSMPI_UINT8_T }, 1)
    }

    /// A 32-bit signed integer.
    pub fn i32() -> Datatype {
        // SAFETY: a constant of the MPI library.
        Datatype::predefined(unsafe { ffi::RSMPI_INT32_T }, 4)
    }

    /// A 64-bit signed integer.
    pub fn i64() -> Datatype {
        // SAFETY: a constant of the MPI library.
        Datatype::predefined(unsafe { ffi::RSMPI_INT64_T }, 8)
    }

    /// A double-precision number.
    pub fn f64() -> Datatype {
        // SAFETY: a constant of the MPI library.
        Datatype::predefined(unsafe { ffi::RSMPI_DOUBLE }, 8)
    }

    fn predefined(raw: ffi::MPI_Datatype, size: usize) -> Datatype {
        Datatype { raw, predefined: true, blocks: vec![(0, size)], extent: size }
    }

    /// One of Open MPI's predefined datatypes: its blocks, and the bytes from one element to the next.
    ///
    /// # Safety
    /// `raw` is MPI's handle of such a datatype.
    pub unsafe fn of_open_mpi(
        raw: ffi::MPI_Datatype,
        blocks: Vec<(usize, usize)>,
        extent: usize,
    ) -> Datatype {
        let datatype = Datatype { raw, predefined: true, blocks, extent };
        datatype.agrees_with_mpi();
        datatype
    }

    fn derived(
        blocks: Vec<(usize, usize)>,
        extent: usize,
        create: impl FnOnce(*mut ffi::MPI_Datatype) -> c_int,
    ) -> Datatype {
        // SAFETY: a constant of the MPI library.
        let mut raw = unsafe { ffi::RSMPI_DATATYPE_NULL };
        succeed(create(&raw mut raw));
        // SAFETY: `raw` was just created.
        succeed(unsafe { ffi::MPI_Type_commit(&raw mut raw) });
        let datatype = Datatype { raw, predefined: false, blocks: joined(blocks), extent };
        datatype.agrees_with_mpi();
        datatype
    }

    /// Panics if MPI thinks otherwise about the size or the extent: then the test is wrong.
    fn agrees_with_mpi(&self) {
        let (mut lower, mut extent) = (0, 0);
        let mut size: ffi::MPI_Count = 0;
        // SAFETY: the datatype is committed; MPI writes the three numbers.
        unsafe {
            succeed(ffi::MPI_Type_get_extent(self.raw, &raw mut lower, &raw mut extent));
            succeed(ffi::MPI_Type_size_x(self.raw, &raw mut size));
        }
        let ours = (usize::try_from(extent), usize::try_from(size));
        assert_eq!(ours, (Ok(self.extent), Ok(self.size())), "extent and size of {self:?}");
    }

    /// `count` elements one after another.
    pub fn contiguous(count: usize, of: &Datatype) -> Datatype {
        let n = int(count);
        Datatype::derived(of.repeated(count, 0), count * of.extent, |new| {
            // SAFETY: `of` is a valid datatype, MPI writes `new`.
            unsafe { ffi::MPI_Type_contiguous(n, of.raw, new) }
        })
    }

    /// `count` blocks of `length` elements, whose starts are `stride` elements apart.
    pub fn vector(count: usize, length: usize, stride: usize, of: &Datatype) -> Datatype {
        let blocks = (0..count).flat_map(|i| of.repeated(length, i * stride)).collect();
        let extent = (count.saturating_sub(1) * stride + length) * of.extent;
        Datatype::derived(blocks, extent, |new| {
            // SAFETY: `of` is a valid datatype, MPI writes `new`.
            unsafe { ffi::MPI_Type_vector(int(count), int(length), int(stride), of.raw, new) }
        })
    }

    /// Blocks given as (offset, length) in elements, sent in the order given.
    pub fn indexed(parts: &[(usize, usize)], of: &Datatype) -> Datatype {
        let blocks = parts.iter().flat_map(|&(at, length)| of.repeated(length, at)).collect();
        // Empty parts do not count for the extent.
        let filled = || parts.iter().filter(|part| part.1 > 0);
        let first = filled().map(|part| part.0).min().unwrap_or(0);
        assert_eq!(first, 0, "an indexed type of these tests begins at its origin");
        let end = filled().map(|(at, length)| at + length).max().unwrap_or(0);
        let offsets: Vec<c_int> = parts.iter().map(|part| int(part.0)).collect();
        let lengths: Vec<c_int> = parts.iter().map(|part| int(part.1)).collect();
        Datatype::derived(blocks, end * of.extent, |new| {
            let (lengths, offsets) = (lengths.as_ptr(), offsets.as_ptr());
            // SAFETY: both arrays have one entry a part, MPI writes `new`.
            unsafe { ffi::MPI_Type_indexed(int(parts.len()), lengths, offsets, of.raw, new) }
        })
    }

    /// Fields given as (offset in bytes, count, type), in a record of `extent` bytes.
    pub fn record(fields: &[(usize, usize, &Datatype)], extent: usize) -> Datatype {
        let blocks: Vec<_> = fields
            .iter()
            .flat_map(|&(at, count, of)| {
                of.repeated(count, 0).into_iter().map(move |(offset, length)| (at + offset, length))
            })
            .collect();
        let lengths: Vec<c_int> = fields.iter().map(|field| int(field.1)).collect();
        let offsets: Vec<ffi::MPI_Aint> = fields.iter().map(|field| aint(field.0)).collect();
        let types: Vec<ffi::MPI_Datatype> = fields.iter().map(|field| field.2.raw).collect();
        Datatype::derived(blocks, extent, |new| {
            // SAFETY: a constant of the MPI library.
            let mut unpadded = unsafe { ffi::RSMPI_DATATYPE_NULL };
            let (lengths, offsets) = (lengths.as_ptr(), offsets.as_ptr());
            let types = types.as_ptr();
            // SAFETY: the arrays have one entry a field; the intermediate type is freed at once,
            // which leaves types made from it intact.
            unsafe {
                let fields = int(fields.len());
                let inner = &raw mut unpadded;
                succeed(ffi::MPI_Type_create_struct(fields, lengths, offsets, types, inner));
                let code = ffi::MPI_Type_create_resized(unpadded, 0, aint(extent), new);
                succeed(ffi::MPI_Type_free(inner));
                code
            }
        })
    }

    /// The same bytes, with elements `extent` bytes apart.
    pub fn resized(extent: usize, of: &Datatype) -> Datatype {
        Datatype::derived(of.blocks.clone(), extent, |new| {
            // SAFETY: `of` is a valid datatype, MPI writes `new`.
            unsafe { ffi::MPI_Type_create_resized(of.raw, 0, aint(extent), new) }
        })
    }

    /// A part of `part` rows and columns at `at` in a matrix of `whole` rows and columns.
    pub fn subarray(whole: [usize; 2], part: [usize; 2], at: [usize; 2], of: &Datatype) -> Datatype {
        let blocks =
            (0..part[0]).flat_map(|row| of.repeated(part[1], (at[0] + row) * whole[1] + at[1])).collect();
        let [whole_c, part_c, at_c] = [whole, part, at].map(|pair| pair.map(int));
        Datatype::derived(blocks, whole[0] * whole[1] * of.extent, |new| {
            let order = c_int::try_from(ffi::MPI_ORDER_C).expect("a small constant");
            let (whole, part, at) = (whole_c.as_ptr(), part_c.as_ptr(), at_c.as_ptr());
            // SAFETY: the arrays have two entries each, MPI writes `new`.
            unsafe { ffi::MPI_Type_create_subarray(2, whole, part, at, order, of.raw, new) }
        })
    }

    /// The same again: a constant of MPI's, or a copy.
    pub fn same(&self) -> Datatype {
        if self.predefined {
            return Datatype { blocks: self.blocks.clone(), ..*self };
        }
        Datatype::derived(self.blocks.clone(), self.extent, |new| {
            // SAFETY: this is a valid datatype, MPI writes `new`.
            unsafe { ffi::MPI_Type_dup(self.raw, new) }
        })
    }

    /// The blocks of `count` elements that begin `first` elements after the origin.
    fn repeated(&self, count: usize, first: usize) -> Vec<(usize, usize)> {
        (first..first + count)
            .flat_map(|i| self.blocks.iter().map(move |&(at, n)| (i * self.extent + at, n)))
            .collect()
    }

    /// Bytes of data in one element.
    pub fn size(&self) -> usize {
        self.blocks.iter().map(|block| block.1).sum()
    }

    /// Bytes from the start of one element to the start of the next.
    pub fn extent(&self) -> usize {
        self.extent
    }

    /// Bytes of memory that `count` elements span from their origin.
    pub fn span(&self, count: usize) -> usize {
        let end = self.blocks.iter().map(|(at, length)| at + length).max().unwrap_or(0);
        if count == 0 { 0 } else { (count - 1) * self.extent + end }
    }

    /// The data of `count` elements in `memory`, in the order of the message.
    pub fn pack(&self, count: usize, memory: &[u8]) -> Vec<u8> {
        let mut packed = Vec::with_capacity(count * self.size());
        for (at, length) in self.repeated(count, 0) {
            packed.extend_from_slice(&memory[at..at + length]);
        }
        packed
    }

    /// Puts `packed` where `count` elements in `memory` lie.
    pub fn unpack(&self, count: usize, packed: &[u8], memory: &mut [u8]) {
        let mut taken = 0;
        for (at, length) in self.repeated(count, 0) {
            let part = packed.get(taken..).unwrap_or(&[]);
            let length = length.min(part.len());
            memory[at..at + length].copy_from_slice(&part[..length]);
            taken += length;
        }
    }

    /// MPI's handle, valid while this value lives.
    pub fn raw(&self) -> ffi::MPI_Datatype {
        self.raw
    }

    /// Panics unless `count` elements fit into `length` bytes; what makes the calls of `comm` safe.
    #[track_caller]
    pub(crate) fn must_fit(&self, count: usize, length: usize) {
        let span = self.span(count);
        assert!(span <= length, "{count} elements span {span} bytes of a buffer of {length}");
    }
}

impl Drop for Datatype {
    fn drop(&mut self) {
        if !self.predefined {
            // SAFETY: the handle is owned and not used any more; MPI keeps what running transfers
            // need.
            succeed(unsafe { ffi::MPI_Type_free(&raw mut self.raw) });
        }
    }
}

/// The same bytes in the same order, with blocks that touch made one.
fn joined(blocks: Vec<(usize, usize)>) -> Vec<(usize, usize)> {
    let mut joined: Vec<(usize, usize)> = Vec::new();
    for (at, length) in blocks.into_iter().filter(|block| block.1 > 0) {
        match joined.last_mut() {
            Some((last, size)) if *last + *size == at => *size += length,
            _ => joined.push((at, length)),
        }
    }
    joined
}

/// A byte count as MPI's address-sized integer.
pub(crate) fn aint(value: usize) -> ffi::MPI_Aint {
    ffi::MPI_Aint::try_from(value).expect("smaller than the address space")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn touching_blocks_are_joined_and_the_order_is_kept() {
        assert_eq!(joined(vec![(0, 1), (1, 2), (5, 0), (3, 1), (9, 1), (8, 1)]), [(0, 4), (9, 1), (8, 1)]);
    }
}
