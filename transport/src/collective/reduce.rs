//! Reductions.

use super::error::CollError;
use super::group::{Group, Readers};
use super::layout::is_short;
use super::pause::Pause;
use super::zero_copy::{ALIGNMENT, Piece};
use crate::memory::Memory;

/// Operator that joins two operands of the same length.
///
/// Operands may lie in the ranks' blocks, where a hostile rank can change them at any time: an operator that must not see that
/// copies them first.
pub trait Combine {
    /// Bytes of one element, which is never cut.
    fn element(&self) -> usize;

    /// Prepares for operands of which `most` bytes are joined at a time. Called before others' operands are waited for. False
    /// where there is no memory.
    fn get_ready(&mut self, _most: usize) -> bool {
        true
    }

    /// Makes `inout` the result of `left` and `inout`, in this order.
    ///
    /// # Safety
    ///
    /// `left` is valid for reads, `inout` for reads and writes of `len` bytes, whole elements, and they do not overlap.
    unsafe fn join(&mut self, left: *const u8, inout: *mut u8, len: usize);

    /// Makes `out` the result of `left` and `right`, in this order.
    ///
    /// # Safety
    ///
    /// `left` and `right` are valid for reads, `out` for writes of `len` bytes, whole elements; `out` overlaps neither.
    unsafe fn join_to(&mut self, left: *const u8, right: *const u8, out: *mut u8, len: usize);
}

/// Most bytes of others' operands of which each rank joins everything by itself, which costs the fewest steps.
const JOIN_ALL: usize = 64 << 10;

impl<M: Memory> Group<M> {
    /// Whether elements of this many bytes fit into the slots.
    pub fn fits(&self, element: usize) -> bool {
        element <= self.chunk() / 2
    }

    /// Waits for all other ranks' pieces.
    #[inline]
    fn expect_all(&mut self, piece: Piece, pause: &mut impl Pause) -> Result<(), CollError> {
        let me = self.me;
        for rank in (0..self.size()).filter(|rank| *rank != me) {
            self.expect_piece(rank, piece, piece.now, pause)?;
            if let Some(offset) = self.exposed[rank]
                && !offset.is_multiple_of(ALIGNMENT)
            {
                return Err(self.fault(CollError::OutsideSection { rank, offset, len: piece.len }, rank));
            }
        }
        Ok(())
    }

    /// Address in this process of bytes of another rank's piece, from `within` on.
    #[inline]
    fn operand(&self, rank: usize, piece: Piece, within: usize, len: usize) -> *const u8 {
        let begin = match self.exposed[rank] {
            Some(offset) => offset + piece.at as u64,
            None => self.place(rank, piece.step, piece.now),
        };
        self.memory.address(begin + within as u64, len as u64)
    }

    /// Whether an operand whose place the result takes must be kept elsewhere until it is joined: the last one is the first to
    /// be joined.
    pub(super) fn keeps(&self, data: *const u8, out: *const u8) -> bool {
        core::ptr::eq(data, out) && self.me != self.size() - 1
    }

    /// A length of whole elements, `len` at most and one at least.
    fn whole(len: usize, element: usize) -> usize {
        (len / element).max(1) * element
    }

    /// Joins `len` bytes of the ranks' operands to `out`, in the ranks' order. `others` says where they lie, but for `mine`.
    ///
    /// # Errors
    ///
    /// A rank that is gone: the bytes that were joined need not have been its own.
    ///
    /// # Safety
    ///
    /// All operands are valid for reads of `len` bytes, and `out` for writes. It overlaps none of them, or is `mine` where
    /// [`Group::keeps`] allows that.
    #[inline]
    pub(super) unsafe fn join_ranks(
        &self,
        others: impl Fn(usize) -> *const u8,
        mine: *const u8,
        out: *mut u8,
        len: usize,
        combine: &mut impl Combine,
    ) -> Result<(), CollError> {
        let operand = |rank: usize| match rank == self.me {
            true => mine,
            false => others(rank),
        };
        let last = self.size() - 1;
        // SAFETY: operands have `len` bytes each, and `out` is none of them, but for the last which is there already.
        unsafe {
            let rest = if core::ptr::eq(mine, out) {
                last
            } else if last == 0 {
                mine.copy_to_nonoverlapping(out, len);
                return Ok(());
            } else {
                combine.join_to(operand(last - 1), operand(last), out, len);
                last - 1
            };
            for rank in (0..rest).rev() {
                combine.join(operand(rank), out, len);
            }
        }
        self.confirm_all()
    }

    /// Joins all ranks' `data` in their order, element by element, to `root`'s `out`. There `out` may be `data`.
    ///
    /// # Errors
    ///
    /// A rank that is gone or out of step.
    ///
    /// # Safety
    ///
    /// `data` is valid for reads of `len` bytes, whole elements that [`Group::fits`] accepts. At the root `out` is valid for
    /// writes of as many, and is `data` or does not overlap it.
    pub unsafe fn reduce(
        &mut self,
        root: usize,
        data: *const u8,
        out: *mut u8,
        len: usize,
        combine: &mut impl Combine,
        pause: &mut impl Pause,
    ) -> Result<(), CollError> {
        if is_short(len) {
            // SAFETY: this function's contract is that of the callee, with the same operands.
            return unsafe { self.reduce_short(root, data, out, len, combine, pause) };
        }
        let me = self.me;
        let piece = Self::whole(self.piece(len), combine.element());
        if root != me
            && len <= self.exposes_to_root
            && let Some(offset) = self.exposable(data, len)
        {
            return self.expose_all(offset, len, len.div_ceil(piece), Readers::One(root), pause);
        }
        if root == me && !combine.get_ready(piece) {
            return Err(CollError::NoMemory);
        }
        self.in_pieces(len, piece, |group, step, at, now| {
            // SAFETY: at + now <= len.
            unsafe {
                let mut mine = data.add(at);
                if root != me {
                    return group.publish_copy(step, mine, now, Readers::One(root), pause);
                }
                if group.keeps(data, out) {
                    group.await_slot(step, now, pause)?;
                    group.memory.copy_in(group.place(me, step, now), mine, now);
                    mine = group.address(me, step, now);
                }
                let piece = Piece { step, at, now, len };
                group.expect_all(piece, pause)?;
                group.join_ranks(|rank| group.operand(rank, piece, 0, now), mine, out.add(at), now, combine)
            }
        })
    }

    /// Joins all ranks' `data` in their order, element by element, to everyone's `out`, which may be `data`.
    ///
    /// # Errors
    ///
    /// A rank that is gone or out of step.
    ///
    /// # Safety
    ///
    /// `data` is valid for reads of `len` bytes, whole elements that [`Group::fits`] accepts; `out` is valid for writes of
    /// as many, and is `data` or does not overlap it.
    pub unsafe fn all_reduce(
        &mut self,
        data: *const u8,
        out: *mut u8,
        len: usize,
        combine: &mut impl Combine,
        pause: &mut impl Pause,
    ) -> Result<(), CollError> {
        if is_short(len) {
            // SAFETY: this function's contract is that of the callee, with the same operands.
            return unsafe { self.all_reduce_short(data, out, len, combine, pause) };
        }
        if len > self.chunk() || len.saturating_mul(self.size() - 1) > JOIN_ALL {
            // SAFETY: this function's contract is that of the callee, with the same operands.
            return unsafe { self.all_reduce_by_shares(data, out, len, combine, pause) };
        }
        if !combine.get_ready(len) {
            return Err(CollError::NoMemory);
        }
        let (me, step) = (self.me, self.step);
        let in_place = core::ptr::eq(data, out);
        // An operand that others still read must not be overwritten.
        let exposed = if in_place { None } else { self.exposable(data, len) };
        // SAFETY: the caller vouches for `len` bytes.
        unsafe {
            match exposed {
                Some(offset) => self.expose(step, offset, len, Readers::All, pause)?,
                None => self.publish_copy(step, data, len, Readers::All, pause)?,
            }
            self.back_off(step, pause);
            let piece = Piece { step, at: 0, now: len, len };
            self.expect_all(piece, pause)?;
            let mine = if self.keeps(data, out) { self.address(me, step, len) } else { data };
            self.join_ranks(|rank| self.operand(rank, piece, 0, len), mine, out, len, combine)?;
        }
        self.end(step + 1);
        if exposed.is_some() { self.await_release(Readers::All, pause) } else { Ok(()) }
    }

    /// [`Group::all_reduce`] of long payloads. In each round, all publish a piece, then each joins its share of it and
    /// publishes that, then each collects the others' shares. A round's pieces are published while the last round's are
    /// still being joined, so that no rank waits long.
    ///
    /// Operands and results may be exposed, even an operand that is overwritten by the results: the share that is overwritten has
    /// been joined by its own rank, and no other reads it.
    ///
    /// # Safety
    ///
    /// As [`Group::all_reduce`].
    unsafe fn all_reduce_by_shares(
        &mut self,
        data: *const u8,
        out: *mut u8,
        len: usize,
        combine: &mut impl Combine,
        pause: &mut impl Pause,
    ) -> Result<(), CollError> {
        let (element, ranks) = (combine.element(), self.size());
        let piece = Self::whole(self.piece(len), element);
        let (first, count) = (self.step, len.div_ceil(piece));
        let (exposed, exposed_out) = (self.exposable(data, len), self.exposable(out, len));
        if !combine.get_ready(piece) {
            return Err(CollError::NoMemory);
        }
        let rounds = Rounds { first, data, out, len, piece, element, ranks, exposed, exposed_out };
        // SAFETY: the rounds lie in `len` bytes, and each is read before its result is written.
        unsafe {
            self.publish_inputs(&rounds, 0, pause)?;
            for round in 0..count {
                if round + 1 < count {
                    self.publish_inputs(&rounds, round + 1, pause)?;
                }
                self.join_share(&rounds, round, combine, pause)?;
                if round > 0 {
                    self.collect_shares(&rounds, round - 1, pause)?;
                    // The next round's input is not finished with, nor this round's shares.
                    self.finish(rounds.input(round + 1).min(rounds.output(round)));
                }
            }
            self.collect_shares(&rounds, count - 1, pause)?;
        }
        self.end(rounds.output(count - 1) + 1);
        // A rank that has published its last share has read all operands.
        if exposed_out.is_some() { self.await_release(Readers::All, pause) } else { Ok(()) }
    }

    /// # Safety
    ///
    /// The data has the bytes of the round.
    unsafe fn publish_inputs(
        &mut self,
        rounds: &Rounds,
        round: usize,
        pause: &mut impl Pause,
    ) -> Result<(), CollError> {
        let Piece { step, at, now, len } = rounds.piece(round);
        let keeps = self.keeps(rounds.data, rounds.out);
        if rounds.exposed.is_none() || keeps {
            self.await_slot(step, now, pause)?;
        }
        let place = self.place(self.me, step, now);
        let (mine, mine_len) = rounds.share(round, self.me);
        let end = mine + mine_len;
        // SAFETY: all parts lie in the round, and the slot has room for it.
        unsafe {
            let from = rounds.data.add(at);
            if keeps {
                // Our own share is joined from there, since its result takes its place.
                self.memory.copy_in(place + mine as u64, from.add(mine), mine_len);
            }
            if rounds.exposed.is_none() {
                self.memory.copy_in(place, from, mine);
                self.memory.copy_in(place + end as u64, from.add(end), now - end);
            }
        }
        match rounds.exposed {
            None => self.publish(step, now, Readers::All),
            Some(offset) if round == 0 => self.expose(step, offset, len, Readers::All, pause)?,
            Some(_) => {}
        }
        Ok(())
    }

    /// # Safety
    ///
    /// Data and result have the bytes of the round.
    unsafe fn join_share(
        &mut self,
        rounds: &Rounds,
        round: usize,
        combine: &mut impl Combine,
        pause: &mut impl Pause,
    ) -> Result<(), CollError> {
        let me = self.me;
        let piece = rounds.piece(round);
        self.expect_all(piece, pause)?;
        let (share, len) = rounds.share(round, me);
        let step = rounds.output(round);
        // SAFETY: the share lies in the round.
        unsafe {
            let mine = match self.keeps(rounds.data, rounds.out) {
                true => self.address(me, piece.step, piece.now).cast_const().add(share),
                false => rounds.data.add(piece.at + share),
            };
            let to = rounds.out.add(piece.at + share);
            if len > 0 {
                self.join_ranks(|rank| self.operand(rank, piece, share, len), mine, to, len, combine)?;
            }
            match rounds.exposed_out {
                Some(offset) if !is_short(len) => {
                    self.expose(step, offset + (piece.at + share) as u64, len, Readers::All, pause)
                }
                _ => self.publish_copy(step, to, len, Readers::All, pause),
            }
        }
    }

    /// # Safety
    ///
    /// The result has the bytes of the round.
    unsafe fn collect_shares(
        &mut self,
        rounds: &Rounds,
        round: usize,
        pause: &mut impl Pause,
    ) -> Result<(), CollError> {
        let (size, me) = (self.size(), self.me);
        let at = rounds.piece(round).at;
        for rank in (me + 1..size).chain(0..me) {
            let (share, len) = rounds.share(round, rank);
            // SAFETY: the share lies in the round.
            unsafe { self.receive_any(rank, rounds.output(round), rounds.out.add(at + share), len, pause)? };
        }
        Ok(())
    }
}

/// Cut of a long payload: in rounds, and each round in shares, one a rank.
struct Rounds {
    /// The first step.
    first: u64,
    data: *const u8,
    out: *mut u8,
    len: usize,
    piece: usize,
    element: usize,
    ranks: usize,
    /// Offset of our operand, if we expose it.
    exposed: Option<u64>,
    /// Offset of our result, if we expose it.
    exposed_out: Option<u64>,
}

impl Rounds {
    /// The step at which a round's input is published.
    fn input(&self, round: usize) -> u64 {
        self.first + (2 * round as u64).saturating_sub(1)
    }

    /// The step at which a round's shares are published.
    fn output(&self, round: usize) -> u64 {
        self.first + 2 * round as u64 + 2
    }

    /// The piece of a round.
    fn piece(&self, round: usize) -> Piece {
        let at = round * self.piece;
        Piece { step: self.input(round), at, now: self.piece.min(self.len - at), len: self.len }
    }

    /// Offset of a rank's share in its round, and its length.
    fn share(&self, round: usize, rank: usize) -> (usize, usize) {
        let len = self.piece(round).now;
        let elements = (len / self.element).div_ceil(self.ranks);
        // Whole lines, where elements allow it.
        let line = if 64 % self.element == 0 { 64 / self.element } else { 1 };
        let share = elements.next_multiple_of(line) * self.element;
        let begin = (share * rank).min(len);
        (begin, share.min(len - begin))
    }
}
