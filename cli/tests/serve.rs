//! `vmshm serve` as a process: signals, leftovers, rivals.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;

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
