//! Sleeping: the last look before it.

use super::Endpoint;
use super::event::Inbox;
use crate::channel::doorbell;
use crate::memory::Memory;

impl<M: Memory> Endpoint<M> {
    /// Announces that the process is about to sleep until its doorbell rings, and looks once more at everything that may
    /// have happened, and at the inbox of its polls.
    ///
    /// True: nothing has happened, and a peer that writes something for us from now on rings; the caller waits for the
    /// doorbell and then calls [`Endpoint::wake_up`]. False: the endpoint is awake, and the caller goes on to
    /// [`Endpoint::poll`] and to send messages that found no room. Always false where the process never said that it may sleep
    /// ([`Process::may_sleep`](super::Process)), and as long as a peer lives that has no doorbell to ring. A process without
    /// one that we have not met yet is only heard after the sleep, so that no sleep should be without end.
    pub fn fall_asleep(&mut self, inbox: &Inbox) -> bool {
        if !self.may_sleep || !inbox.is_empty() {
            return false;
        }
        // Peers may be waiting for what we have not acknowledged yet.
        self.flush();
        self.sleeps += 1;
        for connection in &mut self.connections {
            if connection.failed.is_none() {
                connection.tell(&self.memory);
            }
        }
        let credit = self.connections.iter().any(|connection| {
            connection.failed.is_none()
                && (connection.blocked_on_credit.is_some() || !connection.in_flight.is_empty())
        });
        doorbell::announce(&self.memory, self.section.slot(self.slot), self.sleeps, credit);
        let is_idle = !self.has_anything();
        if !is_idle {
            self.wake_up();
        }
        is_idle
    }

    /// Retracts the announcement: the process does not sleep any more, and no peer needs to ring.
    pub fn wake_up(&mut self) {
        doorbell::retract(&self.memory, self.section.slot(self.slot));
    }

    /// Whether there is anything to do. May say so in vain, never misses anything.
    fn has_anything(&mut self) -> bool {
        for _ in 0..self.activity.len() {
            self.poll_activity();
        }
        if !self.backlog.is_empty()
            || self.verdicts.would_have_news()
            || self.memory.is_lost()
            || !self.unanswered.is_empty()
        {
            return true;
        }
        (0..self.connections.len() as u32).any(|index| self.connection_has_anything(index))
    }

    fn connection_has_anything(&mut self, index: u32) -> bool {
        let connection = &mut self.connections[index as usize];
        if connection.failed.is_some() {
            return false;
        }
        let learned = connection.catch_up(&self.memory, &self.region, self.id, self.incarnation);
        if let Err(fault) = learned {
            self.fail(index, fault.into());
            return true;
        }
        if !connection.lives(&self.memory) {
            let why = connection.ending(&self.memory);
            self.fail(index, why);
            return true;
        }
        let acknowledged = connection.producer.acknowledged();
        let has_landed = connection.in_flight.front().is_some_and(|(end, _)| *end <= acknowledged);
        if connection.blocked_on_credit.is_some_and(|len| connection.producer.has_room(len)) {
            connection.blocked_on_credit = None;
            return true;
        }
        let has_message = connection
            .peer_side
            .as_ref()
            .is_some_and(|peer_side| !matches!(peer_side.consumer.peek(&self.memory), Ok(None)));
        let must_ring = !connection.rings;
        if has_message {
            // One of the next polls finds it.
            self.enqueue(index);
        }
        has_landed || has_message || must_ring
    }
}
