//! A window of messages in one direction, all to or from one buffer, and an answer when they have arrived.

use super::buffer::{Buffer, seed};
use super::mpi::{Mpi, Pending};
use super::turns::Turns;

/// Which end of the stream this process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Sends to this rank.
    To(usize),
    /// Receives from this rank.
    From(usize),
}

/// One end of a stream of messages of one size.
#[derive(Debug)]
pub struct Stream<'a, 'p> {
    /// MPI.
    pub mpi: &'a Mpi,
    /// Which end.
    pub end: End,
    /// Where the messages are.
    pub buffer: &'a Buffer,
    /// Bytes of a message.
    pub size: usize,
    /// Messages under way at a time.
    pub window: usize,
    /// Room for as many requests.
    pub pending: &'p mut Pending<'a>,
}

impl Turns for Stream<'_, '_> {
    /// Takes away what the receiver's buffer holds.
    fn clear(&self) {
        if let End::From(_) = self.end {
            // SAFETY: no window is under way: MPI does not use the buffer.
            unsafe { self.buffer.clear(self.size) };
        }
    }

    /// Passes one window of messages and its answer.
    fn pass(&mut self, turn: u32, vary: bool) {
        if vary && let End::To(_) = self.end {
            // SAFETY: no window is under way: MPI does not use the buffer.
            unsafe { self.buffer.write(self.size, seed(self.mpi.rank(), turn)) };
        }
        for _ in 0..self.window {
            match self.end {
                End::To(peer) => self.pending.send(self.buffer, self.size, peer),
                End::From(peer) => self.pending.receive(self.buffer, self.size, peer),
            }
        }
        self.pending.wait();
        if vary {
            self.check(turn);
        }
        match self.end {
            End::To(peer) => self.mpi.await_acknowledgement(peer),
            End::From(peer) => self.mpi.acknowledge(peer),
        }
    }

    fn check(&self, turn: u32) {
        if let End::From(peer) = self.end {
            // SAFETY: the window has ended: MPI does not use the buffer.
            let checked = unsafe { self.buffer.check(self.size, seed(peer, turn)) };
            self.mpi.expect(checked, || format!("message of {} bytes in turn {turn}", self.size));
        }
    }
}
