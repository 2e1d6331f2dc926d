//! Vector operations (the v-forms): parts of any lengths, each known only to its giver and its taker.
//!
//! No rank knows how many pieces the longest part has, so that an operation takes one step, whatever the lengths are. A part
//! lies in its giver's slot, or is exposed; one for which the slot has no room the caller sends as a message ([`Late`]).
//!
//! The slot of a rank that gives to several others begins with a *table*: for each other rank two words, the offset of its part
//! in the region and its length. Where a rank gives to one only, the stamp has the same.

use core::mem;

use super::error::CollError;
use super::group::{Group, Readers};
use super::layout::{EXPOSED, MAX_BODY, Part, is_short, stamp, stamped};
use super::pause::Pause;
use crate::memory::Memory;

/// Place and length of bytes to be given.
pub type Given = (*const u8, usize);

/// Messages for parts that are too long for a slot. An operation waits for none of them.
pub trait Late {
    /// Begins to send the part that we give to a rank.
    fn send(&mut self, rank: usize);

    /// Begins to receive the part that a rank gives us, which says that it has `told` bytes: these may be more or fewer than
    /// ours.
    fn receive(&mut self, rank: usize, told: usize);
}

/// Offset of a part that comes as a message: that of the region's header, which no rank could expose.
const LATE: u64 = 0;

/// Bytes of a table's entry.
const ENTRY: usize = size_of::<[u64; 2]>();

/// Offset in a slot behind a part of `len` bytes that begins at `at`, if such a part has room there.
fn behind(at: usize, len: usize, room: usize) -> Option<usize> {
    let end = at.checked_add(len.checked_next_multiple_of(8)?)?;
    (end <= room).then_some(end)
}

impl<M: Memory> Group<M> {
    /// Whether there is room for the tables of [`Group::exchange_vector`], and for parts beside them.
    pub fn has_tables(&self) -> bool {
        self.size() * ENTRY <= MAX_BODY as usize / 2
    }

    /// Gives each other rank its `given` part, and takes its part to `taken`. A rank's part for itself is not looked at. All
    /// ranks that know that all parts go to `only` one rank name it.
    ///
    /// # Errors
    ///
    /// A rank that is gone or out of step, or gives a part of another length. Of the latter, [`CollError::LengthMismatch`], we
    /// are told when all else is done: the group can be used on.
    ///
    /// # Safety
    ///
    /// Given parts are valid for reads, taken ones for writes, and they do not overlap.
    pub unsafe fn exchange_vector(
        &mut self,
        only: Option<usize>,
        given: impl Fn(usize) -> Given,
        taken: impl Fn(usize) -> Part,
        late: &mut impl Late,
        pause: &mut impl Pause,
    ) -> Result<(), CollError> {
        let (size, me, step) = (self.size(), self.me, self.step);
        let others = || (me + 1..size).chain(0..me);
        // The one other rank that takes anything from its giver, if there can be but one.
        let single = |giver: usize| only.or((size == 2).then(|| 1 - giver));
        // SAFETY: the caller vouches for the parts.
        unsafe {
            let exposed = match single(me) {
                Some(reader) if reader == me => None,
                Some(reader) => self.give_one(step, reader, given(reader), late, pause)?,
                None => self.give_all(step, others(), given, late, pause)?,
            };
            let mut takes = false;
            let mut result = Ok(());
            let mut backed_off = only.is_some() || !self.has_published(step);
            for giver in others() {
                let (to, len) = taken(giver);
                if len == 0 {
                    continue;
                }
                takes = true;
                if !mem::replace(&mut backed_off, true) {
                    self.back_off(step, pause);
                }
                let took = match single(giver) {
                    Some(_) => self.take_one(step, giver, (to, len), late, pause),
                    None => self.take_mine(step, giver, (to, len), late, pause),
                };
                match took {
                    // The others' parts are as they should be, and their messages are waited for.
                    Err(CollError::LengthMismatch { .. }) => result = result.and(took),
                    took => took?,
                }
            }
            self.end(step + 1);
            let Some((readers, len)) = exposed else { return result };
            if !takes {
                pause.exposed(len);
            }
            self.await_release(readers, pause)?;
            result
        }
    }

    /// Gives a part to the only rank that gets one. Returns the reader that it is exposed to, and its length.
    ///
    /// # Safety
    ///
    /// The part is valid for reads.
    #[inline]
    unsafe fn give_one(
        &mut self,
        step: u64,
        reader: usize,
        (from, len): Given,
        late: &mut impl Late,
        pause: &mut impl Pause,
    ) -> Result<Option<(Readers, usize)>, CollError> {
        let readers = Readers::One(reader);
        if len == 0 {
            return Ok(None);
        }
        if let Some(offset) = self.exposable(from, len) {
            self.expose(step, offset, len, readers, pause)?;
            return Ok(Some((readers, len)));
        }
        if len <= self.chunk() {
            // SAFETY: the caller vouches for the part.
            unsafe { self.publish_copy(step, from, len, readers, pause)? };
        } else {
            self.expose(step, LATE, len, readers, pause)?;
            late.send(reader);
        }
        Ok(None)
    }

    /// Takes a part from a rank that gives to one only.
    ///
    /// # Safety
    ///
    /// The part is valid for writes.
    #[inline]
    unsafe fn take_one(
        &mut self,
        step: u64,
        giver: usize,
        (to, len): Part,
        late: &mut impl Late,
        pause: &mut impl Pause,
    ) -> Result<(), CollError> {
        if is_short(len) {
            // SAFETY: the caller vouches for the part.
            let heard = unsafe { self.receive_short(giver, step, to, len, pause) };
            if !matches!(heard, Err(CollError::LengthMismatch { .. })) {
                return heard;
            }
        }
        let found = self.reached(giver, step, pause)?;
        if len <= self.chunk() && found == stamp(step, len) {
            // SAFETY: the caller vouches for `len` bytes at `to`; `copy_out` checks the other side.
            unsafe { self.memory.copy_out(self.place(giver, step, len), to, len) };
            return self.confirm(giver);
        }
        if found != stamp(step, EXPOSED) {
            return Err(self.mismatch(giver, step, len, found));
        }
        let told = self.exposed_at(giver, step);
        // SAFETY: the caller vouches for `len` bytes at `to`.
        unsafe { self.take_told(giver, told, (to, len), late) }
    }

    /// Publishes the parts for several ranks, behind a table. Returns the readers of exposed parts, and their bytes.
    ///
    /// # Safety
    ///
    /// The parts are valid for reads.
    unsafe fn give_all(
        &mut self,
        step: u64,
        others: impl Iterator<Item = usize> + Clone,
        given: impl Fn(usize) -> Given,
        late: &mut impl Late,
        pause: &mut impl Pause,
    ) -> Result<Option<(Readers, usize)>, CollError> {
        let (table, room) = (self.size() * ENTRY, self.chunk());
        let mut end = table;
        let mut gives = false;
        for rank in others.clone() {
            let (from, len) = given(rank);
            gives |= len > 0;
            if self.exposable(from, len).is_none() {
                end = behind(end, len, room).unwrap_or(end);
            }
        }
        if !gives {
            return Ok(None);
        }
        self.await_slot(step, end, pause)?;
        let slot = self.place(self.me, step, end);
        let mut free = table;
        let mut exposed = 0;
        for rank in others {
            let (from, len) = given(rank);
            let place = if let Some(offset) = self.exposable(from, len) {
                exposed += len;
                offset
            } else if let Some(next) = behind(free, len, room) {
                let place = slot + free as u64;
                free = next;
                // SAFETY: the caller vouches for the part, and the slot has room for it.
                unsafe { self.memory.copy_in(place, from, len) };
                place
            } else {
                late.send(rank);
                LATE
            };
            self.memory.store_words(slot + (rank * ENTRY) as u64, [place, len as u64]);
        }
        self.publish(step, end, Readers::All);
        Ok((exposed > 0).then_some((Readers::All, exposed)))
    }

    /// Takes our part from a rank that gives to several.
    ///
    /// # Safety
    ///
    /// The part is valid for writes.
    unsafe fn take_mine(
        &mut self,
        step: u64,
        giver: usize,
        (to, len): Part,
        late: &mut impl Late,
        pause: &mut impl Pause,
    ) -> Result<(), CollError> {
        let found = self.reached(giver, step, pause)?;
        let (found_step, said) = stamped(found);
        if found_step != step || said < self.size() * ENTRY || said > self.chunk() {
            return Err(self.mismatch(giver, step, len, found));
        }
        let entry = self.place(giver, step, said) + (self.me * ENTRY) as u64;
        let [offset, told] = self.memory.load_words(entry);
        let told = (offset, usize::try_from(told).unwrap_or(usize::MAX));
        // SAFETY: the caller vouches for the part.
        unsafe { self.take_told(giver, told, (to, len), late) }
    }

    /// Takes a part at the place and of the length that its giver has told.
    ///
    /// # Safety
    ///
    /// The part is valid for writes.
    unsafe fn take_told(
        &mut self,
        giver: usize,
        (offset, told): (u64, usize),
        (to, len): Part,
        late: &mut impl Late,
    ) -> Result<(), CollError> {
        if offset == LATE {
            self.confirm(giver)?;
            // A part of another length, too, is received: its giver waits for that.
            late.receive(giver, told);
            return match told == len {
                true => Ok(()),
                false => Err(CollError::LengthMismatch { rank: giver, expected: len, found: told }),
            };
        }
        let place = self.check_exposed(giver, (offset, told), len)?;
        // SAFETY: the caller vouches for the part.
        unsafe { self.memory.copy_out(place, to, len) };
        self.confirm(giver)
    }
}
