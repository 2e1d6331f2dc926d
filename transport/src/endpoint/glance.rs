//! The quick part of a poll, for a process that waits for one peer, or hears mostly from one.

use vmshm_abi::ring::KIND_INLINE;

use super::Endpoint;
use super::event::{Event, Inbox, Peer};
use super::poll::{FAIR_INTERVAL, REST_INTERVAL};
use crate::channel::connection::is_closed;
use crate::channel::ring::slots_for;
use crate::memory::Memory;
use crate::region::slot;

/// Slots that [`Endpoint::glance`] leaves unacknowledged where there is nothing: a peer that sends no more than this between
/// two of our messages has no use for an acknowledgement of each.
const UNACKNOWLEDGED: u64 = 8;

/// Interval, in polls, at which a glance leaves it to [`Endpoint::poll`] to look, whose caller does more than we know.
const POLL_INTERVAL: u32 = 1024;

/// What [`Endpoint::glance`] saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Glance {
    /// There is nothing, and nothing to do. This was a poll.
    Nothing,
    /// There is nothing, but what was there before is worth an acknowledgement: [`Endpoint::flush`]. This was a poll.
    Consumed,
    /// Short messages, which wait [in the inbox](Inbox::next_short). This was a poll.
    Short,
    /// There is a longer message, for [`Endpoint::take_long`].
    Long,
    /// There may be something: [`Endpoint::poll`] finds out.
    More,
}

impl<M: Memory> Endpoint<M> {
    /// Looks at the ring that is polled alone, for callers that count each instruction. All else is found by
    /// [`Endpoint::poll`], which is to be called after [`Glance::More`].
    #[inline(always)]
    pub fn glance(&mut self, inbox: &mut Inbox) -> Glance {
        let due = self.backlog.len() | self.in_flight_to.len();
        if due != 0 || !inbox.is_empty() {
            return Glance::More;
        }
        if self.glances >= REST_INTERVAL {
            return self.look_around();
        }
        let Some(connection) = self.connections.get_mut(self.lone as usize) else { return Glance::More };
        let Some(peer_side) = &mut connection.peer_side else { return Glance::More };
        let (consumer, memory) = (&mut peer_side.consumer, &self.memory);
        if let Err(is_longer) = consumer.read_short(memory, 0, &mut inbox.run()[0]) {
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
                if consumer.read_short(memory, count as u64, to).is_err() {
                    break;
                }
                count += 1;
            }
        }
        // What was copied is the peer's, and of its present life, as `Connection::lives` has it.
        if connection.held
            || !slot::lives(memory, connection.slot, connection.incarnation)
            || is_closed(memory, peer_side.block)
        {
            return Glance::More;
        }
        inbox.hold(Peer(self.lone), count);
        // Each message counts as a turn. Mostly no other is there after fewer than there is room for.
        self.glances += count as u32;
        (self.streams, self.found) = (false, true);
        consumer.advance_by(memory, count as u64);
        if consumer.is_acknowledgement_due() {
            connection.acknowledge(memory);
        } else if !connection.dirty {
            connection.dirty = true;
            self.dirty.push(self.lone);
        }
        Glance::Short
    }

    /// Takes the message that was seen by a glance that returned [`Glance::Long`], if [`Endpoint::poll`] has no reason to look at
    /// it; and whether more are likely to have come behind it. This was a poll, then.
    #[inline(never)]
    pub fn take_long(&mut self, inbox: &mut Inbox) -> Option<(Event, bool)> {
        let connection = self.connections.get_mut(self.lone as usize)?;
        let peer_side = connection.peer_side.as_mut()?;
        let stamp = peer_side.consumer.peek(&self.memory).ok()??;
        if stamp.kind != KIND_INLINE || connection.held {
            return None;
        }
        peer_side.consumer.read(&self.memory, stamp, inbox.whole());
        if !connection.lives(&self.memory) {
            return None;
        }
        self.glances += 1;
        self.streams = core::mem::replace(&mut self.found, true);
        let len = usize::from(stamp.len);
        self.step(self.lone, slots_for(len));
        Some((Event::Message { peer: Peer(self.lone), tag: stamp.tag, len }, self.streams))
    }

    /// Looks at all but the polled ring.
    #[inline(never)]
    fn look_around(&mut self) -> Glance {
        self.glances = 0;
        // As many turns as there were glances.
        self.turn |= REST_INTERVAL - 1;
        let next = self.turn.wrapping_add(1);
        if next.is_multiple_of(POLL_INTERVAL) || self.verdicts.has_news() {
            return Glance::More;
        }
        self.turn = next;
        if next.is_multiple_of(2 * FAIR_INTERVAL) {
            self.look_at_silent();
        } else {
            self.poll_activity();
            self.flush();
        }
        self.prepare();
        if self.queue.is_empty() && self.backlog.is_empty() { Glance::Nothing } else { Glance::More }
    }
}
