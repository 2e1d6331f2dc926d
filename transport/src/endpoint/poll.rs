//! Receiving, and all else that only goes on when it is asked for.

use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use vmshm_abi::EndpointId;
use vmshm_abi::ring::{KIND_FRAGMENT, KIND_INLINE, KIND_OFFER, POLLED, Stamp};
use vmshm_abi::section::STATE_LIVE;

use super::Endpoint;
use super::event::{Event, Inbox, Peer};
use crate::channel::activity::may_be;
use crate::channel::connection::{HOT, check_descriptor, find_connection, read_claim};
use crate::channel::ring::slots_for;
use crate::error::PeerError;
use crate::memory::Memory;
use crate::region::slot;

/// Rings that are looked at in each poll; the others are found by their activity lines.
const MAX_HOT: usize = 8;

/// One poll in so many looks at the silent peers first; a short message that was read with others counts as a poll.
const FAIR: u32 = 32;

/// With more fragments than these under way, most polls look for those that have landed before they look for messages: who
/// always finds a message would get back fewer than it sends on for each, and take memory without end.
const CROWD: usize = 8;

/// One poll in so many looks at all else where nothing is known to be due, and at messages first where fragments are.
const CALM: u32 = 4;

/// A ring that was silent for so many polls, while others were not, is not looked at in each poll any more. That is some
/// half a millisecond of waiting. Its next message is found like that of any silent peer: by the activity line of its section.
const COOL: u32 = 1 << 14;

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
        if !self.turn.is_multiple_of(FAIR) {
            if let Some(event) = self.poll_crowd() {
                return Some(event);
            }
            self.streams = core::mem::take(&mut self.found);
            if let Some(event) = self.poll_hot(inbox) {
                return Some(event);
            }
            if !self.turn.is_multiple_of(CALM)
                && self.backlog.is_empty()
                && self.sending.is_empty()
                && !self.hot.is_empty()
            {
                if !self.dirty.is_empty() {
                    self.flush();
                }
                return None;
            }
        }
        self.poll_rest(inbox)
    }

    /// As [`Endpoint::poll`], for more of what poll has just found: looks only at the rings that were busy lately, and not
    /// even at these where poll had found nothing the last time. In a dialogue nothing comes before our answer, and to look
    /// in vain fetches a line that the peer has just prepared for its next message.
    #[inline(always)]
    pub fn poll_more(&mut self, inbox: &mut Inbox) -> Option<Event> {
        if let Some(event) = inbox.next() {
            return Some(event);
        }
        if self.streams {
            self.turn = self.turn.wrapping_add(1);
            if self.turn.is_multiple_of(FAIR) {
                return self.poll_rest(inbox);
            }
            if let Some(event) = self.poll_crowd() {
                return Some(event);
            }
            if let Some(event) = self.poll_hot(inbox) {
                return Some(event);
            }
        }
        if self.flying > CROWD { self.poll_all_sending() } else { None }
    }

    /// Fragments that were consumed, if many are under way and it is their turn.
    #[inline(always)]
    fn poll_crowd(&mut self) -> Option<Event> {
        if self.flying > CROWD && !self.turn.is_multiple_of(CALM) { self.poll_all_sending() } else { None }
    }

    #[inline(never)]
    fn poll_rest(&mut self, inbox: &mut Inbox) -> Option<Event> {
        let fair = self.turn.is_multiple_of(FAIR);
        if self.turn.is_multiple_of(2 * FAIR) {
            self.hear_news();
            self.check_one();
            self.look_again();
            if self.turn.is_multiple_of(COOL) {
                self.cool_silent();
            }
            self.flush();
            self.poll_activity();
            self.sweep_one();
            if let Some(id) = self.unmet.pop_front() {
                // There was no memory for an answer: something may have been freed.
                self.notice(id);
            }
            if let Some(event) = self.poll_queue(inbox) {
                return Some(event);
            }
        }
        if let Some(event) = self.backlog.pop_front() {
            return Some(event);
        }
        if let Some(event) = self.poll_sending() {
            return Some(event);
        }
        self.poll_activity();
        if let Some(event) = self.poll_queue(inbox) {
            return Some(event);
        }
        self.hear_news();
        self.prepare();
        if fair && let Some(event) = self.poll_hot(inbox) {
            return Some(event);
        }
        self.flush();
        self.backlog.pop_front()
    }

    /// Makes ready to answer the peer whose turn it was.
    fn prepare(&mut self) {
        let Some(&index) = self.hot.get(self.next_hot) else { return };
        let link = &mut self.links[index as usize];
        if link.failed.is_some() || !link.producer.is_short() {
            return;
        }
        match link.catch_up(&self.memory, &self.region, self.id, self.incarnation) {
            Ok(()) => link.producer.prepare(&self.memory),
            Err(fault) => self.fail(index, fault.into()),
        }
    }

    /// The rings that were busy lately, each in its turn.
    #[inline(always)]
    fn poll_hot(&mut self, inbox: &mut Inbox) -> Option<Event> {
        for _ in 0..self.hot.len() {
            self.next_hot += 1;
            if self.next_hot >= self.hot.len() {
                self.next_hot = 0;
            }
            let event = self.pop(*self.hot.get(self.next_hot)?, inbox);
            if event.is_some() {
                self.found = true;
                return event;
            }
        }
        self.streams = false;
        None
    }

    /// Fragments that were consumed, by whichever peer: the slow ones must not keep us from the one that is waited for.
    #[inline(never)]
    fn poll_all_sending(&mut self) -> Option<Event> {
        (0..self.sending.len().min(MAX_HOT)).find_map(|_| self.poll_sending())
    }

    /// Fragments that the next peer consumed.
    fn poll_sending(&mut self) -> Option<Event> {
        if self.sending.is_empty() {
            return None;
        }
        self.next_sending = (self.next_sending + 1) % self.sending.len();
        let index = self.sending[self.next_sending];
        let link = &mut self.links[index as usize];
        let (end, token) = *link.in_flight.front()?;
        if link.producer.acknowledged() < end {
            let learned = link.catch_up(&self.memory, &self.region, self.id, self.incarnation);
            if let Err(fault) = learned {
                self.fail(index, fault.into());
                return None;
            }
        }
        let link = &mut self.links[index as usize];
        if link.producer.acknowledged() < end {
            return None;
        }
        link.in_flight.pop_front();
        self.flying -= 1;
        if link.in_flight.is_empty() {
            self.sending.swap_remove(self.next_sending);
        }
        Some(Event::Sent { peer: Peer(index), token })
    }

    /// One section's activity line: links with news are queued, strangers who sent to us are met.
    pub(super) fn poll_activity(&mut self) {
        self.next_activity = (self.next_activity + 1) % self.activity.len();
        let number = self.next_activity;
        let changed = self.activity[number].look(&self.memory);
        if changed == 0 {
            return;
        }
        for slot in 0..self.region.header().endpoints {
            if may_be(changed, slot) {
                self.notice(self.region.endpoint(number as u32, slot));
            }
        }
    }

    /// Something may have come from this endpoint.
    fn notice(&mut self, id: EndpointId) {
        if id == self.id {
            return;
        }
        let index = self.by_id[id.0 as usize];
        let Some((&section, slot)) = self.region.place(id) else { return };
        let found = slot::state(&self.memory, &section, slot);
        if let Some(link) = self.links.get(index as usize)
            && (link.incarnation == found.incarnation || found.state != STATE_LIVE)
        {
            return self.enqueue(index);
        }
        if found.state != STATE_LIVE || !self.is_connected_to_us(id, found.incarnation) {
            return;
        }
        match self.add_link(id, found.incarnation) {
            Ok(peer) => self.enqueue(peer.0),
            Err(_) if self.unmet.contains(&id) => {}
            Err(_) => self.unmet.push_back(id),
        }
    }

    /// Whether a stranger has made a connection for our present life.
    fn is_connected_to_us(&self, id: EndpointId, incarnation: u64) -> bool {
        let Ok(Some(connection)) = find_connection(&self.memory, &self.region, id, self.id) else {
            return false;
        };
        read_claim(&self.memory, connection).is_for(self.id, self.incarnation, incarnation)
    }

    #[inline(never)]
    pub(super) fn enqueue(&mut self, index: u32) {
        let link = &mut self.links[index as usize];
        if !link.hot && !link.queued && link.failed.is_none() {
            link.queued = true;
            self.queue.push_back(index);
        }
    }

    fn poll_queue(&mut self, inbox: &mut Inbox) -> Option<Event> {
        for _ in 0..self.queue.len().min(MAX_HOT) {
            let index = self.queue.pop_front()?;
            self.links[index as usize].queued = false;
            if let Some(event) = self.pop_first(index, inbox) {
                self.heat(index);
                self.found = true;
                return Some(event);
            }
        }
        None
    }

    /// Makes a link hot, at the cost of the one that has been hot the longest.
    fn heat(&mut self, index: u32) {
        if self.links[index as usize].hot || self.links[index as usize].failed.is_some() {
            return;
        }
        if self.hot.len() == MAX_HOT {
            self.cool(self.hot[0]);
        }
        self.set_hot(index, true);
        self.hot.push(index);
    }

    /// Cools the links that were silent since this was called last, if others were not.
    #[inline(never)]
    fn cool_silent(&mut self) {
        let links = &mut self.links;
        let silent: Vec<u32> =
            self.hot.iter().copied().filter(|index| links[*index as usize].was_silent()).collect();
        if silent.len() < self.hot.len() {
            silent.into_iter().for_each(|index| self.cool(index));
        }
    }

    fn cool(&mut self, index: u32) {
        self.hot.retain(|hot| *hot != index);
        self.set_hot(index, false);
        // The peer may just have sent in the belief that we poll, or be about to.
        self.enqueue(index);
        self.cooled.push_back((self.turn, index));
    }

    /// Queues the links that were cooled so many polls ago that their peers know it by now.
    fn look_again(&mut self) {
        while let Some(&(turn, index)) = self.cooled.front()
            && self.turn.wrapping_sub(turn) >= 2 * FAIR
        {
            self.cooled.pop_front();
            self.enqueue(index);
        }
    }

    fn set_hot(&mut self, index: u32, hot: bool) {
        let link = &mut self.links[index as usize];
        link.hot = hot;
        self.memory.store(link.connection + HOT, if hot { POLLED } else { 0 }, Ordering::Relaxed);
    }

    /// Queues one silent link, so that a missed activity count costs time, never a message. Who has never sent to us was
    /// never polled, and so has always counted.
    fn sweep_one(&mut self) {
        if self.links.len() > self.hot.len() {
            self.sweep = (self.sweep + 1) % self.links.len();
            if self.links[self.sweep].theirs.is_some() {
                self.enqueue(self.sweep as u32);
            }
        }
    }

    /// The next message of one link.
    #[inline(always)]
    fn pop(&mut self, index: u32, inbox: &mut Inbox) -> Option<Event> {
        let link = &mut self.links[index as usize];
        if link.held || link.failed.is_some() {
            return None;
        }
        let Some(theirs) = &mut link.theirs else { return self.pop_first(index, inbox) };
        if self.streams && self.flying <= CROWD {
            // There may be many: what they have in common is looked at once.
            let count = theirs.consumer.read_run(&self.memory, inbox.run());
            if count > 0 {
                if !link.lives(&self.memory) {
                    return self.give_up(index, self.ending(index));
                }
                inbox.hold(Peer(index), count);
                // Each counts as a turn, up to the next in which the silent ones have theirs.
                self.turn = self.turn.wrapping_add(count as u32 - 1).min(self.turn | (FAIR - 1));
                self.step(index, count as u64);
                if count < inbox.run().len() {
                    // Mostly the next one is not there yet: to look for it at once, where there is no other ring, is in vain.
                    self.streams = self.hot.len() > 1;
                } else if let Some(theirs) = &self.links[index as usize].theirs {
                    theirs.consumer.prefetch(&self.memory, count as u64);
                }
                return inbox.next();
            }
        }
        let stamp = match theirs.consumer.peek(&self.memory) {
            Ok(stamp) => stamp?,
            Err(fault) => return self.give_up(index, fault.into()),
        };
        if stamp.kind != KIND_INLINE {
            return self.pop_descriptor(index, stamp);
        }
        theirs.consumer.read(&self.memory, stamp, inbox.whole());
        if !link.lives(&self.memory) {
            return self.give_up(index, self.ending(index));
        }
        self.step(index, slots_for(usize::from(stamp.len)));
        Some(Event::Message { peer: Peer(index), tag: stamp.tag, len: usize::from(stamp.len) })
    }

    /// The first message of a link, if the peer has connected by now.
    #[inline(never)]
    fn pop_first(&mut self, index: u32, inbox: &mut Inbox) -> Option<Event> {
        let link = &mut self.links[index as usize];
        match link.resolve(&self.memory, &self.region, self.id, self.incarnation) {
            Ok(true) => self.pop(index, inbox),
            Ok(false) => None,
            Err(fault) => self.give_up(index, fault.into()),
        }
    }

    /// What the message with this `stamp` points to, copied and checked.
    #[inline(never)]
    fn pop_descriptor(&mut self, index: u32, stamp: Stamp) -> Option<Event> {
        let link = &mut self.links[index as usize];
        let found = link.theirs.as_ref()?.consumer.descriptor(&self.memory);
        if !link.lives(&self.memory) {
            return self.give_up(index, self.ending(index));
        }
        if let Err(fault) = check_descriptor(&self.region, link.id, stamp.kind, &found) {
            return self.give_up(index, fault.into());
        }
        let (peer, tag) = (Peer(index), stamp.tag);
        let event = match stamp.kind {
            KIND_FRAGMENT => Event::Fragment { peer, tag, offset: found.offset, len: found.len as usize },
            KIND_OFFER => Event::Offer { peer, tag, offer: found },
            _ => Event::Done { peer, tag, cookie: found.cookie },
        };
        if stamp.kind == KIND_FRAGMENT {
            link.held = true;
            if let Some(theirs) = &mut link.theirs {
                theirs.consumer.advance(&self.memory, stamp);
            }
        } else {
            self.step(index, slots_for(usize::from(stamp.len)));
        }
        Some(event)
    }

    #[cold]
    fn give_up(&mut self, index: u32, why: PeerError) -> Option<Event> {
        self.fail(index, why);
        None
    }

    /// Steps over slots that were read, and acknowledges them if that is due, or remembers to.
    #[inline(always)]
    fn step(&mut self, index: u32, slots: u64) {
        let link = &mut self.links[index as usize];
        let Some(theirs) = &mut link.theirs else { return };
        theirs.consumer.advance_by(&self.memory, slots);
        if theirs.consumer.is_acknowledgement_due() {
            link.acknowledge(&self.memory);
        } else if !link.dirty {
            link.dirty = true;
            self.dirty.push(index);
        }
    }

    /// Gives the fragment that [`Event::Fragment`] showed back to its sender.
    ///
    /// # Errors
    ///
    /// The sender's life ended meanwhile, so that the bytes may not be its own.
    pub fn consume(&mut self, peer: Peer) -> Result<(), PeerError> {
        let link = &mut self.links[peer.index()];
        if !core::mem::take(&mut link.held) {
            return Ok(());
        }
        if let Some(why) = link.failed {
            return Err(why);
        }
        if !link.lives(&self.memory) {
            let why = self.ending(peer.0);
            self.fail(peer.0, why);
            return Err(why);
        }
        let link = &mut self.links[peer.index()];
        link.acknowledge(&self.memory);
        Ok(())
    }

    /// Acknowledges all that was consumed.
    pub(super) fn flush(&mut self) {
        while let Some(index) = self.dirty.pop() {
            let link = &mut self.links[index as usize];
            link.dirty = false;
            // What is held is not consumed yet, and a failed link's block may already be another's.
            if !link.held && link.failed.is_none() {
                link.acknowledge(&self.memory);
            }
        }
    }

    /// Looks whether one peer still lives and listens: who only waits for it would not notice.
    fn check_one(&mut self) {
        if self.links.is_empty() {
            return;
        }
        let index = (self.turn / (2 * FAIR)) % self.links.len() as u32;
        let link = &self.links[index as usize];
        if link.failed.is_none() && !link.lives(&self.memory) {
            let why = link.ending(&self.memory);
            self.fail(index, why);
        }
    }

    fn hear_news(&mut self) {
        if !self.watch.has_news() {
            return;
        }
        for index in 0..self.links.len() as u32 {
            let link = &self.links[index as usize];
            if link.failed.is_none()
                && let Some(why) = self.watch.verdict(link.id, link.incarnation)
            {
                self.fail(index, why);
            }
        }
    }
}
