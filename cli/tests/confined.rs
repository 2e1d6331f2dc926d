//! Rights of the threads of a running VM, as /proc shows them.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::process::{Child, Stdio};

use common::kernel::{ECHOES, kernel, kvm};
use common::{Host, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};

/// A line of the status of each thread, by the thread's name.
fn of_threads(pid: u32, line: &str) -> BTreeSet<(String, String)> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let texts = threads.filter_map(|thread| fs::read_to_string(thread.path().join("status")).ok());
    let value = |text: &str, line: &str| {
        let found = text.lines().find_map(|l| l.strip_prefix(line)).expect("a line of the status");
        found.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    texts.map(|text| (value(&text, "Name:"), value(&text, line))).collect()
}

fn start(host: &Host, more: &[&str]) -> Child {
    let kernel = kernel(host, &ECHOES);
    let link = format!("dgram:{},/none", host.dir.path().join("net").display());
    let mut all = vec!["vm", "run", "--kernel", kernel.to_str().unwrap(), "--memory", "16M", "--net", &link];
    all.extend(["--region", "job:1"].iter().chain(more));
    let mut command = host.command(&all);
    let mut vm = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    vm.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    // The first thread comes last, when the guest may run already.
    until("all threads are confined", || of_threads(vm.id(), "Seccomp:").iter().all(|(_, mode)| mode == "2"));
    vm
}

fn end(mut vm: Child) {
    kill(Pid::from_raw(vm.id() as i32), Signal::SIGTERM).unwrap();
    assert!(vm.wait().unwrap().success());
}

#[test]
fn every_thread_of_a_running_vm_is_confined_and_gives_back_what_it_had() {
    if !kvm() {
        return;
    }
    let host = Host::new();
    host.ok(&["region", "create", "job", "--size", "1M"]);
    let vm = start(&host, &[]);
    let names: BTreeSet<_> = of_threads(vm.id(), "NoNewPrivs:").into_iter().map(|(name, _)| name).collect();
    for name in ["vmshm", "vcpu0", "virtio-net", "virtio-rng", "console", "signals"] {
        assert!(names.contains(name), "{names:?}");
    }
    for (line, wanted) in
        [("NoNewPrivs:", "1"), ("CapEff:", "0000000000000000"), ("CapPrm:", "0000000000000000")]
    {
        for (name, value) in of_threads(vm.id(), line) {
            assert_eq!(value, wanted, "{name}, {line}");
        }
    }
    let all: serde_json::Value = serde_json::from_str(&host.ok(&["vm", "status", "--json"])).unwrap();
    assert!(
        all.as_array().unwrap().iter().any(|seen| seen["pid"] == vm.id()),
        "others can still look: {all}"
    );
    assert!(host.dir.path().join("net").exists());
    end(vm);
    assert!(!host.dir.path().join("net").exists(), "its socket goes with it");
    let list = host.ok(&["region", "list"]);
    assert!(list.lines().any(|line| line.split_whitespace().nth(4) == Some("2")), "{list}");
}

#[test]
fn root_s_vm_becomes_another_user_s_once_it_is_set_up() {
    if !kvm() {
        return;
    }
    let host = Host::new();
    host.ok(&["region", "create", "job", "--size", "1M"]);
    let text = host.fails(&["vm", "run", "--kernel", "/none", "--user", "no-such-user-here"]);
    assert!(text.contains("no-such-user-here") && text.contains("getent passwd"), "{text}");
    if !geteuid().is_root() {
        let text = host.fails(&["vm", "run", "--kernel", "/none", "--user", "nobody"]);
        assert!(text.contains("root"), "{text}");
        eprintln!("skipped: only root can become another user");
        return;
    }
    let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap();
    let vm = start(&host, &["--user", "nobody:0"]);
    let uid = nobody.uid.to_string();
    for (line, id) in [("Uid:", &uid[..]), ("Gid:", "0"), ("Groups:", "")] {
        for (name, value) in of_threads(vm.id(), line) {
            assert!(value.split(' ').all(|found| found == id), "{name}, {line} {value}");
        }
    }
    for (name, value) in of_threads(vm.id(), "CapPrm:") {
        assert_eq!(value, "0000000000000000", "{name}");
    }
    let socket = fs::metadata(host.dir.path().join("net")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&socket), nobody.uid.as_raw());
    end(vm);
    let list = host.ok(&["region", "list"]);
    assert!(list.lines().any(|line| line.split_whitespace().nth(4) == Some("2")), "{list}");
}
