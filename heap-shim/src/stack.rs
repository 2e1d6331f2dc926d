//! Stacks in place of those that lie in the section.

use std::ffi::{CStr, c_int, c_uint, c_void};
use std::mem::{self, MaybeUninit};
use std::ptr;

use libc::{pid_t, pthread_attr_t, ucontext_t};

use crate::table::placed;

// The libc crate has not all of them for glibc.
unsafe extern "C" {
    fn pthread_attr_getstack(from: *const pthread_attr_t, start: *mut *mut c_void, len: *mut usize) -> c_int;
    fn pthread_attr_getdetachstate(from: *const pthread_attr_t, to: *mut c_int) -> c_int;
    fn pthread_attr_getinheritsched(from: *const pthread_attr_t, to: *mut c_int) -> c_int;
    fn pthread_attr_setinheritsched(to: *mut pthread_attr_t, value: c_int) -> c_int;
    fn pthread_attr_getschedpolicy(from: *const pthread_attr_t, to: *mut c_int) -> c_int;
    fn pthread_attr_setschedpolicy(to: *mut pthread_attr_t, value: c_int) -> c_int;
    fn pthread_attr_getschedparam(from: *const pthread_attr_t, to: *mut libc::sched_param) -> c_int;
    fn pthread_attr_setschedparam(to: *mut pthread_attr_t, value: *const libc::sched_param) -> c_int;
    fn pthread_attr_getaffinity_np(
        from: *const pthread_attr_t,
        len: usize,
        to: *mut libc::cpu_set_t,
    ) -> c_int;
    fn pthread_attr_setaffinity_np(to: *mut pthread_attr_t, len: usize, set: *const libc::cpu_set_t)
    -> c_int;
}

/// Enough for a program's fork handlers, bytes. Pages that are not used cost nothing.
const LEN: usize = 1 << 20;

/// Guard below the stack, bytes: a thread that needs more is stopped.
const GUARD: usize = 64 << 10;

/// Lies on top of the stack that is used meanwhile: like it, in memory that a child has its own of.
struct Trip<'a> {
    back: ucontext_t,
    there: ucontext_t,
    call: &'a mut dyn FnMut() -> pid_t,
    result: pid_t,
}

/// Calls `call` on another stack. None where there is no memory for one.
pub fn call_elsewhere(call: &mut dyn FnMut() -> pid_t) -> Option<pid_t> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_STACK;
    let rights = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: the kernel chooses an address where nothing is.
    let memory = unsafe { libc::mmap(ptr::null_mut(), LEN, rights, flags, -1, 0) };
    if memory == libc::MAP_FAILED {
        return None;
    }
    let room = size_of::<Trip>().next_multiple_of(4096);
    let trip = memory.wrapping_byte_add(LEN - room).cast::<Trip>();
    // SAFETY: the memory is new and has room for both; all zeros is a context for getcontext to fill. `enter` ends by going
    // back to `back`, so that all it uses lives as long.
    let result = unsafe {
        libc::mprotect(memory, GUARD, libc::PROT_NONE);
        trip.write(Trip { back: mem::zeroed(), there: mem::zeroed(), call, result: -1 });
        let there = &raw mut (*trip).there;
        libc::getcontext(there);
        (*there).uc_stack.ss_sp = memory;
        (*there).uc_stack.ss_size = LEN - room;
        (*there).uc_link = &raw mut (*trip).back;
        let enter = mem::transmute::<extern "C" fn(c_uint, c_uint), extern "C" fn()>(enter);
        let address = trip.expose_provenance();
        libc::makecontext(there, enter, 2, (address >> 32) as c_uint, address as c_uint);
        libc::swapcontext(&raw mut (*trip).back, there);
        (*trip).result
    };
    // SAFETY: nothing of it is used any more, neither here nor in a child, which has its own.
    unsafe { libc::munmap(memory, LEN) };
    Some(result)
}

extern "C" fn enter(high: c_uint, low: c_uint) {
    let trip = ptr::with_exposed_provenance_mut::<Trip>((high as usize) << 32 | low as usize);
    // SAFETY: `call_elsewhere` waits for this call, and looks at the trip no more until it ends.
    unsafe { (*trip).result = ((*trip).call)() };
}

/// The attributes of a thread whose stack is to lie in the section, with a stack of the same size that glibc takes elsewhere.
/// None where the thread is well as it is.
///
/// # Safety
/// `from` is NULL or initialised.
pub unsafe fn attributes_off_section(from: *const pthread_attr_t) -> Option<pthread_attr_t> {
    if from.is_null() {
        return None;
    }
    let (mut start, mut len) = (ptr::null_mut(), 0);
    // SAFETY: the caller vouches for `from`; there is room for both.
    if unsafe { pthread_attr_getstack(from, &raw mut start, &raw mut len) } != 0 {
        return None;
    }
    // Without a stack of the program's, the start is no address at all.
    placed(start)?;
    let mut own = MaybeUninit::<pthread_attr_t>::uninit();
    let to = own.as_mut_ptr();
    // SAFETY: the caller vouches for `from`; `to` is initialised by the first call, and each value has its place.
    unsafe {
        if libc::pthread_attr_init(to) != 0 {
            return None;
        }
        libc::pthread_attr_setstacksize(to, len);
        for (get, set) in [
            (pthread_attr_getdetachstate as Get, libc::pthread_attr_setdetachstate as Set),
            (pthread_attr_getinheritsched, pthread_attr_setinheritsched),
            (pthread_attr_getschedpolicy, pthread_attr_setschedpolicy),
        ] {
            let mut value = 0;
            if get(from, &raw mut value) == 0 {
                set(to, value);
            }
        }
        let mut parameters = mem::zeroed();
        if pthread_attr_getschedparam(from, &raw mut parameters) == 0 {
            pthread_attr_setschedparam(to, &raw const parameters);
        }
        let mut processors: libc::cpu_set_t = mem::zeroed();
        let size = size_of_val(&processors);
        // All of them: none were chosen, and the thread has its creator's.
        if pthread_attr_getaffinity_np(from, size, &raw mut processors) == 0
            && libc::CPU_COUNT(&processors) < 8 * size as c_int
        {
            pthread_attr_setaffinity_np(to, size, &raw const processors);
        }
        copy_signals(from, to);
        Some(own.assume_init())
    }
}

type Get = unsafe extern "C" fn(*const pthread_attr_t, *mut c_int) -> c_int;
type Set = unsafe extern "C" fn(*mut pthread_attr_t, c_int) -> c_int;

/// Copies the signals that the thread is to block: glibc 2.32 and later have them.
///
/// # Safety
/// Both are initialised.
unsafe fn copy_signals(from: *const pthread_attr_t, to: *mut pthread_attr_t) {
    type GetSignals = unsafe extern "C" fn(*const pthread_attr_t, *mut libc::sigset_t) -> c_int;
    type SetSignals = unsafe extern "C" fn(*mut pthread_attr_t, *const libc::sigset_t) -> c_int;
    // SAFETY: the names are NUL-terminated.
    let find = |name: &CStr| unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    let (get, set) = (find(c"pthread_attr_getsigmask_np"), find(c"pthread_attr_setsigmask_np"));
    if get.is_null() || set.is_null() {
        return;
    }
    // SAFETY: glibc's functions of these names have these types; the caller vouches for the attributes.
    unsafe {
        let (get, set) =
            (mem::transmute::<*mut c_void, GetSignals>(get), mem::transmute::<*mut c_void, SetSignals>(set));
        let mut signals = mem::zeroed();
        if get(from, &raw mut signals) == 0 {
            set(to, &raw const signals);
        }
    }
}
