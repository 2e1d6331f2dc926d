//! Zero-copy: exposed operands, which are read in place.
//!
//! A rank whose operand lies in its own section copies nothing to its slots. The stamp of the operation's first step and the
//! words behind it give the place of the whole operand, and no more of it is published. The others read it there, and the rank
//! returns when their `done` words show that they have finished with the operation. Each rank decides by itself, and anew for
//! each operand: readers accept either way.

use super::error::CollError;
use super::group::{Group, Readers};
use super::layout::{EXPOSED, head_payload, is_short, stamp};
use super::pause::Pause;
use crate::memory::Memory;

/// Alignment of an exposed operand, bytes, the same as of slots: operations may count on it.
pub(super) const ALIGNMENT: u64 = 16;

/// A piece of a rank's operand.
#[derive(Clone, Copy)]
pub(super) struct Piece {
    /// The step at which it is published, if it is.
    pub step: u64,
    /// Its offset in the operand.
    pub at: usize,
    /// Its bytes.
    pub now: usize,
    /// The operand's bytes.
    pub len: usize,
}

impl<M: Memory> Group<M> {
    /// Offset in the region of our operand, if the others can read it there, and it is long enough.
    pub(super) fn exposable(&self, data: *const u8, len: usize) -> Option<u64> {
        if is_short(len) {
            return None;
        }
        let offset = self.memory.offset_of(data, len as u64)?;
        // In an open region memory that we may write can be another's.
        let is_ours = self.ranks[self.me].section.contains(offset, len as u64);
        (is_ours && offset.is_multiple_of(ALIGNMENT)).then_some(offset)
    }

    /// Exposes our operand at a step.
    pub(super) fn expose(
        &mut self,
        step: u64,
        offset: u64,
        len: usize,
        readers: Readers,
        pause: &mut impl Pause,
    ) -> Result<(), CollError> {
        self.await_slot(step, 0, pause)?;
        self.memory.store_words(self.block + head_payload(step), [offset, len as u64]);
        self.store_stamp(step, EXPOSED, readers);
        Ok(())
    }

    /// Waits until the readers have released our operand: finished with the operation, which has ended here.
    pub(super) fn await_release(
        &mut self,
        readers: Readers,
        pause: &mut impl Pause,
    ) -> Result<(), CollError> {
        self.await_readers((self.step - 1, readers), pause)
    }

    /// Exposes an operand that would take `pieces` steps, in an operation in which nothing else is done.
    pub(super) fn expose_all(
        &mut self,
        offset: u64,
        len: usize,
        pieces: usize,
        readers: Readers,
        pause: &mut impl Pause,
    ) -> Result<(), CollError> {
        self.expose(self.step, offset, len, readers, pause)?;
        self.end(self.step + pieces as u64);
        pause.exposed(len);
        self.await_release(readers, pause)
    }

    /// Place and length of the operand that a rank exposes, as it says.
    pub(super) fn exposed_at(&self, rank: usize, step: u64) -> (u64, usize) {
        let [offset, len] = self.memory.load_words(self.ranks[rank].block + head_payload(step));
        (offset, usize::try_from(len).unwrap_or(usize::MAX))
    }

    /// Waits for a rank's step: the offset of its `len` bytes if it exposes them, or None if `slot` bytes are in its slot.
    #[inline]
    fn expect_any(
        &mut self,
        rank: usize,
        step: u64,
        slot: usize,
        len: usize,
        pause: &mut impl Pause,
    ) -> Result<Option<u64>, CollError> {
        let found = self.reached(rank, step, pause)?;
        if found == stamp(step, slot) {
            Ok(None)
        } else if found == stamp(step, EXPOSED) {
            // Copied once: the rank may change it at any time.
            let told = self.exposed_at(rank, step);
            self.check_exposed(rank, told, len).map(Some)
        } else {
            Err(self.mismatch(rank, step, slot, found))
        }
    }

    /// Waits for a piece of a rank's operand, which if it is published has `slot` bytes, and returns its offset if it is exposed.
    /// The first piece of an operand must be waited for first.
    #[inline]
    pub(super) fn expect_piece(
        &mut self,
        rank: usize,
        piece: Piece,
        slot: usize,
        pause: &mut impl Pause,
    ) -> Result<Option<u64>, CollError> {
        if piece.at == 0 {
            self.exposed[rank] = self.expect_any(rank, piece.step, slot, piece.len, pause)?;
        } else if self.exposed[rank].is_none() {
            self.expect(rank, piece.step, slot, pause)?;
        }
        Ok(self.exposed[rank].map(|offset| offset + piece.at as u64))
    }

    /// Offset of an exposed operand of `expected` bytes, checked against the rank's section.
    pub(super) fn check_exposed(
        &self,
        rank: usize,
        (offset, len): (u64, usize),
        expected: usize,
    ) -> Result<u64, CollError> {
        if len != expected {
            return Err(self.fault(CollError::LengthMismatch { rank, expected, found: len }, rank));
        }
        if !self.ranks[rank].section.contains(offset, len as u64) {
            return Err(self.fault(CollError::OutsideSection { rank, offset, len }, rank));
        }
        Ok(offset)
    }

    /// Waits for a piece of a rank's operand, and copies it.
    ///
    /// # Safety
    ///
    /// `to` is valid for writes of the piece's bytes.
    #[inline]
    pub(super) unsafe fn receive_piece(
        &mut self,
        rank: usize,
        piece: Piece,
        to: *mut u8,
        pause: &mut impl Pause,
    ) -> Result<(), CollError> {
        let Piece { step, now, len, .. } = piece;
        if is_short(len) {
            // SAFETY: the caller vouches for `to`.
            return unsafe { self.receive_short(rank, step, to, now, pause) };
        }
        let exposed = self.expect_piece(rank, piece, now, pause)?;
        let place = exposed.unwrap_or_else(|| self.place(rank, step, now));
        // SAFETY: the caller vouches for `now` bytes at `to`; `copy_out` checks the other side.
        unsafe { self.memory.copy_out(place, to, now) };
        self.confirm(rank)
    }

    /// Waits for an operand that is published at one step, and copies it.
    ///
    /// # Safety
    ///
    /// `to` is valid for writes of `len` bytes.
    #[inline]
    pub(super) unsafe fn receive_any(
        &mut self,
        rank: usize,
        step: u64,
        to: *mut u8,
        len: usize,
        pause: &mut impl Pause,
    ) -> Result<(), CollError> {
        if is_short(len) {
            // SAFETY: the caller vouches for `to`.
            return unsafe { self.receive_short(rank, step, to, len, pause) };
        }
        let exposed = self.expect_any(rank, step, len, len, pause)?;
        let place = exposed.unwrap_or_else(|| self.place(rank, step, len));
        // SAFETY: the caller vouches for `len` bytes at `to`; `copy_out` checks the other side.
        unsafe { self.memory.copy_out(place, to, len) };
        self.confirm(rank)
    }
}
