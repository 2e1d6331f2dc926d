//! One-sided access to the sections of others.

use core::sync::atomic::Ordering;

use super::Endpoint;
use super::event::Peer;
use crate::error::{Fault, PeerError};
use crate::memory::Memory;

impl<M: Memory> Endpoint<M> {
    /// Address in this process of bytes of the region.
    ///
    /// # Panics
    ///
    /// Where they leave the region.
    pub fn address(&self, offset: u64, len: u64) -> *mut u8 {
        self.memory.address(offset, len)
    }

    /// The offset of memory of this process, if all of it lies in the part of the region that we may write: then peers
    /// can [`Endpoint::get`] it.
    pub fn expose(&self, address: *const u8, len: u64) -> Option<u64> {
        self.memory.offset_of(address, len).filter(|offset| self.section.contains(*offset, len))
    }

    /// Whether a peer's section lies on another NUMA node of the host than ours, as far as the host has said so.
    pub fn is_far(&self, peer: Peer) -> bool {
        let (ours, theirs) = (self.section.entry.node, self.connections[peer.index()].section.entry.node);
        ours >= 0 && theirs >= 0 && ours != theirs
    }

    /// Copies bytes out of a peer's section.
    ///
    /// # Errors
    ///
    /// A range outside the peer's section, a peer that is gone.
    ///
    /// # Safety
    ///
    /// `to` must be valid for writes of `len` bytes.
    pub unsafe fn get(&mut self, peer: Peer, offset: u64, to: *mut u8, len: usize) -> Result<(), PeerError> {
        self.check_remote(peer, offset, len as u64)?;
        // SAFETY: the caller vouches for `to`; the offset was checked.
        unsafe { self.memory.copy_out(offset, to, len) };
        self.confirm_get(peer, len)
    }

    /// Liveness check behind a copy: bytes that were read from a peer's section, after [`Endpoint::check_remote`], were the
    /// peer's own.
    ///
    /// # Errors
    ///
    /// A peer that is gone: the bytes may be another's.
    pub fn confirm(&mut self, peer: Peer) -> Result<(), PeerError> {
        if self.connections[peer.index()].lives(&self.memory) {
            return Ok(());
        }
        let why = self.ending(peer.0);
        self.fail(peer.0, why);
        Err(why)
    }

    /// As [`Endpoint::confirm`], of a get of `len` bytes that the caller has copied by itself, and counts it.
    ///
    /// # Errors
    ///
    /// As [`Endpoint::confirm`].
    pub fn confirm_get(&mut self, peer: Peer, len: usize) -> Result<(), PeerError> {
        self.confirm(peer)?;
        self.connections[peer.index()].counted.gets.add(len);
        Ok(())
    }

    /// Loads a word of a peer's section, with Acquire: bytes that its owner wrote before it stored the word with Release can be
    /// read after.
    ///
    /// # Errors
    ///
    /// A word outside the peer's section or not aligned, a peer that is known to be gone.
    pub fn load(&self, peer: Peer, offset: u64) -> Result<u64, PeerError> {
        check_aligned(offset)?;
        self.check_remote(peer, offset, 8)?;
        Ok(self.memory.load(offset, Ordering::Acquire))
    }

    /// Copies bytes into a peer's section; only in an open region.
    ///
    /// # Errors
    ///
    /// A range outside the peer's section, a region that is not open, a peer that is gone.
    ///
    /// # Safety
    ///
    /// `from` must be valid for reads of `len` bytes.
    pub unsafe fn put(
        &mut self,
        peer: Peer,
        offset: u64,
        from: *const u8,
        len: usize,
    ) -> Result<(), PeerError> {
        self.check_open(peer, offset, len as u64)?;
        // SAFETY: the caller vouches for `from`; the offset was checked, and an open region is writable.
        unsafe { self.memory.copy_in(offset, from, len) };
        self.connections[peer.index()].counted.puts.add(len);
        Ok(())
    }

    /// Adds to a word in a peer's section, and returns what it was; only in an open region.
    ///
    /// # Errors
    ///
    /// A word outside the peer's section or not aligned, a region that is not open, a peer that is gone.
    pub fn fetch_add(&mut self, peer: Peer, offset: u64, value: u64) -> Result<u64, PeerError> {
        self.check_word(peer, offset)?;
        self.connections[peer.index()].counted.puts.add(8);
        Ok(self.memory.fetch_add(offset, value, Ordering::AcqRel))
    }

    /// Replaces a word in a peer's section if it is `current`, and returns what it was; only in an open region.
    ///
    /// # Errors
    ///
    /// As [`Endpoint::fetch_add`].
    pub fn compare_exchange(
        &mut self,
        peer: Peer,
        offset: u64,
        current: u64,
        new: u64,
    ) -> Result<u64, PeerError> {
        self.check_word(peer, offset)?;
        self.connections[peer.index()].counted.puts.add(8);
        Ok(self.memory.compare_exchange(offset, current, new).unwrap_or_else(|found| found))
    }

    fn check_word(&self, peer: Peer, offset: u64) -> Result<(), PeerError> {
        check_aligned(offset)?;
        self.check_open(peer, offset, 8)
    }

    fn check_open(&self, peer: Peer, offset: u64, len: u64) -> Result<(), PeerError> {
        if !self.region.is_open() {
            return Err(Fault { what: "write to a region that is not open", value: offset }.into());
        }
        let connection = &self.connections[peer.index()];
        if connection.failed.is_none() && !connection.lives(&self.memory) {
            return Err(self.ending(peer.0));
        }
        self.check_remote(peer, offset, len)
    }

    /// Whether bytes of the region lie in a peer's section.
    ///
    /// # Errors
    ///
    /// A range outside the peer's section, a peer that is known to be gone.
    pub fn check_remote(&self, peer: Peer, offset: u64, len: u64) -> Result<(), PeerError> {
        let connection = &self.connections[peer.index()];
        if let Some(why) = connection.failed {
            return Err(why);
        }
        match self.region.place(connection.id) {
            Some((section, _)) if section.contains(offset, len) => Ok(()),
            _ => Err(Fault { what: "remote range", value: offset }.into()),
        }
    }
}

fn check_aligned(offset: u64) -> Result<(), PeerError> {
    match offset.is_multiple_of(8) {
        true => Ok(()),
        false => Err(Fault { what: "unaligned word", value: offset }.into()),
    }
}
