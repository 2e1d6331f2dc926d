// SPDX-License-Identifier: GPL-2.0

//! The file operations, from C to [`OpenFile`].
//!
//! An open file's `private_data` is that of an `Arc<OpenFile>`, put there by `open` and taken away
//! by `release`. Between these the kernel calls all others.

use core::ptr;
use kernel::{
    bindings,
    error::from_result,
    prelude::*,
    sync::Arc,
    uaccess::{UserPtr, UserSlice},
};

use super::{misc, vma::NewVma};
use crate::{file::OpenFile, mmap, this_module};

/// A `file_operations` for a static.
pub(super) struct Operations(bindings::file_operations);

// SAFETY: It is never written.
unsafe impl Sync for Operations {}

impl Operations {
    pub(super) const fn get(&self) -> &bindings::file_operations {
        &self.0
    }
}

pub(super) static OPERATIONS: Operations = Operations(bindings::file_operations {
    // Without an owner the module could be unloaded under an open file.
    owner: this_module(),
    open: Some(open),
    release: Some(release),
    flush: Some(flush),
    read: Some(read),
    llseek: Some(bindings::noop_llseek),
    poll: Some(poll),
    unlocked_ioctl: Some(ioctl),
    compat_ioctl: bindings::compat_ptr_ioctl,
    mmap: Some(mmap),
    // Picks addresses that large pages fit, where the process leaves the choice to the kernel.
    #[cfg(CONFIG_TRANSPARENT_HUGEPAGE)]
    get_unmapped_area: Some(bindings::thp_get_unmapped_area),
    ..pin_init::zeroed()
});

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

/// What `poll` was called with.
///
/// # Invariants
///
/// Both pointers are valid, or that of the table null, while this lives.
pub(crate) struct PollTable {
    file: *mut bindings::file,
    table: *mut bindings::poll_table,
}

impl PollTable {
    pub(super) fn file(&self) -> *mut bindings::file {
        self.file
    }

    pub(super) fn table(&self) -> *mut bindings::poll_table {
        self.table
    }
}

/// The open file.
///
/// # Safety
///
/// `open` has succeeded for the file, and `release` is not called as long as `'a`.
pub(super) unsafe fn opened<'a>(file: *mut bindings::file) -> &'a OpenFile {
    // SAFETY: By this function's contract, `private_data` is that of an `Arc<OpenFile>`, which
    // lives.
    unsafe { &*(*file).private_data.cast::<OpenFile>() }
}

/// # Safety
///
/// Only called by the kernel, for a new file.
unsafe extern "C" fn open(inode: *mut bindings::inode, file: *mut bindings::file) -> c_int {
    from_result(|| {
        // SAFETY: `misc_open` has put the misc device there, and keeps it from going away
        // meanwhile.
        let device = unsafe { misc::device((*file).private_data.cast()) };
        // SAFETY: Valid by this function's contract.
        unsafe { bindings::ihold(inode) };
        // INVARIANT: The reference was taken just now.
        let opened = OpenFile::open(device.into(), Inode(inode))?;
        // SAFETY: Both are valid by this function's contract. It never fails.
        unsafe { bindings::stream_open(inode, file) };
        // SAFETY: Nobody else looks at a file that is being opened.
        unsafe { (*file).private_data = Arc::into_raw(opened).cast_mut().cast() };
        Ok(0)
    })
}

/// # Safety
///
/// Only called by the kernel, once for each file that `open` succeeded for, after all else.
unsafe extern "C" fn release(_inode: *mut bindings::inode, file: *mut bindings::file) -> c_int {
    // SAFETY: `open` has put it there, and nobody looks at it any more.
    let opened = unsafe { Arc::from_raw((*file).private_data.cast::<OpenFile>()) };
    OpenFile::release(opened);
    0
}

/// # Safety
///
/// Only called by the kernel, for an open file.
unsafe extern "C" fn flush(file: *mut bindings::file, _id: bindings::fl_owner_t) -> c_int {
    // SAFETY: By this function's contract.
    unsafe { opened(file) }.flush();
    0
}

/// # Safety
///
/// Only called by the kernel, for an open file.
unsafe extern "C" fn read(
    file: *mut bindings::file,
    buffer: *mut c_char,
    len: usize,
    _position: *mut bindings::loff_t,
) -> isize {
    // SAFETY: By this function's contract.
    let opened = unsafe { opened(file) };
    let mut to = UserSlice::new(UserPtr::from_ptr(buffer.cast()), len).writer();
    match opened.read(&mut to) {
        Ok(bytes) => bytes as isize,
        Err(error) => error.to_errno() as isize,
    }
}

/// # Safety
///
/// Only called by the kernel, for an open file.
unsafe extern "C" fn poll(
    file: *mut bindings::file,
    table: *mut bindings::poll_table_struct,
) -> bindings::__poll_t {
    // INVARIANT: Valid or null by this function's contract.
    let table = PollTable { file, table };
    // SAFETY: By this function's contract.
    unsafe { opened(file) }.poll(&table)
}

/// # Safety
///
/// Only called by the kernel, for an open file.
unsafe extern "C" fn ioctl(
    file: *mut bindings::file,
    command: c_uint,
    argument: c_ulong,
) -> c_long {
    // SAFETY: By this function's contract.
    let opened = unsafe { opened(file) };
    match opened.ioctl(command, UserPtr::from_addr(argument)) {
        Ok(()) => 0,
        Err(error) => error.to_errno() as c_long,
    }
}

/// # Safety
///
/// Only called by the kernel, for an open file and a mapping that is being made of it.
unsafe extern "C" fn mmap(file: *mut bindings::file, vma: *mut bindings::vm_area_struct) -> c_int {
    from_result(|| {
        // SAFETY: By this function's contract.
        let (opened, vma) = unsafe { (opened(file), NewVma::from_raw(vma)) };
        mmap::map(opened, vma)?;
        Ok(0)
    })
}

/// The open file that a mapping was made of.
///
/// # Safety
///
/// The mapping was made by `mmap` above, and lives as long as `'a`.
pub(super) unsafe fn of_mapping<'a>(vma: *mut bindings::vm_area_struct) -> &'a OpenFile {
    // SAFETY: A mapping holds its file, so `release` is not called before the mapping is gone.
    unsafe { opened(ptr::read(&raw const (*vma).vm_file)) }
}
