//! Sources: memory of this process that peers may get by rendezvous.

use std::collections::HashMap;

use vmshm_transport::Peer;

use super::prefix::PrefixBuffer;
use super::request::Request;

/// Bytes that a request counts for at least. No get of Open MPI's is shorter but a message's last one.
pub const LEAST: u64 = 64;

/// The number that stands for the source with the key that is shown.
pub const BY_KEY: u64 = u64::MAX;

/// Peers that may get a source.
#[derive(Debug)]
pub(crate) enum Audience {
    /// One peer, which may request so many bytes more: each once, so that its requests can't fill our memory.
    Peer(Peer, u64),
    /// Any peer that shows this key.
    Key(u64),
}

impl Audience {
    /// One peer, for all of `len` bytes.
    pub fn one(peer: Peer, len: usize) -> Self {
        Self::Peer(peer, len as u64 + LEAST)
    }
}

/// Memory of this process that peers may get.
#[derive(Debug)]
pub(crate) struct Source {
    pub audience: Audience,
    pub base: *const u8,
    pub len: usize,
    pub prefix: Option<PrefixBuffer>,
}

/// All sources, by their numbers. A number is its slot, and how often that was used: it is never used again for another source.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    slots: Vec<(u32, Option<Source>)>,
    free: Vec<u32>,
    /// Numbers of keyed sources.
    by_key: HashMap<u64, u64>,
    /// Those that are exposed to one peer: each is a message.
    messages: usize,
}

impl Sources {
    /// Adds a source and returns its number, which is less than 2^63.
    pub fn add(&mut self, source: Source) -> u64 {
        self.messages += usize::from(matches!(source.audience, Audience::Peer(..)));
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push((0, None));
            self.slots.len() as u32 - 1
        });
        let (uses, held) = &mut self.slots[slot as usize];
        *uses = (*uses + 1) & (u32::MAX >> 1);
        let number = u64::from(*uses) << 32 | u64::from(slot);
        if let Audience::Key(key) = source.audience {
            self.by_key.insert(key, number);
        }
        *held = Some(source);
        number
    }

    /// The number of the source with a key.
    pub fn number(&self, key: u64) -> Option<u64> {
        self.by_key.get(&key).copied()
    }

    pub fn get(&self, number: u64) -> Option<&Source> {
        let (uses, source) = self.slots.get(number as u32 as usize)?;
        source.as_ref().filter(|_| u64::from(*uses) == number >> 32)
    }

    /// Whether a peer may have this, now and not once more.
    pub fn allow(&mut self, peer: Peer, request: &Request, key: Option<u64>) -> bool {
        let Some((uses, Some(source))) = self.slots.get_mut(request.source as u32 as usize) else {
            return false;
        };
        let end = request.offset.checked_add(request.len);
        let is_there = u64::from(*uses) == request.source >> 32
            && request.len > 0
            && end.is_some_and(|end| end <= source.len as u64);
        match &mut source.audience {
            Audience::Key(secret) => is_there && key == Some(*secret),
            Audience::Peer(of, left) => match left.checked_sub(request.len.max(LEAST)) {
                Some(rest) if is_there && *of == peer && key.is_none() => {
                    *left = rest;
                    true
                }
                _ => false,
            },
        }
    }

    pub fn remove(&mut self, number: u64) -> Option<Source> {
        self.get(number)?;
        self.free.push(number as u32);
        let source = self.slots[number as u32 as usize].1.take();
        if let Some(Source { audience: Audience::Key(key), .. }) = &source {
            self.by_key.remove(key);
        }
        self.messages -=
            usize::from(source.as_ref().is_some_and(|source| matches!(source.audience, Audience::Peer(..))));
        source
    }

    /// Messages among the sources.
    pub fn messages(&self) -> usize {
        self.messages
    }

    /// Whether a source is for this peer alone.
    pub fn has_for(&self, peer: Peer) -> bool {
        let is_for = |source: &Source| matches!(source.audience, Audience::Peer(of, _) if of == peer);
        self.slots.iter().any(|(_, source)| source.as_ref().is_some_and(is_for))
    }
}
