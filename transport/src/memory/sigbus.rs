//! SIGBUS: mapped memory that goes away while its region is in use, since a device is unplugged or a file made shorter.
//!
//! The next access to such memory raises SIGBUS, which would end the process. The handler here puts zeros where the memory was,
//! so that the access completes; [`Guard::is_lost`] tells of the loss from then on. A signal for any other address goes to the
//! handler from before, and so does one for memory that was already replaced.

use std::io;
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize, Ordering};

use super::pages::Pages;

/// Mappings of regions that one process can have at a time.
const MAX_ENTRIES: usize = 1024;

const FREE: u32 = 0;
const TAKEN: u32 = 1;
const WATCHED: u32 = 2;
const REPLACING: u32 = 3;
const LOST: u32 = 4;
/// The pages could not be replaced.
const HOPELESS: u32 = 5;

/// One mapped region, as the signal handler sees it: only atomics.
struct Entry {
    state: AtomicU32,
    /// Address and length of what is mapped to read, and of what is mapped to write.
    spans: [(AtomicUsize, AtomicUsize); 2],
    /// The thread that last came too late to replace the pages: its next access must not fail.
    late: AtomicU32,
}

static TABLE: [Entry; MAX_ENTRIES] = [const {
    Entry {
        state: AtomicU32::new(FREE),
        spans: [const { (AtomicUsize::new(0), AtomicUsize::new(0)) }; 2],
        late: AtomicU32::new(0),
    }
}; MAX_ENTRIES];

/// The action for SIGBUS from before; never freed.
static BEFORE: AtomicPtr<libc::sigaction> = AtomicPtr::new(ptr::null_mut());

/// Guard over one mapped region, until it is dropped.
#[derive(Debug)]
pub struct Guard(usize);

impl Guard {
    /// Watches over a region's pages: those mapped to read, and those mapped to write.
    ///
    /// # Errors
    ///
    /// Too many regions, or no handler.
    pub fn new(read: &Pages, write: Option<&Pages>) -> io::Result<Self> {
        install()?;
        let take = |entry: &Entry| {
            entry.state.compare_exchange(FREE, TAKEN, Ordering::Acquire, Ordering::Relaxed).is_ok()
        };
        let Some(index) = TABLE.iter().position(take) else {
            return Err(io::Error::other(format!(
                "this process has vmshm regions mapped {MAX_ENTRIES} times already, and more can't be watched over: detach \
                 from some first, or use more processes"
            )));
        };
        let entry = &TABLE[index];
        for ((start, len), pages) in entry.spans.iter().zip([Some(read), write]) {
            start.store(pages.map_or(0, |pages| pages.start() as usize), Ordering::Relaxed);
            len.store(pages.map_or(0, Pages::len), Ordering::Relaxed);
        }
        entry.late.store(0, Ordering::Relaxed);
        entry.state.store(WATCHED, Ordering::Release);
        Ok(Self(index))
    }

    /// Whether the memory is gone.
    pub fn is_lost(&self) -> bool {
        !matches!(TABLE[self.0].state.load(Ordering::Acquire), TAKEN | WATCHED)
    }

    /// Puts zeros where the memory is: it is known to be gone.
    pub fn lose(&self) {
        TABLE[self.0].replace();
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        TABLE[self.0].state.store(FREE, Ordering::Release);
    }
}

impl Entry {
    fn has(&self, address: usize) -> bool {
        self.state.load(Ordering::Acquire) >= WATCHED
            && self.spans.iter().any(|(start, len)| {
                address.wrapping_sub(start.load(Ordering::Relaxed)) < len.load(Ordering::Relaxed)
            })
    }

    /// Called in a signal handler: nothing here allocates or locks. False if the access would fail for ever.
    fn replace(&self) -> bool {
        let won = self.state.compare_exchange(WATCHED, REPLACING, Ordering::AcqRel, Ordering::Acquire);
        match won {
            // Another thread is at it: the access is tried again.
            Err(REPLACING) => return true,
            // Another thread has just replaced them. An access that fails again after that will fail for ever.
            Err(LOST) => {
                // SAFETY: the call has no arguments, and is safe in a signal handler.
                let thread = unsafe { libc::syscall(libc::SYS_gettid) } as u32;
                return self.late.swap(thread, Ordering::AcqRel) != thread;
            }
            Err(_) => return false,
            Ok(_) => {}
        }
        let mut replaced = true;
        // To read, private: that needs no memory but the kernel's page of zeros. To write, shared: private pages would count
        // against RLIMIT_DATA, which may have no room for them.
        let kinds =
            [(libc::PROT_READ, libc::MAP_PRIVATE), (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED)];
        for ((start, len), (protection, kind)) in self.spans.iter().zip(kinds) {
            let (start, len) = (start.load(Ordering::Relaxed), len.load(Ordering::Relaxed));
            if len == 0 {
                continue;
            }
            let flags = kind | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
            // SAFETY: these pages belong to the mapping that is watched over, which is unmapped only after its guard is
            // dropped; nobody holds references to them.
            let there =
                unsafe { libc::mmap(ptr::with_exposed_provenance_mut(start), len, protection, flags, -1, 0) };
            replaced &= there != libc::MAP_FAILED;
        }
        self.state.store(if replaced { LOST } else { HOPELESS }, Ordering::Release);
        replaced
    }
}

fn install() -> io::Result<()> {
    static ONCE: Once = Once::new();
    let mut result = Ok(());
    ONCE.call_once(|| result = install_now());
    match BEFORE.load(Ordering::Acquire).is_null() {
        true => Err(result.err().unwrap_or_else(|| io::Error::other("SIGBUS can't be handled"))),
        false => Ok(()),
    }
}

fn install_now() -> io::Result<()> {
    stay_loaded();
    // SAFETY: all zeros is a valid sigaction.
    let mut before: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: nothing is changed, and the former action is written to a valid entry.
    if unsafe { libc::sigaction(libc::SIGBUS, ptr::null(), &raw mut before) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut ours = before;
    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = on_bus_error;
    ours.sa_sigaction = handler as libc::sighandler_t;
    // The rest is as the former handler wants it, since it may be called from ours.
    ours.sa_flags =
        libc::SA_SIGINFO | libc::SA_ONSTACK | before.sa_flags & (libc::SA_NODEFER | libc::SA_RESTART);
    BEFORE.store(Box::into_raw(Box::new(before)), Ordering::Release);
    // SAFETY: the handler keeps to what is safe in one, and stays loaded as long as the process lives.
    if unsafe { libc::sigaction(libc::SIGBUS, &raw const ours, ptr::null_mut()) } != 0 {
        let error = io::Error::last_os_error();
        BEFORE.store(ptr::null_mut(), Ordering::Release);
        return Err(error);
    }
    Ok(())
}

/// A plugin may be unloaded, but its handler can't be taken back once others have been put in front of it.
fn stay_loaded() {
    // SAFETY: all zeros is a valid Dl_info.
    let mut found: libc::Dl_info = unsafe { std::mem::zeroed() };
    // SAFETY: the address is one of this library's; the name that is found stays valid as long as it is loaded.
    unsafe {
        if libc::dladdr(ptr::from_ref(&TABLE).cast(), &raw mut found) != 0 && !found.dli_fname.is_null() {
            // Fails for the program itself, which stays anyway.
            libc::dlopen(found.dli_fname, libc::RTLD_NOW | libc::RTLD_NOLOAD | libc::RTLD_NODELETE);
        }
    }
}

extern "C" fn on_bus_error(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo; SIGBUS that the kernel raised has an address.
    let (is_fault, address) = unsafe { ((*info).si_code > 0, (*info).si_addr() as usize) };
    // SAFETY: this thread's errno, which belongs to the code that was interrupted.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: the address of this thread's errno is valid as long as the thread runs.
    let kept = unsafe { *errno };
    let is_ours = is_fault && TABLE.iter().find(|entry| entry.has(address)).is_some_and(Entry::replace);
    if !is_ours {
        // SAFETY: the arguments are those that the kernel gave.
        unsafe { as_before(signal, info, context, is_fault) };
    }
    // SAFETY: the address of this thread's errno is valid as long as the thread runs.
    unsafe { *errno = kept };
}

/// Does what would have happened without us.
///
/// # Safety
///
/// Called in a signal handler, with its arguments.
unsafe fn as_before(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
    is_fault: bool,
) {
    // SAFETY: stored before the handler was installed, and never freed.
    let before = unsafe { &*BEFORE.load(Ordering::Acquire) };
    let handler = before.sa_sigaction;
    if handler == libc::SIG_IGN && !is_fault {
        return;
    }
    if handler == libc::SIG_DFL || handler == libc::SIG_IGN || before.sa_flags & libc::SA_RESETHAND != 0 {
        // SAFETY: SIG_DFL is a valid action. A fault comes again when the access is tried again.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    if handler == libc::SIG_DFL || handler == libc::SIG_IGN {
        if !is_fault {
            // SAFETY: it is delivered when this handler returns.
            unsafe { libc::raise(signal) };
        }
    } else if before.sa_flags & libc::SA_SIGINFO != 0 {
        type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);
        // SAFETY: the flag says that the handler has this type.
        let handler = unsafe { std::mem::transmute::<libc::sighandler_t, Handler>(handler) };
        handler(signal, info, context);
    } else {
        // SAFETY: without the flag the handler has this type.
        let handler =
            unsafe { std::mem::transmute::<libc::sighandler_t, extern "C" fn(libc::c_int)>(handler) };
        handler(signal);
    }
}
