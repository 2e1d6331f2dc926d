//! The quick part of a poll, for a process that waits for one peer, or hears mostly from one.

use core::sync::atomic::Ordering;

use vmshm_abi::ring::CLOSED;

use super::event::{Inbox, Peer};
use super::poll::{FAIR_INTERVAL, REST_INTERVAL};
use super::{Endpoint, MAX_EAGER, RING_SLOTS};
use crate::channel::connection::PeerSide;
use crate::memory::{Memory, Place};

/// Slots that [`Endpoint::glance`] leaves unacknowledged where there is nothing: a peer that sends no more than this between
/// two of our messages has no use for an acknowledgement of each.
const UNACKNOWLEDGED: u64 = 8;

/// Interval, in polls, at which a glance leaves it to [`Endpoint::poll`] to look, whose caller does more than we know.
const POLL_INTERVAL: u32 = 1024;

// A stream is acknowledged in time: a ring as large as ours has a quarter left to acknowledge when it is time to look around.
const _: () = assert!(REST_INTERVAL + Inbox::RUN <= RING_SLOTS / 4);

/// What [`Endpoint::glance`] saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Glance {
    /// There is nothing, and nothing to do. This was a poll.
    Nothing,
    /// There is nothing, but what was there before is worth an acknowledgement: [`Endpoint::flush`]. This was a poll.
    Consumed,
    /// So many short messages of this peer, each of which [the inbox](Inbox::seen) has. This was a poll, or several.
    Short(Peer, u32),
    /// There is a longer message, for [`Endpoint::take_long`].
    Long,
    /// It is time for [`Endpoint::look_around`].
    Around,
    /// There may be something: [`Endpoint::poll`] finds out.
    More,
}

impl<M: Memory> Endpoint<M> {
    /// Whether there is nothing to do but to look for messages: else [`Endpoint::glance`] leaves lying what [`Endpoint::poll`]
    /// would find. Other methods, but for those that send the quick way, may end this.
    #[inline]
    pub fn is_quiet(&self, inbox: &Inbox) -> bool {
        let is_held = self.connections.get(self.lone as usize).is_some_and(|connection| connection.held);
        !is_held && self.backlog.is_empty() && self.in_flight_to.is_empty() && inbox.is_empty()
    }

    /// Looks at the ring that is polled alone, for callers that count each instruction. All else is found by
    /// [`Endpoint::poll`], which is to be called after [`Glance::More`], and instead while the endpoint is not
    /// [quiet](Endpoint::is_quiet).
    #[inline(always)]
    pub fn glance(&mut self, inbox: &mut Inbox) -> Glance {
        if self.glances >= REST_INTERVAL {
            return Glance::Around;
        }
        let Some(connection) = self.connections.get_mut(self.lone as usize) else { return Glance::More };
        let Some(PeerSide { consumer, state, .. }) = &mut connection.peer_side else { return Glance::More };
        let memory = &self.memory;
        // SAFETY: the connections of an endpoint are made with its memory.
        let first = unsafe { consumer.read_short(memory, 0, &mut inbox.run()[0]) };
        if let Err(is_longer) = first {
            if is_longer {
                return Glance::Long;
            }
            self.glances += 1;
            (self.streams, self.found) = (false, false);
            return if consumer.unacknowledged() < UNACKNOWLEDGED {
                Glance::Nothing
            } else {
                Glance::Consumed
            };
        }
        let mut count = 1;
        // Only in a stream is there reason to look for more than one: see `poll_more`.
        if self.found {
            for to in &mut inbox.run()[1..] {
                // SAFETY: as above.
                if unsafe { consumer.read_short(memory, u64::from(count), to) }.is_err() {
                    break;
                }
                count += 1;
            }
        }
        // SAFETY: as above.
        if !unsafe { is_of(memory, (connection.state, connection.live), *state) } {
            return Glance::More;
        }
        // Each message counts as a turn. Mostly no other is there after fewer than there is room for.
        self.glances += count;
        (self.streams, self.found, self.consumed) = (false, true, true);
        // An acknowledgement that is due waits until it is time to look around: soon, and before the ring is full.
        consumer.advance_by(memory, count.into(), count.into());
        Glance::Short(Peer(self.lone), count)
    }

    /// Takes the message that was seen by a glance that returned [`Glance::Long`], and maybe others behind it, which
    /// [the inbox](Inbox::seen) has then: if [`Endpoint::poll`] has no reason to look at them, and if it lies in a fragment, only if it has
    /// no more than [`MAX_EAGER`] bytes, and its tag and length are `wanted` whole. Returns the sender, how many messages there are, and
    /// whether more are likely to have come behind them. These were polls, then.
    #[inline(always)]
    pub fn take_long(
        &mut self,
        inbox: &mut Inbox,
        wanted: impl FnOnce(u8, usize) -> bool,
    ) -> Option<(Peer, u32, bool)> {
        let connection = self.connections.get_mut(self.lone as usize)?;
        let PeerSide { consumer, state, .. } = connection.peer_side.as_mut()?;
        let memory = &self.memory;
        // Only in a stream is there reason to look for more than one.
        let most = if self.found { Inbox::RUN } else { 1 };
        // SAFETY: the connections of an endpoint are made with its memory.
        let (count, slots) = unsafe { consumer.read_few(memory, inbox.slots(), most) };
        if count > 0 {
            // SAFETY: as above.
            if !unsafe { is_of(memory, (connection.state, connection.live), *state) } {
                return None;
            }
            self.glances += count;
            // Mostly no other is there after fewer than there is room for.
            self.streams = core::mem::replace(&mut self.found, true) && count == most;
            self.consumed = true;
            consumer.advance_by(memory, slots, count.into());
            if consumer.is_acknowledgement_due() {
                connection.acknowledge(memory);
            }
            return Some((Peer(self.lone), count, self.streams));
        }
        // SAFETY: as above.
        let long = unsafe { consumer.read_long(memory, inbox.slots()) };
        let mut fragment = None;
        let slots = match long {
            Some(slots) => slots,
            None => {
                // SAFETY: as above.
                let (stamp, found) = unsafe { consumer.read_fragment(memory) }?;
                let len = found.len as usize;
                if found.len > MAX_EAGER as u64
                    || !connection.section.contains(found.offset, found.len)
                    || !wanted(stamp.tag, len)
                {
                    return None;
                }
                memory.read(found.offset, inbox.eager(stamp.tag, len));
                fragment = Some(len);
                1
            }
        };
        // SAFETY: as above.
        if !unsafe { is_of(memory, (connection.state, connection.live), *state) } {
            return None;
        }
        fragment.into_iter().for_each(|len| connection.counted.fragments_received.add(len));
        self.glances += 1;
        self.streams = core::mem::replace(&mut self.found, true);
        self.consumed = true;
        consumer.advance_by(memory, slots, 1);
        // Where no other message is likely to follow, the sender waits for its memory.
        if consumer.is_acknowledgement_due() || (long.is_none() && !self.streams) {
            connection.acknowledge(memory);
        }
        Some((Peer(self.lone), 1, self.streams))
    }

    /// Looks at all but the polled ring, after [`Glance::Around`]: a poll. True if there is nothing, else [`Endpoint::poll`] finds out.
    #[inline(never)]
    pub fn look_around(&mut self) -> bool {
        self.glances = 0;
        // As many turns as there were glances.
        self.turn |= REST_INTERVAL - 1;
        let next = self.turn.wrapping_add(1);
        if next.is_multiple_of(POLL_INTERVAL) || self.verdicts.has_news() {
            return false;
        }
        self.turn = next;
        if next.is_multiple_of(2 * FAIR_INTERVAL) {
            self.look_at_silent();
        } else {
            self.poll_activity();
            self.flush();
        }
        self.prepare();
        self.poll_eager();
        let is_nothing = self.queue.is_empty() && self.backlog.is_empty();
        if !is_nothing {
            // The poll that follows is this one, and looks everywhere.
            self.turn = next.wrapping_sub(1);
        }
        is_nothing
    }
}

/// Whether what was copied before is the peer's, and of its present life: as [`Connection::lives`](crate::channel::connection::Connection::lives),
/// of the words at these places.
///
/// # Safety
///
/// The places are of this memory.
#[inline(always)]
unsafe fn is_of(memory: &impl Memory, (slot, live): (Place, u64), connection: Place) -> bool {
    memory.fence(Ordering::Acquire);
    // SAFETY: the caller vouches for the places, which have a word each.
    unsafe {
        memory.load_placed(slot, 0, Ordering::Acquire) == live
            && memory.load_placed(connection, 0, Ordering::Relaxed) != CLOSED
    }
}
