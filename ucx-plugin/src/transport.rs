//! The transport's tables of functions, and their registration.

use std::mem;
use std::ptr;

use crate::domain::{self, Shared};
use crate::ucx::{self, *};
use crate::{endpoint, iface, progress, remote, sleep};

/// The name by which users choose the transport.
const NAME: &str = "vmshm";

static OPS: Shared<uct_iface_ops_t> = Shared(uct_iface_ops_t {
    ep_am_short: Some(endpoint::am_short),
    ep_am_short_iov: Some(uct_base_ep_am_short_iov),
    ep_am_bcopy: Some(endpoint::am_bcopy),
    ep_am_zcopy: Some(endpoint::am_zcopy),
    ep_put_short: Some(remote::put_short),
    ep_put_bcopy: Some(remote::put_bcopy),
    ep_put_zcopy: Some(remote::put_zcopy),
    ep_get_bcopy: Some(remote::get_bcopy),
    ep_get_zcopy: Some(remote::get_zcopy),
    ep_atomic_cswap64: Some(remote::atomic_cswap64),
    ep_atomic_cswap32: Some(remote::atomic_cswap32),
    ep_atomic32_post: Some(remote::atomic32_post),
    ep_atomic64_post: Some(remote::atomic64_post),
    ep_atomic32_fetch: Some(remote::atomic32_fetch),
    ep_atomic64_fetch: Some(remote::atomic64_fetch),
    ep_pending_add: Some(endpoint::pending_add),
    ep_pending_purge: Some(endpoint::pending_purge),
    ep_flush: Some(endpoint::flush),
    ep_fence: Some(endpoint::fence),
    ep_check: Some(endpoint::ep_check),
    ep_create: Some(endpoint::create),
    ep_destroy: Some(endpoint::destroy),
    iface_flush: Some(endpoint::iface_flush),
    iface_fence: Some(endpoint::iface_fence),
    iface_progress_enable: Some(uct_base_iface_progress_enable),
    iface_progress_disable: Some(uct_base_iface_progress_disable),
    iface_progress: Some(progress::progress),
    iface_event_fd_get: Some(sleep::descriptor),
    iface_event_arm: Some(sleep::arm),
    iface_close: Some(iface::close),
    iface_query: Some(iface::query),
    iface_get_device_address: Some(iface::device_address),
    iface_get_address: Some(iface::address),
    iface_is_reachable: Some(iface::is_reachable),
    // SAFETY: all are optional functions, for which zero is none.
    ..unsafe { mem::zeroed() }
});

unsafe extern "C" fn iface_open(
    md: uct_md_h,
    worker: uct_worker_h,
    params: *const uct_iface_params_t,
    config: *const uct_iface_config_t,
    iface: *mut uct_iface_h,
) -> ucs_status_t {
    let ops = (OPS.pointer(), &raw mut vmshm_internal_ops);
    // SAFETY: UCX's own arguments.
    unsafe { iface::open(ops, (md, worker), params, config, iface) }
}

/// Registers component and transport. UCX keeps both for ever.
pub fn register() {
    // SAFETY: both structs hold numbers, pointers and optional functions, for all of which zero is a value. They and their texts
    // live as long as the program, and the loader runs one constructor at a time.
    unsafe {
        let component = Box::leak(Box::<uct_component_t>::new(mem::zeroed()));
        ucx::put_name(&mut component.name, NAME);
        component.query_md_resources = Some(domain::query_resources);
        component.md_open = Some(domain::open);
        component.cm_open = Some(domain::cm_open);
        component.rkey_unpack = Some(domain::rkey_unpack);
        component.rkey_ptr = Some(domain::rkey_ptr);
        component.rkey_release = Some(domain::rkey_release);
        component.md_vfs_init = Some(domain::vfs_init);
        component.md_config.name = c"vmshm memory domain".as_ptr();
        component.md_config.prefix = c"VMSHM_".as_ptr();
        component.md_config.table = (&raw mut vmshm_md_config_table).cast();
        component.md_config.size = mem::size_of::<vmshm_md_config_t>();
        component.cm_config.name = c"".as_ptr();
        component.cm_config.prefix = c"".as_ptr();
        vmshm_make_key = Some(domain::make_key);
        vmshm_init_component(component);
        let list = &raw mut component.tl_list;
        (*list).prev = list;
        (*list).next = list;
        let transport = Box::leak(Box::<uct_tl_t>::new(mem::zeroed()));
        ucx::put_name(&mut transport.name, NAME);
        transport.query_devices = Some(domain::query_devices);
        transport.iface_open = Some(iface_open);
        transport.config.name = c"vmshm transport".as_ptr();
        transport.config.prefix = c"VMSHM_".as_ptr();
        transport.config.table = (&raw mut vmshm_iface_config_table).cast();
        transport.config.size = mem::size_of::<vmshm_iface_config_t>();
        let component = ptr::from_mut(component);
        uct_component_register(component);
        uct_tl_register(component, transport);
    }
}
