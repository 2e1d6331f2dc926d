//! Forks, which the plugin is told of: a child must not share the section's memory with its parent.
//!
//! glibc calls what is registered first last before a fork, and first after it. The plugin's view of the memory is then the
//! one that every other handler has finished with, and finds again. So the handlers are registered by this library, before
//! any other code of the program runs, and ask the plugin once there is one.

use std::ffi::{CStr, c_int, c_void};
use std::mem;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

use vmshm_abi::heap::Table;

use crate::glibc::set_errno;
use crate::stack;
use crate::table::{MIN, placed, table};

/// Value that a thread keeps between the two ends of a fork. A thread-specific value, since one of the first keys needs no
/// allocation, unlike a thread-local variable: other allocators may have locked themselves for the fork.
static HANDOVER: AtomicU32 = AtomicU32::new(0);

/// The next functions of these names, behind this library's own.
static FORK: Next = Next::new(c"fork");
static FORK_PLAIN: Next = Next::new(c"_Fork");
static CREATE: Next = Next::new(c"pthread_create");

#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn() = construct;

extern "C" fn construct() {
    begin();
    // In a signal's handler, where forks happen too, nothing can be looked up.
    for next in [&FORK, &FORK_PLAIN, &CREATE] {
        next.find();
    }
}

/// Registers the handlers, once. Called by the constructor, and by the first allocation, since another library's constructor may
/// have come before.
pub fn begin() {
    if MIN.load(Ordering::Relaxed) != 0 {
        return;
    }
    MIN.store(usize::MAX, Ordering::Relaxed);
    let mut key = 0;
    // SAFETY: the functions are made for it, and this library is never unmapped.
    unsafe {
        if libc::pthread_key_create(&raw mut key, None) == 0 {
            HANDOVER.store(key, Ordering::Relaxed);
            libc::pthread_atfork(Some(before), Some(in_parent), Some(in_child));
        }
    }
}

extern "C" fn before() {
    if let Some(table) = table() {
        // SAFETY: the key exists; the table's functions do what they promise.
        unsafe { libc::pthread_setspecific(HANDOVER.load(Ordering::Relaxed), (table.before_fork)(true)) };
    }
}

extern "C" fn in_parent() {
    after(|table| table.in_parent);
}

extern "C" fn in_child() {
    after(|table| table.in_child);
}

fn after(function: impl FnOnce(&Table) -> unsafe extern "C" fn(*mut c_void)) {
    if let Some(table) = table() {
        let key = HANDOVER.load(Ordering::Relaxed);
        // SAFETY: the key exists; the table's functions do what they promise. The value that this thread's `before` got is handed on once.
        unsafe {
            let handover = libc::pthread_getspecific(key);
            libc::pthread_setspecific(key, ptr::null());
            function(table)(handover);
        }
    }
}

/// A function of the next library that has one of this name.
struct Next(&'static CStr, AtomicPtr<c_void>);

impl Next {
    const fn new(name: &'static CStr) -> Self {
        Self(name, AtomicPtr::new(ptr::null_mut()))
    }

    fn find(&self) -> *mut c_void {
        let found = self.1.load(Ordering::Relaxed);
        if !found.is_null() {
            return found;
        }
        // SAFETY: the name is NUL-terminated.
        let found = unsafe { libc::dlsym(libc::RTLD_NEXT, self.0.as_ptr()) };
        self.1.store(found, Ordering::Relaxed);
        found
    }

    fn fork(&self) -> libc::pid_t {
        let found = self.find();
        if found.is_null() {
            set_errno(libc::ENOSYS);
            return -1;
        }
        // SAFETY: both functions for which this is called have this type.
        unsafe { mem::transmute::<*mut c_void, unsafe extern "C" fn() -> libc::pid_t>(found)() }
    }
}

/// Forks; where the stack lies in the section, on another one, since parent and child would write to the same until the
/// child has its copy.
fn off_section(fork: &mut dyn FnMut() -> libc::pid_t) -> libc::pid_t {
    let mut here = 0u8;
    match placed((&raw mut here).cast()) {
        None => fork(),
        Some(_) => stack::call_elsewhere(fork).unwrap_or_else(|| {
            set_errno(libc::ENOMEM);
            -1
        }),
    }
}

/// POSIX's `fork`.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fork() -> libc::pid_t {
    off_section(&mut || FORK.fork())
}

/// POSIX's `_Fork`, which calls no handlers and may be called by a signal's handler: so no lock is waited for.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn _Fork() -> libc::pid_t {
    off_section(&mut || {
        let Some(table) = table() else { return FORK_PLAIN.fork() };
        // SAFETY: the table's functions do what they promise; the three are called in their order.
        unsafe {
            let handover = (table.before_fork)(false);
            let child = FORK_PLAIN.fork();
            match child {
                0 => (table.in_child)(handover),
                _ => (table.in_parent)(handover),
            }
            child
        }
    })
}

type Start = extern "C" fn(*mut c_void) -> *mut c_void;
type Create =
    unsafe extern "C" fn(*mut libc::pthread_t, *const libc::pthread_attr_t, Start, *mut c_void) -> c_int;

/// POSIX's `pthread_create`. glibc keeps a thread's own data at the top of its stack, and the kernel writes there while the
/// thread forks: on a stack in the section, the child's would be the parent's. Such a thread gets a stack of glibc's.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pthread_create(
    thread: *mut libc::pthread_t,
    attributes: *const libc::pthread_attr_t,
    start: Start,
    argument: *mut c_void,
) -> c_int {
    let next = CREATE.find();
    if next.is_null() {
        return libc::EAGAIN;
    }
    // SAFETY: the function of this name has this type.
    let create = unsafe { mem::transmute::<*mut c_void, Create>(next) };
    // SAFETY: the caller's promises are the same, and the new attributes are as valid as the old ones.
    unsafe {
        match stack::attributes_off_section(attributes) {
            None => create(thread, attributes, start, argument),
            Some(mut own) => {
                let code = create(thread, &raw const own, start, argument);
                libc::pthread_attr_destroy(&raw mut own);
                code
            }
        }
    }
}
