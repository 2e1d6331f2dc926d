//! The server with the client it is made for: QEMU's `ivshmem-doorbell`.

mod common;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::{Client, Host, state, until};
use serde_json::{Value, json};
use vmshm_host::{State, section_socket};

/// A QEMU that waits before its first instruction.
struct Qemu {
    child: Child,
    monitor: BufReader<UnixStream>,
}

impl Qemu {
    fn start(host: &Host, name: &str, device: &[String]) -> Self {
        let monitor: PathBuf = host.dir.path().join(format!("{name}.qmp"));
        let child = Command::new("qemu-system-x86_64")
            .args(["-S", "-nodefaults", "-display", "none", "-accel", "tcg", "-m", "64", "-qmp"])
            .arg(format!("unix:{},server=on,wait=off", monitor.display()))
            .args(device)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let mut socket = None;
        until("QEMU's monitor answers", || {
            socket = UnixStream::connect(&monitor).ok();
            socket.is_some()
        });
        let socket = socket.unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let mut qemu = Self { child, monitor: BufReader::new(socket) };
        qemu.line();
        qemu.ask("qmp_capabilities", json!({}));
        qemu
    }

    fn doorbell(host: &Host, name: &str, socket: &Path, vectors: u32) -> Self {
        let device = [
            "-chardev".to_owned(),
            format!("socket,id=c,path={}", socket.display()),
            "-device".to_owned(),
            format!("ivshmem-doorbell,id=shm,chardev=c,vectors={vectors}"),
        ];
        Self::start(host, name, &device)
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.monitor.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    fn ask(&mut self, command: &str, arguments: Value) -> Value {
        let request = json!({ "execute": command, "arguments": arguments });
        writeln!(self.monitor.get_mut(), "{request}").unwrap();
        loop {
            let mut answer = self.line();
            if answer.get("event").is_none() {
                assert!(answer.get("error").is_none(), "{answer}");
                return answer["return"].take();
            }
        }
    }

    /// The ivshmem device as the PCI bus shows it.
    fn device(&mut self) -> Value {
        let buses = self.ask("query-pci", json!({}));
        let devices = buses[0]["devices"].as_array().unwrap();
        devices.iter().find(|d| d["id"]["vendor"] == 0x1af4 && d["id"]["device"] == 0x1110).cloned().unwrap()
    }

    /// Answer of the monitor for people.
    fn human(&mut self, line: &str) -> String {
        self.ask("human-monitor-command", json!({ "command-line": line })).as_str().unwrap().to_owned()
    }

    fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        self.end();
    }
}

fn qemu_is_missing() -> bool {
    let missing = Command::new("qemu-system-x86_64").arg("--version").stdout(Stdio::null()).status().is_err();
    if missing {
        println!("skipped: qemu-system-x86_64 is not installed");
    }
    missing
}

#[test]
fn qemus_join_see_the_region_and_leave_when_they_are_killed() {
    if qemu_is_missing() {
        return;
    }
    let host = Host::new();
    let region = host.create("r", 4);
    let _server = host.serve("r", 2);
    let mut watcher = Client::join(&section_socket(&host.socket(), 3), 2).unwrap();
    let mut first = Qemu::doorbell(&host, "first", &section_socket(&host.socket(), 1), 2);
    let mut second = Qemu::doorbell(&host, "second", &host.socket(), 2);
    until("both have joined", || (0..2).all(|s| state(&region, s) == State::Joined));
    assert_eq!(region.entry(1).unwrap().owner_pid, first.child.id());
    assert_eq!(region.entry(0).unwrap().owner_pid, second.child.id());
    for qemu in [&mut first, &mut second] {
        let device = qemu.device();
        let bar = device["regions"].as_array().unwrap().iter().find(|r| r["bar"] == 2).unwrap();
        assert_eq!((bar["size"].as_u64(), bar["mem_type_64"].as_bool()), (Some(4 << 20), Some(true)));
        let tree = qemu.human("info qtree");
        assert!(tree.contains("ivshmem-doorbell") && tree.contains("vectors = 2"), "{tree}");
    }
    // The memory that QEMU maps is the region's.
    for qemu in [&first, &second] {
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", qemu.child.id())).unwrap();
        assert!(maps.contains(region.path().to_str().unwrap()), "{maps}");
    }
    while watcher.bells.len() < 3 || watcher.bells.values().any(|bells| bells.len() < 2) {
        watcher.next().unwrap();
    }

    second.kill();
    assert_eq!(watcher.next().unwrap(), Some(0));
    until("its section is free", || state(&region, 0) == State::Free);
    // The one that is left has taken the notice in and still runs; a third is greeted as the second was.
    assert_eq!(first.ask("query-status", json!({}))["status"], "prelaunch");
    let third = Qemu::doorbell(&host, "third", &host.socket(), 2);
    until("the third has joined", || state(&region, 0) == State::Joined);
    assert_eq!(region.entry(0).unwrap().owner_pid, third.child.id());
    assert_eq!(first.ask("query-status", json!({}))["status"], "prelaunch");
    first.kill();
    while watcher.next().unwrap() != Some(1) {}
}

#[test]
fn a_qemu_survives_the_server_and_keeps_its_section() {
    if qemu_is_missing() {
        return;
    }
    let host = Host::new();
    let region = host.create("r", 2);
    let server = host.serve("r", 1);
    let mut qemu = Qemu::doorbell(&host, "vm", &host.socket(), 1);
    until("it has joined", || state(&region, 0) == State::Joined);
    drop(server);
    assert_eq!(qemu.ask("query-status", json!({}))["status"], "prelaunch");
    let _server = host.serve("r", 1);
    assert_eq!(state(&region, 0), State::Joined);
    let client = Client::join(&host.socket(), 1).unwrap();
    assert_eq!(client.id, 1);
    qemu.kill();
    until("its section is free", || state(&region, 0) == State::Free);
}

#[test]
fn a_qemu_that_finds_no_section_fails_and_disturbs_nobody() {
    if qemu_is_missing() {
        return;
    }
    let host = Host::new();
    let region = host.create("r", 1);
    let _server = host.serve("r", 1);
    let mut qemu = Qemu::doorbell(&host, "vm", &host.socket(), 1);
    until("it has joined", || state(&region, 0) == State::Joined);
    let refused = Command::new("qemu-system-x86_64")
        .args(["-S", "-nodefaults", "-display", "none", "-accel", "tcg", "-chardev"])
        .arg(format!("socket,id=c,path={}", host.socket().display()))
        .args(["-device", "ivshmem-doorbell,chardev=c,vectors=1"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(!refused.status.success());
    assert_eq!(qemu.ask("query-status", json!({}))["status"], "prelaunch");
    assert_eq!(region.entry(0).unwrap().owner_pid, qemu.child.id());
}

#[test]
fn a_plain_device_shows_the_region_and_its_section_is_released_after_its_end() {
    if qemu_is_missing() {
        return;
    }
    let host = Host::new();
    let region = host.create("r", 2);
    let uuid = region.assign(1, None).unwrap().to_string();
    let device = [
        "-object".to_owned(),
        format!(
            "memory-backend-file,id=vmshm,mem-path={},size={},share=on",
            region.path().display(),
            region.header().region_len
        ),
        "-device".to_owned(),
        "ivshmem-plain,memdev=vmshm".to_owned(),
        "-uuid".to_owned(),
        uuid.clone(),
    ];
    let mut qemu = Qemu::start(&host, "vm", &device);
    assert_eq!(qemu.ask("query-uuid", json!({}))["UUID"], uuid);
    let bars = qemu.device()["regions"].as_array().unwrap().len();
    assert!(bars >= 2);
    let busy = region.release(1, false).unwrap_err().to_string();
    assert!(busy.contains(&qemu.child.id().to_string()), "{busy}");
    let busy = host.registry.destroy("r", false).unwrap_err().to_string();
    assert!(busy.contains(&qemu.child.id().to_string()), "{busy}");
    qemu.kill();
    region.release(1, false).unwrap();
}
