//! Put, get, accumulate and their like, for both kinds of windows, as Open MPI calls them.

use std::ffi::{c_int, c_void};

use super::epochs::rest;
use super::members::Member;
use super::window::{checked, code, of};
use crate::ompi::{self, Count, ompi_datatype_t, ompi_op_t, ompi_request_t, ompi_win_t};

/// Elements in memory of the caller's.
#[derive(Debug, Clone, Copy)]
pub struct Local {
    /// Where they are.
    pub at: *mut c_void,
    /// How many.
    pub count: Count,
    /// Their datatype.
    pub datatype: *mut ompi_datatype_t,
}

/// Elements in a process's memory.
#[derive(Debug, Clone, Copy)]
pub struct Remote {
    /// Which process.
    pub rank: c_int,
    /// Where they are, in that process's units.
    pub displacement: isize,
    /// How many.
    pub count: Count,
    /// Their datatype.
    pub datatype: *mut ompi_datatype_t,
}

impl Remote {
    /// The elements, where their process's memory is mapped.
    ///
    /// # Errors
    /// The elements leave the memory.
    ///
    /// # Safety
    /// The datatype is Open MPI's.
    #[inline]
    pub unsafe fn within(&self, member: &Member) -> Result<Local, c_int> {
        // SAFETY: the caller vouches for it.
        let at = unsafe { member.elements(self.displacement, self.count, self.datatype)? };
        Ok(Local { at: at.cast(), count: self.count, datatype: self.datatype })
    }
}

impl Local {
    /// Copies the elements to those of another datatype.
    ///
    /// # Errors
    /// Open MPI's code.
    ///
    /// # Safety
    /// The datatypes are Open MPI's, and have their elements there.
    #[inline]
    pub unsafe fn copy_to(&self, to: &Local) -> Result<(), c_int> {
        // SAFETY: the caller vouches for both.
        checked(unsafe {
            ompi::vmshm_osc_copy(self.at, self.count, self.datatype, to.at, to.count, to.datatype)
        })
    }
}

/// Reads elements of a process's memory that is mapped.
///
/// # Errors
/// The elements leave the memory.
///
/// # Safety
/// The datatypes are Open MPI's, and the origin has room for its elements.
#[inline]
pub unsafe fn read(member: &Member, origin: Local, target: Remote) -> Result<(), c_int> {
    // SAFETY: the caller vouches for both.
    unsafe { target.within(member)?.copy_to(&origin) }
}

/// A kind of window's way to another process's memory. Errors are Open MPI's codes.
///
/// # Safety
/// For all functions: datatypes and operations are Open MPI's; origins have their elements, or for `get` room for them, as
/// results have for theirs.
pub trait Access {
    /// `MPI_Put`.
    unsafe fn put(&self, origin: Local, target: Remote) -> Result<(), c_int>;

    /// `MPI_Get`.
    unsafe fn get(&self, origin: Local, target: Remote) -> Result<(), c_int>;

    /// `MPI_Accumulate`.
    unsafe fn accumulate(&self, origin: Local, target: Remote, op: *mut ompi_op_t) -> Result<(), c_int>;

    /// `MPI_Get_accumulate`.
    unsafe fn get_accumulate(
        &self,
        origin: Local,
        result: Local,
        target: Remote,
        op: *mut ompi_op_t,
    ) -> Result<(), c_int>;

    /// `MPI_Compare_and_swap`, of one element of a datatype without gaps.
    unsafe fn compare_and_swap(
        &self,
        origin: *const c_void,
        compare: *const c_void,
        result: *mut c_void,
        target: Remote,
    ) -> Result<(), c_int>;
}

/// Defines a function of Open MPI's, and the one that does the same and hands out a request.
macro_rules! with_request {
    ($name:ident, $requested:ident, ($($argument:ident: $kind:ty),* $(,)?) $work:block) => {
        pub unsafe extern "C" fn $name<W: Access>($($argument: $kind),*) -> c_int {
            code($work)
        }

        pub unsafe extern "C" fn $requested<W: Access>(
            $($argument: $kind,)*
            request: *mut *mut ompi_request_t,
        ) -> c_int {
            // SAFETY: Open MPI's arguments are those of the other function, and there is room for a request.
            let code = unsafe {
                *request = ompi::vmshm_osc_over();
                $name::<W>($($argument),*)
            };
            // The request's end may be waited for without looking for messages.
            rest();
            code
        }
    };
}

with_request!(put, rput, (
    origin: *const c_void,
    origin_count: Count,
    origin_type: *mut ompi_datatype_t,
    rank: c_int,
    displacement: isize,
    count: Count,
    datatype: *mut ompi_datatype_t,
    win: *mut ompi_win_t,
) {
    let origin = Local { at: origin.cast_mut(), count: origin_count, datatype: origin_type };
    // SAFETY: Open MPI gives a window, datatypes, and elements of the origin's.
    unsafe { of::<W>(win).put(origin, Remote { rank, displacement, count, datatype }) }
});

with_request!(get, rget, (
    origin: *mut c_void,
    origin_count: Count,
    origin_type: *mut ompi_datatype_t,
    rank: c_int,
    displacement: isize,
    count: Count,
    datatype: *mut ompi_datatype_t,
    win: *mut ompi_win_t,
) {
    let origin = Local { at: origin, count: origin_count, datatype: origin_type };
    // SAFETY: Open MPI gives a window, datatypes, and room for the origin's elements.
    unsafe { of::<W>(win).get(origin, Remote { rank, displacement, count, datatype }) }
});

with_request!(accumulate, raccumulate, (
    origin: *const c_void,
    origin_count: Count,
    origin_type: *mut ompi_datatype_t,
    rank: c_int,
    displacement: isize,
    count: Count,
    datatype: *mut ompi_datatype_t,
    op: *mut ompi_op_t,
    win: *mut ompi_win_t,
) {
    let origin = Local { at: origin.cast_mut(), count: origin_count, datatype: origin_type };
    // SAFETY: Open MPI gives a window, datatypes, an operation, and elements of the origin's.
    unsafe { of::<W>(win).accumulate(origin, Remote { rank, displacement, count, datatype }, op) }
});

with_request!(get_accumulate, rget_accumulate, (
    origin: *const c_void,
    origin_count: Count,
    origin_type: *mut ompi_datatype_t,
    result: *mut c_void,
    result_count: Count,
    result_type: *mut ompi_datatype_t,
    rank: c_int,
    displacement: isize,
    count: Count,
    datatype: *mut ompi_datatype_t,
    op: *mut ompi_op_t,
    win: *mut ompi_win_t,
) {
    let origin = Local { at: origin.cast_mut(), count: origin_count, datatype: origin_type };
    let result = Local { at: result, count: result_count, datatype: result_type };
    let target = Remote { rank, displacement, count, datatype };
    // SAFETY: Open MPI gives a window, datatypes, an operation, elements of the origin's and room for the result's.
    unsafe { of::<W>(win).get_accumulate(origin, result, target, op) }
});

pub unsafe extern "C" fn fetch_and_op<W: Access>(
    origin: *const c_void,
    result: *mut c_void,
    datatype: *mut ompi_datatype_t,
    rank: c_int,
    displacement: isize,
    op: *mut ompi_op_t,
    win: *mut ompi_win_t,
) -> c_int {
    let one = |at| Local { at, count: 1, datatype };
    let target = Remote { rank, displacement, count: 1, datatype };
    // SAFETY: Open MPI gives a window, a datatype, an operation, an element of the origin's and room for the result's.
    code(unsafe { of::<W>(win).get_accumulate(one(origin.cast_mut()), one(result), target, op) })
}

pub unsafe extern "C" fn compare_and_swap<W: Access>(
    origin: *const c_void,
    compare: *const c_void,
    result: *mut c_void,
    datatype: *mut ompi_datatype_t,
    rank: c_int,
    displacement: isize,
    win: *mut ompi_win_t,
) -> c_int {
    let target = Remote { rank, displacement, count: 1, datatype };
    // SAFETY: Open MPI gives a window, a datatype, two elements of it and room for one.
    code(unsafe { of::<W>(win).compare_and_swap(origin, compare, result, target) })
}
