//! Functions of windows that are another one with something more: with a request, which is over already, or for a single
//! element.

use std::ffi::{c_int, c_void};

use super::epochs::rest;
use crate::ompi::{self, ompi_datatype_t, ompi_op_t, ompi_request_t, ompi_win_t};

/// Calls another function of a window of ours.
macro_rules! call {
    ($win:expr, $function:ident($($argument:expr),* $(,)?)) => {
        match (*ompi::vmshm_osc_module($win)).$function {
            Some(function) => function($($argument),*),
            None => ompi::OPAL_ERR_NOT_SUPPORTED,
        }
    };
}

pub unsafe extern "C" fn fetch_and_op(
    origin: *const c_void,
    result: *mut c_void,
    datatype: *mut ompi_datatype_t,
    target: c_int,
    displacement: isize,
    op: *mut ompi_op_t,
    win: *mut ompi_win_t,
) -> c_int {
    // SAFETY: Open MPI gives an element of the origin's and room for one of the result's.
    unsafe {
        call!(
            win,
            osc_get_accumulate(
                origin,
                1,
                datatype,
                result,
                1,
                datatype,
                target,
                displacement,
                1,
                datatype,
                op,
                win
            )
        )
    }
}

/// Hands out the request of what is over already.
///
/// # Safety
/// `request` has room for one.
unsafe fn over(code: c_int, request: *mut *mut ompi_request_t) -> c_int {
    // Its end may be waited for without looking for messages.
    rest();
    // SAFETY: the caller vouches for it.
    unsafe { *request = ompi::vmshm_osc_over() };
    code
}

pub unsafe extern "C" fn rput(
    origin: *const c_void,
    origin_count: c_int,
    origin_type: *mut ompi_datatype_t,
    target: c_int,
    displacement: isize,
    target_count: c_int,
    target_type: *mut ompi_datatype_t,
    win: *mut ompi_win_t,
    request: *mut *mut ompi_request_t,
) -> c_int {
    // SAFETY: Open MPI's arguments are those of the other function, and there is room for a request.
    unsafe {
        let code = call!(
            win,
            osc_put(origin, origin_count, origin_type, target, displacement, target_count, target_type, win)
        );
        over(code, request)
    }
}

pub unsafe extern "C" fn rget(
    origin: *mut c_void,
    origin_count: c_int,
    origin_type: *mut ompi_datatype_t,
    target: c_int,
    displacement: isize,
    target_count: c_int,
    target_type: *mut ompi_datatype_t,
    win: *mut ompi_win_t,
    request: *mut *mut ompi_request_t,
) -> c_int {
    // SAFETY: Open MPI's arguments are those of the other function, and there is room for a request.
    unsafe {
        let code = call!(
            win,
            osc_get(origin, origin_count, origin_type, target, displacement, target_count, target_type, win)
        );
        over(code, request)
    }
}

pub unsafe extern "C" fn raccumulate(
    origin: *const c_void,
    origin_count: c_int,
    origin_type: *mut ompi_datatype_t,
    target: c_int,
    displacement: isize,
    target_count: c_int,
    target_type: *mut ompi_datatype_t,
    op: *mut ompi_op_t,
    win: *mut ompi_win_t,
    request: *mut *mut ompi_request_t,
) -> c_int {
    // SAFETY: Open MPI's arguments are those of the other function, and there is room for a request.
    unsafe {
        let code = call!(
            win,
            osc_accumulate(
                origin,
                origin_count,
                origin_type,
                target,
                displacement,
                target_count,
                target_type,
                op,
                win,
            )
        );
        over(code, request)
    }
}

pub unsafe extern "C" fn rget_accumulate(
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
    request: *mut *mut ompi_request_t,
) -> c_int {
    // SAFETY: Open MPI's arguments are those of the other function, and there is room for a request.
    unsafe {
        let code = call!(
            win,
            osc_get_accumulate(
                origin,
                origin_count,
                origin_type,
                result,
                result_count,
                result_type,
                target,
                displacement,
                target_count,
                target_type,
                op,
                win,
            )
        );
        over(code, request)
    }
}
