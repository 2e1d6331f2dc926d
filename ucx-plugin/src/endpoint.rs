//! Endpoints, and what is sent through them.

use std::ffi::{c_int, c_uint, c_void};
use std::slice;

use vmshm_messaging::Refused;
use vmshm_transport::{MAX_INLINE, Packed, Peer, copy_from_shared, copy_to_shared};

use crate::iface::{self, Iface};
use crate::lock::Guard;
use crate::state::{Connection, State};
use crate::ucx::{self, *};

/// An endpoint.
#[repr(C)]
pub struct Endpoint {
    base: uct_base_ep_t,
    pub peer: Peer,
    /// Its number in the interface.
    pub number: u64,
}

/// # Safety
///
/// `endpoint` was created by [`create`] and is not destroyed yet.
#[inline(always)]
pub unsafe fn of<'a>(endpoint: uct_ep_h) -> (&'a Iface, &'a Endpoint) {
    // SAFETY: the caller vouches for it.
    unsafe { (iface::of((*endpoint).iface), &*endpoint.cast::<Endpoint>()) }
}

/// Meets the interface with the addresses in `params`.
pub unsafe extern "C" fn create(params: *const uct_ep_params_t, endpoint: *mut uct_ep_h) -> ucs_status_t {
    // SAFETY: UCX says which fields it has set, and gives room for the answer.
    unsafe {
        let params = &*params;
        if params.field_mask & vmshm_ep_addresses != vmshm_ep_addresses {
            return UCS_ERR_INVALID_PARAM;
        }
        let iface = iface::of(params.iface);
        let Some(name) = iface::name(params.dev_addr, params.iface_addr) else { return UCS_ERR_INVALID_ADDR };
        let mut state = iface.port.lock();
        let peer = match state.engine.connect(&name) {
            Ok(peer) => peer,
            Err(error) => {
                ucx::tell(&format!("vmshm: {error}"));
                return UCS_ERR_UNREACHABLE;
            }
        };
        let base = uct_base_ep_t { super_: uct_ep { iface: params.iface } };
        let new = Box::into_raw(Box::new(Endpoint { base, peer, number: 0 }));
        let mut inits: c_int = 1;
        let class = &raw mut uct_base_ep_t_class;
        let status = uct_base_ep_t_init(&raw mut (*new).base, class, &mut inits, iface.base.get());
        if status != UCS_OK {
            drop(Box::from_raw(new));
            return status;
        }
        (*new).number = state.add(new.cast(), peer);
        *endpoint = new.cast();
    }
    UCS_OK
}

/// Ends an endpoint. The connection with the peer stays, for others.
pub unsafe extern "C" fn destroy(endpoint: uct_ep_h) {
    // SAFETY: UCX destroys what `create` gave, once.
    unsafe {
        let (iface, ours) = of(endpoint);
        iface.port.lock().connections.remove(&ours.number);
        ucs_class_call_cleanup_chain(&raw mut uct_base_ep_t_class, endpoint.cast(), -1);
        drop(Box::from_raw(endpoint.cast::<Endpoint>()));
    }
}

/// Notes that something found no room.
#[cold]
pub fn block(state: &mut State, number: u64) -> ucs_status_t {
    if let Some(connection) = state.connections.get_mut(&number) {
        connection.is_blocked = true;
    }
    UCS_ERR_NO_RESOURCE
}

/// The interface, if nothing that waits has to be sent before.
#[inline(always)]
pub fn lock<'a>(iface: &'a Iface, ours: &Endpoint) -> Result<Guard<'a, State>, ucs_status_t> {
    let mut state = iface.port.lock();
    if !state.waiting.is_empty()
        && state.dispatching != Some(ours.number)
        && state.connections.get(&ours.number).is_some_and(|connection| !connection.pending.is_empty())
    {
        return Err(block(&mut state, ours.number));
    }
    Ok(state)
}

/// Sends a message in the ring.
#[inline(never)]
fn send_short(iface: &Iface, ours: &Endpoint, id: u8, parts: &[&[u8]]) -> ucs_status_t {
    let mut state = match lock(iface, ours) {
        Ok(state) => state,
        Err(status) => return status,
    };
    match state.engine.try_send(ours.peer.index(), id, parts) {
        Ok(()) => UCS_OK,
        Err(Refused::Full) => block(&mut state, ours.number),
        Err(Refused::Lost) => UCS_ERR_CONNECTION_RESET,
    }
}

/// Whether a message can be sent that `id` and length describe; UCX checks neither.
fn check(id: u8, len: usize, most: usize) -> Result<(), ucs_status_t> {
    if usize::from(id) >= AM_IDS || len > most { Err(UCS_ERR_INVALID_PARAM) } else { Ok(()) }
}

/// Kinds of active messages: the tags below those of the engine.
pub const AM_IDS: usize = 32;

/// Bytes that may be none.
///
/// # Safety
///
/// `data` is valid for reads of `len` bytes, if there are any.
#[inline(always)]
pub unsafe fn bytes<'a>(data: *const c_void, len: usize) -> &'a [u8] {
    if len == 0 {
        return &[];
    }
    // SAFETY: the caller vouches for it.
    unsafe { slice::from_raw_parts(data.cast(), len) }
}

/// Sends 8 bytes of header and a payload.
pub unsafe extern "C" fn am_short(
    endpoint: uct_ep_h,
    id: u8,
    header: u64,
    payload: *const c_void,
    len: c_uint,
) -> ucs_status_t {
    // SAFETY: the endpoint is ours, and UCX's payload is there.
    let ((iface, ours), payload) = unsafe { (of(endpoint), bytes(payload, len as usize)) };
    if let Err(status) = check(id, payload.len(), MAX_INLINE - 8) {
        return status;
    }
    let (mut state, index) = (iface.port.lock_quick(), ours.peer.index());
    let sent = match state.waiting.is_empty() {
        true => state.engine.try_send_short(index, id, header, payload),
        false => None,
    };
    match sent {
        Some(true) => UCS_OK,
        Some(false) => {
            state.engine.tell(index);
            UCS_OK
        }
        None => {
            drop(state);
            send_short(iface, ours, id, &[&header.to_ne_bytes(), payload])
        }
    }
}

/// Sends what a callback packs. Returns its length.
pub unsafe extern "C" fn am_bcopy(
    endpoint: uct_ep_h,
    id: u8,
    pack: uct_pack_callback_t,
    argument: *mut c_void,
    _: c_uint,
) -> isize {
    // SAFETY: the endpoint is ours.
    let (iface, ours) = unsafe { of(endpoint) };
    let Some(pack) = pack else { return UCS_ERR_INVALID_PARAM as isize };
    // SAFETY: the fragment has room for the longest message that UCX packs.
    let sent = send_active(iface, ours, id, iface.seg_size, |to| unsafe { pack(to.cast(), argument) });
    sent.map_or_else(|status| status as isize, usize::cast_signed)
}

/// Sends header and pieces.
pub unsafe extern "C" fn am_zcopy(
    endpoint: uct_ep_h,
    id: u8,
    header: *const c_void,
    header_len: c_uint,
    iov: *const uct_iov_t,
    count: usize,
    _: c_uint,
    _: *mut uct_completion_t,
) -> ucs_status_t {
    // SAFETY: the endpoint is ours, and UCX's header and pieces are there.
    unsafe {
        let (iface, ours) = of(endpoint);
        let header = bytes(header, header_len as usize);
        let pieces = if count == 0 { &[] } else { slice::from_raw_parts(iov, count) };
        let all = pieces.iter().fold(header.len(), |sum, piece| sum.saturating_add(piece.length));
        if let Err(status) = check(id, all, iface.seg_size) {
            return status;
        }
        let sent = send_active(iface, ours, id, all, |to| {
            copy_to_shared(header.as_ptr(), to, header.len());
            let mut at = header.len();
            for piece in pieces.iter().filter(|piece| piece.length > 0) {
                copy_to_shared(piece.buffer.cast(), to.add(at), piece.length);
                at += piece.length;
            }
            at
        });
        // The memory is UCX's again: what was sent is a copy.
        sent.map_or_else(|status| status, |_| UCS_OK)
    }
}

/// Sends an active message of at most so many bytes, which is packed.
#[inline(always)]
fn send_active(
    iface: &Iface,
    ours: &Endpoint,
    id: u8,
    most: usize,
    pack: impl Fn(*mut u8) -> usize,
) -> Result<usize, ucs_status_t> {
    check(id, 0, 0)?;
    let pack = |to: *mut u8| Some(pack(to));
    let (mut state, index) = (iface.port.lock_quick(), ours.peer.index());
    let sent = match state.waiting.is_empty() {
        true => state.engine.try_send_packed(index, id, most, pack),
        false => None,
    };
    if let Some(Packed::Sent { len, is_told }) = sent {
        if !is_told {
            state.engine.tell(index);
        }
        return Ok(len);
    }
    drop(state);
    let mut state = lock(iface, ours)?;
    send_packed(iface, &mut state, ours, id, pack)
}

/// Sends what is packed into memory of the section: by the ring if it fits there, else from that memory. Nothing is sent if the
/// packing says so.
#[inline(never)]
pub fn send_packed(
    iface: &Iface,
    state: &mut State,
    ours: &Endpoint,
    tag: u8,
    pack: impl Fn(*mut u8) -> Option<usize>,
) -> Result<usize, ucs_status_t> {
    if !state.engine.is_free(ours.peer) {
        return Err(block(state, ours.number));
    }
    let index = ours.peer.index();
    match state.engine.try_send_packed(index, tag, iface.seg_size, &pack) {
        Some(Packed::Nothing) => return Err(UCS_ERR_INVALID_ADDR),
        Some(Packed::Sent { len, is_told }) => {
            if !is_told {
                state.engine.tell(index);
            }
            return Ok(len);
        }
        None => {}
    }
    let fragment = state.spare.take().or_else(|| state.engine.fragment(iface.seg_size));
    let Some(fragment) = fragment else { return Err(block(state, ours.number)) };
    let Some(len) = pack(fragment.ptr()) else {
        state.spare = Some(fragment);
        return Err(UCS_ERR_INVALID_ADDR);
    };
    if len <= MAX_INLINE {
        let mut short = [0; MAX_INLINE];
        // SAFETY: the fragment holds at least len bytes, and there is room for them.
        unsafe { copy_from_shared(fragment.ptr(), short.as_mut_ptr(), len) };
        match state.engine.try_send(index, tag, &[&short[..len]]) {
            Ok(()) => {
                state.spare = Some(fragment);
                return Ok(len);
            }
            Err(Refused::Lost) => {
                state.spare = Some(fragment);
                return Err(UCS_ERR_CONNECTION_RESET);
            }
            // A packed message cannot be packed again: it waits in the engine's queue.
            Err(Refused::Full) => {}
        }
    }
    match state.engine.send_fragment(ours.peer, tag, fragment, len, None) {
        Ok(()) => Ok(len),
        Err(unsent) => {
            state.engine.free(unsent.fragment);
            Err(UCS_ERR_CONNECTION_RESET)
        }
    }
}

/// Keeps a request until there is room again; busy where there is.
pub unsafe extern "C" fn pending_add(
    endpoint: uct_ep_h,
    request: *mut uct_pending_req_t,
    _: c_uint,
) -> ucs_status_t {
    // SAFETY: the endpoint is ours.
    let (iface, ours) = unsafe { of(endpoint) };
    let mut state = iface.port.lock();
    let Some(connection) = state.connections.get_mut(&ours.number) else { return UCS_ERR_INVALID_PARAM };
    if connection.pending.is_empty() && !connection.is_blocked {
        return UCS_ERR_BUSY;
    }
    connection.pending.push_back(request);
    if !state.waiting.contains(&ours.number) {
        state.waiting.push_back(ours.number);
    }
    UCS_OK
}

/// Gives all requests back that wait.
pub unsafe extern "C" fn pending_purge(
    endpoint: uct_ep_h,
    callback: uct_pending_purge_callback_t,
    argument: *mut c_void,
) {
    // SAFETY: the endpoint is ours.
    let (iface, ours) = unsafe { of(endpoint) };
    let requests = match iface.port.lock().connections.get_mut(&ours.number) {
        Some(connection) => std::mem::take(&mut connection.pending),
        None => return,
    };
    for request in requests {
        if let Some(callback) = callback {
            // SAFETY: UCX gave both for this; the lock is not held.
            unsafe { callback(request, argument) };
        }
    }
}

/// Whether all that was sent is on its way and all that was wanted is here. Else `completion` is called then.
pub unsafe extern "C" fn flush(
    endpoint: uct_ep_h,
    flags: c_uint,
    completion: *mut uct_completion_t,
) -> ucs_status_t {
    // SAFETY: the endpoint is ours.
    let (iface, ours) = unsafe { of(endpoint) };
    let mut state = iface.port.lock();
    let is_free = state.engine.is_free(ours.peer);
    let Some(connection) = state.connections.get_mut(&ours.number) else { return UCS_OK };
    let cancels = flags & UCT_FLUSH_FLAG_CANCEL != 0;
    if !is_free && !cancels && !connection.is_lost {
        connection.is_blocked = true;
        return UCS_ERR_NO_RESOURCE;
    }
    if connection.outstanding == 0 {
        return UCS_OK;
    }
    if !completion.is_null() {
        connection.flushes.push(completion);
    }
    UCS_INPROGRESS
}

/// Messages come in order, and each is there whole; one-sided operations wait for those before.
pub unsafe extern "C" fn fence(endpoint: uct_ep_h, flags: c_uint) -> ucs_status_t {
    // SAFETY: the endpoint is ours.
    unsafe { iface_fence((*endpoint).iface, flags) }
}

/// Looks whether the peer lives. If not, UCX's handler of errors is called in the next progress.
pub unsafe extern "C" fn ep_check(endpoint: uct_ep_h, _: c_uint, _: *mut uct_completion_t) -> ucs_status_t {
    // SAFETY: the endpoint is ours.
    let (iface, ours) = unsafe { of(endpoint) };
    let mut state = iface.port.lock();
    let is_lost = state.connections.get(&ours.number).is_some_and(|connection| connection.is_lost);
    if is_lost || state.engine.endpoint_mut().confirm(ours.peer).is_err() {
        state.lost.push(ours.number);
    }
    UCS_OK
}

/// Whether all endpoints are flushed.
pub unsafe extern "C" fn iface_flush(
    iface: uct_iface_h,
    _: c_uint,
    completion: *mut uct_completion_t,
) -> ucs_status_t {
    if !completion.is_null() {
        return UCS_ERR_UNSUPPORTED;
    }
    // SAFETY: the interface is ours.
    let state = unsafe { iface::of(iface) }.port.lock();
    let is_flushed = |connection: &Connection| {
        connection.is_lost || connection.outstanding == 0 && state.engine.is_free(connection.peer)
    };
    if state.connections.values().all(is_flushed) { UCS_OK } else { UCS_INPROGRESS }
}

/// As [`fence`].
pub unsafe extern "C" fn iface_fence(iface: uct_iface_h, _: c_uint) -> ucs_status_t {
    // SAFETY: the interface is ours.
    let mut state = unsafe { iface::of(iface) }.port.lock();
    state.is_fenced |= state.connections.values().any(|connection| connection.outstanding > 0);
    UCS_OK
}
