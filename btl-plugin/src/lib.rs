//! The Open MPI components `vmshm`: MPI messages between virtual machines over one shared region.
//!
//! This crate is the translation between Open MPI's C interfaces and [`vmshm_messaging`], [`vmshm_section_heap`] and
//! [`vmshm_transport`]. Each folder uses only those before it:
//!
//! - `ompi`: all that depends on Open MPI's version: bindings, conversions, help texts; with `shim.c` for what its headers have
//!   as macros only.
//! - `process`: what this process has, once it is attached: the engine behind its lock, the parameters of all components.
//! - `ucx`: brings the UCX transport to UCX, where Open MPI uses that.
//! - `mpool`: memory of the section for `MPI_Alloc_mem`; `heap`: for the program's own large allocations.
//! - `osc`: one-sided communication, on windows in sections.
//! - `coll`: collective operations.
//! - `btl`: the byte transfer layer, a verb of its interface a file.
//!
//! No panic leaves this crate: every function that C calls is `extern "C"`, which aborts the process instead of
//! unwinding into Open MPI.

mod btl;
mod coll;
mod heap;
mod mpool;
pub mod ompi;
mod osc;
mod process;
mod ucx;

use ompi::{
    Global, component, mca_base_component_data_t, mca_base_component_t, mca_btl_base_component_t,
    mca_coll_base_component_t, mca_mpool_base_component_t, name, ompi_osc_base_component_t,
};

/// The symbol that Open MPI looks for in `mca_btl_vmshm.so`.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)]
pub static mca_btl_vmshm_component: Global<mca_btl_base_component_t> =
    Global::new(mca_btl_base_component_t {
        btl_version: mca_base_component_t {
            mca_open_component: Some(btl::open),
            mca_close_component: Some(btl::close),
            mca_register_component_params: Some(btl::register),
            ..component("btl", ompi::BTL)
        },
        btl_data: mca_base_component_data_t { param_field: 0, reserved: [0; 32] },
        btl_init: Some(btl::init),
        btl_progress: Some(btl::progress),
    });

/// The symbol that Open MPI looks for in `mca_mpool_vmshm.so`, which is the same file.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)]
pub static mca_mpool_vmshm_component: Global<mca_mpool_base_component_t> =
    Global::new(mca_mpool_base_component_t {
        mpool_version: mca_base_component_t {
            mca_open_component: Some(mpool::open),
            mca_register_component_params: Some(mpool::register),
            ..component("mpool", ompi::MPOOL)
        },
        mpool_data: mca_base_component_data_t { param_field: 0, reserved: [0; 32] },
        mpool_query: Some(mpool::query),
    });

/// The symbol that Open MPI looks for in `mca_coll_vmshm.so`, which is the same file too.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)]
pub static mca_coll_vmshm_component: Global<mca_coll_base_component_t> =
    Global::new(mca_coll_base_component_t {
        collm_version: mca_base_component_t {
            mca_project_name: name("ompi"),
            mca_register_component_params: Some(coll::register),
            ..component("coll", ompi::COLL)
        },
        collm_data: mca_base_component_data_t { param_field: 0, reserved: [0; 32] },
        collm_init_query: Some(coll::init_query),
        collm_comm_query: Some(coll::comm_query),
    });

/// The symbol that Open MPI looks for in `mca_osc_vmshm.so`, which is the same file too.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)]
pub static mca_osc_vmshm_component: Global<ompi_osc_base_component_t> =
    Global::new(ompi_osc_base_component_t {
        osc_version: mca_base_component_t {
            mca_project_name: name("ompi"),
            mca_register_component_params: Some(osc::register),
            ..component("osc", ompi::OSC)
        },
        osc_data: mca_base_component_data_t { param_field: 0, reserved: [0; 32] },
        osc_init: Some(osc::init),
        osc_query: Some(osc::query),
        osc_select: Some(osc::select),
        osc_finalize: Some(osc::finalize),
    });
