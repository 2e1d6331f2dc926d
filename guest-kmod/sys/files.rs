// SPDX-License-Identifier: GPL-2.0

//! The file operations, from C to a type of ours.

use core::marker::PhantomData;
use kernel::{
    bindings,
    error::from_result,
    prelude::*,
    sync::Arc,
    uaccess::{UserPtr, UserSlice, UserSliceWriter},
};

use super::{
    inode::Inode,
    misc::{self, Operations},
    private_data::{opened, put, take},
    vma::{FillsPages, NewVma},
    wait::PollTable,
};

/// An open file of a misc device. Each operation is called by the kernel's of the same name.
pub(crate) trait File: FillsPages + Send {
    /// The device behind the misc device.
    type Device: Send + Sync + 'static;

    /// A process opens the device, through `inode`.
    fn open(device: Arc<Self::Device>, inode: Inode) -> Result<Arc<Self>>;

    /// The last descriptor and the last mapping are gone.
    fn release(this: Arc<Self>);

    /// A process has closed a descriptor, or has ended.
    fn flush(&self);

    /// Gives bytes, and says how many.
    fn read(&self, to: &mut UserSliceWriter) -> Result<usize>;

    /// Events that are there without waiting.
    fn poll(&self, table: &PollTable) -> u32;

    /// A command, and where its argument is.
    fn ioctl(&self, command: u32, argument: UserPtr) -> Result;

    /// Makes a mapping, or refuses it.
    fn mmap(&self, vma: NewVma<'_, Self>) -> Result;
}

/// The operations of a misc device whose open files are `F`s.
pub(crate) const fn operations<F: File>() -> &'static Operations<F::Device> {
    &Table::<F>::OPERATIONS
}

struct Table<F>(PhantomData<F>);

impl<F: File> Table<F> {
    // INVARIANT: `open` takes an `F::Device` from the misc device; no other operation sees it.
    const OPERATIONS: Operations<F::Device> = Operations {
        raw: bindings::file_operations {
            // Without an owner the module could be unloaded under an open file.
            owner: this_module(),
            open: Some(open::<F>),
            release: Some(release::<F>),
            flush: Some(flush::<F>),
            read: Some(read::<F>),
            llseek: Some(bindings::noop_llseek),
            poll: Some(poll::<F>),
            unlocked_ioctl: Some(ioctl::<F>),
            compat_ioctl: bindings::compat_ptr_ioctl,
            mmap: Some(mmap::<F>),
            // Picks addresses that large pages fit, where the process leaves the choice to the
            // kernel.
            #[cfg(CONFIG_TRANSPARENT_HUGEPAGE)]
            get_unmapped_area: Some(bindings::thp_get_unmapped_area),
            ..pin_init::zeroed()
        },
        device: PhantomData,
    };
}

/// This module, as the kernel's build names it in each module. The name that `module!` gives it
/// is known only where the whole driver is.
const fn this_module() -> *mut bindings::module {
    extern "C" {
        // Of another type; nothing but its address is taken.
        static __this_module: u8;
    }
    (&raw const __this_module).cast_mut().cast()
}

/// # Safety
///
/// Only called by the kernel, for a new file.
unsafe extern "C" fn open<F: File>(
    inode: *mut bindings::inode,
    file: *mut bindings::file,
) -> c_int {
    from_result(|| {
        // SAFETY: `misc_open` has put the misc device there, and keeps it from going away
        // meanwhile.
        let device = unsafe { misc::device::<F::Device>((*file).private_data.cast()) };
        // SAFETY: Valid by this function's contract.
        let held = unsafe { Inode::hold(inode) };
        let opened = F::open(device.clone(), held)?;
        // SAFETY: Both are valid by this function's contract. It never fails.
        unsafe { bindings::stream_open(inode, file) };
        // SAFETY: The file is being opened.
        unsafe { put(file, opened) };
        Ok(0)
    })
}

/// # Safety
///
/// Only called by the kernel, once for each file that `open` succeeded for, after all else.
unsafe extern "C" fn release<F: File>(
    _inode: *mut bindings::inode,
    file: *mut bindings::file,
) -> c_int {
    // SAFETY: `open` has put it there, and nobody looks at it any more.
    F::release(unsafe { take(file) });
    0
}

/// # Safety
///
/// Only called by the kernel, for an open file.
unsafe extern "C" fn flush<F: File>(
    file: *mut bindings::file,
    _id: bindings::fl_owner_t,
) -> c_int {
    // SAFETY: By this function's contract.
    unsafe { opened::<F>(file) }.flush();
    0
}

/// # Safety
///
/// Only called by the kernel, for an open file.
unsafe extern "C" fn read<F: File>(
    file: *mut bindings::file,
    buffer: *mut c_char,
    len: usize,
    _position: *mut bindings::loff_t,
) -> isize {
    // SAFETY: By this function's contract.
    let opened = unsafe { opened::<F>(file) };
    let mut to = UserSlice::new(UserPtr::from_ptr(buffer.cast()), len).writer();
    match opened.read(&mut to) {
        Ok(bytes) => bytes as isize,
        Err(error) => error.to_errno() as isize,
    }
}

/// # Safety
///
/// Only called by the kernel, for an open file.
unsafe extern "C" fn poll<F: File>(
    file: *mut bindings::file,
    table: *mut bindings::poll_table_struct,
) -> bindings::__poll_t {
    // SAFETY: By this function's contract.
    let (opened, table) = unsafe { (opened::<F>(file), PollTable::from_raw(file, table)) };
    opened.poll(&table)
}

/// # Safety
///
/// Only called by the kernel, for an open file.
unsafe extern "C" fn ioctl<F: File>(
    file: *mut bindings::file,
    command: c_uint,
    argument: c_ulong,
) -> c_long {
    // SAFETY: By this function's contract.
    let opened = unsafe { opened::<F>(file) };
    match opened.ioctl(command, UserPtr::from_addr(argument)) {
        Ok(()) => 0,
        Err(error) => error.to_errno() as c_long,
    }
}

/// # Safety
///
/// Only called by the kernel, for an open file and a mapping that is being made of it.
unsafe extern "C" fn mmap<F: File>(
    file: *mut bindings::file,
    vma: *mut bindings::vm_area_struct,
) -> c_int {
    from_result(|| {
        // SAFETY: By this function's contract.
        let (opened, vma) = unsafe { (opened::<F>(file), NewVma::from_raw(vma)) };
        opened.mmap(vma)?;
        Ok(0)
    })
}
