//! Stand-ins for an operating system and a C library: memory, the clock, the end.

use core::alloc::{GlobalAlloc, Layout};
use core::arch::asm;
use core::arch::x86_64::{_mm_lfence, _rdtsc};
use core::fmt::Write;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicUsize, Ordering};

use crate::board::{BOARD, Board, HEAP, RAM_END};

/// Memory that is never given back: the program needs little and ends soon.
struct Heap(AtomicUsize);

#[global_allocator]
static ALLOCATOR: Heap = Heap(AtomicUsize::new(HEAP as usize));

// SAFETY: each block lies behind all earlier ones, inside the RAM that nobody else uses.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let start = self.0.load(Ordering::Relaxed).next_multiple_of(layout.align());
        let end = start.saturating_add(layout.size());
        if end > RAM_END as usize {
            return core::ptr::null_mut();
        }
        // There is one thread.
        self.0.store(end, Ordering::Relaxed);
        core::ptr::with_exposed_provenance_mut(start)
    }

    unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}
}

/// The time stamp counter, read after all that was before.
#[inline]
pub fn ticks() -> u64 {
    // SAFETY: every x86-64 processor has both, and the VMM forbids neither.
    unsafe {
        _mm_lfence();
        _rdtsc()
    }
}

/// Switches the VM off; a process goes on with whoever called the program.
pub fn end(in_vm: bool) {
    if !in_vm {
        return;
    }
    loop {
        // SAFETY: the port of `power.rs` in the VMM: sleep, state 5. It touches no memory of the program.
        unsafe { asm!("out dx, al", in("dx") 0x600u16, in("al") 0x34u8, options(nostack)) };
    }
}

/// Text as far as it fits.
struct Text<'a>(&'a mut [u8], usize);

impl Write for Text<'_> {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        for byte in text.bytes().take(self.0.len() - self.1) {
            self.0[self.1] = byte;
            self.1 += 1;
        }
        Ok(())
    }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let board = core::ptr::with_exposed_provenance_mut::<Board>(BOARD as usize);
    // SAFETY: the board lies there, and who held a reference to it does not run any more.
    let board = unsafe { &mut *board };
    let mut text = Text(&mut board.text, 0);
    let _ = writeln!(text, "{info}");
    let len = text.1;
    end(board.in_vm != 0);
    // SAFETY: Linux' calls `write` to standard error and `exit_group`, which clobber these registers only.
    unsafe {
        asm!("syscall", inout("rax") 1usize => _, in("rdi") 2, in("rsi") board.text.as_ptr(), in("rdx") len, out("rcx") _, out("r11") _);
        asm!("syscall", in("rax") 231, in("rdi") 101, options(noreturn));
    }
}

// The compiler calls these for copies of a length that it does not know.

#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    // SAFETY: the caller vouches for the pointers, as for C's function of this name.
    unsafe {
        asm!("rep movsb", inout("rdi") to => _, inout("rsi") from => _, inout("rcx") len => _, options(nostack, preserves_flags));
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, len: usize) -> *mut u8 {
    // SAFETY: the caller vouches for the pointer, as for C's function of this name.
    unsafe {
        asm!("rep stosb", inout("rdi") to => _, in("al") byte as u8, inout("rcx") len => _, options(nostack, preserves_flags));
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    if to.addr().wrapping_sub(from.addr()) >= len {
        // SAFETY: the caller vouches for the pointers, and no byte is written before it is read.
        return unsafe { memcpy(to, from, len) };
    }
    for at in (0..len).rev() {
        // SAFETY: the caller vouches for the pointers, and from behind no byte is written before it is read.
        unsafe { to.add(at).write_volatile(from.add(at).read_volatile()) };
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(one: *const u8, other: *const u8, len: usize) -> i32 {
    for at in 0..len {
        // SAFETY: the caller vouches for `len` bytes at both.
        let (a, b) = unsafe { (one.add(at).read_volatile(), other.add(at).read_volatile()) };
        if a != b {
            return i32::from(a) - i32::from(b);
        }
    }
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(one: *const u8, other: *const u8, len: usize) -> i32 {
    // SAFETY: the caller keeps the same contract.
    unsafe { memcmp(one, other, len) }
}

/// Nothing unwinds; the compiled `alloc` names it.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

/// As above.
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    panic!("nothing unwinds");
}
