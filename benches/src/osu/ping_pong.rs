//! A message to another process and one back.

use super::buffer::{Buffer, seed};
use super::mpi::Mpi;
use super::turns::Turns;

/// One side of it.
#[derive(Debug)]
pub struct PingPong<'a> {
    /// MPI.
    pub mpi: &'a Mpi,
    /// The other side.
    pub peer: usize,
    /// Whether this side sends first.
    pub first: bool,
    /// Memory that is sent from.
    pub out: &'a Buffer,
    /// Where messages arrive.
    pub landing: &'a Buffer,
    /// Bytes of a message.
    pub size: usize,
}

impl PingPong<'_> {
    fn receive(&self, turn: u32, vary: bool) {
        self.mpi.receive(self.landing, self.size, self.peer);
        if vary {
            self.check(turn);
        }
    }
}

impl Turns for PingPong<'_> {
    fn clear(&self) {
        // SAFETY: blocking calls only: MPI does not use the buffer now.
        unsafe { self.landing.clear(self.size) };
    }

    fn pass(&mut self, turn: u32, vary: bool) {
        if !self.first {
            self.receive(turn, vary);
        }
        if vary {
            // SAFETY: blocking calls only: MPI does not use the buffer now.
            unsafe { self.out.write(self.size, seed(self.mpi.rank(), turn)) };
        }
        self.mpi.send(self.out, self.size, self.peer);
        if self.first {
            self.receive(turn, vary);
        }
    }

    fn check(&self, turn: u32) {
        // SAFETY: the receive has ended: MPI does not use the buffer now.
        let checked = unsafe { self.landing.check(self.size, seed(self.peer, turn)) };
        self.mpi.expect(checked, || format!("message of {} bytes in turn {turn}", self.size));
    }
}
