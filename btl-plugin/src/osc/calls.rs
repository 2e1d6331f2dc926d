//! The functions of a window of ours, as Open MPI wants them.

use std::ffi::{c_int, c_void};

use super::access::{self, Access};
use super::epochs::{self, Epochs};
use super::window::of;
use crate::ompi::{self, ompi_osc_base_module_t, ompi_win_t};

/// The functions of a kind of window, which begins with a copy of them.
pub const fn functions<W: Access + Epochs>() -> ompi_osc_base_module_t {
    ompi_osc_base_module_t {
        osc_win_shared_query: None,
        osc_win_attach: Some(attach),
        osc_win_detach: Some(detach),
        osc_free: Some(free::<W>),
        osc_put: Some(access::put::<W>),
        osc_get: Some(access::get::<W>),
        osc_accumulate: Some(access::accumulate::<W>),
        osc_compare_and_swap: Some(access::compare_and_swap::<W>),
        osc_fetch_and_op: Some(access::fetch_and_op::<W>),
        osc_get_accumulate: Some(access::get_accumulate::<W>),
        osc_rput: Some(access::rput::<W>),
        osc_rget: Some(access::rget::<W>),
        osc_raccumulate: Some(access::raccumulate::<W>),
        osc_rget_accumulate: Some(access::rget_accumulate::<W>),
        osc_fence: Some(epochs::fence::<W>),
        osc_start: Some(epochs::start::<W>),
        osc_complete: Some(epochs::complete::<W>),
        osc_post: Some(epochs::post::<W>),
        osc_wait: Some(epochs::wait::<W>),
        osc_test: Some(epochs::test::<W>),
        osc_lock: Some(epochs::lock::<W>),
        osc_unlock: Some(epochs::unlock::<W>),
        osc_lock_all: Some(epochs::lock_all::<W>),
        osc_unlock_all: Some(epochs::unlock_all::<W>),
        osc_sync: Some(epochs::sync::<W>),
        osc_flush: Some(epochs::flush::<W>),
        osc_flush_all: Some(epochs::flush_all::<W>),
        // Origins are read, and results written, before their function returns.
        osc_flush_local: Some(epochs::flush_local::<W>),
        osc_flush_local_all: Some(epochs::sync::<W>),
    }
}

unsafe extern "C" fn attach(_: *mut ompi_win_t, _: *mut c_void, _: usize) -> c_int {
    ompi::MPI_ERR_RMA_ATTACH as c_int
}

unsafe extern "C" fn detach(_: *mut ompi_win_t, _: *const c_void) -> c_int {
    ompi::MPI_ERR_RMA_ATTACH as c_int
}

unsafe extern "C" fn free<W: Epochs>(win: *mut ompi_win_t) -> c_int {
    // SAFETY: Open MPI gives a window, and does not use it after this.
    unsafe {
        let code = of::<W>(win).close();
        drop(Box::from_raw(ompi::vmshm_osc_module(win).cast::<W>()));
        code
    }
}
