//! The receiver's side of the rendezvous: gets, their prefixes, and the chunks that come for them.

use zerocopy::IntoBytes;

use vmshm_transport::{Peer, PeerError};

use crate::engine::Engine;
use crate::rendezvous::{Get, MAX_REQUESTS, PartialGet, REQUEST, Request};
use crate::send::Refused;
use crate::serve::SHORTEST_STEP;
use crate::upcall::{Piece, Upcall};

/// Looks in vain at a progress word before something else is done: some microseconds at most, in which a step is copied.
const LOOKS: u32 = 256;

impl<S, G> Engine<S, G> {
    /// Begins a get: requests what the source's prefix does not hold, and copies what of the prefix is there. Returns the
    /// completion if that is all; else the get completes by [`Upcall::Got`].
    ///
    /// # Errors
    ///
    /// A peer that is gone, a prefix that is none; too many gets of keyed sources: the completion comes back.
    ///
    /// # Safety
    ///
    /// `local` must be valid for writes of `len` bytes until the get completes, or the engine is dropped.
    pub unsafe fn get(&mut self, peer: Peer, get: Get<G>) -> Result<Option<G>, (Refused, G)> {
        let prefix = get.prefix.part(get.offset, get.len, self.params.max_message);
        let mut partial = PartialGet { peer, get, prefix, done: 0 };
        if let Err(why) = self.begin(&partial) {
            return Err((why, partial.get.done));
        }
        // An error here is followed by an event, which takes the get back.
        let _ = self.read_prefix(&mut partial, LOOKS);
        if prefix < partial.get.len {
            self.state(peer.index()).gets.add(partial);
            return Ok(None);
        }
        if partial.has_prefix() {
            return Ok(Some(partial.get.done));
        }
        self.partial.push(partial);
        if let Some(waker) = &self.waker {
            // Nobody rings for it: a thread that sleeps has to look anew.
            waker.wake();
        }
        Ok(None)
    }

    /// Checks a get's prefix, and requests the rest.
    fn begin(&mut self, partial: &PartialGet<G>) -> Result<(), Refused> {
        let PartialGet { peer, get, prefix, .. } = partial;
        let (peer, prefix) = (*peer, *prefix);
        if prefix > 0 {
            let from = get.prefix.data() + get.offset;
            let is_theirs = self.endpoint.check_remote(peer, from, prefix as u64);
            is_theirs
                .and_then(|()| self.endpoint.load(peer, get.prefix.progress()))
                .map_err(|_| Refused::Lost)?;
        }
        if prefix == get.len {
            return Ok(());
        }
        if get.key.is_some() && self.state(peer.index()).gets.len() >= MAX_REQUESTS {
            return Err(Refused::Full);
        }
        // The sender can begin with the rest while the prefix is copied here.
        let request = Request {
            source: get.source,
            offset: get.offset + prefix as u64,
            len: (get.len - prefix) as u64,
        };
        let mut bytes = [0; size_of::<Request>() + size_of::<u64>()];
        let (first, second) = bytes.split_at_mut(size_of::<Request>());
        first.copy_from_slice(request.as_bytes());
        second.copy_from_slice(&get.key.unwrap_or(0).to_ne_bytes());
        let len = if get.key.is_some() { bytes.len() } else { size_of::<Request>() };
        self.send_inline(peer, REQUEST, &bytes[..len], None).map(|_| ()).map_err(|_| Refused::Lost)
    }

    /// Copies what is there of a prefix, until all of it is or nothing more comes for `patience` looks.
    pub(crate) fn read_prefix(
        &mut self,
        partial: &mut PartialGet<G>,
        patience: u32,
    ) -> Result<(), PeerError> {
        let PartialGet { peer, get: Get { prefix, offset, local, .. }, prefix: len, done } = partial;
        let mut looks = 0;
        while *done < *len {
            let word = self.endpoint.load(*peer, prefix.progress())?;
            let there = word.saturating_sub(*offset).min(*len as u64) as usize;
            let new = there.saturating_sub(*done);
            if new > 0 {
                let from = prefix.data() + *offset + *done as u64;
                // SAFETY: the caller of `get` vouches for all of the destination until the get completes.
                unsafe { self.endpoint.get(*peer, from, local.add(*done), new)? };
                *done = there;
                self.has_read = true;
            }
            if new >= SHORTEST_STEP {
                looks = 0;
            } else if looks < patience {
                // Also after a few bytes: the others wait for us, and the sender may give them one by one.
                looks += 1;
                std::hint::spin_loop();
            } else {
                break;
            }
        }
        Ok(())
    }

    /// Goes on with the prefixes that were not here, and makes upcalls of gets that are complete.
    #[cold]
    pub(crate) fn read_prefixes(&mut self) {
        for index in (0..self.partial.len()).rev() {
            let mut partial = self.partial.swap_remove(index);
            // An error here is followed by an event, which takes the get back.
            let _ = self.read_prefix(&mut partial, 0);
            if partial.has_prefix() {
                self.upcalls.push_back(Upcall::Got { done: partial.get.done, result: Ok(()) });
            } else {
                self.partial.push(partial);
            }
        }
    }

    /// Where the next chunk of a peer belongs; none if this process has not requested it.
    pub(crate) fn place(&mut self, peer: Peer, tag: u8, len: usize) -> Option<*mut u8> {
        let (index, mut partial) = self.state(peer.index()).gets.take(tag)?;
        // All of its prefix is there before the first chunk is. An error here is followed by an event, which takes the get back.
        let _ = self.read_prefix(&mut partial, 0);
        // The chunk lies in the get, so that this is inside of the destination.
        let fits = partial.has_prefix() && len > 0 && len <= partial.get.len - partial.done;
        let place = fits.then(|| partial.get.local.wrapping_add(partial.done));
        self.state(peer.index()).gets.put(index, partial);
        place
    }

    /// Notes that a piece was copied. Returns the completion of a get that this makes complete.
    pub fn landed(&mut self, piece: &Piece) -> Option<G> {
        // An error here is followed by an upcall.
        self.endpoint.consume(piece.peer).ok()?;
        self.state(piece.peer.index()).gets.landed(piece.tag, piece.len)
    }
}
