//! progress: all that only goes on when it is asked for.

use std::ffi::c_int;

use vmshm_messaging::{IdleAction, Upcall, is_reserved};
use vmshm_transport::{Event, Fragment, Glance, Inbox, Peer};

use super::deliver;
use crate::ompi;
use crate::ompi::help::{self, Topic};
use crate::osc;
use crate::process::{
    Completion, Descriptor, Held, INSTANCE, Instance, MODULE, at_rest, loss, sleep, to_endpoint,
};

/// Most messages that one call handles.
const BATCH: usize = 32;

/// Most events in all. Fragments that come back are not counted as messages: were a sender to get back fewer than it sends
/// between two calls, it would take new memory for ever, and pay for the kernel's pages instead of copies.
const EVENTS: usize = 1024;

// Open MPI leaves these to the BTLs themselves.
const _: () = assert!(is_reserved(ompi::MCA_BTL_TAG_BTL as u8) && !is_reserved(osc::TAG));

/// Receives what has arrived and sends what waits. One thread at a time does so; the others return at once. After a long
/// wait for nothing it sleeps, if the user wants that.
pub unsafe extern "C" fn progress() -> c_int {
    // Each way is a function of its own, to which this one jumps: it saves no registers. C's functions let nothing unwind behind it.
    match glance() {
        Glance::Nothing => 0,
        Glance::Short(peer, found) => short(peer, found),
        Glance::Consumed => acknowledge(),
        Glance::Around => look_around(),
        Glance::Long => long(),
        Glance::More => find(),
    }
}

/// The quick part of progress, without the lock.
#[inline(always)]
fn glance() -> Glance {
    // SAFETY: the reference ends here, and nothing of Open MPI's is called.
    let Some(instance) = (unsafe { at_rest() }) else { return Glance::More };
    let Some(inbox) = &mut instance.inbox else { return Glance::More };
    instance.engine.glance(inbox)
}

/// Acknowledges what was handed on.
#[inline(never)]
extern "C" fn acknowledge() -> c_int {
    // SAFETY: the reference ends here.
    if let Some(instance) = unsafe { at_rest() } {
        instance.engine.flush();
    }
    0
}

/// Looks for what a glance does not see.
#[inline(never)]
extern "C" fn look_around() -> c_int {
    // SAFETY: the reference ends here, and nothing of Open MPI's is called.
    match unsafe { at_rest() }.is_some_and(|instance| instance.engine.look_around()) {
        true => 0,
        false => find(),
    }
}

/// Hands on the messages that were seen at a glance. Returns how many that were.
#[inline(never)]
extern "C" fn short(peer: Peer, found: u32) -> c_int {
    hand_on_seen::<false>(peer, found)
}

/// As [`short`], of messages of any length, or only of those of one slot.
#[inline(always)]
fn hand_on_seen<const LONG: bool>(peer: Peer, found: u32) -> c_int {
    // SAFETY: the raw lock is at rest, as `glance` has found. What is lent of the instance stays where it is, and nobody else uses it.
    let (raw, instance) = unsafe { (INSTANCE.raw(), &mut *INSTANCE.data_ptr()) };
    let Some(Instance { inbox: Some(inbox), received, .. }) = instance else { return 0 };
    let (inbox, received) = (&raw mut **inbox, &raw mut **received);
    raw.lend();
    let mut place = 0;
    for at in 0..found {
        // SAFETY: both are lent to us. The references end before the message is handed on.
        let seen = unsafe { (*inbox).seen(if LONG { place } else { at }) };
        let Some((tag, bytes)) = seen.filter(|(tag, _)| !is_ours(*tag)) else {
            return leave(peer, if LONG { place } else { at }, (at, found));
        };
        place += if LONG { Inbox::slots_of(bytes.len()) as u32 } else { 1 };
        let segment = deliver::segment(bytes.as_mut_ptr(), bytes.len());
        // SAFETY: as above.
        if !unsafe { deliver::hand_on(received, to_endpoint(peer), tag, &mut [segment]) } {
            let count = leave(peer, place, (at + 1, found));
            reject(&mut INSTANCE.lock(), peer, tag);
            return count;
        }
    }
    raw.give_back();
    found as c_int
}

/// Leaves all but the first `done` of the messages that were found to [`find`], from this place in the inbox on. Returns how many were
/// received.
#[cold]
fn leave(peer: Peer, place: u32, (done, found): (u32, u32)) -> c_int {
    // SAFETY: the raw lock is only looked at.
    unsafe { INSTANCE.raw() }.give_back();
    if let Some(inbox) = INSTANCE.lock().as_mut().and_then(|instance| instance.inbox.as_mut()) {
        inbox.leave(peer, place, found - done);
    }
    done as c_int + find()
}

/// Hands on longer messages, the first of which was seen at a glance. Returns how many messages that were.
#[inline(never)]
extern "C" fn long() -> c_int {
    let mut count = 0;
    loop {
        // SAFETY: the reference ends here, and nothing of Open MPI's is called.
        let taken = unsafe { at_rest() }.and_then(|instance| {
            let wanted = |tag, len| !is_ours(tag) && deliver::is_copied(tag, len);
            instance.engine.take_long(instance.inbox.as_mut()?, wanted)
        });
        let Some((peer, found, streams)) = taken else { return count + find() };
        count += hand_on_seen::<true>(peer, found);
        if !streams || count >= BATCH as c_int {
            return count;
        }
        match glance() {
            Glance::Long => {}
            Glance::Short(peer, found) => return count + short(peer, found),
            Glance::Nothing | Glance::Consumed | Glance::Around => return count,
            Glance::More => return count + find(),
        }
    }
}

/// As [`progress`], where there is something, or may be.
#[inline(never)]
extern "C" fn find() -> c_int {
    // SAFETY: the raw lock is only looked at.
    let raw = unsafe { INSTANCE.raw() };
    if raw.is_lent() {
        return 0;
    }
    let Some(mut guard) = INSTANCE.try_lock() else { return 0 };
    let Some(instance) = guard.as_mut() else { return 0 };
    let Some(mut inbox) = instance.inbox.take() else { return 0 };
    let are_due = instance.engine.advance();
    if !instance.left.is_empty() {
        instance.left.tidy_seldom(instance.engine.endpoint_mut());
    }
    let (mut count, mut messages, mut is_message) = (0, 0, false);
    if are_due {
        count += act_on_all(&mut guard, None);
    }
    for _ in 0..EVENTS {
        let found = guard.as_mut().and_then(|instance| match is_message {
            true => instance.engine.more_events(&mut inbox),
            false => instance.engine.next_event(&mut inbox),
        });
        let Some(event) = found else { break };
        is_message = matches!(event, Event::Message { .. });
        messages += usize::from(!matches!(event, Event::Sent { .. }));
        count += 1;
        match event {
            Event::Message { peer, tag, len } if !is_ours(tag) => {
                messages += hand_on(&mut guard, &mut inbox, peer, tag, len);
            }
            event => handle(&mut guard, &mut inbox, event),
        }
        if messages >= BATCH {
            break;
        }
    }
    let mut waker = None;
    let action = guard.as_mut().map_or(IdleAction::Spin, |instance| {
        if instance.engine.is_quiet(&inbox) {
            raw.rest();
        }
        instance.inbox = Some(inbox);
        if count > 0 && instance.traffic.is_some() {
            waker = instance.engine.waker().cloned();
        }
        sleep::idle(instance, count > 0)
    });
    match action {
        IdleAction::Spin => drop(guard),
        IdleAction::Yield => {
            drop(guard);
            std::thread::yield_now();
        }
        IdleAction::Sleep(time) => sleep::sleep(guard, time),
    }
    if let Some(waker) = waker {
        // A wake-up of another thread, which sleeps. Not where none does: it costs a full fence.
        waker.wake();
    }
    count
}

/// Whether messages with this tag are for the engine or for windows.
#[inline(always)]
fn is_ours(tag: u8) -> bool {
    is_reserved(tag) || tag == osc::TAG
}

/// Hands on a message of Open MPI's, and those that came together with it. Returns how many of those there were.
#[inline(always)]
fn hand_on(guard: &mut Held, inbox: &mut Inbox, peer: Peer, mut tag: u8, mut len: usize) -> usize {
    let mut others = 0;
    let is_taken = Held::unlocked(guard, || {
        while deliver::deliver(to_endpoint(peer), tag, inbox.bytes_mut(len).as_mut_ptr(), len, None) {
            let Some(next) = inbox.next_if(|tag| !is_ours(tag)) else { return true };
            (tag, len) = next;
            others += 1;
        }
        false
    });
    if !is_taken {
        reject(guard, peer, tag);
    }
    others
}

/// Hands on a request for a window.
fn request(guard: &mut Held, inbox: &mut Inbox, peer: Peer, len: usize) {
    let bytes = inbox.bytes(len);
    // SAFETY: the bytes are there.
    if !Held::unlocked(guard, || unsafe { osc::accept(peer, bytes.as_ptr(), len) }) {
        reject(guard, peer, osc::TAG);
    }
}

/// Does what an event asks for, other than a message of Open MPI's in the inbox.
fn handle(guard: &mut Held, inbox: &mut Inbox, event: Event) {
    match event {
        Event::Message { peer, tag: osc::TAG, len } => request(guard, inbox, peer, len),
        Event::Fragment { peer, tag, offset, len } if !is_reserved(tag) => {
            fragment(guard, peer, tag, offset, len);
        }
        event => {
            let upcall = guard.as_mut().and_then(|instance| instance.engine.handle(inbox, event));
            act_on_all(guard, upcall);
        }
    }
}

/// Acts on an upcall, and on all that are due then. Returns how many that were.
fn act_on_all(guard: &mut Held, mut upcall: Option<Upcall<*mut Descriptor, Completion>>) -> c_int {
    let mut count = 0;
    loop {
        let due = upcall.take().or_else(|| guard.as_mut()?.engine.next_upcall());
        let Some(due) = due else { return count };
        act_on(guard, due);
        count += 1;
    }
}

/// Acts on an upcall.
fn act_on(guard: &mut Held, upcall: Upcall<*mut Descriptor, Completion>) {
    match upcall {
        // These are events first.
        Upcall::Message { .. } | Upcall::Fragment { .. } | Upcall::Handled => {}
        Upcall::Piece(piece) => {
            // Only the thread that makes progress copies pieces.
            Held::unlocked(guard, || piece.copy());
            if let Some(completion) = guard.as_mut().and_then(|instance| instance.engine.landed(&piece)) {
                call_back(guard, completion, ompi::OPAL_SUCCESS as c_int);
            }
        }
        Upcall::Sent { done, fragment, result } => {
            let failed = ompi::OPAL_ERR_UNREACH as c_int;
            complete(guard, done, fragment, result.map_or(failed, |()| ompi::OPAL_SUCCESS as c_int));
        }
        Upcall::Got { done, result } => {
            let failed = ompi::OPAL_ERR_UNREACH as c_int;
            call_back(guard, done, result.map_or(failed, |()| ompi::OPAL_SUCCESS as c_int));
        }
        // Before what has failed with it: for ob1 the failure of a single message is a crash without reason.
        Upcall::Lost { peer, .. } => loss::report(guard, peer),
        Upcall::Violation { peer, tag } => reject(guard, peer, tag),
        Upcall::MemoryWait { time, .. } => {
            let Some(instance) = guard.as_ref() else { return };
            let section = instance.engine.endpoint().section();
            let text = format!(
                "a message has waited {} seconds for memory: section {} with {} KiB is full.",
                time.as_secs(),
                section.number,
                section.entry.len >> 10,
            );
            help::show(Topic::Memory, &text);
        }
    }
}

/// Hands on a message that lies in its sender's section.
fn fragment(guard: &mut Held, peer: Peer, tag: u8, offset: u64, len: usize) {
    let Some(instance) = guard.as_mut() else { return };
    let payload = instance.engine.endpoint().address(offset, len as u64);
    let is_taken = if tag == osc::TAG {
        // SAFETY: the transport has checked that len bytes lie there.
        Held::unlocked(guard, || unsafe { osc::accept(peer, payload, len) })
    } else if deliver::is_copied(tag, len) {
        let mut landing = std::mem::take(&mut instance.landing);
        // SAFETY: the transport has checked that len bytes lie at payload.
        let place = unsafe { deliver::land(payload, len, &mut landing) };
        // The sender has its fragment back while Open MPI does its part. An error here is followed by an upcall.
        let is_sound = instance.engine.consume(peer).is_ok();
        let is_taken =
            !is_sound || Held::unlocked(guard, || deliver::deliver(to_endpoint(peer), tag, place, len, None));
        if let Some(instance) = guard.as_mut() {
            instance.landing = landing;
        }
        if !is_taken {
            reject(guard, peer, tag);
        }
        return;
    } else {
        Held::unlocked(guard, || deliver::deliver_in_place(to_endpoint(peer), tag, payload, len))
    };
    if let Some(instance) = guard.as_mut() {
        // An error here is followed by an upcall.
        let _ = instance.engine.consume(peer);
    }
    if !is_taken {
        reject(guard, peer, tag);
    }
}

/// Calls back the sender of a message that is over, and frees its descriptor.
fn complete(guard: &mut Held, descriptor: *mut Descriptor, fragment: Option<Fragment>, status: c_int) {
    // SAFETY: the engine has given the descriptor back; the lock is not held during the callback.
    let is_ours = unsafe {
        Descriptor::put_fragment(descriptor, fragment);
        Held::unlocked(guard, || Descriptor::call_back(descriptor, MODULE.get(), status))
    };
    if is_ours && let Some(instance) = guard.as_mut() {
        // SAFETY: call_back said that it is ours to free.
        unsafe { instance.free(descriptor) };
    }
}

/// Calls back for a get.
fn call_back(guard: &mut Held, completion: Completion, status: c_int) {
    // SAFETY: Open MPI gave all of it for this, and the lock is not held meanwhile.
    Held::unlocked(guard, || unsafe { completion.call_back(status) });
}

/// Reports a message that nobody here has asked for: its sender does not keep to the rules.
fn reject(guard: &mut Held, peer: Peer, tag: u8) {
    let proc = guard.as_ref().and_then(|instance| instance.process(peer));
    Held::unlocked(guard, || {
        // SAFETY: Open MPI's process lives until del_procs.
        unsafe {
            loss::tell(proc, &format!("it sent a message with tag {tag:#x}, which nobody here has asked for"))
        }
    });
}
