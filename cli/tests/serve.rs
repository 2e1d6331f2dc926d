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
fn a_service_manager_is_told_when_vms_can_connect() {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram};
    let host = Host::new();
    host.ok(&["region", "create", "job", "--size", "1M"]);
    let path = host.dir.path().join("notify");
    let name = format!("vmshm-test-{}", std::process::id());
    let named = UnixDatagram::bind(&path).unwrap();
    let nameless = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    for (manager, address) in [(named, path.to_str().unwrap().to_owned()), (nameless, format!("@{name}"))] {
        manager.set_read_timeout(Some(std::time::Duration::from_secs(30))).unwrap();
        let mut server = host.command(&["serve", "job"]).env("NOTIFY_SOCKET", address).spawn().unwrap();
        let mut told = [0; 100];
        let len = manager.recv(&mut told).unwrap();
        assert_eq!(&told[..len], b"READY=1");
        UnixStream::connect(host.sockets().join("job.1.sock")).unwrap();
        signal(&server, Signal::SIGTERM);
        assert!(server.wait().unwrap().success());
    }
}

#[test]
fn a_vm_whose_process_cannot_be_told_keeps_its_section_until_it_is_released() {
    let host = Host::new();
    host.ok(&["region", "create", "job", "--size", "1M"]);
    // From inside a pid namespace this test's own process is nobody.
    let serve = || {
        let inner = host.command(&["serve", "job"]);
        let mut outer = Command::new("unshare");
        outer.args(["--pid", "--fork", "--mount-proc", "--kill-child"]).arg(inner.get_program());
        outer.args(inner.get_args()).envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
        outer.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    let works = Command::new("unshare")
        .args(["--pid", "--fork", "--mount-proc", "true"])
        .stderr(Stdio::null())
        .status();
    if !works.is_ok_and(|status| status.success()) {
        println!("skipped: this user can't make pid namespaces");
        return;
    }
    let socket = host.sockets().join("job.1.sock");
    let join = || {
        let mut client = None;
        until("the server answers", || {
            client = UnixStream::connect(&socket).ok();
            client.is_some()
        });
        client.unwrap()
    };
    let is_joined = || host.ok(&["region", "inspect", "job"]).contains("joined, generation 1, by pid 0");
    // The id, or what says that there is none.
    let id = |mut client: &UnixStream| {
        use std::io::Read;
        let mut words = [[0; 8]; 2];
        client.read_exact(words.as_flattened_mut()).unwrap();
        i64::from_le_bytes(words[1])
    };
    let mut first = serve();
    let vm = join();
    assert_eq!(id(&vm), 1);
    until("it has joined", is_joined);
    first.kill().unwrap();
    first.wait().unwrap();
    until("it has ended", || UnixStream::connect(&socket).is_err());

    let mut second = serve();
    assert_eq!(id(&join()), -1, "the section has an owner, who lives");
    assert!(is_joined());
    assert!(host.fails(&["region", "release", "job", "--section", "1"]).contains("in use"));
    host.ok(&["region", "release", "job", "--section", "1", "--force"]);
    assert_eq!(id(&join()), 1);
    second.kill().unwrap();
    second.wait().unwrap();
    drop(vm);
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
