//! An interface: an endpoint of the region with an engine of its own, so that several work beside each other in a process.

use std::cell::UnsafeCell;
use std::env;
use std::ffi::c_int;
use std::path::Path;
use std::ptr;
use std::sync::Arc;

use vmshm_messaging::{Engine, Params, Pipeline};
use vmshm_transport::abi::EndpointName;
use vmshm_transport::attach::Options;
use vmshm_transport::tune::{Here, Speed, Tuning};
use vmshm_transport::{MAX_EAGER, MAX_INLINE, Sleeper};
use zerocopy::{FromBytes, IntoBytes};

use crate::adapters;
use crate::asked::Put;
use crate::domain;
use crate::memory::Registry;
use crate::state::Port;
use crate::ucx::{self, *};

/// Longest header of an active message without a copy in front of it, bytes.
const MAX_HEADER: usize = 256;

/// Most pieces of an active message. UCX has so many on its stack, in an array of this length.
const MAX_PIECES: usize = 16;

/// `auto` as a number of bytes: `UCS_MEMUNITS_AUTO` of UCX's `ucs/sys/string.h`.
const AUTO: usize = usize::MAX - 1;

/// Costs by which UCX compares transports: as was measured here, between what UCX claims for its own shared memory, which so has
/// the messages within a machine, and what it claims for networks. Beside an adapter the bandwidth is more than any measured one:
/// all messages to other machines of the region are for vmshm then, and none for the adapter.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Costs {
    /// Seconds.
    latency: f64,
    /// Bytes a second.
    bandwidth: f64,
}

/// Overhead of a message for its sender and for its receiver, seconds: what UCX claims for its own shared memory. It is a part of
/// what was measured.
const OVERHEAD: f64 = 10e-9;

impl Costs {
    /// Where nothing was measured: a cache line from core to core, and as much as is claimed at the most.
    const USUAL: Self = Self { latency: 120e-9, bandwidth: 10e9 };
    /// Latencies, seconds: UCX claims 80 ns for its own shared memory, and 600 ns for the fastest InfiniBand.
    const LATENCIES: (f64, f64) = (90e-9, 400e-9);
    /// Bandwidth beside an adapter, in its own: UCX divides long messages between all ways that have a tenth of the best one's.
    const ALONE: f64 = 11.0;

    fn of(speed: Option<Speed>, adapter: Option<f64>) -> Self {
        let measured = speed.map_or(Self::USUAL, |Speed { latency, bandwidth }| {
            let (least, most) = Self::LATENCIES;
            Self {
                latency: (f64::from(latency) * 1e-9 - 2.0 * OVERHEAD).clamp(least, most),
                // UCX claims 11.7e9 and 12.8e9 for its own (cma, posix).
                bandwidth: (f64::from(bandwidth) * 1e6).min(Self::USUAL.bandwidth),
            }
        });
        Self { bandwidth: measured.bandwidth.max(adapter.unwrap_or(0.0) * Self::ALONE), ..measured }
    }
}

/// An interface.
#[repr(C)]
pub struct Iface {
    /// UCX's part, which UCX changes.
    pub base: UnsafeCell<uct_base_iface_t>,
    pub port: Arc<Port>,
    pub registry: Arc<Registry>,
    name: EndpointName,
    /// Longest active message, bytes.
    pub seg_size: usize,
    /// Every member may write every section.
    pub is_open: bool,
    /// For programs that sleep; none where nobody rings.
    pub sleeper: Option<Sleeper>,
    costs: Costs,
    /// UCX has other ways for long messages, which it prefers to those that cannot put.
    claims_to_put: bool,
}

/// # Safety
///
/// `iface` was opened by [`open`] and is not closed yet.
#[inline(always)]
pub unsafe fn of<'a>(iface: uct_iface_h) -> &'a Iface {
    // SAFETY: the caller vouches for it; what UCX changes is in a cell.
    unsafe { &*iface.cast::<Iface>() }
}

/// Whether the user has said that long messages are put.
fn is_told_to_put() -> bool {
    env::var("UCX_RNDV_SCHEME").is_ok_and(|scheme| scheme.to_ascii_lowercase().starts_with("put"))
}

/// Opens an interface, for the table of [`crate::transport`].
///
/// # Safety
///
/// As UCX's `iface_open`.
pub unsafe fn open(
    ops: (*mut uct_iface_ops_t, *mut uct_iface_internal_ops_t),
    (md, worker): (uct_md_h, uct_worker_h),
    params: *const uct_iface_params_t,
    config: *const uct_iface_config_t,
    iface: *mut uct_iface_h,
) -> ucs_status_t {
    // SAFETY: the domain is ours, and UCX has read the configuration from our table.
    let (domain, ours, params_ref) =
        unsafe { (domain::of(md), &*config.cast::<vmshm_iface_config_t>(), &*params) };
    // SAFETY: a constant.
    if params_ref.open_mode & unsafe { vmshm_open_mode_device } == 0 {
        return UCS_ERR_UNSUPPORTED;
    }
    let options = Options { sleep: ours.sleep != 0, ..domain.options.clone() };
    let attached = match domain.registry.attach(&options) {
        Ok(attached) => attached,
        Err(error) => {
            ucx::warn(&format!("vmshm: {error}"));
            return UCS_ERR_NO_DEVICE;
        }
    };
    if let Some(advice) = attached.advice() {
        ucx::tell(&format!("vmshm: {advice}"));
    }
    let sleeper = attached.sleeper();
    if options.sleep && sleeper.is_none() {
        ucx::tell("vmshm: no program can sleep here: only the guest driver has doorbells");
    }
    let section = attached.section().entry.len;
    // auto is the greatest number.
    let chunk_size = Some(ours.chunk_size).filter(|size| (1..=Params::MAX_MESSAGE).contains(size));
    let tuning = Tuning::of_this_machine();
    let seg_size = match ours.seg_size {
        AUTO => (tuning.eager_limit + MAX_HEADER).min(MAX_EAGER),
        size => size.clamp(2048, Params::MAX_MESSAGE),
    };
    let pipeline = Pipeline::new(tuning, chunk_size, None, section);
    let params_of_engine =
        Params { reserve: seg_size, eager: pipeline.eager(), pipeline, ..Params::of_this_machine(section) };
    let engine = match Engine::new(attached, params_of_engine) {
        Ok(engine) => engine,
        Err(error) => {
            ucx::warn(&format!("vmshm: {error}"));
            return UCS_ERR_NO_MEMORY;
        }
    };
    let adapter = adapters::fastest(Path::new(adapters::DIRECTORY));
    let mut costs = Costs::of(Here::get().speed, adapter);
    // auto is negative.
    if ours.bandwidth > 0.0 {
        costs.bandwidth = ours.bandwidth;
    }
    let name = engine.endpoint().name();
    let is_open = engine.endpoint().region().is_open();
    let port = Arc::new(Port::new(engine));
    domain.registry.add_reader(&port);
    let new = Box::into_raw(Box::new(Iface {
        // SAFETY: UCX's constructor fills it; until then nobody reads it.
        base: UnsafeCell::new(unsafe { std::mem::zeroed() }),
        port,
        registry: Arc::clone(&domain.registry),
        name,
        seg_size,
        is_open,
        sleeper,
        costs,
        claims_to_put: is_open || adapter.is_some() && !is_told_to_put(),
    }));
    let mut inits: c_int = 1;
    // SAFETY: the base has room, and all else is UCX's own or lives as long as the program.
    unsafe {
        let base = (*new).base.get();
        let class = &raw mut uct_base_iface_t_class;
        let status = uct_base_iface_t_init(base, class, &mut inits, ops.0, ops.1, md, worker, params, config);
        if status != UCS_OK {
            drop(Box::from_raw(new));
            return status;
        }
        *iface = new.cast();
    }
    UCS_OK
}

/// Closes an interface.
pub unsafe extern "C" fn close(iface: uct_iface_h) {
    // SAFETY: UCX closes what `open` gave, once, and has no endpoint of it any more.
    unsafe {
        uct_base_iface_progress_disable(iface, UCT_PROGRESS_SEND | UCT_PROGRESS_RECV);
        ucs_class_call_cleanup_chain(&raw mut uct_base_iface_t_class, iface.cast(), -1);
        let iface = Box::from_raw(iface.cast::<Iface>());
        let mut state = iface.port.lock();
        if let Some(spare) = state.spare.take() {
            state.engine.free(spare);
        }
        state.engine.abandon();
        drop(state);
    }
}

/// Abilities of the interface, and their cost.
pub unsafe extern "C" fn query(iface: uct_iface_h, attributes: *mut uct_iface_attr_t) -> ucs_status_t {
    // SAFETY: the interface is ours, and UCX gives room.
    unsafe {
        let ours = of(iface);
        uct_base_iface_query(ours.base.get(), attributes);
        let attributes = &mut *attributes;
        attributes.iface_addr_len = size_of::<EndpointName>() - 16;
        attributes.device_addr_len = 16;
        attributes.cap.flags = vmshm_iface_flags;
        if ours.sleeper.is_some() {
            attributes.cap.event_flags = vmshm_event_flags;
        }
        attributes.cap.am.max_short = MAX_INLINE;
        attributes.cap.am.max_bcopy = ours.seg_size;
        attributes.cap.am.max_zcopy = ours.seg_size;
        attributes.cap.am.opt_zcopy_align = 1;
        attributes.cap.am.align_mtu = 1;
        attributes.cap.am.max_hdr = MAX_HEADER;
        attributes.cap.am.max_iov = MAX_PIECES;
        attributes.cap.get.max_zcopy = usize::MAX;
        attributes.cap.get.opt_zcopy_align = 64;
        attributes.cap.get.align_mtu = 64;
        attributes.cap.get.max_iov = 1;
        if ours.claims_to_put {
            attributes.cap.flags |= vmshm_rndv_flags;
            attributes.cap.put.max_zcopy = ours.seg_size - size_of::<Put>();
            attributes.cap.put.opt_zcopy_align = 1;
            attributes.cap.put.align_mtu = 1;
            attributes.cap.put.max_iov = 1;
        }
        if ours.is_open {
            attributes.cap.flags |= vmshm_open_flags;
            attributes.cap.put.max_short = MAX_INLINE - size_of::<Put>();
            attributes.cap.put.max_bcopy = ours.seg_size - size_of::<Put>();
            attributes.cap.get.max_bcopy = ours.seg_size;
            for atomics in [&mut attributes.cap.atomic32, &mut attributes.cap.atomic64] {
                atomics.op_flags = vmshm_atomics;
                atomics.fop_flags = vmshm_atomics | vmshm_fetching_atomics;
            }
        }
        attributes.latency = ucs_linear_func_t { c: ours.costs.latency, m: 0.0 };
        attributes.overhead = OVERHEAD;
        attributes.bandwidth = uct_ppn_bandwidth_t { dedicated: ours.costs.bandwidth, shared: 0.0 };
    }
    UCS_OK
}

/// The region's id: processes with the same one reach each other.
pub unsafe extern "C" fn device_address(iface: uct_iface_h, address: *mut uct_device_addr_t) -> ucs_status_t {
    // SAFETY: the interface is ours, and UCX gives as much room as `query` said.
    unsafe { ptr::copy_nonoverlapping(of(iface).name.region_id.as_ptr(), address.cast(), 16) };
    UCS_OK
}

/// The rest of the endpoint's name.
pub unsafe extern "C" fn address(iface: uct_iface_h, address: *mut uct_iface_addr_t) -> ucs_status_t {
    // SAFETY: the interface is ours, and UCX gives as much room as `query` said.
    unsafe {
        let rest = &of(iface).name.as_bytes()[16..];
        ptr::copy_nonoverlapping(rest.as_ptr(), address.cast(), rest.len());
    }
    UCS_OK
}

/// The name that two addresses make.
///
/// # Safety
///
/// They are as [`device_address`] and [`address`] of some interface wrote them.
pub unsafe fn name(device: *const uct_device_addr_t, iface: *const uct_iface_addr_t) -> Option<EndpointName> {
    let mut bytes = [0; size_of::<EndpointName>()];
    // SAFETY: the caller vouches for both lengths.
    unsafe {
        ptr::copy_nonoverlapping(device.cast(), bytes.as_mut_ptr(), 16);
        ptr::copy_nonoverlapping(iface.cast(), bytes.as_mut_ptr().add(16), bytes.len() - 16);
    }
    EndpointName::read_from_bytes(&bytes).ok()
}

/// Whether an interface with these addresses sees the same region, and is another one.
pub unsafe extern "C" fn is_reachable(
    iface: uct_iface_h,
    device: *const uct_device_addr_t,
    address: *const uct_iface_addr_t,
) -> c_int {
    // SAFETY: the interface is ours, and the addresses are those of interfaces of this transport.
    unsafe {
        let own = &of(iface).name;
        let mut region = [0; 16];
        ptr::copy_nonoverlapping(device.cast(), region.as_mut_ptr(), region.len());
        if region != own.region_id {
            return 0;
        }
        let is_other = address.is_null()
            || name(device, address)
                .is_some_and(|name| name.version == own.version && name.as_bytes() != own.as_bytes());
        c_int::from(is_other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_lie_between_those_of_shared_memory_and_of_networks() {
        let of = |latency, bandwidth| Costs::of(Some(Speed { latency, bandwidth }), None);
        assert_eq!(Costs::of(None, None), Costs::USUAL);
        let usual = of(250, 8000);
        assert!((usual.latency - 230e-9).abs() < 1e-12 && (usual.bandwidth - 8e9).abs() < 1.0, "{usual:?}");
        assert_eq!(of(1, u32::MAX), Costs { latency: 90e-9, bandwidth: 10e9 });
        assert_eq!(of(u32::MAX, 1), Costs { latency: 400e-9, bandwidth: 1e6 });
    }

    #[test]
    fn no_adapter_has_a_tenth_of_the_bandwidth() {
        let beside = |adapter| Costs::of(None, Some(adapter));
        assert_eq!(beside(0.3e9), Costs::USUAL);
        assert_eq!(beside(50e9), Costs { bandwidth: 550e9, ..Costs::USUAL });
    }
}
