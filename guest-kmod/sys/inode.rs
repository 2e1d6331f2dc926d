// SPDX-License-Identifier: GPL-2.0

//! Inodes, by which the kernel knows all mappings of a file.

use kernel::bindings;

/// A reference to the inode through which a file was opened; all mappings of the file belong to it.
///
/// # Invariants
///
/// The pointer is valid, and one of its references is ours.
#[derive(PartialEq, Eq)]
pub(crate) struct Inode(*mut bindings::inode);

// SAFETY: Inodes are reference counted and belong to no thread.
unsafe impl Send for Inode {}
// SAFETY: As above; mappings have locks of their own.
unsafe impl Sync for Inode {}

impl Inode {
    /// Takes a reference.
    ///
    /// # Safety
    ///
    /// `inode` is valid.
    pub(super) unsafe fn hold(inode: *mut bindings::inode) -> Self {
        // SAFETY: By this function's contract.
        unsafe { bindings::ihold(inode) };
        // INVARIANT: The reference was taken just now.
        Self(inode)
    }

    /// Takes all pages out of all mappings of all files that were opened through the inode, in
    /// whatever process. The next access to them faults. May sleep.
    pub(crate) fn unmap(&self) {
        // SAFETY: By the type's invariants. A length of 0 means up to the end.
        unsafe { bindings::unmap_mapping_range((*self.0).i_mapping, 0, 0, 1) };
    }
}

impl Drop for Inode {
    fn drop(&mut self) {
        // SAFETY: By the type's invariants; the reference is given up here.
        unsafe { bindings::iput(self.0) };
    }
}
