//! The component, and its memory domain.

use std::ffi::{CStr, c_char, c_uint, c_void};
use std::mem::{self, size_of};
use std::ptr;
use std::sync::Arc;
use std::time::Duration;

use vmshm_transport::attach::{AttachError, Options, Source, find, read_region};
use zerocopy::FromBytes;

use crate::memory::{Handle, Registry, RemoteKey};
use crate::ucx::{self, *};

/// An open memory domain.
#[repr(C)]
pub struct Domain {
    base: uct_md_t,
    /// Which region.
    pub options: Options,
    /// Its memory.
    pub registry: Arc<Registry>,
}

/// # Safety
///
/// `md` was opened by [`open`].
pub unsafe fn of<'a>(md: uct_md_h) -> &'a Domain {
    // SAFETY: the caller vouches for it; UCX changes nothing in it.
    unsafe { &*md.cast::<Domain>() }
}

/// Device or region that the user wants to attach to.
///
/// # Safety
///
/// `config` was read by UCX from our table.
unsafe fn options(config: *const vmshm_md_config_t) -> Result<Options, AttachError> {
    let mut options = Options::from_env()?;
    // SAFETY: the caller vouches for it: the text is NULL or ends in NUL.
    unsafe {
        let device = (*config).device;
        if !device.is_null() && *device != 0 {
            options.device = Some(CStr::from_ptr(device).to_string_lossy().into_owned());
        }
        if let Ok(section) = u32::try_from((*config).section) {
            options.section = Some(section);
        }
        options.patience = Duration::from_secs(u64::from((*config).patience.max(1)));
    }
    Ok(options)
}

/// A region that can be attached to, as far as reading its header tells.
fn look(options: &Options) -> Result<Source, AttachError> {
    let source = find(options.device.as_deref())?;
    read_region(&source)?;
    Ok(source)
}

/// One domain where there is a region, else none.
pub unsafe extern "C" fn query_resources(
    component: *mut uct_component_t,
    resources: *mut *mut uct_md_resource_desc_t,
    count: *mut c_uint,
) -> ucs_status_t {
    let mut config = ptr::null_mut();
    // SAFETY: the component is registered, and UCX gives room for both answers.
    unsafe {
        let mut found = Err(AttachError::NoDevice);
        if uct_md_config_read(component, ptr::null(), ptr::null(), &mut config) == UCS_OK {
            found = options(config.cast()).and_then(|options| look(&options));
            uct_config_release(config.cast());
        }
        match found {
            Ok(_) => uct_md_query_single_md_resource(component, resources, count),
            Err(AttachError::NoDevice) => uct_md_query_empty_md_resource(resources, count),
            Err(error) => {
                ucx::tell(&format!("vmshm: {error}"));
                uct_md_query_empty_md_resource(resources, count)
            }
        }
    }
}

static OPS: Shared<uct_md_ops_t> = Shared(uct_md_ops_t {
    close: Some(close),
    query: Some(vmshm_md_query),
    mem_alloc: Some(mem_alloc),
    mem_free: Some(mem_free),
    mem_reg: Some(mem_reg),
    mem_dereg: Some(mem_dereg),
    mkey_pack: Some(vmshm_mkey_pack),
    // SAFETY: all are optional functions, for which zero is none.
    ..unsafe { mem::zeroed() }
});

/// A table of functions.
pub struct Shared<T>(pub T);

// SAFETY: functions and numbers, which nobody changes.
unsafe impl<T> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// As UCX wants it, which does not change it either.
    pub fn pointer(&self) -> *mut T {
        (&raw const self.0).cast_mut()
    }
}

/// Opens a domain.
pub unsafe extern "C" fn open(
    component: *mut uct_component_t,
    _: *const c_char,
    config: *const uct_md_config_t,
    md: *mut uct_md_h,
) -> ucs_status_t {
    // SAFETY: UCX gives what it has read from our table.
    let options = match unsafe { options(config.cast()) } {
        Ok(options) => options,
        Err(error) => {
            ucx::warn(&format!("vmshm: {error}"));
            return UCS_ERR_INVALID_PARAM;
        }
    };
    let base = uct_md_t { ops: OPS.pointer(), component };
    let domain = Box::new(Domain { base, options, registry: Arc::default() });
    // SAFETY: UCX gives room for the answer.
    unsafe { *md = Box::into_raw(domain).cast() };
    UCS_OK
}

unsafe extern "C" fn close(md: uct_md_h) {
    // SAFETY: UCX closes what `open` gave, once, and has no interface of it any more.
    drop(unsafe { Box::from_raw(md.cast::<Domain>()) });
}

unsafe extern "C" fn mem_alloc(
    md: uct_md_h,
    len: *mut usize,
    address: *mut *mut c_void,
    kind: ucs_memory_type_t,
    flags: c_uint,
    _: *const c_char,
    memory: *mut uct_mem_h,
) -> ucs_status_t {
    if kind != UCS_MEMORY_TYPE_HOST {
        return UCS_ERR_UNSUPPORTED;
    }
    // SAFETY: the domain is ours, and UCX gives room for the answers.
    unsafe {
        let domain = of(md);
        let at = (flags & UCT_MD_MEM_FLAG_FIXED != 0).then_some((*address).addr());
        let Some((place, handle)) = domain.registry.allocate(&domain.options, *len, at) else {
            return UCS_ERR_NO_MEMORY;
        };
        *len = handle.len();
        *address = place.cast();
        *memory = Box::into_raw(Box::new(handle)).cast();
    }
    UCS_OK
}

unsafe extern "C" fn mem_free(md: uct_md_h, memory: uct_mem_h) -> ucs_status_t {
    // SAFETY: UCX gives back what `mem_alloc` gave, once.
    unsafe { of(md).registry.free(*Box::from_raw(memory.cast::<Handle>())) };
    UCS_OK
}

unsafe extern "C" fn mem_reg(
    md: uct_md_h,
    address: *mut c_void,
    len: usize,
    params: vmshm_reg_params_t,
    memory: *mut uct_mem_h,
) -> ucs_status_t {
    // SAFETY: the domain is ours, and UCX gives room for the answer.
    unsafe {
        let access = vmshm_reg_flags(params);
        let handle = of(md).registry.register(address.addr(), len, access);
        *memory = Box::into_raw(Box::new(handle)).cast();
    }
    UCS_OK
}

/// Gives memory its key, before it is packed.
pub unsafe extern "C" fn make_key(md: uct_md_h, memory: uct_mem_h) -> ucs_status_t {
    // SAFETY: the domain is ours, and the handle is what `mem_reg` or `mem_alloc` gave: only its key ever changes.
    match unsafe { of(md).registry.make_key(memory.cast()) } {
        true => UCS_OK,
        false => UCS_ERR_NO_RESOURCE,
    }
}

unsafe extern "C" fn mem_dereg(md: uct_md_h, params: *const uct_md_mem_dereg_params_t) -> ucs_status_t {
    // SAFETY: UCX gives back what `mem_reg` gave, once; it says which fields are set.
    unsafe {
        let params = &*params;
        let has = |field: uct_md_mem_dereg_field_mask_t| params.field_mask & u64::from(field) != 0;
        if !has(UCT_MD_MEM_DEREG_FIELD_MEMH) || params.memh.is_null() {
            return UCS_ERR_INVALID_PARAM;
        }
        of(md).registry.deregister(&Box::from_raw(params.memh.cast::<Handle>()));
        let invalidates =
            has(UCT_MD_MEM_DEREG_FIELD_FLAGS) && params.flags & UCT_MD_MEM_DEREG_FLAG_INVALIDATE != 0;
        if invalidates && has(UCT_MD_MEM_DEREG_FIELD_COMPLETION) && !params.comp.is_null() {
            ucx::complete(params.comp, UCS_OK);
        }
    }
    UCS_OK
}

/// Reads a key that has come from its owner.
pub unsafe extern "C" fn rkey_unpack(
    _: *mut uct_component_t,
    packed: *const c_void,
    rkey: *mut uct_rkey_t,
    handle: *mut *mut c_void,
) -> ucs_status_t {
    let mut bytes = [0; size_of::<RemoteKey>()];
    // SAFETY: UCX gives as many bytes as the domain said, and room for the answers.
    unsafe {
        ptr::copy_nonoverlapping(packed.cast(), bytes.as_mut_ptr(), bytes.len());
        let Ok(remote) = RemoteKey::read_from_bytes(&bytes) else { return UCS_ERR_INVALID_PARAM };
        *rkey = Box::into_raw(Box::new(remote)).expose_provenance();
        *handle = ptr::null_mut();
    }
    UCS_OK
}

/// There is no pointer to what a key names: UCX does not say how much of it will be read, so that a stranger's key could lead
/// beyond the region. Memory of a section is read in place, as far as the key reaches, by a get.
pub unsafe extern "C" fn rkey_ptr(
    _: *mut uct_component_t,
    _: uct_rkey_t,
    _: *mut c_void,
    _: u64,
    _: *mut *mut c_void,
) -> ucs_status_t {
    UCS_ERR_UNSUPPORTED
}

/// Ends what [`rkey_unpack`] began.
pub unsafe extern "C" fn rkey_release(
    _: *mut uct_component_t,
    rkey: uct_rkey_t,
    _: *mut c_void,
) -> ucs_status_t {
    // SAFETY: UCX gives back what `rkey_unpack` gave, once.
    drop(unsafe { Box::from_raw(ptr::with_exposed_provenance_mut::<RemoteKey>(rkey)) });
    UCS_OK
}

/// This component opens no connections.
pub unsafe extern "C" fn cm_open(
    _: *mut uct_component_t,
    _: uct_worker_h,
    _: *const uct_cm_config_t,
    _: *mut uct_cm_h,
) -> ucs_status_t {
    UCS_ERR_UNSUPPORTED
}

/// UCX's file system of objects shows nothing of a domain.
pub unsafe extern "C" fn vfs_init(_: uct_md_h) {}

/// The one device: the region.
pub unsafe extern "C" fn query_devices(
    md: uct_md_h,
    devices: *mut *mut uct_tl_device_resource_t,
    count: *mut c_uint,
) -> ucs_status_t {
    // SAFETY: the domain is ours, and UCX gives room for the answers.
    unsafe {
        let source = match look(&of(md).options) {
            Ok(source) => source,
            Err(error) => {
                ucx::tell(&format!("vmshm: {error}"));
                return UCS_ERR_NO_DEVICE;
            }
        };
        let path = match &source {
            Source::File(path) | Source::Driver(path) | Source::Pci(path) => path,
        };
        let mut name = [0; 32];
        ucx::put_name(&mut name, &path.file_name().unwrap_or_default().to_string_lossy());
        // A network's: Open MPI sends the addresses of no others to other hosts, and each virtual machine is one.
        let unknown = UCS_SYS_DEVICE_ID_UNKNOWN as ucs_sys_device_t;
        uct_single_device_resource(md, name.as_ptr(), UCT_DEVICE_TYPE_NET, unknown, devices, count)
    }
}
