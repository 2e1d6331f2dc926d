//! Arrivals, and work that only goes on when it is asked for.

use std::ffi::c_uint;

use vmshm_messaging::{Params, Upcall};
use vmshm_transport::{Event, Fault, Glance, Inbox, Peer, PeerError, copy_from_shared};
use zerocopy::FromBytes;

use crate::asked::{ANSWER, Answer, Asked, CHANGE, Operation, PUT, Wanted};
use crate::endpoint::AM_IDS;
use crate::iface::{self, Iface};
use crate::lock::Guard;
use crate::state::State;
use crate::ucx::{self, *};
use crate::{remote, serve};

/// Most messages that one call handles.
const BATCH: usize = 32;

/// Most events in all.
const EVENTS: usize = 1024;

type Held<'a> = Guard<'a, State>;

/// Receives what has arrived and sends what waits.
pub unsafe extern "C" fn progress(handle: uct_iface_h) -> c_uint {
    // SAFETY: the interface is ours.
    let iface = unsafe { iface::of(handle) };
    let Some(mut state) = iface.port.try_lock() else { return 0 };
    match state.glance() {
        Glance::Nothing => 0,
        Glance::Short(peer, found) => hand_on_seen(iface, &mut state, peer, found),
        Glance::Long => long(iface, &mut state),
        Glance::Consumed => {
            state.engine.flush();
            0
        }
        Glance::Around => look_around(iface, &mut state),
        Glance::More => find(iface, &mut state),
    }
}

/// Looks for what a glance does not see.
#[inline(never)]
fn look_around(iface: &Iface, state: &mut Held<'_>) -> c_uint {
    if state.engine.look_around() { 0 } else { find(iface, state) }
}

/// Hands on the messages that were seen at a glance. Returns how many messages that were, and others that were found then.
#[inline(always)]
fn hand_on_seen(iface: &Iface, state: &mut Held<'_>, peer: Peer, found: u32) -> c_uint {
    let Some(mut inbox) = state.inbox.take() else { return 0 };
    let (mut done, mut place) = (0, 0);
    state.unlocked(|| {
        while done < found
            && let Some((tag, bytes)) = inbox.seen(place).filter(|(tag, _)| usize::from(*tag) < AM_IDS)
        {
            deliver(iface, tag, bytes.as_mut_ptr(), bytes.len());
            (done, place) = (done + 1, place + Inbox::slots_of(bytes.len()) as u32);
        }
    });
    if done < found {
        inbox.leave(peer, place, found - done);
    }
    state.inbox = Some(inbox);
    if done < found { done + find(iface, state) } else { done }
}

/// Hands on longer messages, the first of which was seen at a glance. Returns how many messages that were.
#[inline(never)]
fn long(iface: &Iface, state: &mut Held<'_>) -> c_uint {
    let mut count = 0;
    loop {
        let State { inbox, engine, .. } = &mut **state;
        let taken =
            inbox.as_mut().and_then(|inbox| engine.take_long(inbox, |tag, _| usize::from(tag) < AM_IDS));
        let Some((peer, found, streams)) = taken else { return count + find(iface, state) };
        count += hand_on_seen(iface, state, peer, found);
        if !streams || count >= BATCH as c_uint {
            return count;
        }
        match state.glance() {
            Glance::Long => {}
            Glance::Short(peer, found) => return count + hand_on_seen(iface, state, peer, found),
            Glance::Nothing | Glance::Consumed | Glance::Around => return count,
            Glance::More => return count + find(iface, state),
        }
    }
}

/// As [`progress`], where there is something, or may be.
#[inline(never)]
fn find(iface: &Iface, state: &mut Held<'_>) -> c_uint {
    let Some(mut inbox) = state.inbox.take() else { return 0 };
    let (mut count, mut messages, mut is_message) = (0, 0, false);
    if state.engine.advance() {
        count += act_on_all(state, None);
    }
    for _ in 0..EVENTS {
        let found = match is_message {
            true => state.engine.more_events(&mut inbox),
            false => state.engine.next_event(&mut inbox),
        };
        let Some(event) = found else { break };
        is_message = matches!(event, Event::Message { .. });
        messages += usize::from(!matches!(event, Event::Sent { .. }));
        count += 1;
        match event {
            Event::Message { tag, len, .. } if usize::from(tag) < AM_IDS => {
                let data = inbox.bytes_mut(len).as_mut_ptr();
                state.unlocked(|| deliver(iface, tag, data, len));
            }
            Event::Fragment { peer, tag, offset, len } if usize::from(tag) < AM_IDS => {
                fragment(iface, state, (peer, tag), offset, len);
            }
            event => handle_event(iface, state, &mut inbox, event),
        }
        if messages >= BATCH {
            break;
        }
    }
    if messages > 0 && state.is_armed {
        // Its sender has rung.
        state.is_armed = false;
        state.engine.endpoint_mut().wake_up();
    }
    if !state.answers.is_empty() {
        serve::send_answers(state);
    }
    if !state.waiting.is_empty() {
        count += send_waiting(state);
    }
    if !state.lost.is_empty() {
        tell_lost(iface, state);
    }
    state.rest(&inbox);
    state.inbox = Some(inbox);
    count
}

/// Hands a message to UCX's function for its kind.
#[inline(always)]
fn deliver(iface: &Iface, id: u8, data: *mut u8, len: usize) {
    // SAFETY: the table is filled before messages come; the data is this process's own, and outlives the call.
    unsafe {
        let handler = &raw const (*iface.base.get()).am[usize::from(id)];
        if let Some(callback) = (*handler).cb {
            callback((*handler).arg, data.cast(), len, 0);
        }
    }
}

/// Hands on a message that lies in its sender's section. It is copied as a whole first: the sender can change it at any time, and
/// UCX reads its headers more than once.
fn fragment(iface: &Iface, state: &mut Held<'_>, (peer, tag): (Peer, u8), offset: u64, len: usize) {
    if len > Params::MAX_MESSAGE {
        return reject(state, peer, tag);
    }
    let payload = state.engine.endpoint().address(offset, len as u64);
    let mut landing = std::mem::take(&mut state.landing);
    if landing.len() < len.div_ceil(8) {
        landing.resize(len.div_ceil(8), 0);
    }
    let data = landing.as_mut_ptr().cast::<u8>();
    // SAFETY: the transport has checked that len bytes lie at payload, and there is room for them.
    unsafe { copy_from_shared(payload, data, len) };
    // The sender has its fragment back while UCX does its part. An error here is followed by an upcall.
    if state.engine.consume(peer).is_ok() {
        state.unlocked(|| deliver(iface, tag, data, len));
    }
    state.landing = landing;
}

/// Does what an event asks for that is none of UCX's messages.
fn handle_event(iface: &Iface, state: &mut Held<'_>, inbox: &mut Inbox, event: Event) {
    let is_right = match event {
        Event::Message { peer, tag: PUT, len } => serve::put(iface, state, peer, inbox.bytes(len)),
        Event::Fragment { peer, tag: PUT, offset, len } => {
            serve::put_fragment(iface, state, peer, offset, len)
        }
        Event::Message { peer, tag: CHANGE, len } => serve::change(iface, state, peer, inbox.bytes(len)),
        Event::Message { peer, tag: ANSWER, len } => take_answer(state, peer, inbox.bytes(len)),
        event => return handle_own(iface, state, inbox, event),
    };
    if !is_right && let Event::Message { peer, tag, .. } | Event::Fragment { peer, tag, .. } = event {
        reject(state, peer, tag);
    }
}

/// Takes an answer; false where nothing was asked.
fn take_answer(state: &mut Held<'_>, peer: Peer, message: &[u8]) -> bool {
    let Ok(Answer { number, found }) = Answer::read_from_bytes(message) else { return false };
    let Some(of_peer) = state.asked.get_mut(&peer) else { return false };
    if !of_peer.get(&number).is_some_and(|asked| !matches!(asked.wanted, Wanted::Bytes(..))) {
        return false;
    }
    let Some(Asked { operation, wanted }) = of_peer.remove(&number) else { return false };
    if let Wanted::Word(to, len) = wanted
        && state.connections.contains_key(&operation.endpoint)
    {
        // SAFETY: UCX keeps room for the word until the completion, unless it has destroyed the endpoint.
        unsafe { remote::store(to, len, found) };
    }
    finish(state, operation, UCS_OK);
    true
}

/// Does what an event of the engine's own asks for.
fn handle_own(iface: &Iface, state: &mut Held<'_>, inbox: &mut Inbox, event: Event) {
    if let Some(key) = state.engine.missing_key(inbox, &event)
        && let Some((base, len, _)) = iface.registry.find(key)
    {
        // SAFETY: UCX keeps the memory until it deregisters it, and then it is taken from the engine.
        let source = unsafe { state.engine.expose_to_all(key, std::ptr::with_exposed_provenance(base), len) };
        state.sources.insert(key, source);
    }
    let upcall = state.engine.handle(inbox, event);
    act_on_all(state, upcall);
}

/// Acts on an upcall, and on all that are due then. Returns how many that were.
fn act_on_all(state: &mut Held<'_>, mut upcall: Option<Upcall<(), Operation>>) -> c_uint {
    let mut count = 0;
    while let Some(due) = upcall.take().or_else(|| state.engine.next_upcall()) {
        act_on(state, due);
        count += 1;
    }
    count
}

fn act_on(state: &mut Held<'_>, upcall: Upcall<(), Operation>) {
    match upcall {
        Upcall::Piece(piece) => {
            // Only the thread that makes progress copies pieces.
            state.unlocked(|| piece.copy());
            if let Some(done) = state.engine.landed(&piece) {
                finish(state, done, UCS_OK);
            }
        }
        Upcall::Got { done, result } => {
            finish(state, done, result.map_or(UCS_ERR_CONNECTION_RESET, |()| UCS_OK));
        }
        Upcall::Lost { peer, why } => lose(state, peer, why),
        Upcall::Violation { peer, tag } => reject(state, peer, tag),
        Upcall::MemoryWait { time, .. } => {
            let section = state.engine.endpoint().section();
            ucx::warn(&format!(
                "vmshm: a message has waited {} seconds for memory: section {} with {} KiB is full",
                time.as_secs(),
                section.number,
                section.entry.len >> 10,
            ));
        }
        Upcall::Sent { fragment, .. } => {
            if let Some(fragment) = fragment {
                state.engine.free(fragment);
            }
        }
        // Those with tags of ours are events first.
        Upcall::Message { peer, tag, .. } | Upcall::Fragment { peer, tag, .. } => reject(state, peer, tag),
        Upcall::Handled => {}
    }
}

/// Completes an operation, and the flushes that have waited for it. Of an endpoint that UCX has destroyed it wants nothing more.
fn finish(state: &mut Held<'_>, done: Operation, status: ucs_status_t) {
    let asked = done.number.and_then(|number| state.asked.get_mut(&done.peer)?.remove(&number));
    let Some(connection) = state.connections.get_mut(&done.endpoint) else { return };
    connection.outstanding -= 1;
    let flushes = match connection.outstanding {
        0 => std::mem::take(&mut connection.flushes),
        _ => Vec::new(),
    };
    if state.is_fenced {
        state.is_fenced = state.connections.values().any(|connection| connection.outstanding > 0);
    }
    state.unlocked(|| {
        // SAFETY: UCX gave them for this; the lock is not held.
        unsafe {
            if status == UCS_OK
                && let Some(Asked { wanted: Wanted::Bytes(bytes, Some(unpack), argument), .. }) = asked
            {
                unpack(argument, bytes.as_ptr().cast(), bytes.len());
            }
            if !done.completion.is_null() {
                ucx::complete(done.completion, status);
            }
            for flush in flushes {
                ucx::complete(flush, UCS_OK);
            }
        }
    });
}

/// Notes the loss of a peer. One that has finished and left is none, unless there was more to say to it.
fn lose(state: &mut Held<'_>, peer: Peer, why: PeerError) {
    let is_loss = state.engine.take_loss(peer).is_some() || why != PeerError::Left;
    let mut lost = Vec::new();
    for (number, connection) in state.connections.iter_mut().filter(|(_, connection)| connection.peer == peer)
    {
        connection.is_lost = true;
        lost.push(*number);
    }
    // Those that want bytes are over when the engine says so.
    let is_over = |_: &u64, asked: &mut Asked| !matches!(asked.wanted, Wanted::Bytes(..));
    let of_peer = state.asked.get_mut(&peer);
    let over: Vec<Asked> =
        of_peer.into_iter().flat_map(|asked| asked.extract_if(is_over)).map(|(_, asked)| asked).collect();
    for asked in over {
        finish(state, asked.operation, UCS_ERR_CONNECTION_RESET);
    }
    state.answers.retain(|(of, _)| *of != peer);
    if is_loss && !lost.is_empty() {
        ucx::tell(&format!("vmshm: a peer is lost: {why}"));
        state.lost.extend(lost);
    }
}

/// Calls UCX's handler of errors for each endpoint that is lost, once.
#[cold]
fn tell_lost(iface: &Iface, state: &mut Held<'_>) {
    while let Some(number) = state.lost.pop() {
        let Some(connection) = state.connections.get_mut(&number) else { continue };
        connection.is_lost = true;
        if std::mem::replace(&mut connection.is_told, true) {
            continue;
        }
        let endpoint = connection.endpoint;
        state.unlocked(|| {
            // SAFETY: both are ours and live; the lock is not held.
            unsafe { uct_iface_handle_ep_err(iface.base.get().cast(), endpoint, UCS_ERR_ENDPOINT_TIMEOUT) };
        });
    }
}

/// Ends the connection with a peer that sends what nobody here has asked for.
fn reject(state: &mut Held<'_>, peer: Peer, tag: u8) {
    let fault = Fault { what: "message that nobody has asked for, with tag", value: tag.into() };
    state.engine.endpoint_mut().reject(peer, fault);
}

/// Lets requests that wait try again, an endpoint after the other. Returns how many were sent.
#[cold]
fn send_waiting(state: &mut Held<'_>) -> c_uint {
    let mut count = 0;
    for _ in 0..state.waiting.len() {
        let Some(number) = state.waiting.pop_front() else { break };
        while let Some(connection) = state.connections.get_mut(&number) {
            connection.is_blocked = false;
            let Some(request) = connection.pending.pop_front() else { break };
            state.dispatching = Some(number);
            // SAFETY: the request is UCX's and waits for this; the lock is not held.
            let status =
                state.unlocked(|| unsafe { (*request).func.map_or(UCS_OK, |function| function(request)) });
            state.dispatching = None;
            count += c_uint::from(status >= UCS_OK);
            if status == UCS_OK {
                continue;
            }
            if let Some(connection) = state.connections.get_mut(&number) {
                connection.pending.push_front(request);
                connection.is_blocked = true;
                state.waiting.push_back(number);
            }
            break;
        }
    }
    count
}
