//! How another process's memory is accessed: it is read where that can be, and asked to change it.

use std::borrow::Cow;
use std::ffi::{c_int, c_void};
use std::ops::Range;
use std::slice;

use super::block::REPLY_LEN;
use super::request::{Kind, Request};
use super::window::{Served, Side};
use crate::ompi::{self, ompi_op_t};
use crate::osc::access::{Access, Local, Remote, read};
use crate::osc::accumulate::Numbers;
use crate::osc::datatype::{Number, WRONG_TYPE};
use crate::osc::runs::{Runs, TOO_MANY, packed, unpack};
use crate::process::MODULE;

/// Most bytes of a request: others are copied by the origin while the target copies this one. Every process has some memory
/// of its section for messages of this length.
const PIECE: usize = 16 << 10;

/// How many bytes go with one request.
fn piece() -> usize {
    // SAFETY: not changed after init.
    let most = unsafe { (*MODULE.get()).btl_max_send_size };
    most.min(PIECE).saturating_sub(size_of::<Request>())
}

impl Side {
    /// Where `len` bytes at a displacement begin, counted from the start of the memory.
    fn offset(&self, displacement: isize, len: usize) -> Result<usize, c_int> {
        Ok(self.member.at(displacement, 0, len)?.addr() - self.member.base.addr())
    }

    /// Where the target's elements begin, counted from the start of the memory.
    ///
    /// # Errors
    /// The elements leave the memory.
    ///
    /// # Safety
    /// The datatype is Open MPI's.
    unsafe fn start(&self, target: Remote) -> Result<usize, c_int> {
        // SAFETY: the caller vouches for it.
        let start = unsafe { target.within(&self.member)?.at };
        Ok(start.addr().wrapping_sub(self.member.base.addr()))
    }

    /// Where the bytes of the target's elements are, counted from the start of the memory.
    ///
    /// # Errors
    /// The elements leave the memory.
    ///
    /// # Safety
    /// The datatype is Open MPI's.
    unsafe fn runs(&self, target: Remote) -> Result<Runs, c_int> {
        // SAFETY: the caller vouches for it.
        unsafe { Ok(Runs::new(self.start(target)?, target.count, target.datatype)) }
    }

    /// The target's elements as numbers for an operation.
    ///
    /// # Errors
    /// The elements leave the memory, are not all of one predefined datatype, or the operation is not defined for it.
    ///
    /// # Safety
    /// The datatype and the operation are Open MPI's.
    unsafe fn numbers(&self, target: Remote, op: *mut ompi_op_t) -> Result<Numbers, c_int> {
        // SAFETY: the caller vouches for both.
        unsafe { Numbers::new(self.start(target)?, target.count, target.datatype, op) }
    }
}

impl Number {
    /// Asks for an operation, by its number, on so many bytes of such numbers.
    fn request(&self, window: &Served, kind: Kind, op: c_int, at: usize, len: usize) -> Request {
        Request {
            number: self.name,
            op: op.cast_unsigned(),
            count: (len / self.size) as u32,
            ..Request::new(window.name, kind, at)
        }
    }
}

impl Access for Served {
    unsafe fn get(&self, origin: Local, target: Remote) -> Result<(), c_int> {
        let side = self.side(target.rank)?;
        // SAFETY: the caller vouches for both.
        unsafe {
            if side.member.is_mapped {
                return read(&side.member, origin, target);
            }
            let runs = side.runs(target)?;
            let mut found = vec![0u8; runs.len()];
            runs.each(REPLY_LEN, 0..found.len(), |at, part| {
                let count = part.len() as u32;
                let request = Request { count, ..Request::new(self.name, Kind::Read, at) };
                self.fetch(side, &request, &[], &mut found[part])
            })?;
            unpack(&found, origin)
        }
    }

    unsafe fn put(&self, origin: Local, target: Remote) -> Result<(), c_int> {
        let side = self.side(target.rank)?;
        // SAFETY: the caller vouches for both.
        let (bytes, runs) = unsafe {
            let plain = ompi::vmshm_osc_plain(origin.count, origin.datatype, target.count, target.datatype);
            match usize::try_from(plain) {
                Ok(0) => return Ok(()),
                Ok(len) => {
                    let start = side.offset(target.displacement, len)?;
                    let bytes = slice::from_raw_parts(origin.at.cast::<u8>(), len);
                    if len <= piece() {
                        return self.request(side, &Request::new(self.name, Kind::Put, start), bytes);
                    }
                    (Cow::Borrowed(bytes), Runs::one(start, len))
                }
                Err(_) => (Cow::Owned(packed(origin)?), side.runs(target)?),
            }
        };
        if runs.len() < bytes.len() {
            return Err(TOO_MANY);
        }
        runs.each(piece(), 0..bytes.len(), |at, part| {
            self.request(side, &Request::new(self.name, Kind::Put, at), &bytes[part])
        })
    }

    unsafe fn accumulate(&self, origin: Local, target: Remote, op: *mut ompi_op_t) -> Result<(), c_int> {
        let side = self.side(target.rank)?;
        // SAFETY: the caller vouches for all.
        unsafe {
            let numbers = side.numbers(target, op)?;
            if ompi::vmshm_osc_is_no_op(op) {
                return Ok(());
            }
            let operands = numbers.operands(origin)?;
            let op = ompi::vmshm_osc_op(op);
            numbers.runs.each(piece(), 0..operands.len(), |at, part| {
                let request = numbers.number.request(self, Kind::Change, op, at, part.len());
                self.request(side, &request, &operands[part])
            })
        }
    }

    unsafe fn get_accumulate(
        &self,
        origin: Local,
        result: Local,
        target: Remote,
        op: *mut ompi_op_t,
    ) -> Result<(), c_int> {
        let side = self.side(target.rank)?;
        // SAFETY: the caller vouches for all.
        unsafe {
            let numbers = side.numbers(target, op)?;
            let operands = if ompi::vmshm_osc_is_no_op(op) {
                Cow::Borrowed(&[][..])
            } else {
                numbers.operands(origin)?
            };
            let op = ompi::vmshm_osc_op(op);
            let mut found = vec![0u8; numbers.runs.len()];
            let mut fetch = |at, part: Range<usize>| {
                let request = numbers.number.request(self, Kind::Fetch, op, at, part.len());
                let operands = operands.get(part.clone()).unwrap_or(&[]);
                self.fetch(side, &request, operands, &mut found[part])
            };
            // Numbers without operands are left as they are.
            let (few, all) = (operands.len(), numbers.runs.len());
            numbers.runs.each(REPLY_LEN, 0..few, &mut fetch)?;
            numbers.runs.each(REPLY_LEN, few..all, fetch)?;
            numbers.give(&found, result)
        }
    }

    unsafe fn compare_and_swap(
        &self,
        origin: *const c_void,
        compare: *const c_void,
        result: *mut c_void,
        target: Remote,
    ) -> Result<(), c_int> {
        let side = self.side(target.rank)?;
        // SAFETY: the caller vouches for all.
        unsafe {
            let (number, is_predefined) = Number::of(target.datatype, false)?;
            if !is_predefined || number.has_gaps() {
                return Err(WRONG_TYPE);
            }
            let at = side.start(target)?;
            let element = |from: *const c_void| slice::from_raw_parts(from.cast::<u8>(), number.size);
            let data = [element(compare), element(origin)].concat();
            let result = slice::from_raw_parts_mut(result.cast::<u8>(), number.size);
            self.fetch(side, &Request::new(self.name, Kind::Swap, at), &data, result)
        }
    }
}
