// SPDX-License-Identifier: GPL-2.0

//! The pointer that the kernel keeps for us with each open file.
//!
//! An open file's `private_data` is that of an `Arc<F>`, put there by `open` and taken away by
//! `release`. Between these the kernel calls all others.

use core::ptr;
use kernel::{bindings, sync::Arc};

/// Puts it there.
///
/// # Safety
///
/// `file` is being opened, so that nobody else looks at it.
pub(super) unsafe fn put<F>(file: *mut bindings::file, opened: Arc<F>) {
    // SAFETY: By this function's contract.
    unsafe { (*file).private_data = Arc::into_raw(opened).cast_mut().cast() };
}

/// Takes it away.
///
/// # Safety
///
/// [`put`] was called for the file with the same type; nobody looks at the pointer any more.
pub(super) unsafe fn take<F>(file: *mut bindings::file) -> Arc<F> {
    // SAFETY: By this function's contract.
    unsafe { Arc::from_raw((*file).private_data.cast::<F>()) }
}

/// The open file.
///
/// # Safety
///
/// [`put`] was called for the file with the same type, and [`take`] is not called as long as `'a`.
pub(super) unsafe fn opened<'a, F>(file: *mut bindings::file) -> &'a F {
    // SAFETY: By this function's contract, it is that of an `Arc<F>`, which lives.
    unsafe { &*(*file).private_data.cast::<F>() }
}

/// The open file that a mapping was made of.
///
/// # Safety
///
/// [`put`] was called for that file with the same type. The mapping lives as long as `'a`.
pub(super) unsafe fn of_mapping<'a, F>(vma: *mut bindings::vm_area_struct) -> &'a F {
    // SAFETY: A mapping holds its file, so `release` is not called before the mapping is gone.
    unsafe { opened(ptr::read(&raw const (*vma).vm_file)) }
}
