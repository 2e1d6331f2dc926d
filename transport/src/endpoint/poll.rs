//! Receiving, and all else that only goes on when it is asked for.

use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use vmshm_abi::EndpointId;
use vmshm_abi::ring::{KIND_FRAGMENT, KIND_OFFER, POLLED, Stamp};
use vmshm_abi::section::STATE_LIVE;

use super::event::{Event, Inbox, Peer};
use super::{Endpoint, NO_CONNECTION};
use crate::channel::activity::may_have_sent;
use crate::channel::connection::{POLLED_WORD, check_descriptor, find_connection, read_binding};
use crate::channel::ring::slots_of;
use crate::error::PeerError;
use crate::memory::Memory;
use crate::region::slot;

/// Most rings that are looked at in each poll; the others are found by their activity lines.
const MAX_POLLED: usize = 8;

/// Interval, in polls, at which silent peers are looked at first. A short message that was read with others counts as a poll.
pub(super) const FAIR_INTERVAL: u32 = 32;

/// With more fragments in flight, most polls look for acknowledged ones before they look for messages: an endpoint that always
/// finds a message would get back fewer fragments than it sends on for each, and take memory without end.
const MANY_IN_FLIGHT: usize = 8;

/// Interval, in polls, at which all but the polled rings is looked at where nothing is known to be due. Activity lines in each
/// 8th or 16th empty poll made no difference to 63 silent peers.
pub(super) const REST_INTERVAL: u32 = 16;

/// Interval, in polls, at which messages are looked at first where many fragments are in flight.
const MESSAGES_INTERVAL: u32 = 4;

/// A ring that was silent for this many polls, while others were not, is not polled any more: some half a millisecond of
/// waiting. Its next message is found like that of any silent peer, by the activity line of its section.
const SILENT_POLLS: u32 = 1 << 14;

impl<M: Memory> Endpoint<M> {
    /// The next thing that has happened, or `None`.
    ///
    /// Each call does a bounded amount of work: it looks at a few rings that were busy lately, every few calls at one section's
    /// activity line, and now and then at one silent ring as well.
    #[inline(always)]
    pub fn poll(&mut self, inbox: &mut Inbox) -> Option<Event> {
        if let Some(event) = inbox.next() {
            return Some(event);
        }
        self.turn = self.turn.wrapping_add(1);
        // Busy peers first, but they never keep the others from their turn.
        if !self.turn.is_multiple_of(FAIR_INTERVAL) {
            if let Some(event) = self.poll_many_in_flight() {
                return Some(event);
            }
            self.streams = core::mem::take(&mut self.found);
            if let Some(event) = self.poll_busy(inbox) {
                return Some(event);
            }
            if !self.turn.is_multiple_of(REST_INTERVAL)
                && self.backlog.is_empty()
                && self.in_flight_to.is_empty()
                && !self.polled.is_empty()
            {
                self.flush();
                return None;
            }
        }
        self.poll_rest(inbox)
    }

    /// As [`Endpoint::poll`], for more of the kind that poll has just found: looks only at the polled rings, and not even at
    /// these if the poll before found nothing. In a dialogue nothing comes before our answer, and to look in vain fetches a
    /// line that the peer has just prepared for its next message.
    #[inline(always)]
    pub fn poll_more(&mut self, inbox: &mut Inbox) -> Option<Event> {
        if let Some(event) = inbox.next() {
            return Some(event);
        }
        if self.streams {
            self.turn = self.turn.wrapping_add(1);
            if self.turn.is_multiple_of(FAIR_INTERVAL) {
                return self.poll_rest(inbox);
            }
            if let Some(event) = self.poll_many_in_flight() {
                return Some(event);
            }
            if let Some(event) = self.poll_busy(inbox) {
                return Some(event);
            }
        }
        if self.total_in_flight > MANY_IN_FLIGHT { self.poll_all_in_flight() } else { None }
    }

    /// Fragments that were acknowledged, if many are in flight and it is their turn.
    #[inline(always)]
    fn poll_many_in_flight(&mut self) -> Option<Event> {
        if self.total_in_flight > MANY_IN_FLIGHT && !self.turn.is_multiple_of(MESSAGES_INTERVAL) {
            self.poll_all_in_flight()
        } else {
            None
        }
    }

    #[inline(never)]
    fn poll_rest(&mut self, inbox: &mut Inbox) -> Option<Event> {
        let fair = self.turn.is_multiple_of(FAIR_INTERVAL);
        if self.turn.is_multiple_of(2 * FAIR_INTERVAL) {
            self.look_at_silent();
            if let Some(event) = self.poll_queue(inbox) {
                return Some(event);
            }
        }
        if let Some(event) = self.backlog.pop_front() {
            return Some(event);
        }
        if let Some(event) = self.poll_in_flight() {
            return Some(event);
        }
        self.poll_activity();
        if let Some(event) = self.poll_queue(inbox) {
            return Some(event);
        }
        self.fetch_verdicts();
        self.prepare();
        self.poll_eager();
        if fair && let Some(event) = self.poll_busy(inbox) {
            return Some(event);
        }
        self.flush();
        self.backlog.pop_front()
    }

    /// Looks at those of whom nothing is known to have come.
    #[inline(never)]
    pub(super) fn look_at_silent(&mut self) {
        self.fetch_verdicts();
        self.check_one();
        self.recheck_stopped();
        if self.turn.is_multiple_of(SILENT_POLLS) {
            self.stop_polling_silent();
        }
        self.flush();
        self.poll_activity();
        self.sweep_one();
        if let Some(id) = self.unanswered.pop_front() {
            // There was no memory for an answer: something may have been freed.
            self.on_activity(id);
        }
    }

    /// Prepares the ring towards the peer whose turn it was, for our answer.
    pub(super) fn prepare(&mut self) {
        let Some(&index) = self.polled.get(self.next_polled) else { return };
        let connection = &mut self.connections[index as usize];
        if connection.failed.is_some() || !connection.producer.is_short() {
            return;
        }
        match connection.catch_up(&self.memory, &self.region, self.id, self.incarnation) {
            Ok(()) => connection.producer.prepare(&self.memory),
            Err(fault) => self.fail(index, fault.into()),
        }
    }

    /// The rings that were busy lately, each in its turn.
    #[inline(always)]
    fn poll_busy(&mut self, inbox: &mut Inbox) -> Option<Event> {
        for _ in 0..self.polled.len() {
            self.next_polled += 1;
            if self.next_polled >= self.polled.len() {
                self.next_polled = 0;
            }
            let event = self.pop(*self.polled.get(self.next_polled)?, inbox);
            if event.is_some() {
                self.found = true;
                return event;
            }
        }
        self.streams = false;
        None
    }

    /// Fragments that were acknowledged, by any peer: slow peers must not keep us from the one that is waited for.
    #[inline(never)]
    fn poll_all_in_flight(&mut self) -> Option<Event> {
        (0..self.in_flight_to.len().min(MAX_POLLED)).find_map(|_| self.poll_in_flight())
    }

    /// Fragments that the next peer acknowledged.
    fn poll_in_flight(&mut self) -> Option<Event> {
        if self.in_flight_to.is_empty() {
            return None;
        }
        self.next_in_flight_to = (self.next_in_flight_to + 1) % self.in_flight_to.len();
        let index = self.in_flight_to[self.next_in_flight_to];
        let connection = &mut self.connections[index as usize];
        let (end, token) = *connection.in_flight.front()?;
        if connection.producer.acknowledged() < end {
            let learned = connection.catch_up(&self.memory, &self.region, self.id, self.incarnation);
            if let Err(fault) = learned {
                self.fail(index, fault.into());
                return None;
            }
        }
        let connection = &mut self.connections[index as usize];
        if connection.producer.acknowledged() < end {
            return None;
        }
        connection.in_flight.pop_front();
        self.total_in_flight -= 1;
        if connection.in_flight.is_empty() {
            self.in_flight_to.swap_remove(self.next_in_flight_to);
        }
        Some(Event::Sent { peer: Peer(index), token })
    }

    /// One section's activity line: connections with news are queued, strangers that sent to us are connected to.
    pub(super) fn poll_activity(&mut self) {
        self.next_activity += 1;
        if self.next_activity >= self.activity.len() {
            self.next_activity = 0;
        }
        let number = self.next_activity;
        let changed = self.activity[number].look(&self.memory);
        if changed == 0 {
            return;
        }
        for slot in 0..self.region.header().endpoints {
            if may_have_sent(changed, slot) {
                self.on_activity(self.region.endpoint(number as u32, slot));
            }
        }
    }

    /// Something may have come from this endpoint.
    fn on_activity(&mut self, id: EndpointId) {
        if id == self.id {
            return;
        }
        let index = self.by_id[id.0 as usize];
        let Some((&section, slot)) = self.region.place(id) else { return };
        let found = slot::state(&self.memory, &section, slot);
        if let Some(connection) = self.connections.get(index as usize)
            && (connection.incarnation == found.incarnation || found.state != STATE_LIVE)
        {
            return self.enqueue(index);
        }
        if found.state != STATE_LIVE || !self.is_connected_to_us(id, found.incarnation) {
            return;
        }
        match self.add_connection(id, found.incarnation) {
            Ok(peer) => self.enqueue(peer.0),
            Err(_) if self.unanswered.contains(&id) => {}
            Err(_) => self.unanswered.push_back(id),
        }
    }

    /// Whether a stranger has made a connection for our present life.
    fn is_connected_to_us(&self, id: EndpointId, incarnation: u64) -> bool {
        let Ok(Some(block)) = find_connection(&self.memory, &self.region, id, self.id) else {
            return false;
        };
        read_binding(&self.memory, block).is_for(self.id, self.incarnation, incarnation)
    }

    #[inline(never)]
    pub(super) fn enqueue(&mut self, index: u32) {
        let connection = &mut self.connections[index as usize];
        if !connection.polled && !connection.queued && connection.failed.is_none() {
            connection.queued = true;
            self.queue.push_back(index);
        }
    }

    fn poll_queue(&mut self, inbox: &mut Inbox) -> Option<Event> {
        for _ in 0..self.queue.len().min(MAX_POLLED) {
            let index = self.queue.pop_front()?;
            self.connections[index as usize].queued = false;
            if let Some(event) = self.pop_first(index, inbox) {
                self.start_polling(index);
                self.found = true;
                return Some(event);
            }
        }
        None
    }

    /// Starts to poll a connection's ring, at the cost of the one that has been polled the longest.
    fn start_polling(&mut self, index: u32) {
        if self.connections[index as usize].polled || self.connections[index as usize].failed.is_some() {
            return;
        }
        if self.polled.len() == MAX_POLLED {
            self.stop_polling(self.polled[0]);
        }
        self.set_polled(index, true);
        self.polled.push(index);
        self.find_lone();
    }

    /// Stops to poll the rings that were silent since this was called last, if others were not.
    #[inline(never)]
    fn stop_polling_silent(&mut self) {
        let connections = &mut self.connections;
        let silent: Vec<u32> =
            self.polled.iter().copied().filter(|index| connections[*index as usize].was_silent()).collect();
        if silent.len() < self.polled.len() {
            silent.into_iter().for_each(|index| self.stop_polling(index));
        }
    }

    fn stop_polling(&mut self, index: u32) {
        self.polled.retain(|polled| *polled != index);
        self.find_lone();
        self.set_polled(index, false);
        self.connections[index as usize].settle(&self.memory);
        // The peer may just have sent in the belief that we poll, or be about to.
        self.enqueue(index);
        self.stopped.push_back((self.turn, index));
    }

    /// Notes which connection is the only one that is polled.
    pub(super) fn find_lone(&mut self) {
        self.lone = if let [index] = self.polled[..] { index } else { NO_CONNECTION };
    }

    /// Queues the connections that stopped being polled long enough ago for their peers to have seen it.
    fn recheck_stopped(&mut self) {
        while let Some(&(turn, index)) = self.stopped.front()
            && self.turn.wrapping_sub(turn) >= 2 * FAIR_INTERVAL
        {
            self.stopped.pop_front();
            self.enqueue(index);
        }
    }

    fn set_polled(&mut self, index: u32, polled: bool) {
        let connection = &mut self.connections[index as usize];
        connection.polled = polled;
        self.memory.store(connection.block + POLLED_WORD, if polled { POLLED } else { 0 }, Ordering::Relaxed);
    }

    /// Queues one silent connection, so that a missed activity count costs time, never a message. A peer that has never sent to
    /// us was never polled, and so has always counted.
    fn sweep_one(&mut self) {
        if self.connections.len() > self.polled.len() {
            self.sweep = (self.sweep + 1) % self.connections.len();
            if self.connections[self.sweep].peer_side.is_some() {
                self.enqueue(self.sweep as u32);
            }
        }
    }

    /// The next message of one connection.
    #[inline(always)]
    fn pop(&mut self, index: u32, inbox: &mut Inbox) -> Option<Event> {
        let connection = &mut self.connections[index as usize];
        if connection.held || connection.failed.is_some() {
            return None;
        }
        let Some(peer_side) = &mut connection.peer_side else { return self.pop_first(index, inbox) };
        if self.streams && self.total_in_flight <= MANY_IN_FLIGHT {
            // In a stream there may be many messages: one liveness check and one acknowledgement serve them all.
            // SAFETY: the connections of an endpoint are made with its memory.
            let count = unsafe { peer_side.consumer.read_run(&self.memory, inbox.run()) };
            if count > 0 {
                if !connection.lives(&self.memory) {
                    return self.give_up(index, self.ending(index));
                }
                inbox.hold(Peer(index), count);
                // Each message counts as a turn, up to the next turn of the silent peers.
                self.turn = self.turn.wrapping_add(count as u32 - 1).min(self.turn | (FAIR_INTERVAL - 1));
                self.step(index, count as u64, count as u64);
                if count < inbox.run().len() {
                    // Mostly the next one is not there yet: to look for it at once, where there is no other ring, is in vain.
                    self.streams = self.polled.len() > 1;
                } else if let Some(peer_side) = &self.connections[index as usize].peer_side {
                    peer_side.consumer.prefetch(&self.memory, count as u64);
                }
                return inbox.next();
            }
        }
        let stamp = match peer_side.consumer.peek(&self.memory) {
            Ok(stamp) => stamp?,
            Err(fault) => return self.give_up(index, fault.into()),
        };
        if !stamp.is_inline() {
            return self.pop_descriptor(index, stamp);
        }
        peer_side.consumer.read(&self.memory, stamp, inbox.whole());
        if !connection.lives(&self.memory) {
            return self.give_up(index, self.ending(index));
        }
        self.step(index, slots_of(stamp), 1);
        Some(Event::Message { peer: Peer(index), tag: stamp.tag, len: usize::from(stamp.len) })
    }

    /// The first message of a connection, if the peer has connected by now.
    #[inline(never)]
    fn pop_first(&mut self, index: u32, inbox: &mut Inbox) -> Option<Event> {
        let connection = &mut self.connections[index as usize];
        match connection.resolve(&self.memory, &self.region, self.id, self.incarnation) {
            Ok(true) => self.pop(index, inbox),
            Ok(false) => None,
            Err(fault) => self.give_up(index, fault.into()),
        }
    }

    /// The descriptor of the message with this `stamp`, copied and checked.
    #[inline(never)]
    fn pop_descriptor(&mut self, index: u32, stamp: Stamp) -> Option<Event> {
        let connection = &mut self.connections[index as usize];
        let found = connection.peer_side.as_ref()?.consumer.descriptor(&self.memory);
        if !connection.lives(&self.memory) {
            return self.give_up(index, self.ending(index));
        }
        if let Err(fault) = check_descriptor(&self.region, connection.id, stamp.kind, &found) {
            return self.give_up(index, fault.into());
        }
        let (peer, tag) = (Peer(index), stamp.tag);
        let event = match stamp.kind {
            KIND_FRAGMENT => Event::Fragment { peer, tag, offset: found.offset, len: found.len as usize },
            KIND_OFFER => Event::Offer { peer, tag, offer: found },
            _ => Event::Done { peer, tag, cookie: found.cookie },
        };
        if stamp.kind == KIND_FRAGMENT {
            connection.held = true;
            connection.counted.fragments_received.add(found.len as usize);
            if let Some(peer_side) = &mut connection.peer_side {
                peer_side.consumer.advance(&self.memory, stamp);
            }
        } else {
            self.step(index, slots_of(stamp), 1);
        }
        Some(event)
    }

    #[cold]
    fn give_up(&mut self, index: u32, why: PeerError) -> Option<Event> {
        self.fail(index, why);
        None
    }

    /// Steps over slots of messages that were read, and acknowledges them if that is due, or remembers to.
    #[inline(always)]
    pub(super) fn step(&mut self, index: u32, slots: u64, messages: u64) {
        let connection = &mut self.connections[index as usize];
        let Some(peer_side) = &mut connection.peer_side else { return };
        peer_side.consumer.advance_by(&self.memory, slots, messages);
        if peer_side.consumer.is_acknowledgement_due() {
            connection.acknowledge(&self.memory);
        } else {
            self.consumed = true;
        }
    }

    /// Gives the fragment that [`Event::Fragment`] showed back to its sender.
    ///
    /// # Errors
    ///
    /// The sender's life ended meanwhile, so that the bytes may not be its own.
    pub fn consume(&mut self, peer: Peer) -> Result<(), PeerError> {
        let connection = &mut self.connections[peer.index()];
        if !core::mem::take(&mut connection.held) {
            return Ok(());
        }
        if let Some(why) = connection.failed {
            return Err(why);
        }
        if !connection.lives(&self.memory) {
            let why = self.ending(peer.0);
            self.fail(peer.0, why);
            return Err(why);
        }
        let connection = &mut self.connections[peer.index()];
        connection.acknowledge(&self.memory);
        Ok(())
    }

    /// Acknowledges all that was consumed.
    #[inline]
    pub fn flush(&mut self) {
        if core::mem::take(&mut self.consumed) {
            self.flush_polled();
        }
    }

    /// Whatever was read last is polled, or was acknowledged when that ended.
    #[inline(never)]
    fn flush_polled(&mut self) {
        for index in &self.polled {
            self.connections[*index as usize].settle(&self.memory);
        }
    }

    /// Liveness check of one peer: a process that only waits for it would not notice its end. The traffic with it is told, too.
    fn check_one(&mut self) {
        if self.connections.is_empty() {
            return;
        }
        let index = (self.turn / (2 * FAIR_INTERVAL)) % self.connections.len() as u32;
        let connection = &mut self.connections[index as usize];
        if connection.failed.is_some() {
            return;
        }
        if connection.lives(&self.memory) {
            connection.tell(&self.memory);
        } else {
            let why = connection.ending(&self.memory);
            self.fail(index, why);
        }
    }

    fn fetch_verdicts(&mut self) {
        if !self.verdicts.has_news() {
            return;
        }
        for index in 0..self.connections.len() as u32 {
            let connection = &self.connections[index as usize];
            if connection.failed.is_none()
                && let Some(why) = self.verdicts.verdict(connection.id, connection.incarnation)
            {
                self.fail(index, why);
            }
        }
    }
}
