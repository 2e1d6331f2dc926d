//! `vmshm serve` as a process: signals, leftovers, rivals.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use common::{Host, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn signal(child: &std::process::Child, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
}

#[test]
fn a_signal_ends_it_cleanly() {
    let host = Host::new();
    host.ok(&["region", "create", "job", "--size", "1M"]);
    for end in [Signal::SIGTERM, Signal::SIGINT] {
        let mut server = host.serve(&["job", "--mode", "600"]);
        let socket = host.sockets().join("job.sock");
        until("the permissions are set", || {
            fs::metadata(&socket).unwrap().permissions().mode() & 0o777 == 0o600
        });
        signal(&server, end);
        assert!(server.wait().unwrap().success());
        assert_eq!(fs::read_dir(host.sockets()).unwrap().count(), 0);
    }
}

#[test]
fn a_killed_one_leaves_sockets_that_the_next_replaces() {
    let host = Host::new();
    host.ok(&["region", "create", "job", "--size", "1M"]);
    let mut first = host.serve(&["job"]);
    let rival = host.fails(&["serve", "job"]);
    assert!(rival.contains(&format!("served already by pid {}", first.id())), "{rival}");
    first.kill().unwrap();
    first.wait().unwrap();
    let socket = host.sockets().join("job.sock");
    assert!(socket.exists() && UnixStream::connect(&socket).is_err());
    let doctor = host.output(&["doctor", "--host"]);
    assert!(String::from_utf8_lossy(&doctor.stdout).contains("a killed server left"));
    let mut second = host.serve(&["job"]);
    until("the second answers", || UnixStream::connect(&socket).is_ok());
    signal(&second, Signal::SIGTERM);
    second.wait().unwrap();
}

#[test]
fn a_limit_of_open_files_that_is_too_low_is_named_before_anything_listens() {
    let host = Host::new();
    host.ok(&["region", "create", "job", "--size", "64M", "--sections", "64"]);
    let mut command = Command::new("sh");
    let ours = host.command(&[]);
    command.args(["-c", "ulimit -n 500; exec \"$0\" serve job"]).arg(ours.get_program());
    command.envs(ours.get_envs().filter_map(|(name, value)| Some((name, value?)))).stdin(Stdio::null());
    let output = command.output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    // Each of 64 VMs takes a connection, a socket, a pidfd and eight doorbells.
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("768 open files") && message.contains("--vectors"), "{message}");
    assert!(
        fs::read_dir(host.sockets()).is_ok_and(|mut dir| dir.next().is_none()) || !host.sockets().exists()
    );
}

#[test]
fn qemu_joins_with_the_arguments_that_are_printed_and_is_shown_with_its_number() {
    if Command::new("qemu-system-x86_64").arg("--version").stdout(Stdio::null()).status().is_err() {
        println!("skipped: qemu-system-x86_64 is not installed");
        return;
    }
    let host = Host::new();
    host.ok(&["region", "create", "job", "--size", "1M"]);
    let line = host.ok(&["qemu-args", "job", "--section", "1", "--doorbell"]);
    let mut server = host.serve(&["job"]);
    let script = format!("exec qemu-system-x86_64 -S -nodefaults -display none -accel tcg -m 64 {line}");
    let mut qemu =
        Command::new("sh").args(["-c", &script]).stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    until("it has joined", || {
        assert!(qemu.try_wait().unwrap().is_none(), "QEMU ended");
        let shown = host.ok(&["region", "inspect", "job"]);
        shown.contains(&format!("joined, generation 2, by pid {} (qemu-system-x86), as VM 1", qemu.id()))
    });
    qemu.kill().unwrap();
    let said = qemu.wait_with_output().unwrap().stderr;
    assert!(said.is_empty(), "{}", String::from_utf8_lossy(&said));
    until("it has left", || !host.ok(&["region", "inspect", "job"]).contains("as VM"));
    signal(&server, Signal::SIGTERM);
    server.wait().unwrap();
}

#[test]
fn nonsense_is_refused_with_the_value() {
    let host = Host::new();
    host.ok(&["region", "create", "job", "--size", "1M"]);
    for (arguments, text) in [
        (&["nothing"][..], "no region \"nothing\""),
        (&["job", "--vectors", "0"], "\"0\""),
        (&["job", "--vectors", "99999"], "\"99999\""),
        (&["job", "--mode", "999"], "999"),
        (&["job", "--group", "no-such-group"], "no-such-group"),
        (&["job", "--socket", "/proc/nowhere/s.sock"], "/proc/nowhere"),
    ] {
        let mut all = vec!["serve"];
        all.extend(arguments);
        let message = host.fails(&all);
        assert!(message.contains(text), "{message}");
    }
}
