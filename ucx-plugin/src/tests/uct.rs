//! An interface of the transport, opened by UCT.

use std::ffi::{c_uint, c_void};
use std::mem::zeroed;
use std::ptr::{self, null, null_mut};

use vmshm_transport::abi::EndpointName;
use zerocopy::IntoBytes;

use crate::iface::{self, Iface};
use crate::memory::Handle;
use crate::progress;
use crate::ucx::*;

fn check(status: ucs_status_t, what: &str) {
    assert_eq!(status, UCS_OK, "{what}");
}

/// An interface, and all that UCX wants for it.
pub struct Interface {
    pub handle: uct_iface_h,
    pub domain: uct_md_h,
    worker: uct_worker_h,
    context: *mut ucs_async_context_t,
}

impl Interface {
    pub fn new() -> Self {
        super::find_region();
        let (mut context, mut worker, mut handle) = (null_mut(), null_mut(), null_mut());
        // SAFETY: UCX reads what outlives the calls, and has room for its answers; all zero is a value of its parameters.
        unsafe {
            let domain = open_domain();
            check(ucs_async_context_create(UCS_ASYNC_MODE_THREAD_SPINLOCK, &mut context), "context");
            check(uct_worker_create(context, UCS_THREAD_MODE_MULTI, &mut worker), "worker");
            let (mut devices, mut count) = (null_mut(), 0);
            check(uct_md_query_tl_resources(domain, &mut devices, &mut count), "devices");
            assert_eq!(count, 1);
            let mut config = null_mut();
            let name = (*devices).tl_name.as_ptr();
            check(uct_md_iface_config_read(domain, name, null(), null(), &mut config), "configuration");
            let mut params: uct_iface_params_t = zeroed();
            params.field_mask = u64::from(
                UCT_IFACE_PARAM_FIELD_OPEN_MODE
                    | UCT_IFACE_PARAM_FIELD_DEVICE
                    | UCT_IFACE_PARAM_FIELD_ERR_HANDLER
                    | UCT_IFACE_PARAM_FIELD_ERR_HANDLER_ARG
                    | UCT_IFACE_PARAM_FIELD_ERR_HANDLER_FLAGS,
            );
            params.open_mode = vmshm_open_mode_device;
            params.mode.device.tl_name = name;
            params.mode.device.dev_name = (*devices).dev_name.as_ptr();
            params.err_handler = Some(endure);
            check(uct_iface_open(domain, worker, &params, config, &mut handle), "interface");
            uct_config_release(config.cast());
            uct_release_tl_resource_list(devices);
            Self { handle, domain, worker, context }
        }
    }

    pub fn get(&self) -> &Iface {
        // SAFETY: it is open.
        unsafe { iface::of(self.handle) }
    }

    pub fn name(&self) -> EndpointName {
        let (mut device, mut address) = ([0u8; 16], [0u8; 16]);
        // SAFETY: there is room for both addresses.
        unsafe {
            iface::device_address(self.handle, device.as_mut_ptr().cast());
            iface::address(self.handle, address.as_mut_ptr().cast());
            iface::name(device.as_ptr().cast(), address.as_ptr().cast()).unwrap()
        }
    }

    /// Has messages of a kind handed to `handler`, with `argument`.
    pub fn handle(&self, id: u8, handler: uct_am_callback_t, argument: *mut c_void) {
        // SAFETY: the interface is open; the caller keeps the argument.
        unsafe { check(uct_iface_set_am_handler(self.handle, id, handler, argument, 0), "handler") };
    }

    /// # Errors
    ///
    /// UCX's number of the error.
    pub fn connect(&self, name: &EndpointName) -> Result<uct_ep_h, ucs_status_t> {
        let (device, address) = name.as_bytes().split_at(16);
        let mut endpoint = null_mut();
        // SAFETY: as in `new`.
        unsafe {
            let mut params: uct_ep_params_t = zeroed();
            params.field_mask = vmshm_ep_addresses;
            params.iface = self.handle;
            params.dev_addr = device.as_ptr().cast();
            params.iface_addr = address.as_ptr().cast();
            match uct_ep_create(&params, &mut endpoint) {
                UCS_OK => Ok(endpoint),
                status => Err(status),
            }
        }
    }

    pub fn progress(&self) -> c_uint {
        // SAFETY: it is open.
        unsafe { progress::progress(self.handle) }
    }
}

impl Drop for Interface {
    fn drop(&mut self) {
        // SAFETY: nobody uses them any more.
        unsafe {
            uct_iface_close(self.handle);
            uct_worker_destroy(self.worker);
            ucs_async_context_destroy(self.context);
            uct_md_close(self.domain);
        }
    }
}

/// Registers memory of an interface's program, with a key for peers.
pub fn register(owner: &Interface, address: usize, len: usize, access: u32) -> Handle {
    let registry = &owner.get().registry;
    let mut handle = registry.register(address, len, access);
    // SAFETY: the handle is this thread's.
    assert!(unsafe { registry.make_key(&mut handle) });
    handle
}

/// Opens a memory domain of the transport's component.
///
/// # Safety
///
/// UCX finds the region.
unsafe fn open_domain() -> uct_md_h {
    let (mut components, mut count) = (null_mut(), 0);
    // SAFETY: as in `Interface::new`.
    unsafe {
        check(uct_query_components(&mut components, &mut count), "components");
        let all = ptr::slice_from_raw_parts(components, count as usize);
        let component = (&*all).iter().find(|component| {
            let mut attributes: uct_component_attr_t = zeroed();
            attributes.field_mask = u64::from(UCT_COMPONENT_ATTR_FIELD_NAME);
            check(uct_component_query(**component, &mut attributes), "a component");
            attributes.name.iter().map(|byte| byte.cast_unsigned()).take(6).eq(*b"vmshm\0")
        });
        let component = *component.expect("the transport's component");
        let (mut config, mut domain) = (null_mut(), null_mut());
        check(uct_md_config_read(component, null(), null(), &mut config), "configuration");
        check(uct_md_open(component, c"vmshm".as_ptr(), config, &mut domain), "domain");
        uct_config_release(config.cast());
        uct_release_component_list(components);
        domain
    }
}

unsafe extern "C" fn endure(_: *mut c_void, _: uct_ep_h, _: ucs_status_t) -> ucs_status_t {
    UCS_OK
}
