//! The functions as a program calls them, with a plugin that gives from an array.

use std::ffi::c_void;
use std::mem;
use std::ptr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use vmshm_abi::heap::{Table, VERSION};

use crate::fork;
use crate::glibc::*;
use crate::malloc::*;
use crate::table::*;

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

/// Arguments of the functions around a fork, and whether their stack lay in the arena.
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
