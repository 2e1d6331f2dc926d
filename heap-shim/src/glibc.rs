//! glibc's allocator, and what else of it is reached by name.

use std::ffi::{c_int, c_void};
use std::mem;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

// glibc's own names for its allocator. They lead there also while the dynamic linker is at work.
unsafe extern "C" {
    pub fn __libc_malloc(len: usize) -> *mut c_void;
    pub fn __libc_calloc(count: usize, len: usize) -> *mut c_void;
    pub fn __libc_realloc(old: *mut c_void, len: usize) -> *mut c_void;
    pub fn __libc_memalign(align: usize, len: usize) -> *mut c_void;
    pub fn __libc_free(memory: *mut c_void);
}

/// The `malloc_usable_size` of glibc, the only one of these functions without a second name. NULL before it is looked up.
static USABLE: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());

/// The library that an address lies in.
pub fn library(address: *const c_void) -> libc::Dl_info {
    // SAFETY: all zeros is a valid Dl_info, which dladdr fills where it returns non-zero.
    unsafe {
        let mut found = mem::zeroed();
        libc::dladdr(address, &raw mut found);
        found
    }
}

/// Finds [`USABLE`]: that of the library which has the allocator behind this one.
pub fn find_usable() -> *mut c_void {
    let found = USABLE.load(Ordering::Relaxed);
    if !found.is_null() {
        return found;
    }
    let name = library(__libc_malloc as *const c_void).dli_fname;
    if name.is_null() {
        return ptr::null_mut();
    }
    // SAFETY: both names are NUL-terminated; the library is loaded, stays so, and the first call loads nothing.
    let found = unsafe {
        let handle = libc::dlopen(name, libc::RTLD_LAZY | libc::RTLD_NOLOAD);
        if handle.is_null() {
            return ptr::null_mut();
        }
        libc::dlsym(handle, c"malloc_usable_size".as_ptr())
    };
    USABLE.store(found, Ordering::Relaxed);
    found
}

/// Bytes to use at an address that glibc has given; 0 where that cannot be asked.
///
/// # Safety
/// `memory` is NULL or glibc's.
pub unsafe fn usable_ordinary(memory: *mut c_void) -> usize {
    type Usable = unsafe extern "C" fn(*mut c_void) -> usize;
    let found = find_usable();
    if found.is_null() {
        return 0;
    }
    // SAFETY: glibc's function of this name has this type; the caller vouches for the memory.
    unsafe { mem::transmute::<*mut c_void, Usable>(found)(memory) }
}

/// Says an error, as C's functions do.
pub fn set_errno(code: c_int) {
    // SAFETY: the thread's own variable.
    unsafe { *libc::__errno_location() = code };
}
