//! Operands that are read where they lie.
//!
//! A member whose operand lies in its own section copies nothing to its slots. With the stamp of the operation's first step it
//! says where the whole operand is, and publishes no more of it. The others read it there, and the member returns when they
//! say that they have finished with the operation. Each member decides by itself, and anew for each operand: all others
//! take what comes.

use super::group::{Broken, Group, Pause, Readers};
use super::layout::{LENT, head_payload, is_short, stamp};
use crate::memory::Memory;

/// An operand that is lent begins at a multiple of so many bytes, as what lies in slots does: operations may count on it.
pub(super) const ALIGNMENT: u64 = 16;

/// A piece of a member's operand.
#[derive(Clone, Copy)]
pub(super) struct Piece {
    /// The step at which it is published, if it is.
    pub step: u64,
    /// Where it begins in the operand.
    pub at: usize,
    /// Its bytes.
    pub now: usize,
    /// The operand's bytes.
    pub len: usize,
}

impl<M: Memory> Group<M> {
    /// Where our operand lies, if the others can read it there, and it is long enough.
    pub(super) fn lendable(&self, data: *const u8, len: usize) -> Option<u64> {
        if is_short(len) {
            return None;
        }
        let offset = self.memory.offset_of(data, len as u64)?;
        // In an open region there is memory that we may write, and that is another's.
        let is_ours = self.members[self.me].section.contains(offset, len as u64);
        (is_ours && offset.is_multiple_of(ALIGNMENT)).then_some(offset)
    }

    /// Says at a step where our operand lies.
    pub(super) fn lend(
        &mut self,
        step: u64,
        offset: u64,
        len: usize,
        readers: Readers,
        pause: &mut impl Pause,
    ) -> Result<(), Broken> {
        self.vacate(step, 0, pause)?;
        self.memory.store_words(self.block + head_payload(step), [offset, len as u64]);
        self.raise(step, LENT, readers);
        Ok(())
    }

    /// Waits until the readers have finished with the operation, which has ended here.
    pub(super) fn get_back(&mut self, readers: Readers, pause: &mut impl Pause) -> Result<(), Broken> {
        self.await_readers((self.step - 1, readers), pause)
    }

    /// Lends an operand that would be published in pieces of this length, in an operation in which nothing else is done.
    pub(super) fn lend_all(
        &mut self,
        offset: u64,
        len: usize,
        pieces: usize,
        readers: Readers,
        pause: &mut impl Pause,
    ) -> Result<(), Broken> {
        self.lend(self.step, offset, len, readers, pause)?;
        self.end(self.step + pieces as u64);
        pause.lent(len);
        self.get_back(readers, pause)
    }

    /// What a member says of the operand that it lends: where it begins, and its length.
    pub(super) fn told(&self, member: usize, step: u64) -> (u64, usize) {
        let [offset, len] = self.memory.load_words(self.members[member].block + head_payload(step));
        (offset, usize::try_from(len).unwrap_or(usize::MAX))
    }

    /// Waits for what a member says at a step: where its `len` bytes lie if it lends them, or None if `slot` bytes are in its slot.
    #[inline]
    fn expect_any(
        &mut self,
        member: usize,
        step: u64,
        slot: usize,
        len: usize,
        pause: &mut impl Pause,
    ) -> Result<Option<u64>, Broken> {
        let found = self.reached(member, step, pause)?;
        if found == stamp(step, slot) {
            Ok(None)
        } else if found == stamp(step, LENT) {
            // Copied once: the member may change it at any time.
            let told = self.told(member, step);
            self.check_lent(member, told, len).map(Some)
        } else {
            Err(self.surprise(member, step, slot, found))
        }
    }

    /// Waits for a piece of a member's operand, which if it is published has `slot` bytes, and returns where it begins if it is
    /// lent. The first piece of an operand must be asked for first.
    #[inline]
    pub(super) fn expect_piece(
        &mut self,
        member: usize,
        piece: Piece,
        slot: usize,
        pause: &mut impl Pause,
    ) -> Result<Option<u64>, Broken> {
        if piece.at == 0 {
            self.lent[member] = self.expect_any(member, piece.step, slot, piece.len, pause)?;
        } else if self.lent[member].is_none() {
            self.expect(member, piece.step, slot, pause)?;
        }
        Ok(self.lent[member].map(|offset| offset + piece.at as u64))
    }

    /// Where an operand of so many bytes lies, of which a member says that it begins at an offset and has a length.
    pub(super) fn check_lent(
        &self,
        member: usize,
        (offset, len): (u64, usize),
        expected: usize,
    ) -> Result<u64, Broken> {
        if len != expected {
            return Err(self.fault(Broken::Length { member, expected, found: len }, member));
        }
        if !self.members[member].section.contains(offset, len as u64) {
            return Err(self.fault(Broken::Outside { member, offset, len }, member));
        }
        Ok(offset)
    }

    /// Waits for a piece of a member's operand, and copies it.
    ///
    /// # Safety
    ///
    /// `to` is valid for writes of the piece's bytes.
    #[inline]
    pub(super) unsafe fn hear_piece(
        &mut self,
        member: usize,
        piece: Piece,
        to: *mut u8,
        pause: &mut impl Pause,
    ) -> Result<(), Broken> {
        let Piece { step, now, len, .. } = piece;
        if is_short(len) {
            // SAFETY: the caller vouches for `to`.
            return unsafe { self.hear_short(member, step, to, now, pause) };
        }
        let lent = self.expect_piece(member, piece, now, pause)?;
        let place = lent.unwrap_or_else(|| self.place(member, step, now));
        // SAFETY: as above.
        unsafe { self.memory.copy_out(place, to, now) };
        self.confirm(member)
    }

    /// Waits for an operand that is said at one step, and copies it.
    ///
    /// # Safety
    ///
    /// `to` is valid for writes of `len` bytes.
    #[inline]
    pub(super) unsafe fn hear_any(
        &mut self,
        member: usize,
        step: u64,
        to: *mut u8,
        len: usize,
        pause: &mut impl Pause,
    ) -> Result<(), Broken> {
        if is_short(len) {
            // SAFETY: the caller vouches for `to`.
            return unsafe { self.hear_short(member, step, to, len, pause) };
        }
        let lent = self.expect_any(member, step, len, len, pause)?;
        let place = lent.unwrap_or_else(|| self.place(member, step, len));
        // SAFETY: as above.
        unsafe { self.memory.copy_out(place, to, len) };
        self.confirm(member)
    }
}
