//! A forbidden call of a thread ends its process. Each case runs in a process of its own: this test's, started again.

use std::process::Command;

use vmshm_vmm::thread::{Kind, Seccomp, spawn};

/// Runs `call` in a thread of each kind, and returns how that ended: exit code, standard error.
fn in_a_process(test: &str, mode: Seccomp, call: fn()) -> Vec<(Kind, Option<i32>, String)> {
    if let (Ok(number), Ok(wanted)) = (std::env::var("VMSHM_TEST_KIND"), std::env::var("VMSHM_TEST_MODE")) {
        if wanted != format!("{mode:?}") {
            return Vec::new();
        }
        mode.choose().unwrap();
        let kind = Kind::ALL[number.parse::<usize>().unwrap()];
        spawn(kind, format!("{kind:?}"), call).unwrap().join().unwrap();
        std::process::exit(7);
    }
    let run = |number: usize| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let command = command.args([test, "--exact", "--nocapture"]);
        let command = command.env("VMSHM_TEST_KIND", number.to_string());
        let out = command.env("VMSHM_TEST_MODE", format!("{mode:?}")).output().unwrap();
        (Kind::ALL[number], out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
    };
    (0..Kind::ALL.len()).map(run).collect()
}

#[test]
fn a_forbidden_call_ends_the_process_and_is_named_with_its_thread() {
    let name = "a_forbidden_call_ends_the_process_and_is_named_with_its_thread";
    let ends = in_a_process(name, Seccomp::On, || {
        // SAFETY: plain integers.
        unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0) };
    });
    for (kind, code, text) in ends {
        assert_eq!(code, Some(128 + libc::SIGSYS), "{kind:?}: {text}");
        let named = format!("thread {kind:?} made system call {} (0x2, 0x1, 0x0)", libc::SYS_socket);
        assert!(text.contains(&named), "{text}");
    }
}

#[test]
fn no_thread_can_make_memory_executable() {
    let ends = in_a_process("no_thread_can_make_memory_executable", Seccomp::On, || {
        let page = vec![0u8; 8192];
        let start = page.as_ptr().map_addr(|at| at.next_multiple_of(4096)).cast_mut();
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a page of our own, which stays readable and writable.
        assert_eq!(unsafe { libc::mprotect(start.cast(), 4096, prot) }, 0);
        // SAFETY: a page of our own, which stays readable and writable.
        unsafe { libc::mprotect(start.cast(), 4096, prot | libc::PROT_EXEC) };
    });
    for (kind, code, text) in ends {
        assert_eq!(code, Some(128 + libc::SIGSYS), "{kind:?}: {text}");
        assert!(text.contains(&format!("made system call {}", libc::SYS_mprotect)), "{text}");
    }
}

#[test]
fn an_ioctl_is_known_by_its_request() {
    let ends = in_a_process("an_ioctl_is_known_by_its_request", Seccomp::On, || {
        // SAFETY: plain integers; KVM_CREATE_VM, which no thread makes once the VM is there.
        unsafe { libc::ioctl(-1, 0xae01, 0) };
    });
    for (kind, code, text) in ends {
        assert_eq!(code, Some(128 + libc::SIGSYS), "{kind:?}: {text}");
        assert!(
            text.contains(&format!("made system call {} (0xffffffff, 0xae01", libc::SYS_ioctl)),
            "{text}"
        );
    }
}

#[test]
fn filters_that_log_or_are_off_stop_nothing() {
    for mode in [Seccomp::Log, Seccomp::Off] {
        let ends = in_a_process("filters_that_log_or_are_off_stop_nothing", mode, || {
            // SAFETY: plain integers.
            assert!(unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0) } >= 0);
        });
        for (kind, code, text) in ends {
            assert_eq!(code, Some(7), "{kind:?}, {mode:?}: {text}");
        }
    }
}

#[test]
fn without_filters_threads_still_open_no_file_and_have_no_capability() {
    let name = "without_filters_threads_still_open_no_file_and_have_no_capability";
    let ends = in_a_process(name, Seccomp::Off, || {
        let opened = std::fs::File::open("/dev/null");
        // A kernel without Landlock says so in the log.
        // SAFETY: plain integers: asks for the version.
        if unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, 0, 0, 1) } > 0 {
            assert_eq!(opened.unwrap_err().kind(), std::io::ErrorKind::PermissionDenied);
        }
        // SAFETY: plain integers. CAP_SYS_NICE would allow the highest priority, which no test is started with.
        let nicer = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -20) };
        assert_eq!(
            (nicer, std::io::Error::last_os_error().kind()),
            (-1, std::io::ErrorKind::PermissionDenied)
        );
        // Threads of one process can still be signalled, as vCPUs are.
        // SAFETY: signal 0 does nothing.
        assert_eq!(unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), libc::getpid(), 0) }, 0);
    });
    for (kind, code, text) in ends {
        assert_eq!(code, Some(7), "{kind:?}: {text}");
    }
}
