//! From one member to the others.

use super::group::{Broken, Group, Pause, Readers};
use crate::memory::Memory;

impl<M: Memory> Group<M> {
    /// Copies `root`'s `len` bytes at `data` to all members' `data`.
    ///
    /// # Errors
    ///
    /// A member that is gone or out of step.
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
    ) -> Result<(), Broken> {
        let piece = self.piece(len);
        let mut at = 0;
        while at < len {
            let (step, now) = (self.step, piece.min(len - at));
            // SAFETY: at + now <= len.
            unsafe {
                if root == self.me {
                    self.say(step, data.add(at), now, Readers::All, pause)?;
                } else {
                    self.hear(root, step, data.add(at), now, pause)?;
                }
            }
            self.end(step + 1);
            at += now;
        }
        Ok(())
    }

    /// Deals `root`'s `data`, a part of `len` bytes for each member, to the members' `part`. The root's own part stays
    /// where it is.
    ///
    /// # Errors
    ///
    /// A member that is gone or out of step.
    ///
    /// # Safety
    ///
    /// At the root `data` is valid for reads of as many parts as there are members; elsewhere `part` is valid for writes
    /// of `len` bytes.
    pub unsafe fn scatter(
        &mut self,
        root: usize,
        data: *const u8,
        part: *mut u8,
        len: usize,
        pause: &mut impl Pause,
    ) -> Result<(), Broken> {
        let (size, me) = (self.size(), self.me);
        let piece = self.share(len);
        let mut at = 0;
        while at < len {
            let (step, now) = (self.step, piece.min(len - at));
            let all = now * size;
            // SAFETY: at + now <= len, and the slot has room for `all` bytes.
            unsafe {
                if root == me {
                    self.vacate(step, all, pause)?;
                    let place = self.place(me, step, all);
                    for member in (0..size).filter(|member| *member != me) {
                        let from = data.add(member * len + at);
                        self.memory.copy_in(place + (member * now) as u64, from, now);
                    }
                    self.publish(step, all, Readers::All);
                } else {
                    self.expect(root, step, all, pause)?;
                    let place = self.place(root, step, all) + (me * now) as u64;
                    self.memory.copy_out(place, part.add(at), now);
                }
            }
            self.end(step + 1);
            at += now;
        }
        Ok(())
    }
}
