//! All ways in which a program gets children: each has memory of its own, with what its parent had in it, or shares its
//! parent's because it was made so.

use std::cell::UnsafeCell;
use std::ffi::{c_int, c_void};
use std::mem;
use std::process::Command;
use std::ptr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, Ordering};
use std::thread;

use mpi::ffi;
use vmshm_tests::universe::succeed;

use crate::piece::{LARGE, Piece, is_shared_at};

type Fork = unsafe extern "C" fn() -> libc::pid_t;

unsafe extern "C" {
    /// POSIX's, in glibc 2.34 and later.
    fn _Fork() -> libc::pid_t;
}

/// Seconds after which a fork that waits for ever is taken for one.
const PATIENCE: u32 = 120;

/// Runs `child` in a child; the parent runs `meanwhile`, each with its own `state`. Returns the child's status as of waitpid.
fn forked_by<T>(
    fork: Fork,
    state: &mut T,
    child: impl FnOnce(&mut T) -> bool,
    meanwhile: impl FnOnce(&mut T),
) -> c_int {
    // SAFETY: glibc makes its allocator and its locks usable in the child, which ends by _exit.
    let id = unsafe { fork() };
    assert!(id >= 0, "fork: {}", std::io::Error::last_os_error());
    if id == 0 {
        // SAFETY: plain calls. Open MPI's handlers of signals would only print.
        unsafe {
            for signal in [libc::SIGSEGV, libc::SIGABRT, libc::SIGBUS] {
                libc::signal(signal, libc::SIG_DFL);
            }
            libc::_exit(if child(state) { 0 } else { 3 });
        }
    }
    meanwhile(state);
    let mut status = 0;
    // SAFETY: the child is ours.
    assert_eq!(unsafe { libc::waitpid(id, &raw mut status, 0) }, id);
    status
}

fn forked(child: impl FnOnce() -> bool) {
    assert_eq!(forked_by(libc::fork, &mut (), |()| child(), |()| {}), 0, "the child's status");
}

/// All of them, with `expected` where large memory lies in the section.
pub fn all(expected: bool) {
    for _ in 0..3 {
        children(expected);
    }
    handlers(expected);
    if expected {
        // Of glibc's heap too, but jemalloc and tcmalloc lock themselves while a fork waits.
        allocations_under_locks_of_forks();
    }
    many_blocks(expected);
    on_stacks_of_the_heap(expected);
    without_handlers(expected);
    with_the_parents_memory(expected);
    memory_of_mpi(expected);
    if expected {
        without_a_copy();
    }
    ends_as_any();
}

/// A child sees what its parent had, and writes to memory of its own.
pub fn children(expected: bool) {
    let mut mine: Vec<Piece> = (0..20).map(|i| Piece::new(30_000 * (i + 1), i as u8)).collect();
    assert!(!expected || mine.iter().all(Piece::is_shared));
    let copy: Vec<(usize, u8)> =
        mine.iter().map(|piece| (piece.bytes().as_ptr().addr(), piece.byte)).collect();
    let status = forked_by(
        libc::fork,
        &mut mine,
        |mine| {
            mem::take(mine).into_iter().zip(&copy).all(|(mut piece, copy)| {
                piece.check();
                let is_same = (piece.bytes().as_ptr().addr(), piece.byte) == *copy;
                let is_apart = !piece.is_shared() && !Piece::new(LARGE, 5).is_shared();
                piece.fill(0xcc);
                piece.resize(2 * LARGE);
                is_apart && is_same
            })
        },
        // The parent goes on at once.
        |mine| {
            for (i, piece) in mine.iter_mut().enumerate() {
                piece.check();
                piece.fill(i as u8 + 100);
            }
        },
    );
    assert_eq!(status, 0, "the child's status");
    for (i, piece) in mine.iter().enumerate() {
        assert_eq!(piece.byte, i as u8 + 100);
        piece.check();
    }
}

/// Counts of this program's fork handlers, in large memory: forks prepared, and forks seen in a child.
struct State {
    early: [u32; 2],
    late: [u32; 2],
}

static STATE: AtomicPtr<State> = AtomicPtr::new(ptr::null_mut());

fn state() -> Option<&'static mut State> {
    // SAFETY: the memory stays while it is there, and the handlers come one after the other.
    unsafe { STATE.load(Ordering::Relaxed).as_mut() }
}

// Before the constructors of all libraries, but for one that has itself called first.
#[used]
#[unsafe(link_section = ".preinit_array")]
static EARLY: extern "C" fn() = {
    extern "C" fn register() {
        extern "C" fn before() {
            if let Some(state) = state() {
                state.early[0] += 1;
            }
        }
        extern "C" fn in_child() {
            if let Some(state) = state() {
                state.early[1] += 1;
            }
        }
        // SAFETY: the functions are made for it.
        unsafe { libc::pthread_atfork(Some(before), None, Some(in_child)) };
    }
    register
};

/// Registers this program's handlers, before MPI is started.
pub fn register() {
    extern "C" fn before() {
        if let Some(state) = state() {
            state.late[0] += 1;
        }
        LOCKED.lock();
    }
    extern "C" fn in_parent() {
        LOCKED.unlock();
    }
    extern "C" fn in_child() {
        if let Some(state) = state() {
            state.late[1] += 1;
        }
        LOCKED.unlock();
    }
    // SAFETY: the functions are made for it.
    unsafe { libc::pthread_atfork(Some(before), Some(in_parent), Some(in_child)) };
}

/// A child has what handlers did before the fork, and what they do after it is done to its own memory.
fn handlers(expected: bool) {
    let mut piece = Piece::new(LARGE, 0);
    assert_eq!(piece.is_shared(), expected);
    let at = piece.bytes().as_ptr().cast_mut().cast::<State>();
    STATE.store(at, Ordering::Relaxed);
    forked(|| state().is_some_and(|state| [state.early, state.late] == [[1, 1]; 2]));
    let state = state().expect("it was stored");
    let parents = [mem::take(&mut state.early), mem::take(&mut state.late)];
    STATE.store(ptr::null_mut(), Ordering::Relaxed);
    assert_eq!(parents, [[1, 0]; 2], "prepared by the parent, and nothing done by the child");
    piece.fill(0);
}

/// A lock that is taken before a fork, and released after it.
struct Locked(UnsafeCell<libc::pthread_mutex_t>);

// SAFETY: it is a lock.
unsafe impl Sync for Locked {}

static LOCKED: Locked = Locked(UnsafeCell::new(libc::PTHREAD_MUTEX_INITIALIZER));

impl Locked {
    fn lock(&self) {
        // SAFETY: the mutex is initialised and never moves.
        unsafe { libc::pthread_mutex_lock(self.0.get()) };
    }

    fn unlock(&self) {
        // SAFETY: this thread has it, or the one whose copy it is in a child.
        unsafe { libc::pthread_mutex_unlock(self.0.get()) };
    }
}

/// Threads allocate while they hold what a fork waits for: the lock of a handler, and glibc's own of all streams, which it
/// takes after all handlers.
fn allocations_under_locks_of_forks() {
    static END: AtomicBool = AtomicBool::new(false);
    unsafe extern "C" fn write(_: *mut c_void, _: *const libc::c_char, len: usize) -> isize {
        drop(Piece::new(LARGE, 1));
        len as isize
    }
    END.store(false, Ordering::Relaxed);
    // SAFETY: plain call: who waits for ever is ended.
    unsafe { libc::alarm(PATIENCE) };
    let (turns, stream) = ([AtomicU32::new(0), AtomicU32::new(0)], Stream::new(write));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !END.load(Ordering::Relaxed) {
                LOCKED.lock();
                drop(Piece::new(LARGE, 1));
                LOCKED.unlock();
                turns[0].fetch_add(1, Ordering::Relaxed);
                thread::yield_now();
            }
        });
        scope.spawn(|| {
            while !END.load(Ordering::Relaxed) {
                stream.put(b'x');
                // SAFETY: all streams are flushed.
                unsafe { libc::fflush(ptr::null_mut()) };
                turns[1].fetch_add(1, Ordering::Relaxed);
                thread::yield_now();
            }
        });
        for forks in 0.. {
            forked(|| true);
            if forks >= 20 && turns.iter().all(|turns| turns.load(Ordering::Relaxed) > 20) {
                break;
            }
        }
        END.store(true, Ordering::Relaxed);
    });
    // SAFETY: plain call.
    unsafe { libc::alarm(0) };
}

/// A stream of C's library that gives what is written to a function.
struct Stream(*mut libc::FILE);

// SAFETY: streams have locks.
unsafe impl Sync for Stream {}

impl Stream {
    fn new(write: unsafe extern "C" fn(*mut c_void, *const libc::c_char, usize) -> isize) -> Self {
        #[repr(C)]
        struct Functions {
            read: *const c_void,
            write: unsafe extern "C" fn(*mut c_void, *const libc::c_char, usize) -> isize,
            seek: *const c_void,
            close: *const c_void,
        }
        unsafe extern "C" {
            fn fopencookie(
                cookie: *mut c_void,
                mode: *const libc::c_char,
                functions: Functions,
            ) -> *mut libc::FILE;
        }
        let functions = Functions { read: ptr::null(), write, seek: ptr::null(), close: ptr::null() };
        // SAFETY: functions that are NULL are not called.
        let stream = unsafe { fopencookie(ptr::null_mut(), c"w".as_ptr(), functions) };
        assert!(!stream.is_null());
        Self(stream)
    }

    fn put(&self, byte: u8) {
        // SAFETY: the stream is open.
        unsafe { libc::fputc(byte.into(), self.0) };
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: the stream is open, and used no more.
        unsafe { libc::fclose(self.0) };
    }
}

/// The kernel allows a process only so many mappings: blocks that lie apart must not each need one.
fn many_blocks(expected: bool) {
    let mut pieces: Vec<_> = (0..1000).map(|i| Some(Piece::new(16 << 10, i as u8))).collect();
    assert!(!expected || pieces[999].as_ref().is_some_and(Piece::is_shared));
    pieces.iter_mut().step_by(2).for_each(|piece| *piece = None);
    let before = mappings();
    forked(|| {
        let few = mappings() < before + 100;
        for piece in pieces.iter_mut().flatten() {
            piece.check();
            piece.fill(0xdd);
        }
        few
    });
}

fn mappings() -> usize {
    std::fs::read_to_string("/proc/self/maps").expect("the kernel shows its maps").lines().count()
}

/// A fork on a stack from `malloc`: a coroutine's, and a thread's.
fn on_stacks_of_the_heap(expected: bool) {
    const LEN: usize = 256 << 10;
    static IS_EXPECTED: AtomicBool = AtomicBool::new(false);
    fn forks() {
        let mut mine = [42u8; 5000];
        let at = mine.as_mut_ptr();
        // SAFETY: each process has its own.
        let write = |byte| unsafe { (0..mine.len()).for_each(|i| at.add(i).write_volatile(byte)) };
        for fork in [libc::fork as Fork, _Fork] {
            // SAFETY: each process reads its own bytes, of which there are as many.
            let is_all = |byte| unsafe { (0..mine.len()).all(|i| at.add(i).read_volatile() == byte) };
            let is_right = forked_by(
                fork,
                &mut (),
                |()| {
                    let had = is_all(42);
                    write(43);
                    drop(Piece::new(100_000, 1));
                    had && is_all(43)
                },
                |()| (0..1000).for_each(|_| write(44)),
            ) == 0;
            assert!(is_right && is_all(44));
            write(42);
        }
    }
    extern "C" fn coroutine() {
        let here = 0u8;
        assert_eq!(is_shared_at((&raw const here).addr()), IS_EXPECTED.load(Ordering::Relaxed));
        forks();
    }
    extern "C" fn run(_: *mut c_void) -> *mut c_void {
        forks();
        ptr::null_mut()
    }
    IS_EXPECTED.store(expected, Ordering::Relaxed);
    // SAFETY: aligned_alloc takes any length.
    let start = unsafe { libc::aligned_alloc(4096, LEN) };
    assert!(!start.is_null());
    // SAFETY: both contexts stay until they are left; the stack has LEN bytes, and is used by one of them at a time.
    unsafe {
        let (mut back, mut there): (libc::ucontext_t, libc::ucontext_t) = (mem::zeroed(), mem::zeroed());
        libc::getcontext(&raw mut there);
        there.uc_stack.ss_sp = start;
        there.uc_stack.ss_size = LEN;
        there.uc_link = &raw mut back;
        libc::makecontext(&raw mut there, coroutine, 0);
        libc::swapcontext(&raw mut back, &raw const there);

        let mut attributes = mem::zeroed();
        libc::pthread_attr_init(&raw mut attributes);
        assert_eq!(libc::pthread_attr_setstack(&raw mut attributes, start, LEN), 0);
        let mut thread = mem::zeroed();
        assert_eq!(libc::pthread_create(&raw mut thread, &raw const attributes, run, ptr::null_mut()), 0);
        assert_eq!(libc::pthread_join(thread, ptr::null_mut()), 0);
        libc::pthread_attr_destroy(&raw mut attributes);
        libc::free(start);
    }
}

/// Children that no handlers are called for. At the least, no memory has two owners.
fn without_handlers(expected: bool) {
    unsafe extern "C" fn by_system_call() -> libc::pid_t {
        // SAFETY: as fork's.
        unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) as libc::pid_t }
    }
    let pieces: Vec<Piece> = (0..10).map(|i| Piece::new(100_000, i)).collect();
    assert!(!expected || pieces[0].is_shared());
    for fork in [_Fork as Fork, by_system_call] {
        let status = forked_by(
            fork,
            &mut (),
            |()| {
                pieces.iter().for_each(Piece::check);
                // Where nobody else can allocate it, and what is freed stays the parent's.
                // SAFETY: what is read here is used no more in this child.
                unsafe { drop(ptr::read(&pieces[0])) };
                (0..20).all(|_| !Piece::new(100_000, 0xee).is_shared())
            },
            |()| drop((0..20).map(|_| Piece::new(100_000, 0x77)).collect::<Vec<_>>()),
        );
        assert_eq!(status, 0, "the child's status");
        pieces.iter().for_each(Piece::check);
    }
}

/// Children that share their parent's memory until they run another program: what they allocate is allocated, and seen.
fn with_the_parents_memory(expected: bool) {
    static MADE: Mutex<Option<Piece>> = Mutex::new(None);
    extern "C" fn child(_: *mut c_void) -> c_int {
        *MADE.lock().unwrap() = Some(Piece::new(LARGE, 0x42));
        0
    }
    // Not from the heap: a child on it would be on its parent's stack, as it has to be.
    let mut stack = vec![0u128; 4096].into_boxed_slice();
    // SAFETY: the stack is one, and this thread waits until the child has ended.
    let id = unsafe {
        let top = stack.as_mut_ptr_range().end.cast();
        libc::clone(child, top, libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD, ptr::null_mut())
    };
    assert!(id > 0);
    let mut status = 0;
    // SAFETY: the child is ours.
    assert_eq!(unsafe { libc::waitpid(id, &raw mut status, 0) }, id);
    assert_eq!(status, 0);
    let made = MADE.lock().unwrap().take().expect("the child has stored it");
    assert_eq!(made.is_shared(), expected);
    made.check();

    let held = Piece::new(LARGE, 0x55);
    assert!(Command::new("true").status().is_ok_and(|status| status.success()));
    // SAFETY: the command ends with a NUL.
    assert_eq!(libc::WEXITSTATUS(unsafe { libc::system(c"exit 7".as_ptr()) }), 7);
    held.check();
    assert_eq!(held.is_shared(), expected);
}

/// Memory of `MPI_Alloc_mem` is the child's own too.
fn memory_of_mpi(expected: bool) {
    const LEN: usize = 300_000;
    let mut memory = ptr::null_mut::<u8>();
    // SAFETY: MPI writes an address; the handle is predefined.
    succeed(unsafe { ffi::MPI_Alloc_mem(LEN as isize, ffi::RSMPI_INFO_NULL, (&raw mut memory).cast()) });
    // SAFETY: the memory has LEN bytes, and each process its own.
    let (is_all, write) = unsafe {
        let is_all = move |byte: u8| (0..LEN).all(|i| memory.add(i).read_volatile() == byte);
        (is_all, move |byte: u8| memory.write_bytes(byte, LEN))
    };
    write(7);
    // Without the heap nobody cares for it, and it is shared.
    if expected || !is_shared_at(memory.addr()) {
        forked(|| {
            let had = is_all(7);
            write(8);
            had && is_all(8) && !is_shared_at(memory.addr())
        });
        assert!(is_all(7));
    }
    // SAFETY: the memory is MPI's, and used no more.
    succeed(unsafe { ffi::MPI_Free_mem(memory.cast()) });
}

/// Where no copy can be made, the child can read what its parent had, and fails where it writes to it.
fn without_a_copy() {
    let mut piece = Piece::new(LARGE, 0x61);
    assert!(piece.is_shared());
    let mut before = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: there is room for the limits.
    unsafe { libc::getrlimit(libc::RLIMIT_AS, &raw mut before) };
    // Enough for lists, but not for a copy.
    let text = std::fs::read_to_string("/proc/self/statm").expect("the kernel says how large we are");
    let pages: u64 = text.split(' ').next().and_then(|pages| pages.parse().ok()).expect("a number of pages");
    let tight = libc::rlimit { rlim_cur: pages * 4096 + (4 << 20), ..before };
    let child = |work: &mut dyn FnMut() -> bool| {
        // SAFETY: the kernel reads the limits, which outlive the call.
        unsafe { libc::setrlimit(libc::RLIMIT_AS, &raw const tight) };
        let status = forked_by(libc::fork, &mut (), |()| work(), |()| {});
        // SAFETY: the kernel reads the limits, which outlive the call.
        unsafe { libc::setrlimit(libc::RLIMIT_AS, &raw const before) };
        status
    };
    let status = child(&mut || {
        piece.check();
        drop(Piece::new(100_000, 1));
        // SAFETY: the pages are used no more in this child.
        unsafe { drop(ptr::read(&piece)) };
        true
    });
    assert_eq!(status, 0, "the child's status");
    let status = child(&mut || {
        piece.fill(1);
        false
    });
    assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGSEGV, "{status:#x}");
    piece.check();
}

/// A child that calls `exit` ends as any program.
fn ends_as_any() {
    // SAFETY: a plain call.
    forked(|| unsafe { libc::exit(0) });
}
