//! The functions of a window of ours, as Open MPI wants them.

use std::ffi::{c_int, c_void};

use super::access::{self, Access};
use super::epochs::Epochs;
use super::window::of;
use super::{active_target as active, passive_target as passive};
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
        osc_fence: Some(active::fence::<W>),
        osc_start: Some(active::start::<W>),
        osc_complete: Some(active::complete::<W>),
        osc_post: Some(active::post::<W>),
        osc_wait: Some(active::wait::<W>),
        osc_test: Some(active::test::<W>),
        osc_lock: Some(passive::lock::<W>),
        osc_unlock: Some(passive::unlock::<W>),
        osc_lock_all: Some(passive::lock_all::<W>),
        osc_unlock_all: Some(passive::unlock_all::<W>),
        osc_sync: Some(passive::sync::<W>),
        osc_flush: Some(passive::flush::<W>),
        osc_flush_all: Some(passive::flush_all::<W>),
        // Origins are read, and results written, before their function returns.
        osc_flush_local: Some(passive::flush_local::<W>),
        osc_flush_local_all: Some(passive::sync::<W>),
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
