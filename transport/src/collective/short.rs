//! Operations whose payloads go through one slot: one step each, and nothing that long payloads need. The line that goes
//! from one processor to another takes longer than all of this, but not by much.

use super::error::CollError;
use super::group::{Group, Readers};
use super::layout::{HEAD_PAYLOAD, LAG, MAX_HEAD, Part, body, head};
use super::pause::Pause;
use super::reduce::Combine;
use crate::memory::Memory;
use crate::memory::copy;

/// Longest bodies, bytes, that are demoted to the shared cache, where readers get them faster (longer ones take the writer too
/// long), and that are copied out in words: the processor begins to fetch words while the stamp is still on its way, which it was
/// not seen to do for other copies. (Vectors took 1.1 times as long in a broadcast, 1.3 in an allgather.)
const SMALL: usize = 1024;

impl<M: Memory> Group<M> {
    /// Copies our payload of a step to its slot, and publishes it.
    ///
    /// # Safety
    ///
    /// `from` is valid for reads of `len` bytes, which are short.
    #[inline(always)]
    pub(super) unsafe fn publish_short(
        &mut self,
        step: u64,
        from: *const u8,
        len: usize,
        readers: Readers,
        pause: &mut impl Pause,
    ) -> Result<(), CollError> {
        self.await_slot(step, len, pause)?;
        if len as u64 <= MAX_HEAD {
            // SAFETY: the caller vouches for `from`.
            unsafe { self.memory.copy_in(self.block + head(step) + HEAD_PAYLOAD, from, len) };
            self.publish(step, len, readers);
        } else {
            // A reader that has come already has taken the stamp's line.
            self.memory.prefetch_write(self.block + head(step), 1);
            let to = self.memory.address(self.block + body(step), len as u64);
            // In as few stores as there can be: the processor of a waiting reader may fetch a line that is not yet full.
            // SAFETY: the caller vouches for `from`. `address` returned `len` bytes of a body in our own block, which
            // `Group::new` has found inside our section; a body is longer than the 32 bytes that vectors need.
            unsafe { copy::vectors(from, to, len) };
            self.publish(step, len, readers);
            if len <= SMALL {
                self.memory.demote(self.block + body(step), len as u64);
            }
            // The next payload is likely to be as long, and as many steps ahead as the last one lies behind.
            let ahead = step.saturating_sub(self.said).min(LAG);
            self.memory.prefetch_write(self.block + body(step + ahead), len as u64);
        }
        self.said = step;
        Ok(())
    }

    /// Waits for a rank's payload of a step, and copies it.
    ///
    /// # Safety
    ///
    /// `to` is valid for writes of `len` bytes, which are short.
    #[inline(always)]
    pub(super) unsafe fn receive_short(
        &mut self,
        rank: usize,
        step: u64,
        to: *mut u8,
        len: usize,
        pause: &mut impl Pause,
    ) -> Result<(), CollError> {
        self.expect(rank, step, len, pause)?;
        // SAFETY: the caller vouches for `to`, and the slot has room for `len` bytes.
        unsafe {
            if len as u64 > MAX_HEAD && len <= SMALL {
                copy::words(self.address(rank, step, len), to, len);
            } else {
                self.memory.copy_out(self.place(rank, step, len), to, len);
            }
        }
        self.confirm(rank)
    }

    /// [`Group::broadcast`] of a short payload.
    ///
    /// # Safety
    ///
    /// As there.
    #[inline]
    pub(super) unsafe fn broadcast_short(
        &mut self,
        root: usize,
        data: *mut u8,
        len: usize,
        pause: &mut impl Pause,
    ) -> Result<(), CollError> {
        let step = self.step;
        // SAFETY: the caller vouches for `data`.
        unsafe {
            if root == self.me {
                self.publish_short(step, data, len, Readers::All, pause)?;
            } else {
                self.receive_short(root, step, data, len, pause)?;
            }
        }
        self.end(step + 1);
        Ok(())
    }

    /// Joins all ranks' short operands of a step to `out`.
    ///
    /// # Safety
    ///
    /// As [`Group::all_reduce`]; the same as `data` is only where [`Group::keeps`] allows it.
    #[inline(always)]
    unsafe fn reduce_ranks_short(
        &mut self,
        step: u64,
        mine: *const u8,
        out: *mut u8,
        len: usize,
        combine: &mut impl Combine,
        pause: &mut impl Pause,
    ) -> Result<(), CollError> {
        if !combine.get_ready(len) {
            return Err(CollError::NoMemory);
        }
        for rank in 0..self.size() {
            if rank != self.me {
                self.expect(rank, step, len, pause)?;
            }
        }
        // SAFETY: the caller vouches for `mine` and `out`.
        unsafe { self.join_ranks(|rank| self.address(rank, step, len), mine, out, len, combine) }
    }

    /// [`Group::reduce`] of short operands.
    ///
    /// # Safety
    ///
    /// As there.
    #[inline]
    pub(super) unsafe fn reduce_short(
        &mut self,
        root: usize,
        data: *const u8,
        out: *mut u8,
        len: usize,
        combine: &mut impl Combine,
        pause: &mut impl Pause,
    ) -> Result<(), CollError> {
        let (me, step) = (self.me, self.step);
        // SAFETY: the caller vouches for `data` and `out`.
        unsafe {
            if root != me {
                self.publish_short(step, data, len, Readers::One(root), pause)?;
            } else {
                let mut mine = data;
                if self.keeps(data, out) {
                    self.await_slot(step, len, pause)?;
                    self.memory.copy_in(self.place(me, step, len), data, len);
                    mine = self.address(me, step, len);
                }
                self.reduce_ranks_short(step, mine, out, len, combine, pause)?;
            }
        }
        self.end(step + 1);
        Ok(())
    }

    /// [`Group::all_reduce`] of short operands.
    ///
    /// # Safety
    ///
    /// As there.
    #[inline]
    pub(super) unsafe fn all_reduce_short(
        &mut self,
        data: *const u8,
        out: *mut u8,
        len: usize,
        combine: &mut impl Combine,
        pause: &mut impl Pause,
    ) -> Result<(), CollError> {
        let (me, step) = (self.me, self.step);
        // SAFETY: the caller vouches for `data` and `out`.
        unsafe {
            self.publish_short(step, data, len, Readers::All, pause)?;
            self.back_off(step, pause);
            let mine = if self.keeps(data, out) { self.address(me, step, len) } else { data };
            self.reduce_ranks_short(step, mine, out, len, combine, pause)?;
        }
        self.end(step + 1);
        Ok(())
    }

    /// [`Group::all_gather`] of short parts.
    ///
    /// # Safety
    ///
    /// As there.
    #[inline]
    pub(super) unsafe fn all_gather_short(
        &mut self,
        data: *const u8,
        len: usize,
        part: impl Fn(usize) -> Part,
        pause: &mut impl Pause,
    ) -> Result<(), CollError> {
        let (me, step) = (self.me, self.step);
        if len > 0 {
            // SAFETY: the caller vouches for `data`.
            unsafe { self.publish_short(step, data, len, Readers::All, pause)? };
        }
        let (own, room) = part(me);
        if !own.is_null() {
            // SAFETY: the caller vouches for both.
            unsafe { data.copy_to(own, len.min(room)) };
        }
        self.back_off(step, pause);
        // Each begins with its neighbour, so that not all read from the same rank at once.
        for rank in (me + 1..self.size()).chain(0..me) {
            let (to, len) = part(rank);
            if len > 0 {
                // SAFETY: the caller vouches for the part.
                unsafe { self.receive_short(rank, step, to, len, pause)? };
            }
        }
        self.end(step + 1);
        Ok(())
    }
}
