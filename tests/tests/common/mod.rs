//! Regions and processes for the tests that cross rooms.
#![allow(dead_code, reason = "each test program uses its own part of this")]

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use vmshm_host::{CreateOptions, Region, RegionName, Registry};

/// How long anything may take: no figure, only an end for what hangs. Emulated machines are slow.
const LIMIT: Duration = Duration::from_secs(120);

/// A region in a directory of its own.
pub struct Room {
    pub region: Region,
    path: PathBuf,
    _dir: TempDir,
}

impl Room {
    pub fn new(options: &CreateOptions) -> Room {
        let dir = TempDir::new_in("/dev/shm").expect("a directory on tmpfs");
        let name = RegionName::new("room").expect("a good name");
        let registry = Registry::at(dir.path());
        let region = registry.create(&name, options).expect("a region");
        Room { region, path: registry.path(&name), _dir: dir }
    }

    /// A region of `size` bytes and `sections` sections, for `endpoints` processes each.
    pub fn with(size: u64, sections: u32, endpoints: u32) -> Room {
        let endpoints = Some(endpoints);
        Room::new(&CreateOptions { sections, endpoints, ..CreateOptions::new(size) })
    }

    pub fn file(&self) -> File {
        OpenOptions::new().read(true).write(true).open(&self.path).expect("our own region")
    }

    /// Starts a process in a section.
    pub fn process(&self, section: u32) -> Process {
        self.try_process(section).unwrap_or_else(|error| panic!("no process in {section}: {error}"))
    }

    /// Starts three processes in these sections, which all know each other.
    pub fn three(&self, sections: [u32; 3]) -> [Process; 3] {
        let [mut a, mut b, mut c] = sections.map(|section| self.process(section));
        a.meet(&mut b);
        a.meet(&mut c);
        b.meet(&mut c);
        [a, b, c]
    }

    /// Starts a process in a section; if it ends at once, what it said.
    pub fn try_process(&self, section: u32) -> Result<Process, String> {
        // A file, not a pipe: nobody reads while the process runs.
        let errors = tempfile::tempfile().expect("a temporary file");
        let mut child = Command::new(env!("CARGO_BIN_EXE_vmshm-peer"))
            .arg("--device")
            .arg(&self.path)
            .args(["--section", &section.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors.try_clone().expect("a second handle"))
            .spawn()
            .expect("the program of this package");
        let input = child.stdin.take().expect("piped");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        let mut process = Process { child, input, output, errors, name: String::new() };
        let line = process.line();
        match line.strip_prefix("name ") {
            Some(name) => {
                process.name = name.into();
                Ok(process)
            }
            None => Err(process.errors()),
        }
    }
}

/// A running `vmshm-peer`; killed on drop.
pub struct Process {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    errors: File,
    name: String,
}

/// A process's word on one of its peers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Friend {
    pub id: u32,
    pub incarnation: u64,
    pub received: u64,
    pub wrong: u64,
    pub gone: Option<String>,
}

impl Process {
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("text");
        line.trim_end().into()
    }

    fn errors(&mut self) -> String {
        let mut text = String::new();
        let read = self.errors.rewind().and_then(|()| self.errors.read_to_string(&mut text));
        read.expect("what the process said");
        text.truncate(2000);
        text
    }

    fn ask(&mut self, command: &str) -> String {
        let said = writeln!(self.input, "{command}").and_then(|()| self.input.flush());
        let answer = self.line();
        if said.is_err() || answer.is_empty() {
            let errors = self.errors();
            panic!("the process has ended at '{command}': {:?}\n{errors}", self.child.wait());
        }
        answer
    }

    pub fn id(&self) -> u32 {
        let bytes: Vec<u8> = (32..40)
            .step_by(2)
            .map(|at| u8::from_str_radix(&self.name[at..at + 2], 16).expect("hex"))
            .collect();
        u32::from_le_bytes(bytes.try_into().expect("4 bytes"))
    }

    /// Tells both that the other is there.
    pub fn meet(&mut self, other: &mut Process) {
        assert_eq!(self.ask(&format!("meet {}", other.name)), "met");
        assert_eq!(other.ask(&format!("meet {}", self.name)), "met");
    }

    /// Tries to meet a process of this name; gives the refusal.
    pub fn try_meet(&mut self, name: &str) -> Result<(), String> {
        let answer = self.ask(&format!("meet {name}"));
        match answer.strip_prefix("refused ") {
            None => Ok(()),
            Some(why) => Err(why.into()),
        }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn report(&mut self) -> Vec<Friend> {
        let mut friends = Vec::new();
        let mut line = self.ask("report");
        while line != "end" {
            let words: Vec<&str> = line.splitn(8, ' ').collect();
            let number = |at: usize| words[at].parse().expect("a number");
            let gone = (words[7] != "-").then(|| words[7].into());
            let id = u32::try_from(number(0)).expect("a small number");
            let (incarnation, received, wrong) = (number(1), number(3), number(5));
            friends.push(Friend { id, incarnation, received, wrong, gone });
            line = self.line();
        }
        friends
    }

    /// The process's word on the latest life of `other`.
    pub fn about(&mut self, other: u32) -> Friend {
        let friends = self.report();
        let found = friends.iter().rev().find(|friend| friend.id == other);
        found.unwrap_or_else(|| panic!("{other} is not among {friends:?}")).clone()
    }

    /// Waits until `count` more messages from `other` have come, all of them right.
    pub fn hears(&mut self, other: &Process, count: u64) {
        let begin = self.about(other.id());
        let now = until(&format!("messages from {}", other.id()), || {
            let now = self.about(other.id());
            assert_eq!(now.gone, None, "of {}", other.id());
            (now.received >= begin.received + count).then_some(now)
        });
        assert_eq!(now.wrong, 0, "wrong messages from {}: {}", other.id(), self.errors());
    }

    /// Waits until the process has noticed the end of `other`, and gives what it says.
    pub fn mourns(&mut self, other: u32) -> String {
        until("notice of an end", || self.about(other).gone)
    }

    pub fn pid(&self) -> libc::pid_t {
        libc::pid_t::try_from(self.child.id()).expect("a process id")
    }

    pub fn signal(&self, signal: libc::c_int) {
        // SAFETY: the process is our child and not waited for yet, so the number is its own.
        assert_eq!(unsafe { libc::kill(self.pid(), signal) }, 0);
    }

    /// Ends the process as a crash would.
    pub fn kill(mut self) {
        self.signal(libc::SIGKILL);
        self.child.wait().expect("our child");
    }

    /// Ends the process in good order.
    pub fn quit(mut self) {
        writeln!(self.input, "quit").expect("it listens");
        assert!(self.child.wait().expect("our child").success());
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("our child").is_none()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Already ended, or ends now.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Asks again and again until there is an answer.
pub fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(began.elapsed() < LIMIT, "no {what} within {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
