//! The owner's part of one-sided operations on memory that lies in no section.
//!
//! Under the lock of the interface: memory is forgotten under it, so that none is touched that UCX has taken back.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use vmshm_messaging::Params;
use vmshm_transport::{Peer, copy_from_shared};
use zerocopy::{FromBytes, IntoBytes};

use crate::asked::{ANSWER, Answer, Change, MOST, Put, Update};
use crate::iface::Iface;
use crate::state::State;
use crate::ucx::{UCT_MD_MEM_ACCESS_REMOTE_ATOMIC, UCT_MD_MEM_ACCESS_REMOTE_PUT};

/// Where bytes of memory with a key are, if peers may do this to them.
fn find(iface: &Iface, key: u64, offset: u64, len: usize, access: u32) -> Option<*mut u8> {
    if !iface.is_open {
        return None;
    }
    let (base, size, allowed) = iface.registry.find(key)?;
    let end = offset.checked_add(len as u64)?;
    let is_allowed = allowed & access != 0 && end <= size as u64;
    is_allowed.then(|| std::ptr::with_exposed_provenance_mut(base + offset as usize))
}

/// Puts bytes that came in the ring; false where nobody may.
pub fn put(iface: &Iface, state: &mut State, peer: Peer, message: &[u8]) -> bool {
    let Ok((put, data)) = Put::read_from_prefix(message) else { return false };
    let Some(to) = find(iface, put.key, put.offset, data.len(), UCT_MD_MEM_ACCESS_REMOTE_PUT) else {
        return false;
    };
    // SAFETY: UCX keeps the memory until it is forgotten, and has said that it may be written.
    unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), to, data.len()) };
    answer(state, peer, Answer { number: put.number, found: 0 })
}

/// Puts bytes that lie in the peer's section; false where nobody may.
pub fn put_fragment(iface: &Iface, state: &mut State, peer: Peer, offset: u64, len: usize) -> bool {
    let Some(data) = len.checked_sub(size_of::<Put>()).filter(|_| len <= Params::MAX_MESSAGE) else {
        return false;
    };
    let from = state.engine.endpoint().address(offset, len as u64);
    let mut put = [0; size_of::<Put>()];
    // SAFETY: the transport has checked that len bytes lie there.
    unsafe { copy_from_shared(from, put.as_mut_ptr(), put.len()) };
    let Ok(put) = Put::read_from_bytes(&put) else { return false };
    let Some(to) = find(iface, put.key, put.offset, data, UCT_MD_MEM_ACCESS_REMOTE_PUT) else { return false };
    // SAFETY: as above; UCX keeps the memory until it is forgotten, and has said that it may be written.
    unsafe { copy_from_shared(from.add(size_of::<Put>()), to, data) };
    // An error here is followed by an upcall.
    state.engine.consume(peer).is_err() || answer(state, peer, Answer { number: put.number, found: 0 })
}

/// Changes a word; false where nobody may.
pub fn change(iface: &Iface, state: &mut State, peer: Peer, message: &[u8]) -> bool {
    let Ok(Change { key, offset, number, update }) = Change::read_from_bytes(message) else { return false };
    let place = find(iface, key, offset, update.len as usize, UCT_MD_MEM_ACCESS_REMOTE_ATOMIC);
    let Some(place) =
        place.filter(|place| update.is_valid() && place.addr().is_multiple_of(update.len as usize))
    else {
        return false;
    };
    // SAFETY: UCX keeps the memory until it is forgotten, and has said that words in it are changed so; this one is aligned.
    let found = unsafe { change_own(place, &update) };
    answer(state, peer, Answer { number, found })
}

/// Changes a word of this process.
///
/// # Safety
///
/// `place` is valid for atomic accesses to the word, and aligned for it.
unsafe fn change_own(place: *mut u8, update: &Update) -> u64 {
    let (order, reading) = (Ordering::AcqRel, Ordering::Acquire);
    // SAFETY: the caller vouches for it. The closures always give a value.
    unsafe {
        match update.len {
            4 => {
                let word = AtomicU32::from_ptr(place.cast());
                let new = |found: u32| Some(update.apply(found.into()) as u32);
                word.fetch_update(order, reading, new).unwrap_or_default().into()
            }
            _ => {
                let word = AtomicU64::from_ptr(place.cast());
                word.fetch_update(order, reading, |found| Some(update.apply(found))).unwrap_or_default()
            }
        }
    }
}

/// Answers, now or when there is room; false where the peer has asked for more than it may before it takes its answers.
fn answer(state: &mut State, peer: Peer, answer: Answer) -> bool {
    if state.engine.is_free(peer) {
        send(state, peer, answer);
        return true;
    }
    state.answers.push_back((peer, answer));
    state.answers.iter().filter(|(of, _)| *of == peer).count() <= MOST
}

/// Sends an answer to a peer for which nothing waits: one may then wait in the engine. The peer need not be one of UCX's.
fn send(state: &mut State, peer: Peer, answer: Answer) {
    // An error here is followed by an upcall.
    let _ = state.engine.send(peer, ANSWER, answer.as_bytes(), ());
}

/// Sends the answers that have waited, as far as there is room.
#[cold]
pub fn send_answers(state: &mut State) {
    for _ in 0..state.answers.len() {
        let Some((peer, answer)) = state.answers.pop_front() else { break };
        match state.engine.is_free(peer) {
            true => send(state, peer, answer),
            false => state.answers.push_back((peer, answer)),
        }
    }
}
