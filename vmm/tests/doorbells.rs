//! Bare-metal guests with doorbell devices, and QEMU, at one server: each rings the other.

mod common;

use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;

use common::{LIMIT, Place, kvm, machine, rings, until};
use nix::sys::eventfd::EventFd;
use vmshm_host::{CreateOptions, PageSize, Server, ServerOptions, section_socket};
use vmshm_vmm::{Attachment, End, Error, Host, Machine, RamOptions, layout};

const VECTORS: u32 = 2;
/// Where the first device's parts lie.
const CONFIG: u64 = layout::ECAM + (1 << 15);
const REGISTERS: u64 = layout::BARS_32;
const TABLE: u64 = layout::BARS_32 + 0x1_0000;

/// A region, and where its server listens.
struct Scene {
    place: Place,
    dir: tempfile::TempDir,
}

/// A server in a thread. While it runs it rings doorbells of its own accord, as VMs come and go.
struct Serving {
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.stop.write(1).unwrap();
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

impl Scene {
    fn new() -> Self {
        Self { place: Place::new(&CreateOptions::new(1 << 20)), dir: tempfile::tempdir().unwrap() }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("job.sock")
    }

    fn serve(&self) -> Serving {
        let options =
            ServerOptions { socket: Some(self.socket()), vectors: VECTORS, ..ServerOptions::default() };
        let mut server = Server::new(self.place.region(), &options).unwrap();
        let stop = Arc::new(EventFd::new().unwrap());
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || server.run(stopped.as_fd()).unwrap());
        Serving { stop, thread: Some(thread) }
    }

    /// A VM with this section that rings the other one's.
    fn start(&self, host: &Host, section: u32, waits: bool) -> Result<Machine, Error> {
        let len = self.place.region().header().region_len;
        let bar = layout::place_64(&[len], host.address_bits(), 2 << 20).unwrap()[0];
        let peer = u64::from(1 - section) << 16;
        let own = bar + self.own(section);
        let arguments = [CONFIG, REGISTERS, TABLE, peer, own, u64::from(waits)];
        let socket = section_socket(&self.socket(), section);
        let region = Attachment::Doorbell { socket, vectors: VECTORS };
        machine(host, rings(), arguments, 1, RamOptions::anywhere(2 << 20, PageSize::Base), region)
    }

    fn own(&self, section: u32) -> u64 {
        self.place.region().entry(section).unwrap().offset
    }

    fn begin(&self, section: u32) {
        self.place.set_word(self.own(section) + 16, 1);
    }

    /// Waits until the VM has rung and was rung, and ends it.
    fn end(&self, section: u32, vm: &Machine) {
        let own = self.own(section);
        until("the VM is rung", || self.place.word(own) == 2);
        assert_eq!(self.place.word(own + 8), u64::from(section), "its position");
        self.place.set_word(own + 16, 2);
        assert_eq!(vm.running.wait(LIMIT), Some(End::PowerOff), "section {section}");
    }
}

#[test]
fn doorbells_ring_both_ways_and_a_section_has_one_vm() {
    let Some(host) = kvm() else { return };
    let scene = Scene::new();
    match scene.start(&host, 0, false) {
        Err(Error::NoServer { .. }) => {}
        other => panic!("{other:?}"),
    }
    let server = scene.serve();
    let waits = scene.start(&host, 1, true).unwrap();
    match scene.start(&host, 1, true) {
        Err(Error::TurnedAway { .. }) => {}
        other => panic!("{other:?}"),
    }
    let rings = scene.start(&host, 0, false).unwrap();
    drop(server);
    scene.begin(0);
    scene.begin(1);
    scene.end(0, &rings);
    scene.end(1, &waits);
}

/// A QEMU whose processor stands still: we do in its place what a guest would (`-qtest`). Its device has section 0.
struct Qemu {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Qemu {
    const REGISTERS: u64 = 0xe000_0000;
    const TABLE: u64 = 0xe000_1000;
    /// In its RAM: the address of vector 0's message, and its word.
    const MESSAGE: u64 = 0x10_0000;
    const RUNG: u64 = 0x51;

    fn start(socket: &Path) -> Option<Self> {
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-S", "-accel", "tcg", "-qtest", "stdio", "-qtest-log", "/dev/null"]);
        command.args(["-M", "pc", "-m", "64", "-nodefaults", "-display", "none", "-device"]);
        command.arg(format!("ivshmem-doorbell,chardev=c,vectors={VECTORS},addr=4")).arg("-chardev");
        command.arg(format!("socket,id=c,path={}", section_socket(socket, 0).display()));
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let mut child =
            child.inspect_err(|error| eprintln!("skipped: no qemu-system-x86_64: {error}")).ok()?;
        let (to, from) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut qemu = Self { child, to, from };
        for (register, word) in [(0x10, Self::REGISTERS), (0x14, Self::TABLE), (4, 6)] {
            qemu.configure(register, word);
        }
        qemu.tell("outl 0xcf8 0x80002034");
        let capability = qemu.tell("inl 0xcfc") & 0xff;
        for (offset, word) in [(0, Self::MESSAGE), (4, 0), (8, Self::RUNG), (12, 0)] {
            qemu.tell(&format!("writel {:#x} {word:#x}", Self::TABLE + offset));
        }
        qemu.configure(capability, 1 << 31);
        Some(qemu)
    }

    fn configure(&mut self, register: u64, word: u64) {
        self.tell(&format!("outl 0xcf8 {:#x}", 0x8000_2000 + register));
        self.tell(&format!("outl 0xcfc {word:#x}"));
    }

    fn tell(&mut self, line: &str) -> u64 {
        writeln!(self.to, "{line}").unwrap();
        let mut answer = String::new();
        self.from.read_line(&mut answer).unwrap();
        let word = answer.trim().strip_prefix("OK").unwrap_or_else(|| panic!("{line}: {answer}"));
        word.trim().strip_prefix("0x").map_or(0, |word| u64::from_str_radix(word, 16).unwrap())
    }

    fn is_rung(&mut self) -> bool {
        self.tell(&format!("readl {:#x}", Self::MESSAGE)) == Self::RUNG
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A VM of section 1 and QEMU ring each other, once the server has ended.
fn ring(scene: &Scene, vm: &Machine, server: Serving) {
    let Some(mut qemu) = Qemu::start(&scene.socket()) else { return };
    drop(server);
    qemu.tell(&format!("writel {:#x} 0", Qemu::MESSAGE));
    scene.begin(1);
    let own = scene.own(1);
    until("the VM begins", || scene.place.word(own) == 1);
    assert!(!qemu.is_rung());
    until("the VM is rung", || {
        qemu.tell(&format!("writel {:#x} {:#x}", Qemu::REGISTERS + 12, 1 << 16));
        scene.place.word(own) == 2
    });
    until("QEMU is rung", || qemu.is_rung());
    scene.end(1, vm);
}

#[test]
fn a_vm_and_qemu_ring_each_other() {
    let Some(host) = kvm() else { return };
    let scene = Scene::new();
    let server = scene.serve();
    let vm = scene.start(&host, 1, true).unwrap();
    ring(&scene, &vm, server);
}

#[test]
fn a_vm_joins_a_restarted_server_again_and_rings_those_that_join_there() {
    let Some(host) = kvm() else { return };
    let scene = Scene::new();
    let vm = {
        let _server = scene.serve();
        scene.start(&host, 1, true).unwrap()
    };
    // Twice, since a VM that has joined again waits for the next call.
    drop(scene.serve());
    let server = scene.serve();
    match scene.start(&host, 1, true) {
        Err(Error::TurnedAway { .. }) => {}
        other => panic!("{other:?}"),
    }
    ring(&scene, &vm, server);
}
