//! Programs run by xtask: with a time limit, their output in a log, and killed when no longer wanted.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use indicatif::ProgressBar;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::cleanup;

const POLL: Duration = Duration::from_millis(20);

/// A program that runs until it ends by itself or this value is dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    what: String,
    log: PathBuf,
}

/// Result of a program that has ended.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// Text of both its outputs.
    pub text: String,
    /// The file that holds this text.
    pub log: PathBuf,
}

impl Finished {
    /// Passes a success on and turns anything else into an error that shows the end of the log.
    pub fn expect_success(self, what: &str) -> Result<Self> {
        if self.status.success() {
            return Ok(self);
        }
        bail!(
            "{what} ended with {}; log: {}\n{}",
            self.status,
            self.log.display(),
            last_lines(&self.text, 15)
        );
    }
}

/// The last `count` lines of a text, indented.
pub fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(count);
    lines[from..].iter().map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n")
}

/// A program for administrators, which Debian keeps where only root's PATH looks.
pub fn administrative(name: &str) -> Command {
    let mut command = Command::new(name);
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    command
}

/// A command that the kernel ends when xtask dies without a chance to clean up (SIGKILL).
///
/// `setpriv` is part of util-linux, which every Debian has.
pub fn mortal(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM", "--"]).arg(program);
    command
}

impl Running {
    /// Starts a command, described by `what`, with both outputs going to the file `log`.
    pub fn start(mut command: Command, what: &str, log: &Path) -> Result<Self> {
        cleanup::check()?;
        if let Some(dir) = log.parent() {
            fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        }
        let file = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        let child = command
            // A group of its own: Ctrl-C at a terminal reaches only xtask, which then stops things in order.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot start {what} ({})", command.get_program().to_string_lossy()))?;
        Ok(Self { child, what: what.to_owned(), log: log.to_owned() })
    }

    /// Whether the program has ended, and how.
    pub fn poll(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Text of both outputs so far.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Waits until the program ends, but at most `limit`.
    pub fn wait(mut self, limit: Duration) -> Result<Finished> {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.poll()? {
                return Ok(Finished { status, text: self.text(), log: self.log.clone() });
            }
            cleanup::check()?;
            if begin.elapsed() > limit {
                bail!(
                    "{} did not end within {} s; log: {}\n{}",
                    self.what,
                    limit.as_secs(),
                    self.log.display(),
                    last_lines(&self.text(), 15)
                );
            }
            thread::sleep(POLL);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        let Ok(pid) = i32::try_from(self.child.id()).map(Pid::from_raw) else {
            return;
        };
        let below = cleanup::descendants(pid);
        // First politely: mpirun ends its ranks and removes its files.
        let _ = kill(pid, Signal::SIGTERM);
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(3) {
            if !matches!(self.child.try_wait(), Ok(None)) {
                break;
            }
            thread::sleep(POLL);
        }
        for pid in below {
            let _ = kill(pid, Signal::SIGKILL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a command to its end, which must be a success, and returns what it printed.
pub fn run(command: Command, what: &str, log: &Path, limit: Duration) -> Result<Finished> {
    Running::start(command, what, log)?.wait(limit)?.expect_success(what)
}

/// Like [`run`], and shows the last line of its output beside the bar meanwhile.
pub fn run_shown(
    command: Command,
    what: &str,
    log: &Path,
    limit: Duration,
    bar: &ProgressBar,
) -> Result<Finished> {
    let mut running = Running::start(command, what, log)?;
    let begin = Instant::now();
    while running.poll()?.is_none() && begin.elapsed() < limit {
        cleanup::check()?;
        if let Some(line) = running.text().lines().last() {
            bar.set_message(line.trim().chars().take(60).collect::<String>());
        }
        thread::sleep(Duration::from_millis(200));
    }
    running.wait(limit.saturating_sub(begin.elapsed()))?.expect_success(what)
}

/// Runs a short command and returns its standard output, without a log.
pub fn capture(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {name}"))?;
    if !output.status.success() {
        bail!("{name} ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whether a program of this name can be started from `PATH`.
pub fn exists(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}
