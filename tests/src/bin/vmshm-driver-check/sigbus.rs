//! Accesses to a device that is gone: each is counted, and completed with a page of zeros.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::mapping::PAGE;

static COUNT: AtomicU64 = AtomicU64::new(0);

/// How many pages were found revoked.
pub fn count() -> u64 {
    COUNT.load(Ordering::SeqCst)
}

/// Has the rest of the process count them.
pub fn catch() -> io::Result<()> {
    // SAFETY: all zero is a valid value; the handler only uses what a handler may.
    let result = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handle as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut())
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

extern "C" fn handle(_signal: i32, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    COUNT.fetch_add(1, Ordering::SeqCst);
    // SAFETY: the kernel gives a valid `info` with the address of a page that was revoked: nothing is lost by mapping
    // something else there.
    unsafe {
        let address = (*info).si_addr().map_addr(|address| address & !(PAGE - 1));
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        if libc::mmap(address, PAGE, protection, flags, -1, 0) == libc::MAP_FAILED {
            libc::abort();
        }
    }
}
