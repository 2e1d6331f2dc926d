//! The module: what Open MPI can call for each peer and each message, and the limits that hold.

use vmshm_messaging::{LEAST, Params};
use vmshm_transport::tune::Tuning;

use super::deliver::HEADER;
use super::{atomic, finalize, get, prepare, procs, put, register_mem, send, sendi};
use crate::ompi::{self, mca_btl_base_module_t};
use crate::process::params;

/// Gives the module its functions and the defaults of its parameters.
///
/// # Safety
/// `module` is ours, and Open MPI does not use it meanwhile.
pub unsafe fn fill(module: *mut mca_btl_base_module_t) {
    // SAFETY: the caller vouches for it.
    let module = unsafe { &mut *module };
    module.btl_component = ompi::btl_component();
    // Below native shared memory, above every network.
    module.btl_exclusivity = ompi::MCA_BTL_EXCLUSIVITY_HIGH / 2;
    module.btl_latency = 1;
    module.btl_bandwidth = 40_000;
    // Longer ones are pulled, which costs a round trip. The limit counts ob1's header too.
    module.btl_eager_limit = default_eager_limit();
    module.btl_rndv_eager_limit = 4 << 10;
    module.btl_max_send_size = 32 << 10;
    // Memory outside of the section cannot be put to, and ob1 cannot be told so in time: hence never.
    module.btl_rdma_pipeline_send_length = 4 << 10;
    module.btl_rdma_pipeline_frag_size = 4 << 10;
    module.btl_min_rdma_pipeline_size = usize::MAX;
    module.btl_flags = ompi::MCA_BTL_FLAGS_SEND
        | ompi::MCA_BTL_FLAGS_GET
        | ompi::MCA_BTL_FLAGS_PUT
        | ompi::MCA_BTL_FLAGS_RDMA_FLUSH;
    module.btl_atomic_flags = atomic::SUPPORTED;
    module.btl_registration_handle_size = size_of::<register_mem::Handle>();
    module.btl_add_procs = Some(procs::add_procs);
    module.btl_del_procs = Some(procs::del_procs);
    module.btl_finalize = Some(finalize::finalize);
    module.btl_alloc = Some(prepare::alloc);
    module.btl_free = Some(prepare::free);
    module.btl_prepare_src = Some(prepare::prepare_src);
    module.btl_send = Some(send::send);
    module.btl_sendi = Some(sendi::sendi);
    module.btl_get = Some(get::get);
    module.btl_put = Some(put::put);
    module.btl_atomic_op = Some(atomic::op);
    module.btl_atomic_fop = Some(atomic::fetch_op);
    module.btl_atomic_cswap = Some(atomic::compare_and_swap);
    module.btl_register_mem = Some(register_mem::register_mem);
    module.btl_deregister_mem = Some(register_mem::deregister_mem);
    module.btl_register_error = Some(procs::register_error);
    module.btl_dump = Some(ompi::mca_btl_base_dump);
    module.btl_flush = Some(put::flush);
}

fn default_eager_limit() -> usize {
    Tuning::of_this_machine().eager_limit + HEADER
}

/// Checks what the user has set, and lets what was not set follow it.
///
/// # Safety
/// As [`fill`].
pub unsafe fn check(module: *mut mca_btl_base_module_t) -> Result<(), String> {
    // SAFETY: the caller vouches for it.
    let module = unsafe { &mut *module };
    if module.btl_eager_limit == default_eager_limit() {
        module.btl_eager_limit = module.btl_eager_limit.min(module.btl_max_send_size);
    }
    let sizes = [
        ("eager_limit", module.btl_eager_limit),
        ("rndv_eager_limit", module.btl_rndv_eager_limit),
        ("max_send_size", module.btl_max_send_size),
    ];
    for (name, value) in sizes {
        if !(HEADER..=Params::MAX_MESSAGE).contains(&value) {
            return Err(format!(
                "btl_vmshm_{name} is {value}: it must be between {HEADER} and {} bytes.",
                Params::MAX_MESSAGE
            ));
        }
    }
    if (module.btl_get_limit as u64) < LEAST {
        return Err(format!(
            "btl_vmshm_get_limit is {}: it must be at least {LEAST} bytes.",
            module.btl_get_limit
        ));
    }
    if module.btl_eager_limit > module.btl_max_send_size {
        return Err(format!(
            "btl_vmshm_eager_limit is {}: it must not be more than btl_vmshm_max_send_size, which is {}.",
            module.btl_eager_limit, module.btl_max_send_size
        ));
    }
    if params::max_inline() < sendi::LONGEST_FEW {
        module.btl_sendi = Some(sendi::send_any);
    }
    Ok(())
}

/// Takes back what the region does not allow: only in an open region may peers write each other's sections.
///
/// # Safety
/// As [`fill`].
pub unsafe fn restrict(module: *mut mca_btl_base_module_t, is_open: bool) {
    // SAFETY: the caller vouches for it.
    let module = unsafe { &mut *module };
    if !is_open {
        module.btl_put = None;
        module.btl_atomic_op = None;
        module.btl_atomic_fop = None;
        module.btl_atomic_cswap = None;
        module.btl_atomic_flags = 0;
        module.btl_flags &=
            !(ompi::MCA_BTL_FLAGS_PUT | ompi::MCA_BTL_FLAGS_ATOMIC_OPS | ompi::MCA_BTL_FLAGS_ATOMIC_FOPS);
    }
}
