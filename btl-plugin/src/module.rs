//! What Open MPI calls for each peer and each message.

use std::ffi::{c_char, c_int, c_void};
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::time::Duration;

use vmshm_transport::tune::Tuning;
use vmshm_transport::{ConnectError, MAX_INLINE, Peer, copy_from_shared, copy_to_shared};

use crate::atomic;
use crate::component;
use crate::descriptor::{Descriptor, from_endpoint, to_endpoint};
use crate::fabric::{FABRIC, Outgoing, Posted, Refused};
use crate::heap;
use crate::help::{self, Topic};
use crate::mpool;
use crate::ompi::{
    self, MODULE, mca_btl_active_message_callback_t, mca_btl_base_descriptor_t, mca_btl_base_endpoint_t,
    mca_btl_base_module_t, mca_btl_base_segment_t, opal_bitmap_t, opal_convertor_t, opal_proc_t,
};
use crate::rdma;
use crate::stage::LEAST;

const SUCCESS: c_int = ompi::OPAL_SUCCESS as c_int;

/// How long finalize waits for peers to read what was sent to them last.
const PATIENCE: Duration = Duration::from_secs(1);

/// Bytes at the start of a fragment that are copied before anyone looks at them: no header is longer.
const HEADER: usize = 256;

/// What of an address tells the processor whether two accesses overlap, bytes.
const PAGE: usize = 4096;

/// Longest message that always goes through the ring, bytes with their header.
const SHORT: usize = 640;

/// The tag of ob1's messages that need no rendezvous: `MCA_PML_OB1_HDR_TYPE_MATCH` of its `pml_ob1_hdr.h`.
const OB1_MATCH: u32 = ompi::MCA_BTL_TAG_PML + 1;

/// What ob1 calls when a peer is lost, or NULL.
static ERROR_CALLBACK: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());

/// Gives the module its functions and the defaults of its parameters.
///
/// # Safety
/// `module` is ours, and Open MPI does not use it meanwhile.
pub unsafe fn fill(module: *mut mca_btl_base_module_t) {
    // SAFETY: the caller vouches for it.
    let module = unsafe { &mut *module };
    module.btl_component = ompi::mca_btl_vmshm_component.get();
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
    module.btl_registration_handle_size = size_of::<rdma::Handle>();
    module.btl_add_procs = Some(add_procs);
    module.btl_del_procs = Some(del_procs);
    module.btl_finalize = Some(finalize);
    module.btl_alloc = Some(alloc);
    module.btl_free = Some(free);
    module.btl_prepare_src = Some(prepare_src);
    module.btl_send = Some(send);
    module.btl_sendi = Some(sendi);
    module.btl_get = Some(rdma::get);
    module.btl_put = Some(rdma::put);
    module.btl_atomic_op = Some(atomic::op);
    module.btl_atomic_fop = Some(atomic::fetch_op);
    module.btl_atomic_cswap = Some(atomic::compare_and_swap);
    module.btl_register_mem = Some(rdma::register_mem);
    module.btl_deregister_mem = Some(rdma::deregister_mem);
    module.btl_register_error = Some(register_error);
    module.btl_dump = Some(ompi::mca_btl_base_dump);
    module.btl_flush = Some(rdma::flush);
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
        if !(HEADER..=component::max_send_size()).contains(&value) {
            return Err(format!(
                "btl_vmshm_{name} is {value}: it must be between {HEADER} and {} bytes.",
                component::max_send_size()
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

unsafe extern "C" fn add_procs(
    _: *mut mca_btl_base_module_t,
    count: usize,
    procs: *mut *mut opal_proc_t,
    endpoints: *mut *mut mca_btl_base_endpoint_t,
    reachable: *mut opal_bitmap_t,
) -> c_int {
    let has_started = FABRIC.lock().as_mut().map(|fabric| std::mem::replace(&mut fabric.has_started, true));
    if has_started == Some(false) {
        heap::open();
    }
    for i in 0..count {
        // SAFETY: Open MPI gives count processes and room for as many endpoints.
        unsafe {
            let proc = *procs.add(i);
            let peer = meet(proc);
            *endpoints.add(i) = peer.map_or(ptr::null_mut(), to_endpoint);
            if peer.is_some() && !reachable.is_null() {
                let rc = ompi::opal_bitmap_set_bit(reachable, i as c_int);
                if rc != SUCCESS {
                    return rc;
                }
            }
        }
    }
    SUCCESS
}

/// Meets a process, wherever its host's name says it is: who sees the same region can be reached.
///
/// # Safety
/// `proc` is a process of Open MPI.
unsafe fn meet(proc: *mut opal_proc_t) -> Option<Peer> {
    // SAFETY: the caller vouches for it.
    let name = unsafe {
        if ptr::eq(proc, ompi::opal_proc_local_get()) {
            return None;
        }
        ompi::lookup(proc)?
    };
    let met = FABRIC.lock().as_mut()?.add(&name, proc);
    match met {
        Ok(peer) => Some(peer),
        // Not an error: other ways may lead there.
        Err(ConnectError::OtherRegion | ConnectError::Ourselves) => None,
        Err(error) => {
            // SAFETY: as above.
            let who = unsafe { ompi::describe(proc) };
            let message = format!("{who} is not reached this way: {error}.");
            component::report_lost_device(&mut FABRIC.lock());
            if matches!(error, ConnectError::Gone) {
                help::verbose(&message);
            } else {
                help::show(Topic::Unavailable, &message);
            }
            None
        }
    }
}

unsafe extern "C" fn del_procs(
    _: *mut mca_btl_base_module_t,
    count: usize,
    _: *mut *mut opal_proc_t,
    endpoints: *mut *mut mca_btl_base_endpoint_t,
) -> c_int {
    if let Some(fabric) = FABRIC.lock().as_mut() {
        for i in 0..count {
            // SAFETY: Open MPI gives count endpoints.
            fabric.remove(from_endpoint(unsafe { *endpoints.add(i) }));
        }
    }
    SUCCESS
}

unsafe extern "C" fn finalize(_: *mut mca_btl_base_module_t) -> c_int {
    ERROR_CALLBACK.store(ptr::null_mut(), Ordering::Relaxed);
    leave();
    SUCCESS
}

/// Leaves the region, once peers have read what was sent to them last.
pub fn leave() {
    crate::coll::close();
    let fabric = FABRIC.lock().take();
    if let Some(mut fabric) = fabric {
        fabric.drain(PATIENCE);
        mpool::tell();
        if heap::close() {
            // The program goes on to use memory of the section.
            fabric.endpoint.withdraw();
            return;
        }
        // What the program still has becomes ordinary memory, so that the section and the device are free.
        let kept = fabric.given.keep(mpool::copy_limit());
        if kept.is_none() {
            help::verbose(
                "the program has too much memory of MPI_Alloc_mem to copy it: the region stays mapped",
            );
            std::mem::forget(Arc::clone(fabric.endpoint.memory()));
        }
        drop(fabric);
        if let Some(kept) = kept {
            kept.restore();
        }
    }
}

unsafe extern "C" fn register_error(
    _: *mut mca_btl_base_module_t,
    callback: ompi::mca_btl_base_module_error_cb_fn_t,
) -> c_int {
    let pointer = callback.map_or(ptr::null_mut(), |function| function as *mut c_void);
    ERROR_CALLBACK.store(pointer, Ordering::Relaxed);
    SUCCESS
}

/// Tells the user and Open MPI that a peer is lost. Under ob1 this ends the job, and does not return.
///
/// # Safety
/// `proc` is a process of Open MPI.
pub unsafe fn report(proc: Option<*mut opal_proc_t>, why: &str) {
    let who = match proc {
        // SAFETY: the caller vouches for it.
        Some(proc) => unsafe { ompi::describe(proc) },
        None => "a process that this one does not know".into(),
    };
    let line = format!("{who}: {why}.");
    help::show(Topic::PeerLost, &line);
    let pointer = ERROR_CALLBACK.load(Ordering::Relaxed);
    if pointer.is_null() {
        return;
    }
    // SAFETY: only register_error stores there.
    let callback =
        unsafe { std::mem::transmute::<*mut c_void, ompi::mca_btl_base_module_error_cb_fn_t>(pointer) };
    if let Some(callback) = callback {
        // ob1 takes the text for a format.
        let text = ompi::c_text(&format!("btl vmshm: lost {line}").replace('%', "%%"));
        // SAFETY: module, process and text outlive the call, which does not change the text.
        unsafe {
            callback(
                MODULE.get(),
                ompi::MCA_BTL_ERROR_FLAGS_FATAL.cast_signed(),
                proc.unwrap_or(ptr::null_mut()),
                text.as_ptr().cast_mut().cast::<c_char>(),
            );
        }
    }
}

unsafe extern "C" fn alloc(
    _: *mut mca_btl_base_module_t,
    endpoint: *mut mca_btl_base_endpoint_t,
    order: u8,
    size: usize,
    flags: u32,
) -> *mut mca_btl_base_descriptor_t {
    let mut fabric = FABRIC.lock();
    let Some(fabric) = fabric.as_mut() else { return ptr::null_mut() };
    let Some(peer) = fabric.peer(from_endpoint(endpoint)) else { return ptr::null_mut() };
    fabric.descriptor(peer, size, order, flags).map_or(ptr::null_mut(), Descriptor::to_c)
}

unsafe extern "C" fn free(
    _: *mut mca_btl_base_module_t,
    descriptor: *mut mca_btl_base_descriptor_t,
) -> c_int {
    let descriptor = Descriptor::from_c(descriptor);
    match FABRIC.lock().as_mut() {
        // SAFETY: Open MPI gives back what alloc or prepare_src gave it.
        Some(fabric) => unsafe { fabric.free(descriptor) },
        // SAFETY: as above. The section is gone, and the fragment with it.
        None => drop(unsafe { Descriptor::take_back(descriptor) }),
    }
    SUCCESS
}

/// Copies the convertor's next bytes to `to`, and returns how many, or None where it cannot. Not by `memcpy`: on AMD's Zen
/// glibc takes `rep movsb` from 2 KiB on, also where it crawls, as from the start of a page to behind a header.
///
/// # Safety
/// `convertor` is Open MPI's and has `len` bytes, and `to` is memory of our section with room for them.
#[inline]
unsafe fn pack(convertor: *mut opal_convertor_t, to: *mut u8, len: usize) -> Option<usize> {
    let mut data = ptr::null_mut();
    // SAFETY: the caller vouches for it; `contiguous` says that len bytes lie at data.
    unsafe {
        if ompi::vmshm_ompi_contiguous(convertor, &mut data) {
            copy_to_shared(data.cast::<u8>(), to, len);
            return Some(len);
        }
        let mut packed = len;
        (ompi::vmshm_ompi_pack(convertor, to.cast(), &mut packed) >= 0).then_some(packed)
    }
}

unsafe extern "C" fn prepare_src(
    _: *mut mca_btl_base_module_t,
    endpoint: *mut mca_btl_base_endpoint_t,
    convertor: *mut opal_convertor_t,
    order: u8,
    reserve: usize,
    size: *mut usize,
    flags: u32,
) -> *mut mca_btl_base_descriptor_t {
    // SAFETY: Open MPI gives a valid pointer.
    let wanted = unsafe { *size };
    let handed = {
        let mut fabric = FABRIC.lock();
        let Some(fabric) = fabric.as_mut() else { return ptr::null_mut() };
        let Some(peer) = fabric.peer(from_endpoint(endpoint)) else { return ptr::null_mut() };
        // Open MPI keeps to the limits of the module, so that the sum neither overflows nor is out of bounds.
        fabric.descriptor(peer, reserve.saturating_add(wanted), order, flags)
    };
    let Some(descriptor) = handed else { return ptr::null_mut() };
    // SAFETY: the descriptor is ours and has room for reserve + wanted bytes.
    unsafe {
        let (data, _) = Descriptor::payload(descriptor);
        let Some(packed) = pack(convertor, data.add(reserve), wanted) else {
            free(ptr::null_mut(), Descriptor::to_c(descriptor));
            return ptr::null_mut();
        };
        *size = packed;
        Descriptor::shorten(descriptor, reserve + packed);
    }
    Descriptor::to_c(descriptor)
}

unsafe extern "C" fn send(
    _: *mut mca_btl_base_module_t,
    endpoint: *mut mca_btl_base_endpoint_t,
    descriptor: *mut mca_btl_base_descriptor_t,
    tag: u8,
) -> c_int {
    let descriptor = Descriptor::from_c(descriptor);
    let mut guard = FABRIC.lock();
    let Some(fabric) = guard.as_mut() else { return ompi::OPAL_ERR_UNREACH as c_int };
    let Some(peer) = fabric.peer(from_endpoint(endpoint)) else { return ompi::OPAL_ERR_UNREACH as c_int };
    // SAFETY: Open MPI gives a descriptor of ours, and leaves it to us if this returns no error. The flag is set before
    // the message is under way: a callback is due whenever it completes later.
    let posted = unsafe {
        Descriptor::set_tag(descriptor, tag);
        let later = Descriptor::fragment(descriptor).is_some() || !fabric.is_free(peer);
        if later {
            Descriptor::always_call_back(descriptor);
        }
        fabric.post(peer, Outgoing::Descriptor(descriptor))
    };
    if posted != Posted::Lost {
        // The header of a long message is on its way: now its lead.
        fabric.fill();
    }
    match posted {
        Posted::Later => {
            // A full ring was not foreseen above. The lock is still held: it cannot have completed yet.
            // SAFETY: as above.
            unsafe { Descriptor::always_call_back(descriptor) };
            SUCCESS
        }
        Posted::Done => {
            drop(guard);
            // SAFETY: the message is in the ring; the descriptor is complete, and freed only if it is ours.
            unsafe {
                if Descriptor::call_back(descriptor, SUCCESS) {
                    free(ptr::null_mut(), Descriptor::to_c(descriptor));
                }
            }
            1
        }
        Posted::Lost => {
            component::report(&mut guard, peer);
            ompi::OPAL_ERR_UNREACH as c_int
        }
    }
}

unsafe extern "C" fn sendi(
    _: *mut mca_btl_base_module_t,
    endpoint: *mut mca_btl_base_endpoint_t,
    convertor: *mut opal_convertor_t,
    header: *mut c_void,
    header_size: usize,
    payload_size: usize,
    order: u8,
    flags: u32,
    tag: u8,
    descriptor: *mut *mut mca_btl_base_descriptor_t,
) -> c_int {
    let number = from_endpoint(endpoint);
    let len = header_size.saturating_add(payload_size);
    // SAFETY: Open MPI gives header_size bytes, and a convertor with payload_size bytes.
    let sent = unsafe {
        let header = std::slice::from_raw_parts(header.cast::<u8>(), header_size);
        if len <= component::max_inline() && fits(number, len) {
            send_inline(number, tag, header, convertor, payload_size)
        } else {
            send_packed(number, tag, header, convertor, payload_size)
        }
    };
    match sent {
        Ok(()) => SUCCESS,
        Err(Refused::Busy) => {
            if !descriptor.is_null() {
                // SAFETY: Open MPI gives NULL or a valid pointer, and a convertor that it resets itself.
                unsafe { *descriptor = alloc(ptr::null_mut(), endpoint, order, len, flags) };
            }
            ompi::OPAL_ERR_OUT_OF_RESOURCE as c_int
        }
        Err(Refused::Lost) => {
            let mut guard = FABRIC.lock();
            if let Some(peer) = guard.as_ref().and_then(|fabric| fabric.peer(number)) {
                component::report(&mut guard, peer);
            }
            if !descriptor.is_null() {
                // SAFETY: as above.
                unsafe { *descriptor = ptr::null_mut() };
            }
            ompi::OPAL_ERR_UNREACH as c_int
        }
    }
}

/// Whether a message should go through the ring itself: a short one always, a longer one while the ring is nearly empty.
/// In a stream of them, fragments let the sender run further ahead.
#[inline]
fn fits(number: usize, len: usize) -> bool {
    len <= SHORT
        || FABRIC.lock().as_ref().is_some_and(|fabric| {
            fabric.peer(number).is_none_or(|peer| fabric.endpoint.is_spacious(peer, len))
        })
}

/// Sends a message in the ring itself, without any allocation.
///
/// # Safety
/// `convertor` is Open MPI's and has `len` bytes; the header's and these are at most `MAX_INLINE`.
#[inline]
unsafe fn send_inline(
    number: usize,
    tag: u8,
    header: &[u8],
    convertor: *mut opal_convertor_t,
    len: usize,
) -> Result<(), Refused> {
    let mut packed = MaybeUninit::<[u8; MAX_INLINE]>::uninit();
    let payload: &[u8] = if len == 0 {
        &[]
    } else {
        let mut data = ptr::null_mut();
        // SAFETY: the caller vouches for the convertor; len is at most MAX_INLINE, and all of it is packed or sent as
        // it lies.
        unsafe {
            if ompi::vmshm_ompi_contiguous(convertor, &mut data) {
                std::slice::from_raw_parts(data.cast::<u8>(), len)
            } else {
                let to = packed.as_mut_ptr().cast::<u8>();
                let mut done = len;
                if ompi::vmshm_ompi_pack(convertor, to.cast(), &mut done) < 0 || done != len {
                    return Err(Refused::Busy);
                }
                std::slice::from_raw_parts(to, len)
            }
        }
    };
    let mut fabric = FABRIC.lock();
    let fabric = fabric.as_mut().ok_or(Refused::Lost)?;
    fabric.send_now(number, tag, &[header, payload])
}

/// Sends a message in a fragment of our section.
///
/// # Safety
/// `convertor` is Open MPI's and has `len` bytes.
unsafe fn send_packed(
    number: usize,
    tag: u8,
    header: &[u8],
    convertor: *mut opal_convertor_t,
    len: usize,
) -> Result<(), Refused> {
    let (peer, fragment) = {
        let mut fabric = FABRIC.lock();
        let fabric = fabric.as_mut().ok_or(Refused::Lost)?;
        let peer = fabric.peer(number).ok_or(Refused::Lost)?;
        // Something waits already: let Open MPI wait as well.
        if !fabric.is_free(peer) || header.len() + len > component::max_send_size() {
            return Err(Refused::Busy);
        }
        (peer, fabric.fragment(header.len() + len).ok_or(Refused::Busy)?)
    };
    let to = fragment.ptr();
    // SAFETY: the fragment has room for both.
    let packed = unsafe {
        ptr::copy_nonoverlapping(header.as_ptr(), to, header.len());
        pack(convertor, to.add(header.len()), len)
    };
    let mut fabric = FABRIC.lock();
    let fabric = fabric.as_mut().ok_or(Refused::Lost)?;
    if packed != Some(len) {
        fabric.endpoint.free(fragment);
        return Err(Refused::Busy);
    }
    // SAFETY: there is no descriptor.
    match unsafe { fabric.post(peer, Outgoing::Fragment(fragment, tag, header.len() + len)) } {
        Posted::Lost => Err(Refused::Lost),
        Posted::Done | Posted::Later => Ok(()),
    }
}

/// Hands a message to whoever registered its tag; false if nobody did. `rest` is what follows the first part.
pub fn deliver(tag: u8, first: *mut u8, len: usize, rest: Option<(*mut u8, usize)>) -> bool {
    if u32::from(tag) >= ompi::MCA_BTL_TAG_MAX {
        return false;
    }
    let table =
        (&raw const ompi::mca_btl_base_active_message_trigger).cast::<mca_btl_active_message_callback_t>();
    // SAFETY: the table has MCA_BTL_TAG_MAX rows, filled before messages come.
    let entry = unsafe { *table.add(usize::from(tag)) };
    let Some(callback) = entry.cbfunc else { return false };
    // SAFETY: both structs hold numbers, pointers and optional functions, for all of which zero is a value.
    let (mut segments, mut descriptor): ([mca_btl_base_segment_t; 2], mca_btl_base_descriptor_t) =
        unsafe { (MaybeUninit::zeroed().assume_init(), MaybeUninit::zeroed().assume_init()) };
    segments[0].seg_addr.pval = first.cast();
    segments[0].seg_len = len as u64;
    descriptor.des_segment_count = 1;
    if let Some((rest, rest_len)) = rest {
        segments[1].seg_addr.pval = rest.cast();
        segments[1].seg_len = rest_len as u64;
        descriptor.des_segment_count = 2;
    }
    descriptor.des_segments = segments.as_mut_ptr();
    // SAFETY: module, descriptor and segments outlive the call, which keeps none of them.
    unsafe { callback(MODULE.get(), tag, &mut descriptor, entry.cbdata) };
    true
}

/// Whether a message that lies in the sender's section, where the sender can still change it, is copied as a whole before
/// it is handed on: for tags whose headers we do not know, and for whole messages of ob1, which takes a second segment for
/// a single byte when it looks whether a message is too long.
pub fn is_copied(tag: u8, len: usize) -> bool {
    let is_pml = (ompi::MCA_BTL_TAG_PML..ompi::MCA_BTL_TAG_OSC_RDMA).contains(&u32::from(tag));
    (!is_pml || u32::from(tag) == OB1_MATCH) && len <= component::max_send_size()
}

/// Copies a message to `landing`, which grows as needed, and returns where it is. It is never shorter than a header: nobody
/// reads one beyond its end.
///
/// It begins in the middle of a page. Open MPI copies it from there with `memcpy`, which on AMD's Zen crawls where it writes
/// up to 64 bytes behind where it reads, modulo a page; users' buffers begin at the start of one, or where `malloc` does.
///
/// # Safety
/// `payload` is valid for reads of `len` bytes.
pub unsafe fn land(payload: *const u8, len: usize, landing: &mut Vec<u64>) -> *mut u8 {
    let words = (len.max(HEADER) + PAGE).div_ceil(8);
    if landing.len() < words {
        landing.resize(words, 0);
    }
    let start = landing.as_mut_ptr().cast::<u8>();
    let place = start.wrapping_add((PAGE / 2).wrapping_sub(start.addr()) % PAGE);
    // SAFETY: the caller vouches for payload; landing has room for it and a page before it.
    unsafe { copy_from_shared(payload, place, len) };
    place
}

/// Hands on a message of ob1 whose bytes lie in the sender's section: its header is copied first, its payload is read in
/// place. The transport has checked that `len` bytes lie at `payload`.
pub fn deliver_in_place(tag: u8, payload: *mut u8, len: usize) -> bool {
    // Nobody may send more, see `check`; only a hostile peer does.
    if len > component::max_send_size() {
        return false;
    }
    let mut first = MaybeUninit::<[u64; HEADER / 8]>::uninit();
    let first = first.as_mut_ptr().cast::<u8>();
    let copied = len.min(HEADER);
    // SAFETY: len bytes lie at payload, HEADER bytes lie at first.
    unsafe { copy_from_shared(payload, first, copied) };
    let rest = (len > copied).then(|| (payload.wrapping_add(copied), len - copied));
    deliver(tag, first, copied, rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_lands_whole_in_the_middle_of_a_page() {
        let payload: Vec<u8> = (0..10_000).map(|i| (i % 251) as u8).collect();
        let mut landing = Vec::new();
        for len in [1, 100, 4110, 10_000, 14] {
            // SAFETY: the payload is longer.
            let place = unsafe { land(payload.as_ptr(), len, &mut landing) };
            assert_eq!(place.addr() % PAGE, PAGE / 2);
            // Up to the longest header.
            let end = place.addr() + len.max(HEADER) - landing.as_ptr().addr();
            assert!(place.addr() >= landing.as_ptr().addr() && end <= landing.len() * 8);
            // SAFETY: it was just copied there.
            assert!(unsafe { std::slice::from_raw_parts(place, len) } == &payload[..len]);
        }
    }

    #[test]
    fn tags_that_nobody_asked_for_are_refused() {
        let mut byte = 0;
        assert!(!deliver(255, &mut byte, 1, None));
        assert!(!deliver(0x9f, &mut byte, 1, None));
    }
}
