//! The threads of a VM's process: each may do what its kind needs, and nothing else, from its first step on.
//!
//! All threads that live while a guest runs are started here. A thread that makes a system call beyond its filter ends
//! the process at once, with a word on standard error that names the thread and the call.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::path::PathBuf;
use std::sync::Once;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::{Builder, JoinHandle};

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

use crate::error::Error;
pub use crate::filters::Kind;
use crate::filters::{self, Call};
use crate::rights;
pub use crate::rights::User;

/// The fate of a system call that a thread's filter does not name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Seccomp {
    /// The process ends, and says which thread made which call.
    #[default]
    On,
    /// The kernel writes it into its log (`dmesg`, or that of auditd), and carries it out.
    Log,
    /// There are no filters.
    Off,
}

static SECCOMP: AtomicU8 = AtomicU8::new(Seccomp::On as u8);

impl Seccomp {
    /// Lets all threads that are started from now on have it so.
    ///
    /// # Errors
    /// The kernel has no filters of that kind.
    pub fn choose(self) -> Result<(), Error> {
        SECCOMP.store(self as u8, Ordering::Relaxed);
        let Some(action) = self.action() else { return Ok(()) };
        let (op, action) = (libc::SECCOMP_GET_ACTION_AVAIL, u32::from(action));
        // SAFETY: the kernel reads one word, which outlives the call.
        if unsafe { libc::syscall(libc::SYS_seccomp, op, 0, &raw const action) } == 0 {
            return Ok(());
        }
        Err(Error::Capability {
            capability: "filters for system calls (CONFIG_SECCOMP_FILTER)",
            cure: "use a kernel that has them, or do without: --seccomp off",
        })
    }

    fn chosen() -> Self {
        match SECCOMP.load(Ordering::Relaxed) {
            mode if mode == Self::Off as u8 => Self::Off,
            mode if mode == Self::Log as u8 => Self::Log,
            _ => Self::On,
        }
    }

    fn action(self) -> Option<SeccompAction> {
        match self {
            // The call is not carried out; the handler of the signal that comes instead ends the process.
            Self::On => Some(SeccompAction::Trap),
            Self::Log => Some(SeccompAction::Log),
            Self::Off => None,
        }
    }
}

/// Starts a thread, confined to what its kind may do.
///
/// # Errors
/// No thread can be had.
pub fn spawn<T: Send + 'static>(
    kind: Kind,
    name: impl Into<String>,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    spawn_after(kind, name, || (), work)
}

/// The same, with something to be done before the thread is confined.
///
/// # Errors
/// No thread can be had.
pub fn spawn_after<T: Send + 'static>(
    kind: Kind,
    name: impl Into<String>,
    prepare: impl FnOnce() + Send + 'static,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    Builder::new().name(name.into()).spawn(move || {
        prepare();
        confine(kind, &[]);
        work()
    })
}

/// Confines the calling thread, which may remove files from these directories, but open none. Threads that it starts
/// afterwards are confined likewise.
///
/// Ends the process where that cannot be: a thread never goes on with more than it needs.
pub fn confine(kind: Kind, directories: &[PathBuf]) {
    if let Err(error) = rights::give_up(directories) {
        die(&format!("a thread's rights cannot be taken away ({error})"));
    }
    filters(kind).iter().for_each(install);
}

fn die(why: &str) -> ! {
    eprintln!("vmshm: {why}");
    std::process::exit(1);
}

/// The filters of a kind of thread, as the kernel takes them; none where they are off.
///
/// Of several filters the kernel takes the strictest answer: the first one says what fails, the last one what is
/// forbidden.
fn filters(kind: Kind) -> Vec<BpfProgram> {
    let mode = Seccomp::chosen();
    let Some(action) = mode.action() else { return Vec::new() };
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    let mut refused = BTreeMap::new();
    for call in filters::calls(kind) {
        match call {
            Call::Any(number) => {
                refused.remove(&number);
                rules.insert(number, Vec::new());
            }
            Call::Refused(number) => {
                rules.insert(number, Vec::new());
                refused.insert(number, Vec::new());
            }
            Call::Request(number, argument, requests) => {
                let one = |&request| rule(argument, SeccompCmpOp::Eq, u64::from(request));
                rules.entry(number).or_default().extend(requests.iter().map(one));
            }
            Call::NoExecute(number) => {
                let executes = SeccompCmpOp::MaskedEq(libc::PROT_EXEC as u64);
                rules.insert(number, vec![rule(2, executes, 0)]);
            }
            Call::Own(number) => {
                rules.insert(number, vec![rule(0, SeccompCmpOp::Eq, u64::from(std::process::id()))]);
            }
        }
    }
    let program = |rules, otherwise, then| {
        let filter = SeccompFilter::new(rules, otherwise, then, TargetArch::x86_64);
        filter.and_then(BpfProgram::try_from).expect("the filters are a part of this program")
    };
    let mut programs = Vec::new();
    if mode == Seccomp::On {
        let fails = SeccompAction::Errno(libc::EACCES as u32);
        programs.push(program(refused, SeccompAction::Allow, fails));
    }
    // The last one, since it forbids to install more.
    programs.push(program(rules, action, SeccompAction::Allow));
    programs
}

fn rule(argument: u8, op: SeccompCmpOp, value: u64) -> SeccompRule {
    let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, op, value);
    condition
        .and_then(|condition| SeccompRule::new(vec![condition]))
        .expect("no call has more than six arguments")
}

fn install(filter: &BpfProgram) {
    static HANDLER: Once = Once::new();
    HANDLER.call_once(|| {
        vmm_sys_util::signal::register_signal_handler(libc::SIGSYS, forbidden)
            .expect("SIGSYS can be handled");
    });
    if let Err(error) = seccompiler::apply_filter(filter) {
        die(&format!("a thread's system calls cannot be filtered ({error}); --seccomp off does without"));
    }
}

/// `siginfo_t` of a SIGSYS.
#[repr(C)]
struct SigSys {
    signal: libc::c_int,
    errno: libc::c_int,
    code: libc::c_int,
    at: *mut libc::c_void,
    call: libc::c_int,
}

/// Text on the stack: a signal's handler allocates nothing.
struct Text {
    bytes: [u8; 256],
    len: usize,
}

impl std::fmt::Write for Text {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let room = &mut self.bytes[self.len..];
        let len = text.len().min(room.len());
        room[..len].copy_from_slice(&text.as_bytes()[..len]);
        self.len += len;
        Ok(())
    }
}

/// Exit code: as shells show death by SIGSYS.
const FORBIDDEN: libc::c_int = 128 + libc::SIGSYS;

/// Ends the process that a filter stopped.
extern "C" fn forbidden(_: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel calls this with the information of a SIGSYS, which has this layout.
    let call = unsafe { (*info.cast::<SigSys>()).call };
    // SAFETY: the kernel gives the interrupted thread's registers.
    let registers = unsafe { &(*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let register = |number: libc::c_int| registers[number as usize];
    let mut name = [0u8; 16];
    // SAFETY: the kernel writes at most 16 bytes, with the zero at their end.
    unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    let name = std::ffi::CStr::from_bytes_until_nul(&name).ok().and_then(|name| name.to_str().ok());
    let mut text = Text { bytes: [0; 256], len: 0 };
    let _ = writeln!(
        text,
        "\nvmshm: the VM is stopped: thread {} made system call {call} ({:#x}, {:#x}, {:#x}), which its seccomp filter forbids; \
         docs/vmm.md says how to report it",
        name.unwrap_or("?"),
        register(libc::REG_RDI),
        register(libc::REG_RSI),
        register(libc::REG_RDX),
    );
    // SAFETY: the text is that long; ending without any clean-up is what is wanted.
    unsafe {
        libc::write(2, text.bytes.as_ptr().cast(), text.len);
        libc::_exit(FORBIDDEN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_thread_can_live_and_panic_under_its_filter() {
        for kind in Kind::ALL {
            let thread = spawn(kind, format!("{kind:?}"), move || {
                let many: Vec<Vec<u8>> = (0..64).map(|i| vec![1; 1 << (i % 24)]).collect();
                let _map: std::collections::HashMap<_, _> =
                    many.iter().map(|bytes| (bytes.len(), ())).collect();
                std::thread::sleep(std::time::Duration::from_millis(1));
                eprintln!("{kind:?} lives");
                panic!("as planned");
            });
            let panic = thread.unwrap().join().unwrap_err();
            assert_eq!(panic.downcast_ref::<&str>(), Some(&"as planned"), "{kind:?}");
        }
    }
}
