//! Joining what all members have.

use super::group::{Broken, Group, Pause, Readers};
use crate::memory::Memory;

/// What joins two operands of the same length.
///
/// Operands may lie in the members' blocks: who must not see them change under its hands copies them first.
pub trait Combine {
    /// Bytes of one element, which is never cut.
    fn element(&self) -> usize;

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

/// Up to so many bytes of others' operands, each member joins everything by itself, which costs the fewest steps.
const JOIN_ALL: usize = 64 << 10;

impl<M: Memory> Group<M> {
    /// Whether elements of this many bytes fit into the slots.
    pub fn fits(&self, element: usize) -> bool {
        element <= self.chunk() / 2
    }

    /// Waits for all other members' payloads of a step.
    #[inline]
    fn expect_all(&mut self, step: u64, len: usize, pause: &mut impl Pause) -> Result<(), Broken> {
        let me = self.me;
        for member in (0..self.size()).filter(|member| *member != me) {
            self.expect(member, step, len, pause)?;
        }
        Ok(())
    }

    /// A length of whole elements, `len` at most and one at least.
    fn whole(len: usize, element: usize) -> usize {
        (len / element).max(1) * element
    }

    /// Joins what the members have published at a step, in their order, to `out`.
    ///
    /// # Safety
    ///
    /// `out` is valid for writes of `len` bytes, and `mine`, our own operand, for reads; they do not overlap.
    #[allow(clippy::too_many_arguments, reason = "where, what, whereto and how")]
    #[inline]
    unsafe fn join_members(
        &self,
        step: u64,
        published: usize,
        within: usize,
        mine: *const u8,
        out: *mut u8,
        len: usize,
        combine: &mut impl Combine,
    ) {
        let operand = |member: usize| match member == self.me {
            true => mine,
            // SAFETY: within + len <= published, which lies in the member's slot.
            false => unsafe { self.address(member, step, published).cast_const().add(within) },
        };
        let last = self.size() - 1;
        if last == 0 {
            // SAFETY: the caller vouches for both.
            return unsafe { mine.copy_to_nonoverlapping(out, len) };
        }
        // SAFETY: operands have `len` bytes each, and `out` is none of them.
        unsafe {
            combine.join_to(operand(last - 1), operand(last), out, len);
            for member in (0..last - 1).rev() {
                combine.join(operand(member), out, len);
            }
        }
    }

    /// Joins all members' `data` in their order, element by element, to `root`'s `out`. There `out` may be `data`.
    ///
    /// # Errors
    ///
    /// A member that is gone or out of step.
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
    ) -> Result<(), Broken> {
        let me = self.me;
        let piece = Self::whole(self.piece(len), combine.element());
        self.in_pieces(len, piece, |group, step, at, now| {
            // SAFETY: at + now <= len.
            unsafe {
                let mut mine = data.add(at);
                if root != me {
                    return group.say(step, mine, now, Readers::One(root), pause);
                }
                if core::ptr::eq(data, out) {
                    // The result must not overwrite what is still to be joined.
                    group.vacate(step, now, pause)?;
                    group.memory.copy_in(group.place(me, step, now), mine, now);
                    mine = group.address(me, step, now);
                }
                group.expect_all(step, now, pause)?;
                group.join_members(step, now, 0, mine, out.add(at), now, combine);
                Ok(())
            }
        })
    }

    /// Joins all members' `data` in their order, element by element, to everyone's `out`, which may be `data`.
    ///
    /// # Errors
    ///
    /// A member that is gone or out of step.
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
    ) -> Result<(), Broken> {
        if len > self.chunk() || len.saturating_mul(self.size() - 1) > JOIN_ALL.max(self.short()) {
            // SAFETY: the caller keeps the contract.
            return unsafe { self.all_reduce_by_shares(data, out, len, combine, pause) };
        }
        let (me, step) = (self.me, self.step);
        // SAFETY: the caller vouches for `len` bytes.
        unsafe {
            self.say(step, data, len, Readers::All, pause)?;
            self.settle(step, len, pause);
            self.expect_all(step, len, pause)?;
            let mine = if core::ptr::eq(data, out) { self.address(me, step, len) } else { data };
            self.join_members(step, len, 0, mine, out, len, combine);
        }
        self.end(step + 1);
        Ok(())
    }

    /// [`Group::all_reduce`] of long payloads. In each round, all publish a piece, then each joins its share of it and
    /// publishes that, then each collects the others' shares. A round's pieces are published while the last round's are
    /// still being joined, so that nobody waits long.
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
    ) -> Result<(), Broken> {
        let first = self.step;
        let rounds =
            Rounds::new(len, Self::whole(self.piece(len), combine.element()), combine.element(), self.size());
        // SAFETY: the rounds lie in `len` bytes, and each is read before its result is written.
        unsafe {
            self.publish_inputs(first, &rounds, 0, data, out, pause)?;
            for round in 0..rounds.count {
                if round + 1 < rounds.count {
                    self.publish_inputs(first, &rounds, round + 1, data, out, pause)?;
                }
                self.join_share(first, &rounds, round, data, out, combine, pause)?;
                if round > 0 {
                    self.collect_shares(first, &rounds, round - 1, out, pause)?;
                    // The next round's input is not finished with, nor this round's shares.
                    self.finish(Rounds::input(first, round + 1).min(Rounds::output(first, round)));
                }
            }
            self.collect_shares(first, &rounds, rounds.count - 1, out, pause)?;
        }
        self.end(Rounds::output(first, rounds.count - 1) + 1);
        Ok(())
    }

    /// # Safety
    ///
    /// `data` has the bytes of the round.
    unsafe fn publish_inputs(
        &mut self,
        first: u64,
        rounds: &Rounds,
        round: usize,
        data: *const u8,
        out: *const u8,
        pause: &mut impl Pause,
    ) -> Result<(), Broken> {
        let (step, (at, len)) = (Rounds::input(first, round), rounds.piece(round));
        self.vacate(step, len, pause)?;
        let place = self.place(self.me, step, len);
        let (mine, mine_len) = rounds.share(round, self.me);
        // SAFETY: all parts lie in the round, and the slot has room for it.
        unsafe {
            if core::ptr::eq(data, out) {
                // Our own share is joined from there, since its result takes its place.
                self.memory.copy_in(place, data.add(at), len);
            } else {
                let end = mine + mine_len;
                self.memory.copy_in(place, data.add(at), mine);
                self.memory.copy_in(place + end as u64, data.add(at + end), len - end);
            }
        }
        self.publish(step, len, Readers::All);
        Ok(())
    }

    /// # Safety
    ///
    /// `data` and `out` have the bytes of the round.
    #[allow(clippy::too_many_arguments, reason = "where, what, whereto and how")]
    unsafe fn join_share(
        &mut self,
        first: u64,
        rounds: &Rounds,
        round: usize,
        data: *const u8,
        out: *mut u8,
        combine: &mut impl Combine,
        pause: &mut impl Pause,
    ) -> Result<(), Broken> {
        let me = self.me;
        let (input, (at, published)) = (Rounds::input(first, round), rounds.piece(round));
        self.expect_all(input, published, pause)?;
        let (share, len) = rounds.share(round, me);
        // SAFETY: the share lies in the round.
        unsafe {
            let mine = match core::ptr::eq(data, out) {
                true => self.address(me, input, published).cast_const().add(share),
                false => data.add(at + share),
            };
            let to = out.add(at + share);
            if len > 0 {
                self.join_members(input, published, share, mine, to, len, combine);
            }
            self.say(Rounds::output(first, round), to, len, Readers::All, pause)
        }
    }

    /// # Safety
    ///
    /// `out` has the bytes of the round.
    unsafe fn collect_shares(
        &mut self,
        first: u64,
        rounds: &Rounds,
        round: usize,
        out: *mut u8,
        pause: &mut impl Pause,
    ) -> Result<(), Broken> {
        let (size, me) = (self.size(), self.me);
        let (at, _) = rounds.piece(round);
        for member in (me + 1..size).chain(0..me) {
            let (share, len) = rounds.share(round, member);
            // SAFETY: the share lies in the round.
            unsafe { self.hear(member, Rounds::output(first, round), out.add(at + share), len, pause)? };
        }
        Ok(())
    }
}

/// How a long payload is cut: in rounds, and each round in shares, one a member.
struct Rounds {
    len: usize,
    piece: usize,
    element: usize,
    members: usize,
    count: usize,
}

impl Rounds {
    fn new(len: usize, piece: usize, element: usize, members: usize) -> Self {
        Self { len, piece, element, members, count: len.div_ceil(piece) }
    }

    /// The step at which a round's input is published.
    fn input(first: u64, round: usize) -> u64 {
        first + (2 * round as u64).saturating_sub(1)
    }

    /// The step at which a round's shares are published.
    fn output(first: u64, round: usize) -> u64 {
        first + 2 * round as u64 + 2
    }

    /// Where a round begins, and its length.
    fn piece(&self, round: usize) -> (usize, usize) {
        let at = round * self.piece;
        (at, self.piece.min(self.len - at))
    }

    /// Where a member's share begins in its round, and its length.
    fn share(&self, round: usize, member: usize) -> (usize, usize) {
        let (_, len) = self.piece(round);
        let elements = (len / self.element).div_ceil(self.members);
        // Whole lines, where elements allow it.
        let line = if 64 % self.element == 0 { 64 / self.element } else { 1 };
        let share = elements.next_multiple_of(line) * self.element;
        let begin = (share * member).min(len);
        (begin, share.min(len - begin))
    }
}
