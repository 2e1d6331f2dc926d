//! `libvmshm_heap.so`, for `LD_PRELOAD`: places a program's large allocations in the shared section of its process, from
//! where peers in other virtual machines read them without a copy by the sender.
//!
//! It stands before glibc's `malloc` and its relatives and does nothing but decide: allocations of at least so many bytes
//! go to the plugin of Open MPI, once that has registered; what is freed goes where its address says. Whoever does not
//! register a table, or has not set `VMSHM_HEAP`, gets glibc's memory and pays a comparison.
//!
//! No allocation, no lock and no look-up of symbols stands before the first `malloc` of a process. Where another library's
//! `malloc` is the process's, as that of a sanitizer, this one is never called, and places nothing.

#[cfg(not(target_env = "gnu"))]
compile_error!("the shim hands on to glibc's allocator, by the names that only glibc has");

mod fork;
mod stack;

use std::ffi::{CStr, c_int, c_void};
use std::mem;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use vmshm_abi::heap::{FOREIGN, Register, Table, UNFIT, VERSION};

// glibc's own names for its allocator. They lead there also while the dynamic linker is at work.
unsafe extern "C" {
    fn __libc_malloc(len: usize) -> *mut c_void;
    fn __libc_calloc(count: usize, len: usize) -> *mut c_void;
    fn __libc_realloc(old: *mut c_void, len: usize) -> *mut c_void;
    fn __libc_memalign(align: usize, len: usize) -> *mut c_void;
    fn __libc_free(memory: *mut c_void);
}

/// What `malloc` aligns to.
const ALIGNMENT: usize = 16;

/// Bytes from which on an allocation is the plugin's. 0 until the first one, which has the fork handlers registered.
static MIN: AtomicUsize = AtomicUsize::new(0);
/// The plugin's memory.
static START: AtomicUsize = AtomicUsize::new(0);
static LEN: AtomicUsize = AtomicUsize::new(0);
static TABLE: AtomicPtr<Table> = AtomicPtr::new(ptr::null_mut());
/// The `malloc_usable_size` of glibc, the only one of these functions without a second name. NULL before it is looked up.
static USABLE: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());

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
    // Release: who sees the length sees the start, and the table.
    LEN.store(end - start, Ordering::Release);
    MIN.store(min, Ordering::Release);
    0
}

const _: Register = vmshm_heap_register;

/// Called by the constructor, and by the first allocation, since another library's constructor may have come before.
fn begin() {
    if MIN.load(Ordering::Relaxed) == 0 {
        MIN.store(usize::MAX, Ordering::Relaxed);
        fork::begin();
    }
}

/// The library that an address lies in.
fn library(address: *const c_void) -> libc::Dl_info {
    // SAFETY: all zeros is a valid Dl_info, which dladdr fills where it returns non-zero.
    unsafe {
        let mut found = mem::zeroed();
        libc::dladdr(address, &raw mut found);
        found
    }
}

/// Whether the process's allocator is this library's, and glibc's behind it. Others define glibc's own names too, and lock
/// themselves before a fork, when the plugin waits for who allocates.
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

/// What the plugin has registered.
fn table() -> Option<&'static Table> {
    // SAFETY: a table stays as it is for ever.
    unsafe { TABLE.load(Ordering::Acquire).as_ref() }
}

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
    begin();
    match table() {
        // SAFETY: the table's functions do what they promise.
        Some(table) if len >= MIN.load(Ordering::Acquire) && align.is_power_of_two() => unsafe {
            (table.allocate)(len, align)
        },
        _ => ptr::null_mut(),
    }
}

/// The table, for an address that it has given.
#[inline]
fn placed(memory: *mut c_void) -> Option<&'static Table> {
    let len = LEN.load(Ordering::Acquire);
    if memory.addr().wrapping_sub(START.load(Ordering::Relaxed)) >= len {
        return None;
    }
    table()
}

/// Finds [`USABLE`]: that of the library which has the allocator behind this one.
fn find_usable() -> *mut c_void {
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
unsafe fn usable_ordinary(memory: *mut c_void) -> usize {
    type Usable = unsafe extern "C" fn(*mut c_void) -> usize;
    let found = find_usable();
    if found.is_null() {
        return 0;
    }
    // SAFETY: glibc's function of this name has this type; the caller vouches for the memory.
    unsafe { mem::transmute::<*mut c_void, Usable>(found)(memory) }
}

fn set_errno(code: c_int) {
    // SAFETY: the thread's own variable.
    unsafe { *libc::__errno_location() = code };
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
        // What grows once grows again, and must not be copied whole each time.
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

/// `realloc` for what glibc has given. What becomes large goes to the plugin.
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

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::AtomicBool;
    use std::thread;

    use super::*;

    const LEN_OF_ARENA: usize = 1 << 20;
    const LARGE: usize = 10_000;

    /// A heap that never takes anything back: the addresses that it gave, and those that were freed.
    #[repr(align(4096))]
    #[allow(dead_code, reason = "only its address is used")]
    struct Arena([u8; LEN_OF_ARENA]);
    static mut ARENA: Arena = Arena([0xaa; LEN_OF_ARENA]);
    static GIVEN: Mutex<Vec<(usize, usize)>> = Mutex::new(Vec::new());
    static FREED: Mutex<Vec<usize>> = Mutex::new(Vec::new());
    static IS_FULL: AtomicBool = AtomicBool::new(false);
    static IS_SILENT: AtomicBool = AtomicBool::new(false);

    unsafe extern "C" fn allocate(len: usize, align: usize) -> *mut c_void {
        let mut given = GIVEN.lock().unwrap();
        let start = (&raw mut ARENA).cast::<c_void>();
        let next = given.last().map_or(start.addr(), |(at, len)| at + len).next_multiple_of(align);
        if IS_FULL.load(Ordering::Relaxed) || next + len > start.addr() + LEN_OF_ARENA {
            return ptr::null_mut();
        }
        given.push((next, len));
        start.with_addr(next)
    }

    unsafe extern "C" fn take_back(memory: *mut c_void) {
        FREED.lock().unwrap().push(memory.addr());
    }

    unsafe extern "C" fn usable(memory: *mut c_void) -> usize {
        if IS_SILENT.load(Ordering::Relaxed) {
            return 0;
        }
        GIVEN.lock().unwrap().iter().find(|(at, _)| *at == memory.addr()).unwrap().1
    }

    /// What the functions around a fork were called with, and whether their stack lay in the arena.
    static FORKS: Mutex<Vec<(&str, usize, bool)>> = Mutex::new(Vec::new());

    fn note(what: &'static str, value: usize) {
        let mut here = 0u8;
        FORKS.lock().unwrap().push((what, value, is_placed((&raw mut here).cast())));
    }

    unsafe extern "C" fn before_fork(may_wait: bool) -> *mut c_void {
        note("before", usize::from(may_wait));
        ptr::without_provenance_mut(77)
    }

    unsafe extern "C" fn in_parent(handover: *mut c_void) {
        note("parent", handover.addr());
    }

    unsafe extern "C" fn in_child(handover: *mut c_void) {
        note("child", handover.addr());
    }

    extern "C" fn other_before() {
        note("other before", 0);
    }

    extern "C" fn other_after() {
        note("other after", 0);
    }

    /// Forks in both ways; the child's status is 0 if it saw what it had to.
    fn forks() {
        type Fork = unsafe extern "C" fn() -> libc::pid_t;
        for (function, others, may_wait) in [(fork::fork as Fork, true, 1), (fork::_Fork as Fork, false, 0)] {
            FORKS.lock().unwrap().clear();
            // SAFETY: nobody else holds the lock that the child takes; it ends by _exit.
            let child = unsafe { function() };
            let noted = FORKS.lock().unwrap().clone();
            let end = if child == 0 { "child" } else { "parent" };
            let mut expected = vec![("before", may_wait, false), (end, 77, false)];
            if others {
                expected.insert(0, ("other before", 0, false));
                expected.push(("other after", 0, false));
            }
            if child == 0 {
                // SAFETY: a plain call.
                unsafe { libc::_exit(i32::from(noted != expected)) };
            }
            assert_eq!(noted, expected);
            let mut status = 0;
            // SAFETY: the child is ours.
            assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
            assert_eq!(status, 0);
        }
    }

    /// As a coroutine: on a stack in the arena.
    fn forks_in_the_arena(stack: *mut c_void, len: usize) {
        extern "C" fn work() {
            let mut here = 0u8;
            assert!(is_placed((&raw mut here).cast()));
            forks();
        }
        // SAFETY: both contexts stay until they are left; the stack has len bytes.
        unsafe {
            let (mut back, mut there): (libc::ucontext_t, libc::ucontext_t) = (mem::zeroed(), mem::zeroed());
            libc::getcontext(&raw mut there);
            there.uc_stack.ss_sp = stack;
            there.uc_stack.ss_size = len;
            there.uc_link = &raw mut back;
            libc::makecontext(&raw mut there, work, 0);
            libc::swapcontext(&raw mut back, &raw const there);
        }
    }

    /// A thread's stack.
    fn creates_a_thread(stack: *mut c_void, len: usize) {
        extern "C" fn run(_: *mut c_void) -> *mut c_void {
            let mut here = 0u8;
            ptr::without_provenance_mut(1 + usize::from(is_placed((&raw mut here).cast())))
        }
        // SAFETY: the thread ends before what it uses does.
        unsafe {
            let mut attributes = mem::zeroed();
            libc::pthread_attr_init(&raw mut attributes);
            assert_eq!(libc::pthread_attr_setstack(&raw mut attributes, stack, len), 0);
            let mut thread = mem::zeroed();
            let code = fork::pthread_create(&raw mut thread, &raw const attributes, run, ptr::null_mut());
            assert_eq!(code, 0);
            let mut result = ptr::null_mut();
            assert_eq!(libc::pthread_join(thread, &raw mut result), 0);
            assert_eq!(result.addr(), 1, "its stack lies elsewhere");
        }
    }

    fn is_placed(memory: *mut c_void) -> bool {
        let start = (&raw const ARENA).addr();
        (start..start + LEN_OF_ARENA).contains(&memory.addr())
    }

    fn was_freed(memory: usize) -> bool {
        FREED.lock().unwrap().contains(&memory)
    }

    /// All in one: the allocator is that of the whole process, this test's harness included.
    #[test]
    fn large_memory_goes_to_the_table_and_comes_back_to_it() {
        // SAFETY: each piece is used within its length and freed once.
        unsafe {
            let early = malloc(LARGE);
            assert!(!is_placed(early), "nobody has registered");
            let start = (&raw const ARENA).addr();
            let table = Box::leak(Box::new(Table {
                version: VERSION,
                min: LARGE,
                start,
                end: start + LEN_OF_ARENA,
                allocate,
                free: take_back,
                usable,
                before_fork,
                in_parent,
                in_child,
            }));
            let wrong = Box::leak(Box::new(Table { version: VERSION + 1, ..*table }));
            assert_eq!(vmshm_heap_register(wrong), -1);
            assert_eq!(vmshm_heap_register(table), 0);

            let small = malloc(LARGE - 1);
            assert!(!is_placed(small));
            let zeroed = calloc(LARGE / 10, 11);
            assert!(is_placed(zeroed));
            assert!((0..LARGE / 10 * 11).all(|i| *zeroed.cast::<u8>().add(i) == 0), "the arena was 0xaa");
            // The compiler knows calloc, and takes one that is only compared with NULL for a success.
            assert!(std::hint::black_box(calloc(usize::MAX, 2)).is_null());

            // Across the border and back.
            small.write_bytes(7, LARGE - 1);
            let grown = realloc(small, 2 * LARGE);
            assert!(is_placed(grown));
            assert!((0..LARGE - 1).all(|i| *grown.cast::<u8>().add(i) == 7));
            assert_eq!(realloc(grown, 2 * LARGE - 10), grown, "a little less stays where it is");
            let shrunk = realloc(grown, 100);
            assert!(!is_placed(shrunk) && was_freed(grown.addr()));
            assert!((0..100).all(|i| *shrunk.cast::<u8>().add(i) == 7));
            free(shrunk);
            let early = realloc(early, LARGE + 1);
            assert!(is_placed(early));
            assert!(realloc(early, 0).is_null() && was_freed(early.addr()));
            assert!(reallocarray(ptr::null_mut(), usize::MAX, 2).is_null());

            let mut memory = ptr::null_mut();
            assert_eq!(posix_memalign(&mut memory, 24, LARGE), libc::EINVAL);
            assert_eq!(posix_memalign(&mut memory, 1 << 14, LARGE), 0);
            assert!(is_placed(memory) && memory.addr().is_multiple_of(1 << 14));
            free(memory);
            assert!(was_freed(memory.addr()));
            for memory in [aligned_alloc(64, LARGE), memalign(8192, LARGE), valloc(LARGE), pvalloc(LARGE)] {
                assert!(is_placed(memory) && memory.addr().is_multiple_of(64));
                assert!(malloc_usable_size(memory) >= LARGE);
                free(memory);
            }
            let plain = malloc(100);
            assert!(malloc_usable_size(plain) >= 100);
            free(plain);

            // A table that cannot say how much there is: nothing is lost.
            IS_SILENT.store(true, Ordering::Relaxed);
            set_errno(0);
            assert!(realloc(zeroed, 4 * LARGE).is_null() && !was_freed(zeroed.addr()));
            assert_eq!(*libc::__errno_location(), libc::ENOMEM);
            IS_SILENT.store(false, Ordering::Relaxed);

            // Full: ordinary memory.
            IS_FULL.store(true, Ordering::Relaxed);
            let ordinary = malloc(LARGE);
            assert!(!ordinary.is_null() && !is_placed(ordinary));
            let moved = realloc(zeroed, 4 * LARGE);
            assert!(!moved.is_null() && !is_placed(moved) && was_freed(zeroed.addr()));
            free(moved);
            free(ordinary);
            IS_FULL.store(false, Ordering::Relaxed);

            // Before the others after a fork, and after them before one.
            libc::pthread_atfork(Some(other_before), Some(other_after), Some(other_after));
            thread::spawn(forks).join().unwrap();
            let stack = memalign(4096, 128 << 10);
            assert!(is_placed(stack));
            forks_in_the_arena(stack, 128 << 10);
            creates_a_thread(stack, 128 << 10);
            free(stack);

            // After the end nothing is placed, and what there is can be freed.
            let last = malloc(LARGE);
            assert!(is_placed(last));
            assert_eq!(vmshm_heap_register(ptr::null()), 0);
            let after = malloc(LARGE);
            assert!(!is_placed(after));
            free(after);
            free(last);
            assert!(was_freed(last.addr()));
            let other = Box::leak(Box::new(Table { start: 4096, end: 8192, ..*table }));
            assert_eq!(vmshm_heap_register(other), -1);
        }
    }
}
