//! `vmshm vm run` as a process, with kernels of a few instructions, which run even where a KVM in software crawls.

mod common;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Stdio};
use std::time::Duration;

use common::kernel::{ECHOES, kernel, kvm, prints_and_switches_off, vmlinux};
use common::{Host, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};

/// Prints what it finds in memory and in a register, which it changes then: mov eax, 0x500; mov cl, [rax]; inc byte [rax];
/// add cl, bl; inc ebx; mov dx, 0x3f8; lea eax, [rcx + '0']; out dx, al. Then a reset: mov dx, 0x602; mov al, 1; out dx, al;
/// jmp here.
const RESETS: [u8; 31] = [
    0xb8, 0x00, 0x05, 0x00, 0x00, 0x8a, 0x08, 0xfe, 0x00, 0x00, 0xd9, 0xff, 0xc3, 0x66, 0xba, 0xf8, 0x03,
    0x8d, 0x41, 0x30, 0xee, 0x66, 0xba, 0x02, 0x06, 0xb0, 0x01, 0xee, 0xeb, 0xfe, 0x90,
];

/// Unmasks pin 5 of the I/O APIC (mov eax, 0xfec00000; mov dword [rax], 0x1a; mov dword [rax+16], 0x31), prints a dot, and
/// waits until that interrupt is a request in the local APIC (mov edi, 0xfee00210; test dword [rdi], 1 << 17; ...), which it
/// enables first (mov dword [rdi-0x120], 0x1ff). Then it switches itself off.
fn waits_for_the_button() -> Vec<u8> {
    let mut code = vec![0xbf, 0x10, 0x02, 0xe0, 0xfe];
    code.extend([0xc7, 0x87, 0xe0, 0xfe, 0xff, 0xff, 0xff, 0x01, 0x00, 0x00]);
    code.extend([0xb8, 0x00, 0x00, 0xc0, 0xfe, 0xc7, 0x00, 0x1a, 0x00, 0x00, 0x00]);
    code.extend([0xc7, 0x40, 0x10, 0x31, 0x00, 0x00, 0x00]);
    code.extend([0x66, 0xba, 0xf8, 0x03, 0xb0, b'.', 0xee]);
    code.extend([0xf7, 0x07, 0x00, 0x00, 0x02, 0x00, 0x74, 0xf8]);
    code.extend(prints_and_switches_off("off"));
    code
}

/// Prints a dot, and spins: mov dx, 0x3f8; mov al, '.'; out dx, al; jmp here.
const SPINS: [u8; 9] = [0x66, 0xba, 0xf8, 0x03, 0xb0, b'.', 0xee, 0xeb, 0xfe];

fn start(host: &Host, arguments: &[&str]) -> Child {
    let mut command = host.command(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
}

fn read(child: &mut Child, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    child.stdout.as_mut().unwrap().read_exact(&mut bytes).unwrap();
    bytes
}

#[test]
fn a_kernel_prints_to_the_terminal_and_switches_the_vm_off() {
    if !kvm() {
        return;
    }
    let host = Host::new();
    host.ok(&["region", "create", "job", "--size", "1M"]);
    let kernel = kernel(&host, &prints_and_switches_off("hello"));
    let kernel = kernel.to_str().unwrap();
    let out = host.ok(&["vm", "run", "--kernel", kernel, "--memory", "16M", "--region", "job:1"]);
    assert_eq!(out, "hello");
    let regions: serde_json::Value = serde_json::from_str(&host.ok(&["region", "list", "--json"])).unwrap();
    assert_eq!(regions[0]["free_sections"], regions[0]["sections"], "what was free before is free again");
    let out = host.ok(&["vm", "run", "--kernel", kernel, "--memory", "16M", "--numa-node", "auto"]);
    assert_eq!(out, "hello");
    // An uncompressed kernel, which needs the memory that its program headers name.
    let vmlinux = vmlinux(&host, &prints_and_switches_off("hello"));
    let vmlinux = vmlinux.to_str().unwrap();
    assert_eq!(host.ok(&["vm", "run", "--kernel", vmlinux, "--memory", "32M"]), "hello");
    assert!(host.fails(&["vm", "run", "--kernel", vmlinux, "--memory", "16M"]).contains("is too small"));
    // More vCPUs than the host has CPUs.
    let many = ["vm", "run", "--kernel", kernel, "--memory", "16M", "--cpus", "200", "--numa-map"];
    assert!(host.fails(&many).contains("is more than there are CPUs: "));
    assert_eq!(host.ok(&[&many[..], &["--placement", "prefer"]].concat()), "hello");
}

#[test]
fn a_file_holds_the_same_options() {
    if !kvm() {
        return;
    }
    let host = Host::new();
    let job = host.dir.path().join("job.toml");
    let kernel = kernel(&host, &prints_and_switches_off("hello"));
    fs::write(&job, format!("kernel = {kernel:?}\nmemory = \"24M\"\ncpus = 2\n")).unwrap();
    let job = job.to_str().unwrap();
    assert_eq!(host.ok(&["vm", "run", job]), "hello");
    let text = host.ok(&["vm", "run", job, "--memory", "32M", "--dry-run"]);
    assert!(text.contains("memory    32 MiB") && text.contains("vCPUs     2 "), "{text}");
}

#[test]
fn a_guest_that_resets_itself_is_started_again_unless_that_is_not_wanted() {
    if !kvm() {
        return;
    }
    let host = Host::new();
    let kernel = kernel(&host, &RESETS);
    let arguments = ["vm", "run", "--kernel", kernel.to_str().unwrap(), "--memory", "16M"];
    let mut vm = start(&host, &arguments);
    assert_eq!(read(&mut vm, 20), [b'0'; 20]);
    kill(Pid::from_raw(vm.id() as i32), Signal::SIGTERM).unwrap();
    assert!(vm.wait().unwrap().success());
    assert_eq!(host.ok(&[&arguments[..], &["--no-reboot"]].concat()), "0");
}

#[test]
fn a_triple_fault_is_told_and_not_repeated() {
    if !kvm() {
        return;
    }
    let host = Host::new();
    // ud2, without anybody who handles it.
    let kernel = kernel(&host, &[0x0f, 0x0b]);
    let text = host.fails(&["vm", "run", "--kernel", kernel.to_str().unwrap(), "--memory", "16M"]);
    assert!(text.contains("vCPU 0 fell into a triple fault"), "{text}");
}

#[test]
fn a_guest_that_listens_to_the_power_button_switches_itself_off() {
    if !kvm() {
        return;
    }
    let host = Host::new();
    let listens = kernel(&host, &waits_for_the_button());
    let arguments = ["vm", "run", "--kernel", listens.to_str().unwrap(), "--memory", "16M"];
    let mut vm = start(&host, &arguments);
    assert_eq!(read(&mut vm, 1), b".");
    kill(Pid::from_raw(vm.id() as i32), Signal::SIGTERM).unwrap();
    assert_eq!(read(&mut vm, 3), b"off");
    assert!(vm.wait().unwrap().success());
}

#[test]
fn a_signal_stops_a_vm_and_its_section_is_free_again() {
    if !kvm() {
        return;
    }
    let host = Host::new();
    host.ok(&["region", "create", "job", "--size", "1M"]);
    let kernel = kernel(&host, &ECHOES);
    let arguments =
        ["vm", "run", "--kernel", kernel.to_str().unwrap(), "--memory", "16M", "--region", "job:1"];
    let mut vm = start(&host, &arguments);
    assert_eq!(read(&mut vm, 1), b".");
    vm.stdin.as_mut().unwrap().write_all(b"typed").unwrap();
    assert_eq!(read(&mut vm, 5), b"typed");

    let text = host.fails(&arguments);
    assert!(text.contains("section 1") && text.contains("in use"), "{text}");
    let all: serde_json::Value = serde_json::from_str(&host.ok(&["vm", "status", "--json"])).unwrap();
    let seen = all.as_array().unwrap().iter().find(|seen| seen["pid"] == vm.id()).unwrap();
    assert_eq!((&seen["regions"][0], &seen["vcpus"][0]["number"]), (&"job:1".into(), &0.into()));
    let memory = seen["memory"].as_array().unwrap().iter().find(|part| part["what"] == "memory").unwrap();
    let bytes: u64 = memory["nodes"].as_object().unwrap().values().map(|bytes| bytes.as_u64().unwrap()).sum();
    assert_eq!(bytes, 16 << 20, "all of it is there before the guest runs");
    assert!(host.ok(&["vm", "status"]).contains(&format!("VM of pid {}, job:1:", vm.id())));
    let all: serde_json::Value = serde_json::from_str(&host.ok(&["vm", "stats", "--json"])).unwrap();
    let seen = all.as_array().unwrap().iter().find(|seen| seen["pid"] == vm.id()).unwrap();
    assert_eq!((&seen["regions"][0], &seen["vcpus"][0]["number"]), (&"job:1".into(), &0.into()));
    let rates = seen["vcpus"][0]["kvm"].as_object().unwrap();
    // It asks the serial port without end. Before Linux 5.14 KVM tells nothing.
    assert!(rates.is_empty() || rates["exits"].as_f64().unwrap() > 0.0, "{rates:?}");
    if geteuid().is_root() {
        let mut stranger = host.command(&["vm", "stats", "--json"]);
        let out = stranger.uid(65534).gid(65534).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&out.stdout).trim(), "[]", "another user learns nothing of it");
    }
    assert!(host.ok(&["vm", "stats"]).contains(&format!("VM of pid {}, job:1, per second:", vm.id())));
    kill(Pid::from_raw(vm.id() as i32), Signal::SIGTERM).unwrap();
    assert!(vm.wait().unwrap().success());

    // A VMM that is killed keeps nothing either.
    let mut vm = start(&host, &arguments);
    assert_eq!(read(&mut vm, 1), b".");
    vm.kill().unwrap();
    vm.wait().unwrap();
    let mut vm = start(&host, &arguments);
    assert_eq!(read(&mut vm, 1), b".");
    kill(Pid::from_raw(vm.id() as i32), Signal::SIGTERM).unwrap();
    until("it ends", || vm.try_wait().unwrap().is_some());
}

/// Times that threads of a process gave their CPU up, but for vCPUs.
fn sleeps(pid: u32) -> Vec<(String, String)> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let look = |dir: std::path::PathBuf| {
        let name = fs::read_to_string(dir.join("comm")).ok()?;
        let status = fs::read_to_string(dir.join("status")).ok()?;
        let count = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches"))?.to_owned();
        (!name.starts_with("vcpu")).then_some((name, count))
    };
    tasks.flatten().filter_map(|task| look(task.path())).collect()
}

#[test]
fn nothing_of_a_vm_but_its_vcpu_wakes_up_by_itself() {
    if !kvm() {
        return;
    }
    let host = Host::new();
    let kernel = kernel(&host, &SPINS);
    let arguments =
        ["vm", "run", "--kernel", kernel.to_str().unwrap(), "--memory", "16M", "--numa-node", "auto"];
    let mut vm = start(&host, &arguments);
    assert_eq!(read(&mut vm, 1), b".");
    until("all other threads sleep", || {
        let before = sleeps(vm.id());
        assert!(before.len() > 2, "{before:?}");
        std::thread::sleep(Duration::from_secs(1));
        before == sleeps(vm.id())
    });
    vm.kill().unwrap();
    vm.wait().unwrap();
}

#[test]
fn what_is_wrong_is_named_before_anything_runs() {
    if !kvm() {
        return;
    }
    let host = Host::new();
    host.ok(&["region", "create", "job", "--size", "1M"]);
    let kernel = kernel(&host, &[0xeb, 0xfe]);
    let text_file = host.dir.path().join("text");
    fs::write(&text_file, "no kernel, though long enough\n".repeat(100)).unwrap();
    let (kernel, text_file) = (kernel.to_str().unwrap(), text_file.to_str().unwrap());
    for (arguments, words) in [
        (&["--kernel", "/nonexistent"][..], &["/nonexistent"][..]),
        (&["--kernel", text_file], &["boot protocol", "bzImage", text_file]),
        (&["--kernel", env!("CARGO_BIN_EXE_vmshm")], &["ELF file", "bzImage"]),
        (&["--kernel", "/tmp"], &["/tmp is no regular file"]),
        (&["--kernel", kernel, "--initrd", "/dev/null"], &["/dev/null is no regular file"]),
        (&["--kernel", kernel, "--region", "job:0", "--region", "job:0"], &["job:0 is given twice"]),
        (&["--kernel", kernel, "--initrd", kernel, "--memory", "1M"], &["memory"]),
        (&["--kernel", kernel, "--region", "job:2"], &["section 2", "sections 0 to 1"]),
        (&["--kernel", kernel, "--region", "other:0"], &["no region", "region create"]),
        (&["--kernel", kernel, "--region", "job"], &["job:0"]),
        (&["--kernel", kernel, "--region", "job:0", "--doorbell"], &["vmshm serve"]),
        (&["--kernel", kernel, "--cpus", "100000"], &["100000", "1 to"]),
        (&["--kernel", kernel, "--numa-node", "4000"], &["4000", "there are"]),
        (&["--kernel", kernel, "--numa-map", "--cpus", "999"], &["are wanted on NUMA node"]),
        (
            &["--kernel", kernel, "--numa-node", "auto", "--memory", "16T"],
            &["4294967296 pages of 4 KiB are wanted on NUMA node"],
        ),
        (&["--kernel", kernel, "--numa-node", "0", "--numa-map"], &["cannot be used with"]),
        (&["--kernel", kernel, "--placement", "prefer"], &["--numa-node"]),
        (&["--kernel", kernel, "--numa-map", "--placement", "x"], &["require or prefer"]),
        (&["--kernel", kernel, "--pages", "1G", "--memory", "64G"], &["64 pages of 1 GiB", "nr_hugepages"]),
        (&["--kernel", kernel, "--disk", "/nonexistent,ro"], &["disk image /nonexistent"]),
        (&["--kernel", kernel, "--disk", text_file], &["3000 bytes", "raw image"]),
        (&["--kernel", kernel, "--net", "tap:vmshm-none-such-one"], &["ip tuntap add"]),
        (&["--kernel", kernel, "--net", "vde:x"], &["dgram:LOCAL,REMOTE"]),
        (&["--kernel", kernel, "--pages", "8K"], &["4K, 2M or 1G"]),
    ] {
        let all: Vec<_> = ["vm", "run"].iter().chain(arguments).copied().collect();
        let text = host.fails(&all);
        for word in words {
            assert!(text.contains(word), "{arguments:?}: {text}");
        }
    }
}

#[test]
fn a_dry_run_says_where_things_would_go_and_takes_nothing() {
    if !kvm() {
        return;
    }
    let host = Host::new();
    host.ok(&["region", "create", "job", "--size", "1M"]);
    let arguments =
        ["vm", "run", "--kernel", "/none", "--dry-run", "--numa-node", "auto", "--region", "job:1"];
    let text = host.ok(&arguments);
    for word in ["memory    1 GiB on NUMA node", "vCPU 0    on CPU", "job, section 1", "guest address 0x"] {
        assert!(text.contains(word), "{word}: {text}");
    }
    let text = host.ok(&["vm", "run", "--kernel", "/none", "--dry-run", "--numa-map", "--memory", "4G"]);
    for word in ["GiB on NUMA node", "at 0x0", "1 GiB on NUMA node", "at 0x100000000", "vCPU 0    on CPU"] {
        assert!(text.contains(word), "{word}: {text}");
    }
    assert!(host.ok(&["region", "list"]).lines().any(|line| line.split_whitespace().nth(4) == Some("2")));
}
