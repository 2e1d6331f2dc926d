//! One virtual machine: boot it, run commands in it, kill it.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::accel::{Accel, USER_SPACE};
use super::image::Image;
use super::qmp::Qmp;
use crate::base::cleanup;
use crate::base::process::{Running, last_lines, mortal};

/// Ends the answer to a command; no program of ours prints this byte.
const ANSWER_END: &[u8] = b"\n\x1e";

/// Settings of a guest.
#[derive(Debug)]
pub struct Spec<'a> {
    /// Its number in the lab, from 0.
    pub number: usize,
    /// Kernel and root file system.
    pub image: &'a Image,
    /// A drive with the programs of this run.
    pub payload: &'a Path,
    /// How QEMU runs it.
    pub accel: Accel,
    /// Virtual processors.
    pub processors: usize,
    /// Memory, MiB.
    pub memory: usize,
    /// QEMU's arguments for the network and the shared region.
    pub devices: Vec<String>,
    /// Where its sockets go.
    pub sockets: &'a Path,
    /// Where its console and QEMU's messages go.
    pub log_dir: &'a Path,
}

/// A started guest. QEMU is killed when this value is dropped.
#[derive(Debug)]
pub struct Guest {
    name: String,
    qemu: Running,
    control: UnixStream,
    monitor: Qmp,
    console: PathBuf,
    /// The script whose end nobody has seen yet: nothing else can run before it has ended.
    running: Option<String>,
}

/// Result of a command in a guest.
#[derive(Debug)]
pub struct Answer {
    /// Its exit code.
    pub code: i32,
    /// Text of both its outputs.
    pub text: String,
}

impl Guest {
    /// Starts QEMU and connects to the guest's control port; the guest then boots by itself.
    pub fn start(spec: &Spec<'_>) -> Result<Self> {
        let name = format!("vm{}", spec.number);
        let console = spec.log_dir.join(format!("{name}-console.log"));
        let socket = spec.sockets.join(format!("{name}.control"));
        let monitor = spec.sockets.join(format!("{name}.monitor"));
        let _ = fs::remove_file(&console);
        let _ = fs::remove_file(&socket);
        let _ = fs::remove_file(&monitor);
        // QEMU reads a comma in a file name as the end of it, unless doubled.
        let file = |path: &Path| path.display().to_string().replace(',', ",,");
        let mut command = mortal("qemu-system-x86_64");
        command
            .args(["-name", &name, "-M", "q35"])
            .args(spec.accel.qemu_args())
            .args(["-smp", &spec.processors.to_string()])
            .args(["-m", &format!("{}M", spec.memory)])
            .args(["-nodefaults", "-display", "none", "-no-reboot"])
            .arg("-kernel")
            .arg(&spec.image.kernel)
            .arg("-initrd")
            .arg(&spec.image.initramfs)
            .arg("-append")
            .arg(format!(
                // no_timer_check: without it, one emulated boot in a dozen panics.
                // tsc_early_khz: else a guest that boots while others have the processors may take a second for several.
                "console=ttyS0 quiet panic=-1 no_timer_check tsc=reliable tsc_early_khz={} mitigations=off \
                 ip=10.77.0.{}:::255.255.255.0:{name}:eth0:off vmshm.control",
                ticks_per_millisecond(),
                spec.number + 1
            ))
            .arg("-drive")
            .arg(format!("file={},format=raw,if=virtio,snapshot=on", file(&spec.image.root)))
            .arg("-drive")
            .arg(format!("file={},format=raw,if=virtio,readonly=on", file(spec.payload)))
            .arg("-serial")
            .arg(format!("file:{}", file(&console)))
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", file(&monitor)))
            .args(["-device", "virtio-serial-pci", "-chardev"])
            .arg(format!("socket,id=control,path={},server=on,wait=off", file(&socket)))
            .args(["-device", "virtserialport,chardev=control,name=vmshm.control"])
            .args(&spec.devices);
        let log = spec.log_dir.join(format!("{name}-qemu.log"));
        let mut qemu = Running::start(command, &format!("QEMU for {name}"), &log)?;
        let begin = Instant::now();
        let control = loop {
            cleanup::check()?;
            if let Ok(stream) = UnixStream::connect(&socket) {
                break stream;
            }
            if let Some(status) = qemu.poll()? {
                bail!(
                    "QEMU for {name} ended with {status}; log: {}\n{}",
                    log.display(),
                    last_lines(&qemu.text(), 10)
                );
            }
            if begin.elapsed() > Duration::from_secs(30) {
                bail!("QEMU for {name} opened no control socket within 30 s");
            }
            thread::sleep(Duration::from_millis(20));
        };
        control.set_read_timeout(Some(Duration::from_millis(100)))?;
        let monitor = Qmp::connect(&monitor)?;
        Ok(Self { name, qemu, control, monitor, console, running: None })
    }

    /// QEMU's monitor.
    pub fn monitor(&mut self) -> &mut Qmp {
        &mut self.monitor
    }

    /// Waits until the guest obeys commands.
    pub fn wait_ready(&mut self, limit: Duration) -> Result<()> {
        let begin = Instant::now();
        loop {
            cleanup::check()?;
            let console = fs::read(&self.console).unwrap_or_default();
            let console = String::from_utf8_lossy(&console);
            if console.contains("vmshm-guest: ready") {
                break;
            }
            let state = match self.qemu.poll()? {
                Some(status) => format!("QEMU ended with {status}"),
                None if begin.elapsed() > limit => format!(
                    "it was not ready within {} s ({})",
                    limit.as_secs(),
                    if console.contains(USER_SPACE) {
                        "user space was reached"
                    } else {
                        "user space was not reached"
                    }
                ),
                None => {
                    thread::sleep(Duration::from_millis(50));
                    continue;
                }
            };
            bail!(
                "{} did not boot: {state}; console: {}\n{}",
                self.name,
                self.console.display(),
                last_lines(&console, 10)
            );
        }
        let answer = self.run("hostname", limit)?;
        if answer.code != 0 || answer.text.trim() != self.name {
            bail!("{} calls itself {:?} (exit code {})", self.name, answer.text.trim(), answer.code);
        }
        Ok(())
    }

    /// Runs a shell script as root in the guest and waits for its end.
    pub fn run(&mut self, script: &str, limit: Duration) -> Result<Answer> {
        self.send(script)?;
        self.receive(limit)
    }

    /// Starts a shell script as root in the guest; [`Guest::receive`] waits for its end.
    pub fn send(&mut self, script: &str) -> Result<()> {
        if let Some(running) = &self.running {
            bail!("{} takes no command, because one that it was given never ended: {running}", self.name);
        }
        let mut line = base64(script.as_bytes());
        line.push('\n');
        self.control.write_all(line.as_bytes()).with_context(|| format!("{} takes no command", self.name))?;
        self.running = Some(script.to_owned());
        Ok(())
    }

    /// Waits for the end of the script that was sent.
    pub fn receive(&mut self, limit: Duration) -> Result<Answer> {
        let begin = Instant::now();
        let script = self.running.clone().unwrap_or_default();
        let mut received = Vec::new();
        let mut block = [0; 4096];
        loop {
            cleanup::check()?;
            match self.control.read(&mut block) {
                Ok(0) => bail!("{} ended while it ran: {script}", self.name),
                Ok(count) => received.extend_from_slice(&block[..count]),
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                    ) => {}
                Err(error) => return Err(error).context(format!("lost {}", self.name)),
            }
            if let Some(answer) = answer(&received) {
                self.running = None;
                return Ok(answer);
            }
            if begin.elapsed() > limit {
                bail!(
                    "{} did not finish within {} s: {script}\n{}",
                    self.name,
                    limit.as_secs(),
                    last_lines(&String::from_utf8_lossy(&received), 15)
                );
            }
        }
    }
}

/// Rate of this machine's time stamp counter, which is the guests' too.
fn ticks_per_millisecond() -> u64 {
    static RATE: OnceLock<u64> = OnceLock::new();
    *RATE.get_or_init(|| {
        let (start, first) = ticks();
        thread::sleep(Duration::from_millis(50));
        let (end, last) = ticks();
        (u128::from(last - first) * 1_000_000 / (end - start).as_nanos()) as u64
    })
}

/// A time, and the counter then.
fn ticks() -> (Instant, u64) {
    let pair = |_| {
        let before = Instant::now();
        // SAFETY: every x86-64 processor has the instruction, and it touches no memory.
        let ticks = unsafe { std::arch::x86_64::_rdtsc() };
        (before.elapsed(), before, ticks)
    };
    // The nearest of some: others may have the processor between the two.
    let (_, time, ticks) = (0..5).map(pair).min().expect("five");
    (time, ticks)
}

/// Takes a complete answer apart: text, then a line of RS and the exit code.
fn answer(received: &[u8]) -> Option<Answer> {
    let at = received.windows(ANSWER_END.len()).rposition(|window| window == ANSWER_END)?;
    let rest = std::str::from_utf8(&received[at + ANSWER_END.len()..]).ok()?;
    let code = rest.strip_suffix('\n')?.trim().parse().ok()?;
    Some(Answer {
        code,
        // A serial line may add carriage returns.
        text: String::from_utf8_lossy(&received[..at]).replace('\r', ""),
    })
}

/// Base64, so that a script of any content is one line.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let byte = |i: usize| u32::from(group.get(i).copied().unwrap_or(0));
        let word = byte(0) << 16 | byte(1) << 8 | byte(2);
        for i in 0..4 {
            if i <= group.len() {
                let digit = (word >> (18 - 6 * i)) & 63;
                text.push(char::from(DIGITS[digit as usize]));
            } else {
                text.push('=');
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_of_known_words() {
        for (plain, coded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }

    #[test]
    fn the_counter_runs_as_processors_do() {
        assert!((500_000..10_000_000).contains(&ticks_per_millisecond()));
    }

    #[test]
    fn an_answer_is_taken_only_when_complete() {
        assert!(answer(b"hello").is_none());
        assert!(answer(b"hello\n\x1e1").is_none());
        let done = answer(b"hello\r\n\n\x1e17\n");
        assert!(done.is_some_and(|a| a.code == 17 && a.text == "hello\n"));
    }
}
