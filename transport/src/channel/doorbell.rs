//! Sleeping until the doorbell rings, without missing what came just before.
//!
//! A process that is about to sleep announces it in its endpoint slot, and then looks at everything once more. A peer that writes
//! something for it looks at that word afterwards, and rings if it is set. Between write and look both have a full fence, so
//! that at least one of them sees the other's write.
//!
//! The word is new with each sleep, so that a sleeper is rung once by each peer and not for each message. Bit 0 says that
//! acknowledgements are waited for too.

use core::mem::offset_of;
use core::sync::atomic::Ordering;

use vmshm_abi::section::EndpointSlot;

use crate::memory::Memory;

/// In `sleeping`: acknowledgements are waited for too.
const CREDIT: u64 = 1;

const SLEEPING: u64 = offset_of!(EndpointSlot, sleeping) as u64;

/// Announces the `count`th sleep (from 1) of the endpoint whose slot is at offset `slot`. A look for work afterwards sees all
/// writes of peers that don't see the announcement.
pub fn announce(memory: &impl Memory, slot: u64, count: u64, credit: bool) {
    let word = count << 1 | if credit { CREDIT } else { 0 };
    memory.store(slot + SLEEPING, word, Ordering::Relaxed);
    memory.fence(Ordering::SeqCst);
}

/// Retracts the announcement: the endpoint does not sleep any more.
pub fn retract(memory: &impl Memory, slot: u64) {
    memory.store(slot + SLEEPING, 0, Ordering::Relaxed);
}

/// The sleep that the endpoint whose slot is at offset `slot` announces, if its doorbell is to be rung for an acknowledgement
/// that was just written (`credit`), or for a message.
pub fn announced(memory: &impl Memory, slot: u64, credit: bool) -> Option<u64> {
    memory.fence(Ordering::SeqCst);
    let word = memory.load(slot + SLEEPING, Ordering::Relaxed);
    (word != 0 && (!credit || word & CREDIT != 0)).then_some(word)
}
