//! The table of functions that the plugin registers, and the addresses that are its.

use std::ffi::{CStr, c_int, c_void};
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use vmshm_abi::heap::{FOREIGN, Register, Table, UNFIT, VERSION};

use crate::glibc::{
    __libc_calloc, __libc_free, __libc_malloc, __libc_memalign, __libc_realloc, find_usable, library,
};

/// Bytes from which on an allocation is the plugin's. 0 until the first one, which has the fork handlers registered.
pub static MIN: AtomicUsize = AtomicUsize::new(0);
/// The plugin's memory.
static START: AtomicUsize = AtomicUsize::new(0);
static LEN: AtomicUsize = AtomicUsize::new(0);
static TABLE: AtomicPtr<Table> = AtomicPtr::new(ptr::null_mut());

/// See [`Register`].
///
/// # Safety
/// `table` is NULL or a table that stays as it is for ever, with functions that do what they promise.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmshm_heap_register(table: *const Table) -> c_int {
    MIN.store(usize::MAX, Ordering::Relaxed);
    if table.is_null() {
        return 0;
    }
    // SAFETY: the caller vouches for it; the version stands first in all versions.
    if unsafe { (&raw const (*table).version).read() } != VERSION {
        return UNFIT;
    }
    // SAFETY: the caller vouches for it.
    let Table { min, start, end, .. } = unsafe { *table };
    let is_other = LEN.load(Ordering::Relaxed) != 0 && START.load(Ordering::Relaxed) != start;
    if end < start || is_other && start != end {
        // With another range, what is freed at the same time could be taken for what it is not.
        return UNFIT;
    }
    if !is_alone() {
        return FOREIGN;
    }
    // Here no allocation waits for it.
    find_usable();
    TABLE.store(table.cast_mut(), Ordering::Release);
    if start == end {
        LEN.store(0, Ordering::Release);
        return 0;
    }
    START.store(start, Ordering::Relaxed);
    // Release: a reader that sees the length sees the start, and the table.
    LEN.store(end - start, Ordering::Release);
    MIN.store(min, Ordering::Release);
    0
}

const _: Register = vmshm_heap_register;

/// Whether the process's allocator is this library's, and glibc's behind it. Others define glibc's own names too, and lock
/// themselves before a fork, when the plugin waits for allocating threads.
fn is_alone() -> bool {
    let base = |address| library(address).dli_fbase;
    let own = base((&raw const TABLE).cast());
    let glibc = base(libc::gnu_get_libc_version as *const c_void);
    let first = |name: &CStr| {
        // SAFETY: the name is NUL-terminated.
        base(unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) })
    };
    [c"malloc", c"free"].into_iter().all(|name| first(name) == own)
        && [
            __libc_malloc as *const c_void,
            __libc_calloc as *const c_void,
            __libc_realloc as *const c_void,
            __libc_memalign as *const c_void,
            __libc_free as *const c_void,
        ]
        .into_iter()
        .all(|function| base(function) == glibc)
}

/// The registered table, if any.
#[inline]
pub fn table() -> Option<&'static Table> {
    // SAFETY: a table stays as it is for ever.
    unsafe { TABLE.load(Ordering::Acquire).as_ref() }
}

/// The table, for an address that it has given.
#[inline]
pub fn placed(memory: *mut c_void) -> Option<&'static Table> {
    let len = LEN.load(Ordering::Acquire);
    if memory.addr().wrapping_sub(START.load(Ordering::Relaxed)) >= len {
        return None;
    }
    table()
}
