//! Broadcast and scatter: from one rank to the others.

use super::error::CollError;
use super::group::{Group, Readers};
use super::layout::is_short;
use super::pause::Pause;
use super::zero_copy::Piece;
use crate::memory::Memory;

impl<M: Memory> Group<M> {
    /// Copies `root`'s `len` bytes at `data` to all ranks' `data`.
    ///
    /// # Errors
    ///
    /// A rank that is gone or out of step.
    ///
    /// # Safety
    ///
    /// `data` is valid for reads and writes of `len` bytes.
    pub unsafe fn broadcast(
        &mut self,
        root: usize,
        data: *mut u8,
        len: usize,
        pause: &mut impl Pause,
    ) -> Result<(), CollError> {
        if is_short(len) {
            // SAFETY: this function's contract is that of the callee, with the same `data`.
            return unsafe { self.broadcast_short(root, data, len, pause) };
        }
        let piece = self.piece(len);
        if root == self.me
            && let Some(offset) = self.exposable(data, len)
        {
            return self.expose_all(offset, len, len.div_ceil(piece), Readers::All, pause);
        }
        self.in_pieces(len, piece, |group, step, at, now| {
            // SAFETY: at + now <= len.
            unsafe {
                if root == group.me {
                    group.publish_copy(step, data.add(at), now, Readers::All, pause)
                } else {
                    group.receive_piece(root, Piece { step, at, now, len }, data.add(at), pause)
                }
            }
        })
    }

    /// Scatters `root`'s `data`, a part of `len` bytes for each rank, to the ranks' `part`. The root's own part stays
    /// where it is.
    ///
    /// # Errors
    ///
    /// A rank that is gone or out of step.
    ///
    /// # Safety
    ///
    /// At the root `data` is valid for reads of as many parts as there are ranks; elsewhere `part` is valid for writes
    /// of `len` bytes.
    pub unsafe fn scatter(
        &mut self,
        root: usize,
        data: *const u8,
        part: *mut u8,
        len: usize,
        pause: &mut impl Pause,
    ) -> Result<(), CollError> {
        let piece = self.share(len);
        if root == self.me
            && let Some(offset) = self.exposable(data, len * self.size())
        {
            return self.expose_all(offset, len * self.size(), len.div_ceil(piece), Readers::All, pause);
        }
        self.in_pieces(len, piece, |group, step, at, now| {
            // SAFETY: at + now <= len, as far as the parts reach.
            unsafe {
                if root == group.me {
                    group.publish_pieces(step, data.add(at), len, now, pause)
                } else {
                    group.receive_share(root, Piece { step, at, now, len }, part.add(at), pause)
                }
            }
        })
    }

    /// Whether parts of this length go to one other rank, and are so short that they are not exposed.
    #[inline]
    fn has_one_receiver(&self, len: usize) -> bool {
        self.size() == 2 && is_short(2 * len)
    }

    /// Publishes a piece of `now` bytes for each rank: the pieces lie `stride` bytes apart from `data` on.
    ///
    /// # Safety
    ///
    /// The pieces are valid for reads.
    #[inline]
    pub(super) unsafe fn publish_pieces(
        &mut self,
        step: u64,
        data: *const u8,
        stride: usize,
        now: usize,
        pause: &mut impl Pause,
    ) -> Result<(), CollError> {
        let (size, me, all) = (self.size(), self.me, now * (self.size() - 1));
        if self.has_one_receiver(stride) {
            // SAFETY: the caller vouches for the piece.
            return unsafe {
                self.publish_short(step, data.add((1 - me) * stride), now, Readers::All, pause)
            };
        }
        self.await_slot(step, all, pause)?;
        let place = self.place(me, step, all);
        for (number, rank) in (0..size).filter(|rank| *rank != me).enumerate() {
            // SAFETY: the caller vouches for the piece, and the slot has room for all.
            unsafe { self.memory.copy_in(place + (number * now) as u64, data.add(rank * stride), now) };
        }
        self.publish(step, all, Readers::All);
        Ok(())
    }

    /// Waits for the piece of our part that a rank has published, and copies it.
    ///
    /// # Safety
    ///
    /// `to` is valid for writes of the piece's bytes.
    #[inline]
    pub(super) unsafe fn receive_share(
        &mut self,
        rank: usize,
        piece: Piece,
        to: *mut u8,
        pause: &mut impl Pause,
    ) -> Result<(), CollError> {
        let Piece { step, now, len, .. } = piece;
        if self.has_one_receiver(len) {
            // SAFETY: the caller vouches for `to`.
            return unsafe { self.receive_short(rank, step, to, now, pause) };
        }
        let all = now * (self.size() - 1);
        let whole = Piece { len: len * self.size(), ..piece };
        let place = match self.expect_piece(rank, whole, all, pause)? {
            Some(place) => place + (self.me * len) as u64,
            None => {
                // The publishing rank has no piece for itself.
                let number = if self.me > rank { self.me - 1 } else { self.me };
                self.place(rank, step, all) + (number * now) as u64
            }
        };
        // SAFETY: the caller vouches for `to`.
        unsafe { self.memory.copy_out(place, to, now) };
        self.confirm(rank)
    }
}
