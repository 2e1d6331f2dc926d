//! A communicator's group after its members have met, and the memory that it takes of this process's section.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use vmshm_transport::collective::{CollError, Group, MIN_CHUNKS, chunks_len};
use vmshm_transport::{Fragment, Mapping, Memory, Purpose};

use super::waiting::Waiting;
use crate::ompi::help;
use crate::process::{INSTANCE, Instance, params};

/// Operations of the vector kind (parts of unequal lengths) between two times that members tell each other whether they lack
/// room.
const VECTORS_BETWEEN: u32 = 64;

/// Bytes of the smallest page.
const PAGE: usize = 4096;

/// Gives back memory of groups that nobody reads any more.
pub fn tidy() {
    if let Some(Instance { engine, left, .. }) = INSTANCE.lock().as_mut() {
        left.tidy(engine.endpoint_mut());
    }
}

/// A group, and this process's part of its memory.
pub struct Met {
    /// The group.
    pub group: Group<Arc<Mapping>>,
    /// A wait for its members.
    pub waiting: Waiting,
    fragments: Vec<Fragment>,
    chunks: Chunks,
    chunk: usize,
    /// Operations of the vector kind so far.
    vectors: u32,
    /// Whether a part of ours that fits a chunk went as a message in an operation of the vector kind.
    pub lacked_room: bool,
}

enum Chunks {
    Unasked,
    There,
    Declined,
}

impl Met {
    /// A group whose block is a fragment of our section, with chunks of `chunk` bytes once it needs some.
    pub fn new(group: Group<Arc<Mapping>>, waiting: Waiting, block: Fragment, chunk: usize) -> Self {
        let fragments = vec![block];
        Self { group, waiting, fragments, chunks: Chunks::Unasked, chunk, vectors: 0, lacked_room: false }
    }

    /// Leaves the group; others may still read its memory.
    pub fn leave(self) {
        let Self { group, fragments, .. } = self;
        if let Some(Instance { engine, left, .. }) = INSTANCE.lock().as_mut() {
            left.add(group.leave(), fragments);
            left.tidy(engine.endpoint_mut());
        }
    }

    /// Bytes of `count` chunks: the same for all members.
    pub fn chunks_of(&self, count: usize) -> usize {
        count * self.chunk
    }

    /// Whether payloads of `len` bytes a step can go through the group; asks for memory when that is first needed. All
    /// members come to the same conclusion.
    #[inline]
    pub fn takes(&mut self, len: usize) -> Result<bool, CollError> {
        if len <= self.group.short() {
            return Ok(true);
        }
        if let Chunks::Unasked = self.chunks {
            self.chunks = self.get_chunks()?;
        }
        Ok(matches!(self.chunks, Chunks::There))
    }

    /// Counts an operation of the vector kind, in which no member knows what others have no room for. So members tell one
    /// another now and then, until there are chunks.
    #[inline]
    pub fn ask_for_room(&mut self) -> Result<(), CollError> {
        self.vectors = self.vectors.wrapping_add(1);
        let is_time = self.vectors.is_multiple_of(VECTORS_BETWEEN) && matches!(self.chunks, Chunks::Unasked);
        if is_time { self.compare_room() } else { Ok(()) }
    }

    #[cold]
    fn compare_room(&mut self) -> Result<(), CollError> {
        let mine = u8::from(self.lacked_room);
        let mut all = vec![0u8; self.group.size()];
        let first = all.as_mut_ptr();
        let part = |member: usize| (first.wrapping_add(member), 1);
        // SAFETY: each has a byte.
        unsafe { self.group.all_gather(&raw const mine, 1, part, &mut self.waiting)? };
        if all.contains(&1) {
            self.chunks = self.get_chunks()?;
        }
        Ok(())
    }

    #[cold]
    fn get_chunks(&mut self) -> Result<Chunks, CollError> {
        tidy();
        // A small section has room for fewer.
        let section = self.group.rank(self.group.me()).section.entry.len;
        let mut count = params::coll_chunks(self.chunk, self.group.size(), section);
        let get = |count| {
            let len = chunks_len(self.chunk, count);
            let mut instance = INSTANCE.lock();
            instance.as_mut()?.engine.endpoint_mut().fragment_for(len, Purpose::Large)
        };
        let mut fragment = get(count);
        while fragment.is_none() && count > MIN_CHUNKS {
            count /= 2;
            fragment = get(count);
        }
        if let Some(fragment) = &fragment {
            // The first touch of a page takes a fault: here rather than in the operation.
            let pages = (0..chunks_len(self.chunk, count) as u64).step_by(PAGE);
            pages.for_each(|at| self.group.memory().store(fragment.offset() + at, 0, Ordering::Relaxed));
        }
        let offset = fragment.as_ref().map_or(0, Fragment::offset);
        let are_there = self.group.add_chunks(offset, self.chunk, count, &mut self.waiting);
        if let Ok(true) = are_there {
            self.fragments.extend(fragment);
            self.group.touch_chunks();
            return Ok(Chunks::There);
        }
        if let (Some(fragment), Some(instance)) = (fragment, INSTANCE.lock().as_mut()) {
            instance.engine.free(fragment);
        }
        are_there?;
        help::verbose(
            "long collective operations of a communicator are left to others: a section has no memory left",
        );
        Ok(Chunks::Declined)
    }
}
