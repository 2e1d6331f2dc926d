//! What Open MPI calls to access another process's memory.

use std::borrow::Cow;
use std::ffi::{c_int, c_void};
use std::slice;

use vmshm_transport::copy_from_shared;

use super::epochs;
use super::request::{Kind, Request};
use super::{REPLY_LEN, Served, Side, Word, of};
use crate::ompi::{self, MODULE, ompi_datatype_t, ompi_op_t, ompi_osc_base_module_t, ompi_win_t};
use crate::osc::members::{OUT_OF_RANGE, checked, code};
use crate::osc::requests;

/// Most bytes of a request: others are copied by the origin while the target copies this one. Every process has some memory
/// of its section for messages of this length.
const PIECE: usize = 16 << 10;

/// The window's own functions.
pub const FUNCTIONS: ompi_osc_base_module_t = ompi_osc_base_module_t {
    osc_win_shared_query: None,
    osc_win_attach: None,
    osc_win_detach: None,
    osc_free: Some(epochs::free),
    osc_put: Some(put),
    osc_get: Some(get),
    osc_accumulate: Some(accumulate),
    osc_compare_and_swap: Some(compare_and_swap),
    osc_fetch_and_op: Some(requests::fetch_and_op),
    osc_get_accumulate: Some(get_accumulate),
    osc_rput: Some(requests::rput),
    osc_rget: Some(requests::rget),
    osc_raccumulate: Some(requests::raccumulate),
    osc_rget_accumulate: Some(requests::rget_accumulate),
    osc_fence: Some(epochs::fence),
    osc_start: Some(epochs::start),
    osc_complete: Some(epochs::complete),
    osc_post: Some(epochs::post),
    osc_wait: Some(epochs::wait),
    osc_test: Some(epochs::test),
    osc_lock: Some(epochs::lock),
    osc_unlock: Some(epochs::unlock),
    osc_lock_all: Some(epochs::lock_all),
    osc_unlock_all: Some(epochs::unlock_all),
    osc_sync: Some(epochs::sync),
    osc_flush: Some(epochs::flush),
    osc_flush_all: Some(epochs::flush_all),
    osc_flush_local: Some(epochs::flush_local),
    osc_flush_local_all: Some(epochs::sync),
};

/// How many bytes go with one request.
fn piece() -> usize {
    // SAFETY: not changed after init.
    let most = unsafe { (*MODULE.get()).btl_max_send_size };
    most.min(PIECE).saturating_sub(size_of::<Request>())
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
    unsafe fn new(
        side: &Side,
        displacement: isize,
        count: c_int,
        datatype: *mut ompi_datatype_t,
    ) -> Result<Self, c_int> {
        unsafe extern "C" fn each(runs: *mut c_void, at: isize, len: usize) {
            // SAFETY: the context is that given below.
            unsafe { (*runs.cast::<Vec<(isize, usize)>>()).push((at, len)) };
        }
        let mut runs: Vec<(isize, usize)> = Vec::new();
        // SAFETY: the caller vouches for the datatype.
        let start = unsafe {
            let start = side.member.elements(displacement, count, datatype)?;
            ompi::vmshm_osc_runs(count, datatype, Some(each), (&raw mut runs).cast());
            start
        };
        let start = start.addr().wrapping_sub(side.member.base.addr());
        let many = runs.into_iter().map(|(at, len)| (start.wrapping_add_signed(at), len)).collect();
        Ok(Self { many, ..Self::default() })
    }

    /// Calls `work` for all pieces of at most `most` bytes: where each lies, and which part of the packed bytes it is.
    fn each(
        &self,
        most: usize,
        mut work: impl FnMut(usize, std::ops::Range<usize>) -> Result<(), c_int>,
    ) -> Result<(), c_int> {
        let mut packed = 0;
        for &(at, len) in self.iter() {
            for done in (0..len).step_by(most.max(1)) {
                let part = most.min(len - done);
                work(at + done, packed + done..packed + done + part)?;
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
unsafe fn packed(
    from: *const c_void,
    count: c_int,
    datatype: *mut ompi_datatype_t,
) -> Result<Vec<u8>, c_int> {
    // SAFETY: the caller vouches for it; there is room for what is packed.
    unsafe {
        let mut bytes = vec![0; ompi::vmshm_osc_size(count, datatype)];
        if !bytes.is_empty() {
            let to = bytes.as_mut_ptr().cast();
            checked(ompi::vmshm_coll_pack(datatype, count, from, to, bytes.len()))?;
        }
        Ok(bytes)
    }
}

unsafe extern "C" fn put(
    origin: *const c_void,
    origin_count: c_int,
    origin_type: *mut ompi_datatype_t,
    target: c_int,
    displacement: isize,
    target_count: c_int,
    target_type: *mut ompi_datatype_t,
    win: *mut ompi_win_t,
) -> c_int {
    let work = || {
        // SAFETY: Open MPI gives a window, datatypes, and elements of the origin's.
        unsafe {
            let window = of(win);
            let side = window.side(target)?;
            let plain = ompi::vmshm_osc_plain(origin_count, origin_type, target_count, target_type);
            let (bytes, runs) = match usize::try_from(plain) {
                Ok(0) => return Ok(()),
                Ok(len) => {
                    let start = side.member.at(displacement, 0, len)?.addr() - side.member.base.addr();
                    let bytes = slice::from_raw_parts(origin.cast::<u8>(), len);
                    if len <= piece() {
                        return window.ask(side, &Request::new(window.name, Kind::Put, start), bytes);
                    }
                    (Cow::Borrowed(bytes), Runs::one(start, len))
                }
                Err(_) => {
                    let bytes = packed(origin, origin_count, origin_type)?;
                    (Cow::Owned(bytes), Runs::new(side, displacement, target_count, target_type)?)
                }
            };
            if runs.len() != bytes.len() {
                return Err(OUT_OF_RANGE);
            }
            runs.each(piece(), |at, part| {
                window.ask(side, &Request::new(window.name, Kind::Put, at), &bytes[part])
            })
        }
    };
    code(work())
}

unsafe extern "C" fn get(
    origin: *mut c_void,
    origin_count: c_int,
    origin_type: *mut ompi_datatype_t,
    target: c_int,
    displacement: isize,
    target_count: c_int,
    target_type: *mut ompi_datatype_t,
    win: *mut ompi_win_t,
) -> c_int {
    let work = || {
        // SAFETY: Open MPI gives a window, datatypes, and room for the origin's elements.
        unsafe {
            let from = of(win).side(target)?.member.elements(displacement, target_count, target_type)?;
            checked(ompi::vmshm_osc_copy(
                from.cast(),
                target_count,
                target_type,
                origin,
                origin_count,
                origin_type,
            ))
        }
    };
    code(work())
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
    unsafe fn new(
        side: &Side,
        displacement: isize,
        count: c_int,
        datatype: *mut ompi_datatype_t,
    ) -> Result<Self, c_int> {
        // SAFETY: the caller vouches for it.
        unsafe {
            let (number, is_predefined) = number_of(datatype)?;
            let extent = ompi::vmshm_osc_extent(number.into());
            let runs = if is_predefined {
                let len = usize::try_from(count).unwrap_or(0) * extent;
                let start = side.member.at(displacement, 0, len)?.addr() - side.member.base.addr();
                Runs::one(start, len)
            } else {
                Runs::new(side, displacement, count, datatype)?
            };
            Ok(Self { number, extent, runs })
        }
    }

    /// The operands for them: as they lie, or one behind the other.
    ///
    /// # Errors
    /// They are others, or not as many.
    ///
    /// # Safety
    /// The datatype is Open MPI's, and has its elements there.
    unsafe fn operands<'a>(
        &self,
        from: *const c_void,
        count: c_int,
        datatype: *mut ompi_datatype_t,
    ) -> Result<Cow<'a, [u8]>, c_int> {
        // SAFETY: the caller vouches for it.
        let bytes = unsafe {
            let (number, is_predefined) = number_of(datatype)?;
            if number != self.number {
                return Err(epochs::OUT_OF_ORDER);
            }
            if is_predefined {
                let len = usize::try_from(count).unwrap_or(0) * self.extent;
                Cow::Borrowed(if len == 0 { &[][..] } else { slice::from_raw_parts(from.cast::<u8>(), len) })
            } else {
                Cow::Owned(packed(from, count, datatype)?)
            }
        };
        if bytes.len() == self.runs.len() { Ok(bytes) } else { Err(OUT_OF_RANGE) }
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

unsafe extern "C" fn accumulate(
    origin: *const c_void,
    origin_count: c_int,
    origin_type: *mut ompi_datatype_t,
    target: c_int,
    displacement: isize,
    target_count: c_int,
    target_type: *mut ompi_datatype_t,
    op: *mut ompi_op_t,
    win: *mut ompi_win_t,
) -> c_int {
    let work = || {
        // SAFETY: Open MPI gives a window, datatypes, an operation, and elements of the origin's.
        unsafe {
            let window = of(win);
            let side = window.side(target)?;
            let numbers = Numbers::new(side, displacement, target_count, target_type)?;
            let operands = numbers.operands(origin, origin_count, origin_type)?;
            let op = ompi::vmshm_osc_op(op);
            numbers.runs.each(numbers.whole(piece()), |at, part| {
                let request = numbers.request(window, Kind::Change, op, at, part.len());
                window.ask(side, &request, &operands[part])
            })
        }
    };
    code(work())
}

unsafe extern "C" fn get_accumulate(
    origin: *const c_void,
    origin_count: c_int,
    origin_type: *mut ompi_datatype_t,
    result: *mut c_void,
    result_count: c_int,
    result_type: *mut ompi_datatype_t,
    target: c_int,
    displacement: isize,
    target_count: c_int,
    target_type: *mut ompi_datatype_t,
    op: *mut ompi_op_t,
    win: *mut ompi_win_t,
) -> c_int {
    let work = || {
        // SAFETY: Open MPI gives a window, datatypes, an operation, elements of the origin's and room for the result's.
        unsafe {
            let window = of(win);
            let side = window.side(target)?;
            let numbers = Numbers::new(side, displacement, target_count, target_type)?;
            let operands = if ompi::vmshm_osc_is_no_op(op) {
                Cow::Borrowed(&[][..])
            } else {
                numbers.operands(origin, origin_count, origin_type)?
            };
            let op = ompi::vmshm_osc_op(op);
            let mut found = vec![0u8; numbers.runs.len()];
            numbers.runs.each(numbers.whole(REPLY_LEN), |at, part| {
                let request = numbers.request(window, Kind::Fetch, op, at, part.len());
                window.ask(side, &request, operands.get(part.clone()).unwrap_or(&[]))?;
                side.await_word(Word::Done, side.sent.get());
                copy_from_shared(side.theirs.reply(), found[part.clone()].as_mut_ptr(), part.len());
                Ok(())
            })?;
            let (number, is_predefined) = number_of(result_type)?;
            if number != numbers.number {
                return Err(epochs::OUT_OF_ORDER);
            }
            let room = if is_predefined {
                usize::try_from(result_count).unwrap_or(0) * numbers.extent
            } else {
                ompi::vmshm_osc_size(result_count, result_type)
            };
            if room < found.len() {
                return Err(OUT_OF_RANGE);
            }
            if is_predefined {
                result.cast::<u8>().copy_from_nonoverlapping(found.as_ptr(), found.len());
                return Ok(());
            }
            let from = found.as_ptr().cast();
            checked(ompi::vmshm_coll_unpack(result_type, result_count, result, from, found.len()))
        }
    };
    code(work())
}

unsafe extern "C" fn compare_and_swap(
    origin: *const c_void,
    compare: *const c_void,
    result: *mut c_void,
    datatype: *mut ompi_datatype_t,
    target: c_int,
    displacement: isize,
    win: *mut ompi_win_t,
) -> c_int {
    let work = || {
        // SAFETY: Open MPI gives a window, a datatype without gaps, two elements of it and room for one.
        unsafe {
            let window = of(win);
            let side = window.side(target)?;
            let len = ompi::vmshm_osc_size(1, datatype);
            let at = side.member.elements(displacement, 1, datatype)?.addr() - side.member.base.addr();
            let element = |from: *const c_void| slice::from_raw_parts(from.cast::<u8>(), len);
            let data = [element(compare), element(origin)].concat();
            window.ask(side, &Request::new(window.name, Kind::Swap, at), &data)?;
            side.await_word(Word::Done, side.sent.get());
            copy_from_shared(side.theirs.reply(), result.cast(), len);
        }
        Ok(())
    };
    code(work())
}
