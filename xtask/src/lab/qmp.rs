//! QEMU's monitor (QMP): devices that come and go while the guest runs, and what else only QEMU can do to it.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::base::cleanup;

const ANSWER: Duration = Duration::from_secs(30);

/// A connection to the monitor of one QEMU.
#[derive(Debug)]
pub struct Qmp {
    stream: UnixStream,
    /// Bytes that are no whole line yet.
    rest: Vec<u8>,
    /// Events that nobody has asked for yet.
    events: Vec<Value>,
}

impl Qmp {
    /// Connects to the socket that `-qmp` named.
    pub fn connect(path: &Path) -> Result<Self> {
        let stream = UnixStream::connect(path)
            .with_context(|| format!("cannot reach QEMU's monitor at {}", path.display()))?;
        stream.set_read_timeout(Some(Duration::from_millis(50)))?;
        let mut qmp = Self { stream, rest: Vec::new(), events: Vec::new() };
        qmp.next(Instant::now() + ANSWER)?.context("QEMU's monitor does not greet")?;
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Runs one command and returns its result; an error that QEMU answers is one here.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let mut line = json!({ "execute": command, "arguments": arguments }).to_string();
        line.push('\n');
        self.stream.write_all(line.as_bytes()).context("QEMU's monitor takes no command")?;
        let end = Instant::now() + ANSWER;
        loop {
            let Some(answer) = self.next(end)? else { bail!("QEMU did not answer {command} within 30 s") };
            if let Some(error) = answer.get("error") {
                bail!("QEMU refused {command}: {error}");
            }
            match answer.get("return") {
                Some(result) => return Ok(result.clone()),
                None => self.events.push(answer),
            }
        }
    }

    /// Waits for an event of this name with this `(key, value)` in its data, or any data; earlier ones count.
    pub fn wait_event(&mut self, name: &str, with: Option<(&str, &str)>, limit: Duration) -> Result<()> {
        let fits = |event: &Value| {
            event["event"] == name && with.is_none_or(|(key, value)| event["data"][key] == value)
        };
        let end = Instant::now() + limit;
        loop {
            if let Some(at) = self.events.iter().position(fits) {
                self.events.remove(at);
                return Ok(());
            }
            match self.next(end)? {
                Some(event) => self.events.push(event),
                None => bail!("QEMU told of no {name} within {} s", limit.as_secs()),
            }
        }
    }

    /// The next line, or `None` if it does not come in time.
    fn next(&mut self, end: Instant) -> Result<Option<Value>> {
        let mut block = [0; 4096];
        loop {
            if let Some(at) = self.rest.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=at).collect();
                return Ok(Some(serde_json::from_slice(&line).context("QEMU's monitor sent no JSON")?));
            }
            cleanup::check()?;
            match self.stream.read(&mut block) {
                Ok(0) => bail!("QEMU closed its monitor"),
                Ok(count) => self.rest.extend_from_slice(&block[..count]),
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                    ) => {}
                Err(error) => return Err(error).context("lost QEMU's monitor"),
            }
            if Instant::now() > end {
                return Ok(None);
            }
        }
    }
}
