//! When a served window may be accessed: its processes tell each other by words of their own, and ask for locks.

use std::cell::Cell;
use std::ffi::c_int;

use super::block::Word;
use super::request::{Kind, Request};
use super::window::{Served, Side, forget};
use crate::ompi;
use crate::osc::epochs::{Epochs, Groups, Locked, all, order, pause};
use crate::osc::members::Members;

impl Epochs for Served {
    fn members(&self) -> &Members {
        &self.members
    }

    fn groups(&self) -> &Groups {
        &self.groups
    }

    fn locked(&self, rank: usize) -> &Cell<Option<Locked>> {
        &self.sides[rank].lock
    }

    fn fence(&self) -> Result<(), c_int> {
        let flushed = self.flush_all();
        order();
        flushed
    }

    fn await_post(&self, rank: usize) {
        let side = &self.sides[rank];
        side.posts.set(side.posts.get() + 1);
        side.await_word(Word::Posted, side.posts.get());
    }

    fn complete(&self, rank: usize) -> Result<(), c_int> {
        let side = &self.sides[rank];
        let flushed = side.flush();
        side.ours.count(Word::Completed);
        flushed
    }

    fn post(&self, rank: usize) {
        self.sides[rank].ours.count(Word::Posted);
    }

    fn take_completed(&self, ranks: &[usize]) -> bool {
        let sides = || ranks.iter().map(|rank| &self.sides[*rank]);
        let has_completed = |side: &Side| side.theirs.load(Word::Completed) > side.completions.get();
        let have_all = sides().all(has_completed);
        if have_all {
            sides().for_each(|side| side.completions.set(side.completions.get() + 1));
        }
        have_all
    }

    fn request_lock(&self, rank: usize, kind: Locked) -> Result<(), c_int> {
        let wanted = match kind {
            Locked::Alone => Kind::LockAlone,
            Locked::Shared => Kind::Lock,
            Locked::Unchecked => return Ok(()),
        };
        let side = &self.sides[rank];
        side.locks.set(side.locks.get() + 1);
        self.request(side, &Request::new(self.name, wanted, 0), &[])
    }

    fn await_lock(&self, rank: usize) {
        let side = &self.sides[rank];
        side.await_word(Word::Granted, side.locks.get());
    }

    fn unlock(&self, rank: usize, kind: Locked) -> Result<(), c_int> {
        let side = &self.sides[rank];
        let flushed = side.flush();
        if kind != Locked::Unchecked {
            self.request(side, &Request::new(self.name, Kind::Unlock, 0), &[])?;
        }
        flushed
    }

    /// Orders, and does others' requests.
    fn sync(&self) {
        order();
        pause();
    }

    fn flush(&self, rank: c_int) -> Result<(), c_int> {
        self.side(rank)?.flush()
    }

    fn flush_all(&self) -> Result<(), c_int> {
        all(self.sides.iter().map(Side::flush))
    }

    fn close(&self) -> c_int {
        // Errors are of epochs, which are over.
        let _ = self.flush_all();
        // SAFETY: the communicator is the window's. After the barrier nobody reads our memory, or has requests of ours to do.
        let code = unsafe { ompi::vmshm_osc_barrier(self.members.comm) };
        forget(self);
        code
    }
}
