//! A connection: one endpoint's state towards one peer, in one life of both. docs/protocol.md has its states.

use alloc::collections::VecDeque;

use vmshm_abi::ring::{
    CLOSED, ConnectionHeader, Descriptor, KIND_DONE, MAX_SLOTS, MIN_SLOTS, POLLED, SLOT, Told,
};
use vmshm_abi::section::EndpointSlot;
use vmshm_abi::{EndpointId, LINE};
use zerocopy::IntoBytes;

use core::mem::offset_of;
use core::sync::atomic::Ordering;

use super::doorbell;
use super::ring::{Consumer, Producer};
use super::traffic::{Amount, Traffic};
use crate::error::{Fault, PeerError};
use crate::memory::{Memory, Place};
use crate::region::slot;
use crate::region::{Region, Section};

/// The peer's side of a connection: its block for us, with its ring and its acknowledgement of ours.
#[derive(Debug)]
pub struct PeerSide {
    pub block: u64,
    /// The word that says whether it is [`CLOSED`], in the memory of the endpoint.
    pub state: Place,
    pub consumer: Consumer,
}

/// Our side of a connection, and what was found of the peer's.
#[derive(Debug)]
pub struct Connection {
    pub id: EndpointId,
    pub incarnation: u64,
    /// The state word of the peer's slot as long as it lives this life.
    pub live: u64,
    /// The peer's section.
    pub section: Section,
    /// The peer's slot in it, and that slot's offset in the region.
    pub slot_number: u32,
    pub slot: u64,
    /// The slot's state word, in the memory of the endpoint.
    pub state: Place,
    /// Owner of the peer's section when the connection was made; see [`Section::owner`].
    pub owner: u64,
    /// The peer may sleep: its doorbell may have to be rung after we have written for it.
    pub may_sleep: bool,
    /// The peer rings us when we sleep.
    pub rings: bool,
    /// The announced sleep that the peer was last rung for.
    pub rung: u64,
    /// Bytes of the message that last found the ring full, if it waits for credit.
    pub blocked_on_credit: Option<usize>,
    /// Offset of our connection block for the peer.
    pub block: u64,
    pub producer: Producer,
    pub peer_side: Option<PeerSide>,
    /// Fragments in flight: the ring position behind each, and its sender's token.
    pub in_flight: VecDeque<(u64, u64)>,
    /// Position in the peer's ring when [`Connection::is_answer`] was called last.
    pub answered: u64,
    /// Eager messages in flight: the ring position behind each, and the chunk that it lies in.
    pub eager: VecDeque<(u64, u32)>,
    /// A fragment was handed out and is not consumed yet.
    pub held: bool,
    /// We poll the peer's ring in each poll.
    pub polled: bool,
    /// Position in the peer's ring when [`Connection::was_silent`] was called last.
    pub last_activity: u64,
    /// The connection waits to be looked at.
    pub queued: bool,
    pub failed: Option<PeerError>,
    /// Traffic but for inline messages, which the rings' positions tell.
    pub counted: Traffic,
    /// The traffic as it was told last.
    pub told: Told,
    /// The endpoint's user has no use for the peer any more.
    pub forgotten: bool,
}

pub const CONSUMED: u64 = offset_of!(ConnectionHeader, consumed) as u64;
const TOLD: u64 = offset_of!(ConnectionHeader, told) as u64;
pub const POLLED_WORD: u64 = offset_of!(ConnectionHeader, polled) as u64;
const DIRECTORY: u64 = offset_of!(EndpointSlot, directory) as u64;

impl Connection {
    /// Looks for the peer's side of the connection; it is there once the peer has connected to us.
    pub fn resolve(
        &mut self,
        memory: &impl Memory,
        region: &Region,
        me: EndpointId,
        life: u64,
    ) -> Result<bool, Fault> {
        if self.peer_side.is_some() {
            return Ok(true);
        }
        let Some(block) = find_connection(memory, region, self.id, me)? else { return Ok(false) };
        let found = read_binding(memory, block);
        if !found.is_for(me, life, self.incarnation) {
            // Left over from an earlier life of one of us; the peer replaces it when it connects again.
            return Ok(false);
        }
        if !(MIN_SLOTS..=MAX_SLOTS).contains(&found.slots) {
            return Err(Fault { what: "ring slots", value: u64::from(found.slots) });
        }
        let bytes = vmshm_abi::ring::CONNECTION_LEN + u64::from(found.slots) * SLOT;
        let inside = region.place(self.id).is_some_and(|(section, _)| section.contains(block, bytes));
        if !inside {
            return Err(Fault { what: "ring offset", value: block });
        }
        let consumer = Consumer::new(memory, block + vmshm_abi::ring::CONNECTION_LEN, found.slots);
        let state = memory.place(block + POLLED_WORD, 8);
        self.peer_side = Some(PeerSide { block, state, consumer });
        Ok(true)
    }

    /// Liveness check: whether the peer still lives the life that we know, and has not closed; see [`slot::lives`].
    #[inline(always)]
    pub fn lives(&self, memory: &impl Memory) -> bool {
        slot::says(memory, self.slot, self.live) && !self.is_closed(memory)
    }

    #[inline(always)]
    fn is_closed(&self, memory: &impl Memory) -> bool {
        self.peer_side.as_ref().is_some_and(|peer_side| is_closed(memory, peer_side.block))
    }

    /// The reason why the peer does not live any more.
    pub fn ending(&self, memory: &impl Memory) -> PeerError {
        if slot::lives(memory, self.slot, self.incarnation) && self.is_closed(memory) {
            return PeerError::Closed;
        }
        slot::ending(memory, &self.section, self.slot_number, self.incarnation, self.owner)
    }

    /// Whether the peer has sent something since this was called last: then no other message of ours is likely to follow soon.
    #[inline(always)]
    pub fn is_answer(&mut self) -> bool {
        let Some(PeerSide { consumer, .. }) = &self.peer_side else { return false };
        core::mem::replace(&mut self.answered, consumer.position()) != consumer.position()
    }

    /// Whether an inline message of `len` bytes leaves room in the ring for more, and nothing in fragments is in flight.
    #[inline(always)]
    pub fn is_spacious(&self, len: usize) -> bool {
        !self.has_in_flight() && self.producer.is_spacious(len)
    }

    /// Whether something that lies in fragments is in flight, as far as this end knows.
    #[inline]
    pub fn has_in_flight(&self) -> bool {
        !self.in_flight.is_empty() || !self.eager.is_empty()
    }

    /// Rings the peer's doorbell if it sleeps. Called after an acknowledgement was written for it (`credit`), or a message.
    #[inline]
    pub fn wake(&mut self, memory: &impl Memory, credit: bool) {
        if self.may_sleep {
            self.wake_sleeper(memory, credit);
        }
    }

    #[inline(never)]
    fn wake_sleeper(&mut self, memory: &impl Memory, credit: bool) {
        if let Some(word) = doorbell::announced(memory, self.slot, credit)
            && word != self.rung
        {
            // Once for each sleep: a peer looks at everything when it wakes.
            self.rung = word;
            memory.ring(self.section.number, self.slot_number);
        }
    }

    /// All traffic so far.
    pub fn traffic(&self) -> Traffic {
        let inline = |messages: u64, slots: u64, fragments: Amount| Amount {
            count: messages - fragments.count,
            bytes: (slots - fragments.count) * SLOT,
        };
        let (sent, received) = (self.counted.fragments_sent, self.counted.fragments_received);
        Traffic {
            inline_sent: inline(self.producer.messages(), self.producer.position(), sent),
            inline_received: self
                .peer_side
                .as_ref()
                .map_or_else(Amount::default, |PeerSide { consumer, .. }| {
                    inline(consumer.messages(), consumer.position(), received)
                }),
            ..self.counted
        }
    }

    /// Tells the traffic so far, for the host to read, if there was any since it was told last: the line is the peer's too.
    pub fn tell(&mut self, memory: &impl Memory) {
        let Traffic { inline_received, fragments_received, gets, puts, .. } = self.traffic();
        let told = Told {
            inline: inline_received.count,
            fragments: fragments_received.count,
            fragment_bytes: fragments_received.bytes,
            gets: gets.count,
            get_bytes: gets.bytes,
            puts: puts.count,
            put_bytes: puts.bytes,
        };
        if told != self.told {
            self.told = told;
            memory.write(self.block + TOLD, told.as_bytes());
        }
    }

    /// Whether nothing was read from the peer since this was called last.
    pub fn was_silent(&mut self) -> bool {
        let position = self.peer_side.as_ref().map_or(0, |peer_side| peer_side.consumer.position());
        core::mem::replace(&mut self.last_activity, position) == position
    }

    /// Whether the peer says that it polls our ring anyway.
    ///
    /// # Safety
    ///
    /// The connection was made with this memory.
    #[inline(always)]
    pub unsafe fn is_polled(&self, memory: &impl Memory) -> bool {
        self.peer_side.as_ref().is_some_and(|PeerSide { state, .. }| {
            // SAFETY: a word of this memory, as the caller vouches.
            unsafe { memory.load_placed(*state, 0, Ordering::Relaxed) == POLLED }
        })
    }

    /// Loads the credit that the peer has given our ring, once it has connected to us.
    pub fn catch_up(
        &mut self,
        memory: &impl Memory,
        region: &Region,
        me: EndpointId,
        life: u64,
    ) -> Result<(), Fault> {
        self.resolve(memory, region, me, life)?;
        let Some(peer_side) = &self.peer_side else { return Ok(()) };
        let value = memory.load_peer(peer_side.block + CONSUMED, Ordering::Acquire);
        // The binding is read after the number: a departed peer's memory may be another's by now, and so may the number.
        if value != self.producer.acknowledged()
            && !read_binding(memory, peer_side.block).is_for(me, life, self.incarnation)
        {
            return Ok(());
        }
        self.producer.accept(value)
    }

    /// Acknowledges what was consumed, if there is something. A held fragment is not consumed yet, and a failed connection's block may
    /// already be another's.
    pub fn settle(&mut self, memory: &impl Memory) {
        let some =
            self.peer_side.as_ref().is_some_and(|PeerSide { consumer, .. }| consumer.unacknowledged() > 0);
        if some && !self.held && self.failed.is_none() {
            self.acknowledge(memory);
        }
    }

    /// Acknowledges the peer's messages up to the present position.
    #[inline]
    pub fn acknowledge(&mut self, memory: &impl Memory) {
        if let Some(peer_side) = &mut self.peer_side {
            peer_side.consumer.acknowledge(memory, self.block + CONSUMED);
            self.wake(memory, true);
        }
    }
}

/// Closes our side, whose block is at offset `block`: called before anything that our ring speaks of is used for something else.
pub fn close(memory: &impl Memory, block: u64) {
    memory.store(block + POLLED_WORD, CLOSED, Ordering::Relaxed);
    // Pairs with the fence in `slot::lives`: a reader of bytes that are written from now on sees the mark.
    memory.fence(Ordering::Release);
}

/// Whether the owner of the connection block at offset `block` has closed it. Called after [`slot::lives`], whose fence orders
/// it behind the reading of the owner's bytes.
#[inline]
pub fn is_closed(memory: &impl Memory, block: u64) -> bool {
    memory.load_peer(block + POLLED_WORD, Ordering::Relaxed) == CLOSED
}

/// Binding of a connection block to one life of each side: its first words, which do not change.
pub struct Binding {
    peer_incarnation: u64,
    incarnation: u64,
    peer: u32,
    slots: u32,
}

impl Binding {
    /// Whether the connection is for the life `life` of endpoint `me`, made by the life `incarnation` of its owner.
    pub fn is_for(&self, me: EndpointId, life: u64, incarnation: u64) -> bool {
        self.peer == me.0 && self.peer_incarnation == life && self.incarnation == incarnation
    }
}

/// Copies the binding of the connection block at offset `block`.
pub fn read_binding(memory: &impl Memory, block: u64) -> Binding {
    let word = |at: usize| memory.load(block + at as u64, Ordering::Relaxed);
    let peer_and_slots = word(offset_of!(ConnectionHeader, peer));
    let binding = Binding {
        peer_incarnation: word(offset_of!(ConnectionHeader, peer_incarnation)),
        incarnation: word(offset_of!(ConnectionHeader, incarnation)),
        peer: peer_and_slots as u32,
        slots: (peer_and_slots >> 32) as u32,
    };
    // Pairs with the fence of the block's maker: a reader of these words sees the ring behind them zeroed.
    memory.fence(Ordering::Acquire);
    binding
}

/// Offset of the connection of endpoint `of` with `with`, by the directory of the former.
pub fn find_connection(
    memory: &impl Memory,
    region: &Region,
    of: EndpointId,
    with: EndpointId,
) -> Result<Option<u64>, Fault> {
    let Some((section, slot)) = region.place(of) else { return Ok(None) };
    let directory = memory.load(section.slot(slot) + DIRECTORY, Ordering::Acquire);
    if directory == 0 {
        return Ok(None);
    }
    let word = directory
        .checked_add(u64::from(with.0) * 8)
        .filter(|word| word.is_multiple_of(8))
        .and_then(|word| section.absolute(word, 8))
        .ok_or(Fault { what: "directory offset", value: directory })?;
    let block = memory.load(word, Ordering::Acquire);
    if block == 0 {
        return Ok(None);
    }
    let absolute = section.absolute(block, vmshm_abi::ring::CONNECTION_LEN);
    match absolute.filter(|at| at.is_multiple_of(LINE)) {
        Some(at) => Ok(Some(at)),
        None => Err(Fault { what: "connection offset", value: block }),
    }
}

/// Checks that a peer's descriptor points into that peer's section.
pub fn check_descriptor(
    region: &Region,
    id: EndpointId,
    kind: u8,
    descriptor: &Descriptor,
) -> Result<(), Fault> {
    // A finished offer lies in our own section, and only its cookie means anything to us.
    if kind == KIND_DONE {
        return Ok(());
    }
    let inside =
        region.place(id).is_some_and(|(section, _)| section.contains(descriptor.offset, descriptor.len));
    if !inside {
        return Err(Fault { what: "payload offset", value: descriptor.offset });
    }
    Ok(())
}
