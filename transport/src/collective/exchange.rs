//! From all members to one or to all.

use super::group::{Broken, Group, Pause, Readers};
use crate::memory::Memory;

/// Where a member's bytes go, and how many they are.
pub type Part = (*mut u8, usize);

impl<M: Memory> Group<M> {
    /// How long the pieces are in which `len` bytes go through the slots: the same for all members. As long as they may be:
    /// who copies in and who copies out of neighbouring lines at the same time hold each other up.
    pub(super) fn piece(&self, len: usize) -> usize {
        len.clamp(1, self.chunk())
    }

    /// How long the pieces are in which `len` bytes for each member go through the slots.
    pub(super) fn share(&self, len: usize) -> usize {
        let most = self.chunk() / self.size();
        let most = if most > 64 { most & !63 } else { most };
        self.piece(len).min(most).max(1)
    }

    /// Whether each member's share of a slot has room for anything at all.
    pub fn has_shares(&self) -> bool {
        self.chunk() >= self.size()
    }

    /// Collects the members' bytes at all of them: `len` bytes of ours at `data`, and each other member's where `part` says.
    ///
    /// # Errors
    ///
    /// A member that is gone or out of step.
    ///
    /// # Safety
    ///
    /// `data` is valid for reads of `len` bytes, and each part but our own for writes of its bytes; no two overlap.
    pub unsafe fn all_gather(
        &mut self,
        data: *const u8,
        len: usize,
        part: impl Fn(usize) -> Part,
        pause: &mut impl Pause,
    ) -> Result<(), Broken> {
        let (size, me, first) = (self.size(), self.me, self.step);
        let length = |member| if member == me { len } else { part(member).1 };
        let longest = (0..size).map(length).max().unwrap_or(0);
        let piece = self.piece(longest);
        let steps = longest.div_ceil(piece) as u64;
        let cut = |len: usize, round: u64| len.saturating_sub(round as usize * piece).min(piece);
        for round in 0..steps {
            let (step, at, now) = (first + round, round as usize * piece, cut(len, round));
            if now > 0 {
                // SAFETY: at + now <= len.
                unsafe { self.say(step, data.add(at), now, Readers::All, pause)? };
                self.settle(step, now, pause);
            }
            // Each begins with its neighbour, so that not all read from the same member at once.
            for member in (me + 1..size).chain(0..me) {
                let (to, len) = part(member);
                let now = cut(len, round);
                if now > 0 {
                    // SAFETY: at + now <= len.
                    unsafe { self.hear(member, step, to.add(at), now, pause)? };
                }
            }
            self.end(step + 1);
        }
        Ok(())
    }

    /// Collects the members' bytes at `root`, `len` of each: ours from `data`, and the others' where `part` says.
    ///
    /// # Errors
    ///
    /// A member that is gone or out of step.
    ///
    /// # Safety
    ///
    /// Elsewhere than at the root `data` is valid for reads of `len` bytes; at the root each part but its own is valid for
    /// writes of `len` bytes.
    pub unsafe fn gather(
        &mut self,
        root: usize,
        data: *const u8,
        len: usize,
        part: impl Fn(usize) -> *mut u8,
        pause: &mut impl Pause,
    ) -> Result<(), Broken> {
        let (size, me) = (self.size(), self.me);
        let piece = self.piece(len);
        let mut at = 0;
        while at < len {
            let (step, now) = (self.step, piece.min(len - at));
            // SAFETY: at + now <= len.
            unsafe {
                if root == me {
                    for member in (0..size).filter(|member| *member != me) {
                        self.hear(member, step, part(member).add(at), now, pause)?;
                    }
                } else {
                    self.say(step, data.add(at), now, Readers::One(root), pause)?;
                }
            }
            self.end(step + 1);
            at += now;
        }
        Ok(())
    }

    /// Gives part `r` of our `data` to each member `r`, and collects theirs for us in `out`, in the members' order. All
    /// parts have `len` bytes. Our own part stays where it is.
    ///
    /// # Errors
    ///
    /// A member that is gone or out of step.
    ///
    /// # Safety
    ///
    /// `data` is valid for reads, `out` for writes of as many parts as there are members, and they do not overlap.
    pub unsafe fn all_to_all(
        &mut self,
        data: *const u8,
        out: *mut u8,
        len: usize,
        pause: &mut impl Pause,
    ) -> Result<(), Broken> {
        let (size, me) = (self.size(), self.me);
        let piece = self.share(len);
        let mut at = 0;
        while at < len {
            let (step, now) = (self.step, piece.min(len - at));
            let all = now * size;
            self.vacate(step, all, pause)?;
            let place = self.place(me, step, all);
            for member in (0..size).filter(|member| *member != me) {
                // SAFETY: at + now <= len, and the slot has room for `all` bytes.
                unsafe {
                    let from = data.add(member * len + at);
                    self.memory.copy_in(place + (member * now) as u64, from, now);
                }
            }
            self.publish(step, all, Readers::All);
            self.settle(step, all, pause);
            for member in (me + 1..size).chain(0..me) {
                self.expect(member, step, all, pause)?;
                let place = self.place(member, step, all) + (me * now) as u64;
                // SAFETY: as above.
                unsafe { self.memory.copy_out(place, out.add(member * len + at), now) };
            }
            self.end(step + 1);
            at += now;
        }
        Ok(())
    }
}
