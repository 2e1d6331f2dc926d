//! One-sided operations on a peer's memory.
//!
//! Memory of a section is read in place, and written in place where the region is open. All other memory its owner reads and
//! writes for us, in its progress.

use std::ffi::{c_uint, c_void};
use std::ptr;
use std::slice;

use vmshm_messaging::{BY_KEY, Get, Prefix, Refused};
use vmshm_transport::attach::Attached;
use vmshm_transport::{Peer, PeerError, copy_to_shared};
use zerocopy::IntoBytes;

use crate::asked::{Asked, CHANGE, Change, MOST, Operation, PUT, Put, Update, Wanted};
use crate::endpoint::{self, Endpoint, block, bytes, send_packed};
use crate::iface::Iface;
use crate::lock::Guard;
use crate::memory::{Place, RemoteKey};
use crate::state::State;
use crate::ucx::*;

/// Tries of a compare-and-exchange before the word is called contended: UCX then tries again later.
const TRIES: u32 = 1 << 12;

/// # Safety
///
/// `rkey` was unpacked by this component and is not released yet.
#[inline(always)]
unsafe fn key(rkey: uct_rkey_t) -> RemoteKey {
    // SAFETY: the caller vouches for it.
    unsafe { *ptr::with_exposed_provenance::<RemoteKey>(rkey) }
}

/// The interface, if nothing has to be done before.
#[inline(always)]
fn lock<'a>(iface: &'a Iface, ours: &Endpoint) -> Result<Guard<'a, State>, ucs_status_t> {
    let mut state = endpoint::lock(iface, ours)?;
    if state.is_fenced
        && state.connections.get(&ours.number).is_some_and(|connection| connection.outstanding > 0)
    {
        return Err(block(&mut state, ours.number));
    }
    Ok(state)
}

fn status(result: Result<(), ucs_status_t>) -> ucs_status_t {
    result.err().unwrap_or(UCS_OK)
}

/// Notes what the owner was asked for.
fn note(state: &mut State, ours: &Endpoint, number: u64, completion: *mut uct_completion_t, wanted: Wanted) {
    let operation = Operation { peer: ours.peer, endpoint: ours.number, completion, number: Some(number) };
    state.asked.entry(ours.peer).or_default().insert(number, Asked { operation, wanted });
    if let Some(connection) = state.connections.get_mut(&ours.number) {
        connection.outstanding += 1;
    }
}

/// A number for what the owner is asked for.
fn number(state: &mut State, ours: &Endpoint) -> Result<u64, ucs_status_t> {
    if state.asked.get(&ours.peer).is_some_and(|asked| asked.len() >= MOST) {
        return Err(block(state, ours.number));
    }
    state.last_number += 1;
    Ok(state.last_number)
}

/// Asks by a message in the ring.
fn ask(state: &mut State, ours: &Endpoint, tag: u8, parts: &[&[u8]]) -> Result<(), ucs_status_t> {
    match state.engine.try_send(ours.peer.index(), tag, parts) {
        Ok(()) => Ok(()),
        Err(Refused::Full) => Err(block(state, ours.number)),
        Err(Refused::Lost) => Err(UCS_ERR_CONNECTION_RESET),
    }
}

fn lost(_: PeerError) -> ucs_status_t {
    UCS_ERR_CONNECTION_RESET
}

/// Writes a few bytes.
pub unsafe extern "C" fn put_short(
    endpoint: uct_ep_h,
    buffer: *const c_void,
    len: c_uint,
    remote: u64,
    rkey: uct_rkey_t,
) -> ucs_status_t {
    // SAFETY: the endpoint and the key are ours, and UCX's bytes are there.
    let ((iface, ours), key, data) =
        unsafe { (endpoint::of(endpoint), key(rkey), bytes(buffer, len as usize)) };
    status(put(iface, ours, key, remote, data))
}

fn put(iface: &Iface, ours: &Endpoint, key: RemoteKey, remote: u64, data: &[u8]) -> Result<(), ucs_status_t> {
    let place = key.place(remote, data.len() as u64).ok_or(UCS_ERR_INVALID_ADDR)?;
    let mut state = lock(iface, ours)?;
    match place {
        // SAFETY: a slice is valid for reads of its length.
        Place::Section(offset) => unsafe {
            state.engine.endpoint_mut().put(ours.peer, offset, data.as_ptr(), data.len()).map_err(lost)
        },
        Place::Owner(offset) => {
            let number = number(&mut state, ours)?;
            let put = Put { key: key.key, offset, number };
            ask(&mut state, ours, PUT, &[put.as_bytes(), data])?;
            note(&mut state, ours, number, ptr::null_mut(), Wanted::Nothing);
            Ok(())
        }
    }
}

/// Writes what a callback packs. Returns its length.
pub unsafe extern "C" fn put_bcopy(
    endpoint: uct_ep_h,
    pack: uct_pack_callback_t,
    argument: *mut c_void,
    remote: u64,
    rkey: uct_rkey_t,
) -> isize {
    // SAFETY: the endpoint and the key are ours.
    let ((iface, ours), key) = unsafe { (endpoint::of(endpoint), key(rkey)) };
    let Some(pack) = pack else { return UCS_ERR_INVALID_PARAM as isize };
    // SAFETY: there is room for the longest message that UCX packs.
    let put =
        put_packed(iface, ours, key, remote, ptr::null_mut(), |to| unsafe { pack(to.cast(), argument) });
    put.map_or_else(|status| status as isize, |(len, _)| len.cast_signed())
}

/// Writes what is packed. Returns its length, and whether it is there or on its way, for which `completion` then waits.
fn put_packed(
    iface: &Iface,
    ours: &Endpoint,
    key: RemoteKey,
    remote: u64,
    completion: *mut uct_completion_t,
    pack: impl Fn(*mut u8) -> usize,
) -> Result<(usize, ucs_status_t), ucs_status_t> {
    let place = key.place(remote, 0).ok_or(UCS_ERR_INVALID_ADDR)?;
    let is_inside = |len: usize| key.place(remote, len as u64).is_some();
    let mut state = lock(iface, ours)?;
    match place {
        Place::Section(offset) => {
            // Not in place: the key says how long it may be, and only the packing tells how long it is.
            let mut scratch = state.scratch(iface.seg_size);
            let len = pack(scratch.as_mut_ptr());
            let put = match is_inside(len) {
                // SAFETY: so many bytes were packed.
                true => unsafe {
                    state.engine.endpoint_mut().put(ours.peer, offset, scratch.as_ptr(), len).map_err(lost)
                },
                false => Err(UCS_ERR_INVALID_ADDR),
            };
            state.scratch = scratch;
            put.map(|()| (len, UCS_OK))
        }
        Place::Owner(offset) => {
            let number = number(&mut state, ours)?;
            let header = Put { key: key.key, offset, number };
            let len = send_packed(iface, &mut state, ours, PUT, |to| {
                // SAFETY: the fragment holds header and the longest message that UCX packs.
                let len = unsafe {
                    copy_to_shared(header.as_bytes().as_ptr(), to, size_of::<Put>());
                    pack(to.add(size_of::<Put>()))
                };
                is_inside(len).then_some(size_of::<Put>() + len)
            })?;
            note(&mut state, ours, number, completion, Wanted::Nothing);
            Ok((len - size_of::<Put>(), UCS_INPROGRESS))
        }
    }
}

/// Writes bytes from where they are.
pub unsafe extern "C" fn put_zcopy(
    endpoint: uct_ep_h,
    iov: *const uct_iov_t,
    count: usize,
    remote: u64,
    rkey: uct_rkey_t,
    completion: *mut uct_completion_t,
) -> ucs_status_t {
    // SAFETY: the endpoint and the key are ours, and UCX's pieces are there.
    let ((iface, ours), key, piece) = unsafe { (endpoint::of(endpoint), key(rkey), piece(iov, count)) };
    let (local, len) = match piece {
        Ok(piece) => piece,
        Err(status) => return status,
    };
    if !iface.is_open {
        return UCS_ERR_UNSUPPORTED;
    }
    if len > iface.seg_size - size_of::<Put>() {
        return UCS_ERR_INVALID_PARAM;
    }
    let pack = |to: *mut u8| {
        // SAFETY: there is room for the longest message, and UCX's piece is there.
        unsafe { copy_to_shared(local, to, len) };
        len
    };
    match put_packed(iface, ours, key, remote, completion, pack) {
        Ok((_, status)) | Err(status) => status,
    }
}

/// The one piece of UCX's list; what to answer where there is none, or nothing in it.
///
/// # Safety
///
/// The list has `count` pieces.
unsafe fn piece(iov: *const uct_iov_t, count: usize) -> Result<(*mut u8, usize), ucs_status_t> {
    // SAFETY: the caller vouches for it.
    let pieces = if count == 0 { &[] } else { unsafe { slice::from_raw_parts(iov, count) } };
    match pieces {
        [] => Err(UCS_OK),
        [piece] if piece.length == 0 => Err(UCS_OK),
        [piece] => Ok((piece.buffer.cast(), piece.length)),
        _ => Err(UCS_ERR_INVALID_PARAM),
    }
}

/// Reads bytes, and gives them to a callback.
pub unsafe extern "C" fn get_bcopy(
    endpoint: uct_ep_h,
    unpack: uct_unpack_callback_t,
    argument: *mut c_void,
    len: usize,
    remote: u64,
    rkey: uct_rkey_t,
    completion: *mut uct_completion_t,
) -> ucs_status_t {
    // SAFETY: the endpoint and the key are ours.
    let ((iface, ours), key) = unsafe { (endpoint::of(endpoint), key(rkey)) };
    let give = |bytes: &[u8]| {
        if let Some(unpack) = unpack {
            // SAFETY: UCX gave both for this.
            unsafe { unpack(argument, bytes.as_ptr().cast(), bytes.len()) };
        }
    };
    let Some(place) = key.place(remote, len as u64) else { return UCS_ERR_INVALID_ADDR };
    let mut state = match lock(iface, ours) {
        Ok(state) => state,
        Err(status) => return status,
    };
    match place {
        Place::Section(offset) => {
            let mut scratch = state.scratch(len);
            // SAFETY: there is room for len bytes.
            let got =
                unsafe { state.engine.endpoint_mut().get(ours.peer, offset, scratch.as_mut_ptr(), len) };
            if got.is_ok() {
                give(&scratch[..len]);
            }
            state.scratch = scratch;
            got.map_or(UCS_ERR_CONNECTION_RESET, |()| UCS_OK)
        }
        Place::Owner(offset) => {
            let number = match number(&mut state, ours) {
                Ok(number) => number,
                Err(status) => return status,
            };
            let mut buffer = vec![0; len].into_boxed_slice();
            let operation =
                Operation { peer: ours.peer, endpoint: ours.number, completion, number: Some(number) };
            // SAFETY: the buffer stays with what was asked until that is over.
            match unsafe { get(&mut state, ours, key, offset, buffer.as_mut_ptr(), len, operation) } {
                UCS_INPROGRESS => {
                    let wanted = Wanted::Bytes(buffer, unpack, argument);
                    note(&mut state, ours, number, completion, wanted);
                    UCS_INPROGRESS
                }
                UCS_OK => {
                    give(&buffer);
                    UCS_OK
                }
                status => status,
            }
        }
    }
}

/// Gets memory by rendezvous.
///
/// # Safety
///
/// `local` is valid for writes of `len` bytes until the operation is over.
unsafe fn get(
    state: &mut State,
    ours: &Endpoint,
    key: RemoteKey,
    offset: u64,
    local: *mut u8,
    len: usize,
    done: Operation,
) -> ucs_status_t {
    let get = Get { source: BY_KEY, key: Some(key.key), offset, prefix: Prefix::default(), local, len, done };
    // SAFETY: the caller vouches for the memory.
    match unsafe { state.engine.get(ours.peer, get) } {
        Ok(None) => UCS_INPROGRESS,
        Ok(Some(_)) => UCS_OK,
        Err((Refused::Full, _)) => block(state, ours.number),
        Err((Refused::Lost, _)) => UCS_ERR_CONNECTION_RESET,
    }
}

/// Reads bytes to where they belong.
pub unsafe extern "C" fn get_zcopy(
    endpoint: uct_ep_h,
    iov: *const uct_iov_t,
    count: usize,
    remote: u64,
    rkey: uct_rkey_t,
    completion: *mut uct_completion_t,
) -> ucs_status_t {
    // SAFETY: the endpoint and the key are ours, and UCX's pieces are there.
    let ((iface, ours), key, piece) = unsafe { (endpoint::of(endpoint), key(rkey), piece(iov, count)) };
    let (local, len) = match piece {
        Ok(piece) => piece,
        Err(status) => return status,
    };
    let Some(place) = key.place(remote, len as u64) else { return UCS_ERR_INVALID_ADDR };
    let mut state = match lock(iface, ours) {
        Ok(state) => state,
        Err(status) => return status,
    };
    match place {
        Place::Section(offset) => {
            // SAFETY: UCX's piece has room for len bytes.
            let got = unsafe { state.engine.endpoint_mut().get(ours.peer, offset, local, len) };
            got.map_or(UCS_ERR_CONNECTION_RESET, |()| UCS_OK)
        }
        Place::Owner(offset) => {
            let operation = Operation { peer: ours.peer, endpoint: ours.number, completion, number: None };
            // SAFETY: UCX keeps the piece until the completion.
            let status = unsafe { get(&mut state, ours, key, offset, local, len, operation) };
            if status == UCS_INPROGRESS
                && let Some(connection) = state.connections.get_mut(&ours.number)
            {
                connection.outstanding += 1;
            }
            status
        }
    }
}

/// Changes a word, and stores what it was where that is wanted. What `completion` waits for is over when the answer is here.
///
/// # Safety
///
/// Endpoint and key are ours; `to` is NULL or has room for the word until the operation is over.
unsafe fn change(
    endpoint: uct_ep_h,
    update: Update,
    (remote, rkey): (u64, uct_rkey_t),
    to: *mut c_void,
    completion: *mut uct_completion_t,
) -> ucs_status_t {
    if !update.is_valid() {
        return UCS_ERR_UNSUPPORTED;
    }
    // SAFETY: the caller vouches for both.
    let ((iface, ours), key) = unsafe { (endpoint::of(endpoint), key(rkey)) };
    let place = match key.place(remote, update.len.into()) {
        Some(Place::Section(offset) | Place::Owner(offset)) if !offset.is_multiple_of(update.len.into()) => {
            return UCS_ERR_INVALID_ADDR;
        }
        Some(place) => place,
        None => return UCS_ERR_INVALID_ADDR,
    };
    let mut state = match lock(iface, ours) {
        Ok(state) => state,
        Err(status) => return status,
    };
    match place {
        Place::Section(offset) => {
            match change_in_place(state.engine.endpoint_mut(), ours.peer, offset, &update) {
                Ok(Some(found)) => {
                    // SAFETY: the caller vouches for the room.
                    unsafe { store(to, update.len, found) };
                    UCS_OK
                }
                Ok(None) => block(&mut state, ours.number),
                Err(error) => lost(error),
            }
        }
        Place::Owner(offset) => {
            let asked = number(&mut state, ours).and_then(|number| {
                let change = Change { key: key.key, offset, number, update };
                ask(&mut state, ours, CHANGE, &[change.as_bytes()])?;
                let wanted = if to.is_null() { Wanted::Nothing } else { Wanted::Word(to, update.len) };
                note(&mut state, ours, number, completion, wanted);
                Ok(())
            });
            match asked {
                Ok(()) if to.is_null() => UCS_OK,
                Ok(()) => UCS_INPROGRESS,
                Err(status) => status,
            }
        }
    }
}

/// Changes a word of a peer's section; none if others were quicker every time.
fn change_in_place(
    endpoint: &mut Attached,
    peer: Peer,
    offset: u64,
    update: &Update,
) -> Result<Option<u64>, PeerError> {
    if update.op == UCT_ATOMIC_OP_ADD && update.len == 8 {
        return endpoint.fetch_add(peer, offset, update.operand).map(Some);
    }
    // The transport knows words of 64 bits; the processor's atomics on a half of one are atomic with these.
    let (at, shift) = (offset & !7, (offset & 7) * 8);
    let mask = if update.len == 4 { u64::from(u32::MAX) } else { u64::MAX };
    let mut current = endpoint.load(peer, at)?;
    for _ in 0..TRIES {
        let found = current >> shift & mask;
        let new = current & !(mask << shift) | (update.apply(found) & mask) << shift;
        match endpoint.compare_exchange(peer, at, current, new)? {
            same if same == current => return Ok(Some(found)),
            other => current = other,
        }
    }
    Ok(None)
}

/// Stores a word for UCX, if it wants it.
///
/// # Safety
///
/// `to` is NULL or valid for writes of `len` bytes, which are 4 or 8.
pub unsafe fn store(to: *mut c_void, len: u32, word: u64) {
    // SAFETY: the caller vouches for it; a word of 4 bytes is the lower half.
    unsafe {
        match (to.is_null(), len) {
            (true, _) => {}
            (false, 4) => to.cast::<u32>().write_unaligned(word as u32),
            (false, _) => to.cast::<u64>().write_unaligned(word),
        }
    }
}

/// UCX's six functions, for words of both lengths.
macro_rules! atomics {
    ($word:ty, $post:ident, $fetch:ident, $cswap:ident) => {
        pub unsafe extern "C" fn $post(
            endpoint: uct_ep_h,
            op: c_uint,
            value: $word,
            remote: u64,
            rkey: uct_rkey_t,
        ) -> ucs_status_t {
            let update = Update { operand: value.into(), compare: 0, op, len: size_of::<$word>() as u32 };
            // SAFETY: endpoint and key are ours.
            unsafe { change(endpoint, update, (remote, rkey), ptr::null_mut(), ptr::null_mut()) }
        }

        pub unsafe extern "C" fn $fetch(
            endpoint: uct_ep_h,
            op: c_uint,
            value: $word,
            result: *mut $word,
            remote: u64,
            rkey: uct_rkey_t,
            completion: *mut uct_completion_t,
        ) -> ucs_status_t {
            let update = Update { operand: value.into(), compare: 0, op, len: size_of::<$word>() as u32 };
            // SAFETY: endpoint and key are ours, and UCX keeps room for the word until the completion.
            unsafe { change(endpoint, update, (remote, rkey), result.cast(), completion) }
        }

        pub unsafe extern "C" fn $cswap(
            endpoint: uct_ep_h,
            compare: $word,
            swap: $word,
            remote: u64,
            rkey: uct_rkey_t,
            result: *mut $word,
            completion: *mut uct_completion_t,
        ) -> ucs_status_t {
            let (operand, compare) = (swap.into(), compare.into());
            let update = Update { operand, compare, op: UCT_ATOMIC_OP_CSWAP, len: size_of::<$word>() as u32 };
            // SAFETY: endpoint and key are ours, and UCX keeps room for the word until the completion.
            unsafe { change(endpoint, update, (remote, rkey), result.cast(), completion) }
        }
    };
}

atomics!(u32, atomic32_post, atomic32_fetch, atomic_cswap32);
atomics!(u64, atomic64_post, atomic64_fetch, atomic_cswap64);
