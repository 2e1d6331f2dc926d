//! From all ranks to one or to all.

use super::error::CollError;
use super::group::{Group, Readers};
use super::layout::{HEAD_SLOTS, LAG, MIN_CHUNKS, Part, SLOTS, is_short};
use super::pause::Pause;
use super::zero_copy::Piece;
use crate::memory::Memory;

/// Pieces that are published before the others' are read.
const AHEAD: usize = LAG as usize - 1;

// Otherwise a rank could come round to a slot that another has yet to read, while the other waits for it: a deadlock.
const _: () = assert!(SLOTS > LAG && MIN_CHUNKS > LAG && HEAD_SLOTS > LAG);

impl<M: Memory> Group<M> {
    /// Length of the pieces in which `len` bytes go through the slots: the same for all ranks, and as long as can be, since a
    /// copy in and a copy out of neighbouring lines at the same time slow each other down.
    pub(super) fn piece(&self, len: usize) -> usize {
        len.clamp(1, self.chunk())
    }

    /// Length of the pieces in which `len` bytes for each other rank go through the slots.
    pub(super) fn share(&self, len: usize) -> usize {
        let most = self.chunk() / (self.size() - 1).max(1);
        let most = if most > 64 { most & !63 } else { most };
        self.piece(len).min(most).max(1)
    }

    /// As [`Group::in_pieces`], for ranks that all publish and all read: some pieces are published ahead of those that are read,
    /// since a copy in and a copy out of neighbouring memory at the same time slow each other down.
    fn exchange<P: Pause>(
        &mut self,
        len: usize,
        piece: usize,
        pause: &mut P,
        mut publish: impl FnMut(&mut Self, u64, usize, usize, &mut P) -> Result<(), CollError>,
        mut receive: impl FnMut(&mut Self, u64, usize, usize, &mut P) -> Result<(), CollError>,
    ) -> Result<(), CollError> {
        let mut said = 0;
        self.in_pieces(len, piece, |group, step, at, now| {
            while said < len && said <= at + AHEAD * piece {
                let now = piece.min(len - said);
                publish(group, step + ((said - at) / piece) as u64, said, now, pause)?;
                said += now;
            }
            receive(group, step, at, now, pause)
        })
    }

    /// Whether each rank's share of a slot has room for anything at all.
    pub fn has_shares(&self) -> bool {
        self.chunk() >= self.size()
    }

    /// Collects the ranks' bytes at all of them: `len` bytes of ours at `data`, and each rank's where `part` says. Ours
    /// stay where they are if that is null, and are cut to our part where that is shorter.
    ///
    /// # Errors
    ///
    /// A rank that is gone or out of step.
    ///
    /// # Safety
    ///
    /// `data` is valid for reads of `len` bytes, and each part for writes of its bytes; no two overlap.
    pub unsafe fn all_gather(
        &mut self,
        data: *const u8,
        len: usize,
        part: impl Fn(usize) -> Part,
        pause: &mut impl Pause,
    ) -> Result<(), CollError> {
        let (size, me) = (self.size(), self.me);
        let longest = (0..size).map(|rank| if rank == me { len } else { part(rank).1 }).max().unwrap_or(0);
        if is_short(longest) {
            // SAFETY: this function's contract is that of the callee; `data` and the parts are those of the caller.
            return unsafe { self.all_gather_short(data, len, part, pause) };
        }
        let piece = self.piece(longest);
        let (own, own_len) = part(me);
        // A rank's part of a piece of the longest.
        let cut = |len: usize, at: usize, now: usize| len.saturating_sub(at).min(now);
        let exposed = self.exposable(data, len);
        // Copies `now` bytes of ours from `at` on to our part, as far as both reach.
        let keep = |at: usize, now: usize| {
            let kept = cut(len.min(own_len), at, now);
            if kept > 0 && !own.is_null() {
                // SAFETY: at + kept is within both lengths, for which the caller vouches.
                unsafe { data.add(at).copy_to(own.add(at), kept) };
            }
        };
        self.exchange(
            longest,
            piece,
            pause,
            |group, step, at, now, pause| match (exposed, cut(len, at, now)) {
                (_, 0) => Ok(()),
                (Some(offset), _) if at == 0 => {
                    group.expose(step, offset, len, Readers::All, pause)?;
                    // At once: the operand was written last, and others are about to take it out of our cache.
                    keep(0, len);
                    Ok(())
                }
                (Some(_), _) => Ok(()),
                // SAFETY: at + now <= len.
                (None, now) => unsafe { group.publish_copy(step, data.add(at), now, Readers::All, pause) },
            },
            |group, step, at, longest, pause| {
                if exposed.is_none() {
                    keep(at, longest);
                }
                group.back_off(step, pause);
                // Each begins with its neighbour, so that not all read from the same rank at once.
                for rank in (me + 1..size).chain(0..me) {
                    let (to, len) = part(rank);
                    let now = cut(len, at, longest);
                    if now > 0 {
                        // SAFETY: at + now <= len, the bytes of this rank's part, for which the caller vouches.
                        unsafe {
                            group.receive_piece(rank, Piece { step, at, now, len }, to.add(at), pause)?
                        };
                    }
                }
                Ok(())
            },
        )?;
        if exposed.is_some() { self.await_release(Readers::All, pause) } else { Ok(()) }
    }

    /// Collects the ranks' bytes at `root`, `len` of each: ours from `data`, and the others' where `part` says.
    ///
    /// # Errors
    ///
    /// A rank that is gone or out of step.
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
    ) -> Result<(), CollError> {
        let (size, me, piece) = (self.size(), self.me, self.piece(len));
        if root != me
            && let Some(offset) = self.exposable(data, len)
        {
            return self.expose_all(offset, len, len.div_ceil(piece), Readers::One(root), pause);
        }
        self.in_pieces(len, piece, |group, step, at, now| {
            if root != me {
                // SAFETY: at + now <= len.
                return unsafe { group.publish_copy(step, data.add(at), now, Readers::One(root), pause) };
            }
            for rank in (0..size).filter(|rank| *rank != me) {
                let piece = Piece { step, at, now, len };
                // SAFETY: at + now <= len, the bytes of this rank's part, for which the caller vouches.
                unsafe { group.receive_piece(rank, piece, part(rank).add(at), pause)? };
            }
            Ok(())
        })
    }

    /// Gives part `r` of our `data` to each rank `r`, and collects theirs for us in `out`, in the ranks' order. All
    /// parts have `len` bytes. Our own part stays where it is.
    ///
    /// # Errors
    ///
    /// A rank that is gone or out of step.
    ///
    /// # Safety
    ///
    /// `data` is valid for reads, `out` for writes of as many parts as there are ranks, and they do not overlap.
    pub unsafe fn all_to_all(
        &mut self,
        data: *const u8,
        out: *mut u8,
        len: usize,
        pause: &mut impl Pause,
    ) -> Result<(), CollError> {
        let (size, me) = (self.size(), self.me);
        let exposed = self.exposable(data, len * size);
        self.exchange(
            len,
            self.share(len),
            pause,
            |group, step, at, now, pause| match exposed {
                Some(offset) if at == 0 => group.expose(step, offset, len * size, Readers::All, pause),
                Some(_) => Ok(()),
                // SAFETY: at + now <= len.
                None => unsafe { group.publish_pieces(step, data.add(at), len, now, pause) },
            },
            |group, step, at, now, pause| {
                group.back_off(step, pause);
                for rank in (me + 1..size).chain(0..me) {
                    let piece = Piece { step, at, now, len };
                    // SAFETY: rank * len + at + now lies within `out`, which has a part of len bytes for each rank.
                    unsafe { group.receive_share(rank, piece, out.add(rank * len + at), pause)? };
                }
                Ok(())
            },
        )?;
        if exposed.is_some() { self.await_release(Readers::All, pause) } else { Ok(()) }
    }
}
