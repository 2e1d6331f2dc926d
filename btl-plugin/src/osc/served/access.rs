//! How another process's memory is accessed: it is read where that can be, and asked to change it.

use std::borrow::Cow;
use std::ffi::{c_int, c_void};
use std::ops::Range;
use std::slice;

use super::request::{Kind, Request};
use super::{REPLY_LEN, Served, Side};
use crate::ompi::{self, MODULE, ompi_datatype_t, ompi_op_t};
use crate::osc::access::{Access, Local, Remote, read};
use crate::osc::epochs::OUT_OF_ORDER;
use crate::osc::members::checked;

/// Most bytes of a request: others are copied by the origin while the target copies this one. Every process has some memory
/// of its section for messages of this length.
const PIECE: usize = 16 << 10;

/// There are more elements than those that they are for.
const TOO_MANY: c_int = ompi::MPI_ERR_TRUNCATE as c_int;

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
}

/// All runs of bytes of the target's elements: where each begins, counted from the start of its memory, and its length.
#[derive(Default)]
struct Runs {
    /// The only one, which needs no allocation.
    one: Option<(usize, usize)>,
    many: Vec<(usize, usize)>,
}

impl Runs {
    fn one(start: usize, len: usize) -> Self {
        Self { one: Some((start, len)), ..Self::default() }
    }

    fn iter(&self) -> impl Iterator<Item = &(usize, usize)> {
        self.one.iter().chain(&self.many)
    }

    /// # Errors
    /// They leave its memory.
    ///
    /// # Safety
    /// The datatype is Open MPI's.
    unsafe fn new(side: &Side, target: Remote) -> Result<Self, c_int> {
        unsafe extern "C" fn each(runs: *mut c_void, at: isize, len: usize) {
            // SAFETY: the context is that given below.
            unsafe { (*runs.cast::<Vec<(isize, usize)>>()).push((at, len)) };
        }
        let mut runs: Vec<(isize, usize)> = Vec::new();
        // SAFETY: the caller vouches for the datatype.
        let start = unsafe {
            let start = target.within(&side.member)?.at;
            ompi::vmshm_osc_runs(target.count, target.datatype, Some(each), (&raw mut runs).cast());
            start
        };
        let start = start.addr().wrapping_sub(side.member.base.addr());
        let many = runs.into_iter().map(|(at, len)| (start.wrapping_add_signed(at), len)).collect();
        Ok(Self { many, ..Self::default() })
    }

    /// Calls `work` for these of the packed bytes, in pieces of at most `most`: where each lies, and which bytes it is.
    fn each(
        &self,
        most: usize,
        wanted: Range<usize>,
        mut work: impl FnMut(usize, Range<usize>) -> Result<(), c_int>,
    ) -> Result<(), c_int> {
        let mut packed = 0;
        for &(at, len) in self.iter() {
            let end = wanted.end.min(packed + len);
            for start in (wanted.start.max(packed)..end).step_by(most.max(1)) {
                work(at + start - packed, start..end.min(start + most))?;
            }
            packed += len;
        }
        Ok(())
    }

    fn len(&self) -> usize {
        self.iter().map(|run| run.1).sum()
    }
}

/// The bytes of so many elements, one behind the other.
///
/// # Safety
/// The datatype is Open MPI's, and has its elements there.
unsafe fn packed(from: Local) -> Result<Vec<u8>, c_int> {
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
/// # Safety
/// The datatype is Open MPI's, and has room for its elements there.
unsafe fn unpack(bytes: &[u8], to: Local) -> Result<(), c_int> {
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

/// Numbers that are changed.
struct Numbers {
    /// What the datatype of a single one is called.
    number: u16,
    /// Bytes of one.
    extent: usize,
    runs: Runs,
}

impl Numbers {
    /// # Errors
    /// They leave the memory, or are not all of one kind.
    ///
    /// # Safety
    /// The datatype is Open MPI's.
    unsafe fn new(side: &Side, target: Remote) -> Result<Self, c_int> {
        // SAFETY: the caller vouches for it.
        unsafe {
            let (number, is_predefined) = number_of(target.datatype)?;
            let extent = ompi::vmshm_osc_extent(number.into());
            let runs = if is_predefined {
                let len = usize::try_from(target.count).unwrap_or(0) * extent;
                Runs::one(side.offset(target.displacement, len)?, len)
            } else {
                Runs::new(side, target)?
            };
            Ok(Self { number, extent, runs })
        }
    }

    /// The operands for them: as they lie, or one behind the other.
    ///
    /// # Errors
    /// They are others, or more.
    ///
    /// # Safety
    /// The datatype is Open MPI's, and has its elements there.
    unsafe fn operands<'a>(&self, from: Local) -> Result<Cow<'a, [u8]>, c_int> {
        // SAFETY: the caller vouches for it.
        let bytes = unsafe {
            let (number, is_predefined) = number_of(from.datatype)?;
            if number != self.number {
                return Err(OUT_OF_ORDER);
            }
            if is_predefined {
                let len = usize::try_from(from.count).unwrap_or(0) * self.extent;
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

    /// So many whole numbers are at most so many bytes.
    fn whole(&self, most: usize) -> usize {
        most / self.extent.max(1) * self.extent
    }

    fn request(&self, window: &Served, kind: Kind, op: c_int, at: usize, len: usize) -> Request {
        Request {
            number: self.number,
            op: op.cast_unsigned(),
            count: (len / self.extent.max(1)) as u32,
            ..Request::new(window.name, kind, at)
        }
    }
}

/// What the datatype of each number in a datatype's elements is called, and whether it is that itself.
///
/// # Safety
/// The datatype is Open MPI's.
unsafe fn number_of(datatype: *mut ompi_datatype_t) -> Result<(u16, bool), c_int> {
    let mut is_predefined = false;
    // SAFETY: the caller vouches for it.
    let number = unsafe { ompi::vmshm_osc_number(datatype, &mut is_predefined) };
    let number = u16::try_from(number).map_err(|_| ompi::OPAL_ERR_NOT_SUPPORTED)?;
    Ok((number, is_predefined))
}

impl Access for Served {
    unsafe fn get(&self, origin: Local, target: Remote) -> Result<(), c_int> {
        let side = self.side(target.rank)?;
        // SAFETY: the caller vouches for both.
        unsafe {
            if side.member.is_mapped {
                return read(&side.member, origin, target);
            }
            let runs = Runs::new(side, target)?;
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
                        return self.ask(side, &Request::new(self.name, Kind::Put, start), bytes);
                    }
                    (Cow::Borrowed(bytes), Runs::one(start, len))
                }
                Err(_) => (Cow::Owned(packed(origin)?), Runs::new(side, target)?),
            }
        };
        if runs.len() < bytes.len() {
            return Err(TOO_MANY);
        }
        runs.each(piece(), 0..bytes.len(), |at, part| {
            self.ask(side, &Request::new(self.name, Kind::Put, at), &bytes[part])
        })
    }

    unsafe fn accumulate(&self, origin: Local, target: Remote, op: *mut ompi_op_t) -> Result<(), c_int> {
        let side = self.side(target.rank)?;
        // SAFETY: the caller vouches for all.
        unsafe {
            let numbers = Numbers::new(side, target)?;
            let operands = numbers.operands(origin)?;
            let op = ompi::vmshm_osc_op(op);
            numbers.runs.each(numbers.whole(piece()), 0..operands.len(), |at, part| {
                let request = numbers.request(self, Kind::Change, op, at, part.len());
                self.ask(side, &request, &operands[part])
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
            let numbers = Numbers::new(side, target)?;
            let operands = if ompi::vmshm_osc_is_no_op(op) {
                Cow::Borrowed(&[][..])
            } else {
                numbers.operands(origin)?
            };
            let op = ompi::vmshm_osc_op(op);
            let mut found = vec![0u8; numbers.runs.len()];
            let mut fetch = |at, part: Range<usize>| {
                let request = numbers.request(self, Kind::Fetch, op, at, part.len());
                let operands = operands.get(part.clone()).unwrap_or(&[]);
                self.fetch(side, &request, operands, &mut found[part])
            };
            // Numbers without operands are left as they are.
            let (most, few, all) = (numbers.whole(REPLY_LEN), operands.len(), numbers.runs.len());
            numbers.runs.each(most, 0..few, &mut fetch)?;
            numbers.runs.each(most, few..all, fetch)?;
            let (number, is_predefined) = number_of(result.datatype)?;
            if number != numbers.number {
                return Err(OUT_OF_ORDER);
            }
            if !is_predefined {
                return unpack(&found, result);
            }
            if usize::try_from(result.count).unwrap_or(0) * numbers.extent < found.len() {
                return Err(TOO_MANY);
            }
            result.at.cast::<u8>().copy_from_nonoverlapping(found.as_ptr(), found.len());
            Ok(())
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
            let len = ompi::vmshm_osc_size(1, target.datatype);
            let at = target.within(&side.member)?.at.addr() - side.member.base.addr();
            let element = |from: *const c_void| slice::from_raw_parts(from.cast::<u8>(), len);
            let data = [element(compare), element(origin)].concat();
            let result = slice::from_raw_parts_mut(result.cast::<u8>(), len);
            self.fetch(side, &Request::new(self.name, Kind::Swap, at), &data, result)
        }
    }
}
