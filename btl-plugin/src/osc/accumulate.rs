//! The operands and results of `MPI_Accumulate` and its like, checked against the target's elements.

use std::borrow::Cow;
use std::ffi::c_int;
use std::slice;

use super::access::Local;
use super::datatype::{Number, WRONG_TYPE};
use super::runs::{Runs, TOO_MANY, packed, unpack};
use crate::ompi::{self, Count, ompi_datatype_t, ompi_op_t};

/// Numbers of the target's that an operation is for.
pub struct Numbers {
    /// Their datatype.
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
    /// The elements are not all of one predefined datatype, or the operation is not defined for it.
    ///
    /// # Safety
    /// The datatype and the operation are Open MPI's.
    pub unsafe fn new(
        start: usize,
        count: Count,
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
                Runs::of_numbers(start, ompi::non_negative(count), number)
            } else {
                Runs::new(start, count, datatype).numbers(number)
            };
            Ok(Self { number, runs, datatype, is_predefined, is_moved })
        }
    }

    /// Whether elements of the origin's are such numbers, and lie in memory as if packed.
    ///
    /// # Errors
    /// The origin's elements are of another datatype.
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
    /// The origin's elements are of another datatype, or more than the target's.
    ///
    /// # Safety
    /// The datatype is Open MPI's, and has its elements there.
    pub unsafe fn operands<'a>(&self, from: Local) -> Result<Cow<'a, [u8]>, c_int> {
        // SAFETY: the caller vouches for it.
        let bytes = unsafe {
            if self.is_plain(from.datatype)? {
                let len = ompi::non_negative(from.count) * self.number.size;
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
    /// The origin's elements are of another datatype, or too few.
    ///
    /// # Safety
    /// The datatype is Open MPI's, and has room for its elements there.
    pub unsafe fn give(&self, found: &[u8], result: Local) -> Result<(), c_int> {
        // SAFETY: the caller vouches for it.
        unsafe {
            if !self.is_plain(result.datatype)? {
                return unpack(found, result);
            }
            if ompi::non_negative(result.count) * self.number.size < found.len() {
                return Err(TOO_MANY);
            }
            result.at.cast::<u8>().copy_from_nonoverlapping(found.as_ptr(), found.len());
            Ok(())
        }
    }
}
