//! The origin's side: requests are sent, and what the target says of them is waited for.

use std::ffi::c_int;
use std::hint::spin_loop;

use vmshm_messaging::Refused;
use vmshm_transport::{Peer, copy_from_shared, copy_to_shared};
use zerocopy::IntoBytes;

use super::block::{REPLY_LEN, Word};
use super::request::{Request, TAG};
use super::target::Refusal;
use super::window::{Served, Side};
use crate::ompi;
use crate::osc::epochs::{pause, rest};
use crate::osc::members::OUT_OF_RANGE;
use crate::process::{INSTANCE, loss};

/// Most bytes of a request that go through the ring itself.
const SHORT: usize = 640;

/// Looks at another's words between two looks for messages.
const LOOKS: u32 = 32;

impl Served {
    /// Sends a request once there is room for it, and waits for the reply, which fills `to`.
    ///
    /// # Errors
    /// The process is gone, or has refused this request or one before.
    pub fn fetch(&self, side: &Side, request: &Request, data: &[u8], to: &mut [u8]) -> Result<(), c_int> {
        self.request(side, request, data)?;
        side.flush()?;
        assert!(to.len() <= REPLY_LEN);
        // SAFETY: a reply has room for so many.
        unsafe { copy_from_shared(side.theirs.reply(), to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    /// Sends a request once there is room for it.
    ///
    /// # Errors
    /// The process is gone, or this one refuses its own request.
    pub fn request(&self, side: &Side, request: &Request, data: &[u8]) -> Result<(), c_int> {
        let Some(peer) = side.peer else {
            side.sent.set(side.sent.get() + 1);
            // SAFETY: the data are there.
            let result = unsafe { self.serve(self.members.me, request, data.as_ptr(), data.len()) };
            return if result == Err(Refusal::Nonsense) { Err(OUT_OF_RANGE) } else { Ok(()) };
        };
        loop {
            match send(peer, request.as_bytes(), data) {
                Ok(()) => break,
                Err(Refused::Full) => pause(),
                Err(Refused::Lost) => {
                    loss::report(&mut INSTANCE.lock(), peer);
                    return Err(ompi::OPAL_ERR_UNREACH);
                }
            }
        }
        side.sent.set(side.sent.get() + 1);
        Ok(())
    }
}

impl Side {
    /// Waits until the process has done all that it was asked for; orders as a fence does.
    ///
    /// # Errors
    /// The process has refused a request.
    pub fn flush(&self) -> Result<(), c_int> {
        self.await_word(Word::Done, self.sent.get());
        let refused = self.theirs.load(Word::Refused);
        if self.refused.replace(refused) == refused { Ok(()) } else { Err(OUT_OF_RANGE) }
    }

    /// Waits until a word of the other's has reached a value; orders as a fence does.
    pub fn await_word(&self, word: Word, value: u64) {
        loop {
            for _ in 0..LOOKS {
                if self.theirs.load(word) >= value {
                    return rest();
                }
                spin_loop();
            }
            pause();
        }
    }
}

/// Sends a request, if there is room for it now.
fn send(peer: Peer, request: &[u8], data: &[u8]) -> Result<(), Refused> {
    let mut instance = INSTANCE.lock();
    let engine = &mut instance.as_mut().ok_or(Refused::Lost)?.engine;
    let len = request.len() + data.len();
    if len <= SHORT {
        return engine.try_send(peer.index(), TAG, &[request, data]);
    }
    if !engine.is_free(peer) {
        return Err(Refused::Full);
    }
    let bounce = engine.bounce(peer, len).ok_or(Refused::Full)?;
    // SAFETY: there is room for both.
    unsafe {
        copy_to_shared(request.as_ptr(), bounce.ptr(), request.len());
        copy_to_shared(data.as_ptr(), bounce.ptr().add(request.len()), data.len());
    }
    engine.send_bounce(peer, TAG, bounce, len)
}
