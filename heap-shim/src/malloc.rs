//! C's allocation functions: what is large goes to the plugin, what is freed goes where its address says.

use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::atomic::Ordering;

use crate::fork;
use crate::glibc::{
    __libc_calloc, __libc_free, __libc_malloc, __libc_memalign, __libc_realloc, set_errno, usable_ordinary,
};
use crate::table::{MIN, placed, table};

/// Alignment of `malloc`, bytes.
const ALIGNMENT: usize = 16;

/// The plugin's memory for an allocation, or NULL.
#[inline]
fn place(len: usize, align: usize) -> *mut c_void {
    if len < MIN.load(Ordering::Acquire) {
        return ptr::null_mut();
    }
    place_large(len, align)
}

#[cold]
fn place_large(len: usize, align: usize) -> *mut c_void {
    fork::begin();
    match table() {
        // SAFETY: the table's functions do what they promise.
        Some(table) if len >= MIN.load(Ordering::Acquire) && align.is_power_of_two() => unsafe {
            (table.allocate)(len, align)
        },
        _ => ptr::null_mut(),
    }
}

/// C's `malloc`.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn malloc(len: usize) -> *mut c_void {
    let memory = place(len, ALIGNMENT);
    // SAFETY: the caller's promises are the same.
    if memory.is_null() { unsafe { __libc_malloc(len) } } else { memory }
}

/// C's `calloc`.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn calloc(count: usize, len: usize) -> *mut c_void {
    let memory = count.checked_mul(len).map_or(ptr::null_mut(), |bytes| place(bytes, ALIGNMENT));
    if memory.is_null() {
        // SAFETY: the caller's promises are the same.
        return unsafe { __libc_calloc(count, len) };
    }
    // SAFETY: so many bytes were placed; the product did not overflow then.
    unsafe { memory.write_bytes(0, count * len) };
    memory
}

/// C's `realloc`.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn realloc(old: *mut c_void, len: usize) -> *mut c_void {
    let Some(table) = placed(old) else {
        // SAFETY: the caller vouches for `old`.
        return unsafe { realloc_ordinary(old, len) };
    };
    // SAFETY: the table has given `old`, and the caller gives it back; what is new is another piece, with room for
    // what is copied.
    unsafe {
        if len == 0 {
            (table.free)(old);
            return ptr::null_mut();
        }
        let had = (table.usable)(old);
        if had == 0 {
            // The table cannot say now: moving nothing would lose what is there.
            set_errno(libc::ENOMEM);
            return ptr::null_mut();
        }
        if len <= had && len >= had / 2 {
            return old;
        }
        // An allocation that grows once grows again, and must not be copied whole each time.
        let mut new = place(if len > had { len.saturating_add(len / 4) } else { len }, ALIGNMENT);
        if new.is_null() {
            new = __libc_malloc(len);
        }
        if !new.is_null() {
            ptr::copy_nonoverlapping(old.cast::<u8>(), new.cast(), had.min(len));
            (table.free)(old);
        }
        new
    }
}

/// `realloc` for what glibc has given. An allocation that becomes large goes to the plugin.
///
/// # Safety
/// `old` is NULL or glibc's.
unsafe fn realloc_ordinary(old: *mut c_void, len: usize) -> *mut c_void {
    let new = place(len, ALIGNMENT);
    // SAFETY: the caller vouches for `old`; `new` has room for `len` bytes.
    unsafe {
        if new.is_null() {
            return __libc_realloc(old, len);
        }
        if !old.is_null() {
            let had = usable_ordinary(old);
            if had == 0 {
                free(new);
                return __libc_realloc(old, len);
            }
            ptr::copy_nonoverlapping(old.cast::<u8>(), new.cast(), had.min(len));
            __libc_free(old);
        }
    }
    new
}

/// glibc's `reallocarray`.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn reallocarray(old: *mut c_void, count: usize, len: usize) -> *mut c_void {
    match count.checked_mul(len) {
        // SAFETY: the caller's promises are the same.
        Some(bytes) => unsafe { realloc(old, bytes) },
        None => {
            set_errno(libc::ENOMEM);
            ptr::null_mut()
        }
    }
}

/// C's `free`.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn free(memory: *mut c_void) {
    match placed(memory) {
        // SAFETY: the table has given it, and the caller gives it back.
        Some(table) => unsafe { (table.free)(memory) },
        // SAFETY: the caller vouches for it.
        None => unsafe { __libc_free(memory) },
    }
}

/// Memory with an alignment.
///
/// # Safety
/// As C's `aligned_alloc`.
unsafe fn aligned(align: usize, len: usize) -> *mut c_void {
    let memory = place(len, align.max(ALIGNMENT));
    // SAFETY: the caller's promises are the same.
    if memory.is_null() { unsafe { __libc_memalign(align, len) } } else { memory }
}

/// POSIX's `posix_memalign`.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posix_memalign(to: *mut *mut c_void, align: usize, len: usize) -> c_int {
    if !align.is_power_of_two() || !align.is_multiple_of(size_of::<*mut c_void>()) {
        return libc::EINVAL;
    }
    // SAFETY: the caller gives room for a pointer.
    unsafe {
        let memory = aligned(align, len);
        if memory.is_null() {
            return libc::ENOMEM;
        }
        *to = memory;
    }
    0
}

/// C's `aligned_alloc`.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aligned_alloc(align: usize, len: usize) -> *mut c_void {
    // SAFETY: the caller's promises are the same.
    unsafe { aligned(align, len) }
}

/// glibc's `memalign`.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memalign(align: usize, len: usize) -> *mut c_void {
    // SAFETY: the caller's promises are the same.
    unsafe { aligned(align, len) }
}

fn page() -> usize {
    // SAFETY: a plain question.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

/// glibc's `valloc`.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn valloc(len: usize) -> *mut c_void {
    // SAFETY: the caller's promises are the same.
    unsafe { aligned(page(), len) }
}

/// glibc's `pvalloc`.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pvalloc(len: usize) -> *mut c_void {
    let Some(len) = len.checked_next_multiple_of(page()) else {
        set_errno(libc::ENOMEM);
        return ptr::null_mut();
    };
    // SAFETY: the caller's promises are the same.
    unsafe { aligned(page(), len) }
}

/// glibc's `malloc_usable_size`.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn malloc_usable_size(memory: *mut c_void) -> usize {
    match placed(memory) {
        // SAFETY: the table has given it.
        Some(table) => unsafe { (table.usable)(memory) },
        // SAFETY: the caller vouches for it.
        None => unsafe { usable_ordinary(memory) },
    }
}
