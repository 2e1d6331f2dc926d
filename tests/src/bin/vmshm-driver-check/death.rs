//! Processes that talk through the transport and are killed: everybody else must be told, each time, and the next one
//! must find everything clean.
//!
//! One program in each of two VMs, joined by TCP over their own wire. The one that serves starts and kills the victims;
//! both hold an endpoint, talk to each victim, and wait for the report of its death.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use vmshm_tests::payload::Key;
use vmshm_transport::abi::EndpointName;
use vmshm_transport::attach::{Attached, Options, open_endpoint};
use vmshm_transport::{Event, Inbox, MAX_INLINE, Peer, PeerError, SendError};
use zerocopy::{FromBytes, IntoBytes};

use crate::report::Report;

/// Which part this process plays.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Starts victims and kills them when told so
    Serve {
        /// Where the other VM's program connects to
        #[arg(long, default_value_t = 7007)]
        port: u16,
    },
    /// Talks to the victims of the other VM's program and has them killed
    Connect {
        /// The other VM's program
        #[arg(long, default_value = "vm1:7007")]
        to: String,
        /// How many victims
        #[arg(long, default_value_t = 100)]
        rounds: u32,
        /// Have none killed: wait until the other VM's end is reported
        #[arg(long)]
        until_gone: bool,
    },
    /// Answers everybody that its standard input names, until it is killed
    Victim,
}

const TAG: u8 = 3;
/// Messages to each victim, each answered.
const MESSAGES: u64 = 20;
/// Longer waits are in vain.
const LIMIT: Duration = Duration::from_secs(60);
const NAP: Duration = Duration::from_micros(200);

/// Plays the part.
pub fn run(device: &Path, command: &Command, report: &mut Report) -> Result<()> {
    match command {
        Command::Serve { port } => serve(device, *port, report),
        Command::Connect { to, until_gone: true, .. } => until_gone(device, to, report),
        Command::Connect { to, rounds, .. } => connect(device, to, *rounds, report),
        Command::Victim => victim(device),
    }
}

/// An endpoint that talks to victims.
struct Survivor {
    endpoint: Attached,
    inbox: Inbox,
    slowest: Duration,
}

impl Survivor {
    fn new(device: &Path) -> Result<Self> {
        let device = Some(device.display().to_string());
        let endpoint = open_endpoint(&Options { device, ..Options::default() })?;
        Ok(Self { endpoint, inbox: Inbox::new(), slowest: Duration::ZERO })
    }

    fn name(&self) -> String {
        hex(&self.endpoint.name())
    }

    fn next(&mut self, until: Instant) -> Result<Event> {
        loop {
            if let Some(event) = self.endpoint.poll(&mut self.inbox) {
                return Ok(event);
            }
            ensure!(Instant::now() < until, "nothing came within {} s", LIMIT.as_secs());
            std::thread::sleep(NAP);
        }
    }

    /// Meets a victim and exchanges checked messages with it.
    fn talk(&mut self, name: &str, round: u64) -> Result<Peer> {
        let name = from_hex(name)?;
        let peer = self.endpoint.connect(&name).with_context(|| format!("connect to {}", name.id))?;
        let me = self.endpoint.name();
        for number in 0..MESSAGES {
            let key = Key::new(round, &[me.id.into(), number]);
            let bytes = key.bytes(1 + (number as usize * 13) % MAX_INLINE);
            let until = Instant::now() + LIMIT;
            while let Err(error) = self.endpoint.send(peer, TAG, &[&bytes]) {
                ensure!(error == SendError::Full && Instant::now() < until, "send message {number}: {error}");
                std::thread::sleep(NAP);
            }
            match self.next(until).with_context(|| format!("answer {number}"))? {
                Event::Message { peer: from, len, .. } if from == peer => {
                    ensure!(len == bytes.len(), "answer {number} has {len} bytes, not {}", bytes.len());
                    key.compare(self.inbox.bytes(len))
                        .map_err(|wrong| anyhow::anyhow!("answer {number}: {wrong}"))?;
                }
                other => bail!("instead of answer {number} came {other:?}"),
            }
        }
        Ok(peer)
    }

    /// Waits for the report that a peer is gone.
    fn mourn(&mut self, peer: Peer, since: Instant) -> Result<(PeerError, Duration)> {
        loop {
            match self.next(since + LIMIT)? {
                Event::Gone { peer: gone, why } if gone == peer => return Ok((why, since.elapsed())),
                Event::Message { .. } | Event::Sent { .. } | Event::Unsent { .. } => (),
                other => bail!("instead of a death came {other:?}"),
            }
        }
    }

    fn mourn_victim(&mut self, peer: Peer, since: Instant) -> Result<()> {
        let (why, took) = self.mourn(peer, since)?;
        ensure!(why == PeerError::Died, "the report is: {why}");
        self.slowest = self.slowest.max(took);
        Ok(())
    }
}

/// A line over the wire to the other VM, in both directions.
struct Wire {
    read: BufReader<TcpStream>,
    write: TcpStream,
}

impl Wire {
    fn new(stream: TcpStream) -> Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(LIMIT))?;
        Ok(Self { read: BufReader::new(stream.try_clone()?), write: stream })
    }

    fn say(&mut self, line: &str) -> Result<()> {
        self.write.write_all(format!("{line}\n").as_bytes()).context("the other VM's program is gone")
    }

    /// The next line, or `None` when the other has closed the wire.
    fn hear(&mut self) -> Result<Option<String>> {
        let mut line = String::new();
        let count = self.read.read_line(&mut line).context("the other VM's program is silent")?;
        Ok((count > 0).then(|| line.trim().to_owned()))
    }

    fn must_hear(&mut self, what: &str) -> Result<String> {
        let line = self.hear()?.context("the other VM's program has ended")?;
        let rest = line.strip_prefix(what).with_context(|| format!("the other said {line:?}, not {what}"))?;
        Ok(rest.trim().to_owned())
    }
}

/// A victim and what it says.
struct Process {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Process {
    fn start(device: &Path) -> Result<Self> {
        let mut child = std::process::Command::new(std::env::current_exe()?)
            .arg("--device")
            .arg(device)
            .args(["death", "victim"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let input = child.stdin.take().context("no pipe")?;
        let output = BufReader::new(child.stdout.take().context("no pipe")?);
        Ok(Self { child, input, output })
    }

    fn name(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        Ok(line.strip_prefix("name ").with_context(|| format!("a victim said {line:?}"))?.trim().to_owned())
    }

    /// Names it somebody and waits until it has met them.
    fn introduce(&mut self, name: &str) -> Result<()> {
        writeln!(self.input, "{name}")?;
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        ensure!(line.trim() == "met", "a victim said {line:?}");
        Ok(())
    }

    fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

fn serve(device: &Path, port: u16, report: &mut Report) -> Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", port))?;
    let mut survivor = Survivor::new(device)?;
    println!("serving");
    let mut wire = Wire::new(listener.accept()?.0)?;
    let other = wire.must_hear("name")?;
    wire.say(&format!("name {}", survivor.name()))?;
    let mut rounds = 0;
    report.check("the killed processes of this VM were reported in it", || {
        while let Some(line) = wire.hear()? {
            ensure!(line == "next", "the other said {line:?}");
            rounds += 1;
            let mut victim = Process::start(device)?;
            let name = victim.name()?;
            victim.introduce(&survivor.name())?;
            victim.introduce(&other)?;
            let peer = survivor.talk(&name, rounds).with_context(|| format!("victim {rounds}"))?;
            wire.say(&format!("victim {name}"))?;
            match wire.hear()? {
                Some(line) if line == "kill" => (),
                Some(line) => bail!("the other said {line:?}"),
                None => return Ok(()),
            }
            let since = Instant::now();
            victim.kill()?;
            wire.say("killed")?;
            survivor.mourn_victim(peer, since).with_context(|| format!("victim {rounds}"))?;
        }
        ensure!(rounds > 0, "nobody was killed");
        Ok(())
    });
    println!("        {rounds} killed, the slowest report took {:.1} ms", ms(survivor.slowest));
    Ok(())
}

fn meet(device: &Path, to: &str) -> Result<(Survivor, Wire, EndpointName)> {
    let survivor = Survivor::new(device)?;
    let begin = Instant::now();
    let stream = loop {
        match TcpStream::connect(to) {
            Ok(stream) => break stream,
            Err(error) if begin.elapsed() > LIMIT => return Err(error).context(format!("connect to {to}")),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    };
    let mut wire = Wire::new(stream)?;
    wire.say(&format!("name {}", survivor.name()))?;
    let other = from_hex(&wire.must_hear("name")?)?;
    Ok((survivor, wire, other))
}

fn connect(device: &Path, to: &str, rounds: u32, report: &mut Report) -> Result<()> {
    let (mut survivor, mut wire, _) = meet(device, to)?;
    report.check("the killed processes of the other VM were reported in this one", || {
        for round in 1..=u64::from(rounds) {
            wire.say("next")?;
            let name = wire.must_hear("victim")?;
            let peer = survivor.talk(&name, round).with_context(|| format!("victim {round}"))?;
            let since = Instant::now();
            wire.say("kill")?;
            survivor.mourn_victim(peer, since).with_context(|| format!("victim {round}"))?;
            wire.must_hear("killed")?;
        }
        Ok(())
    });
    println!("        {rounds} killed, the slowest report took {:.1} ms", ms(survivor.slowest));
    Ok(())
}

fn until_gone(device: &Path, to: &str, report: &mut Report) -> Result<()> {
    let (mut survivor, mut wire, other) = meet(device, to)?;
    let one = survivor.endpoint.connect(&other).context("connect to the other VM's program")?;
    wire.say("next")?;
    let name = wire.must_hear("victim")?;
    let two = survivor.talk(&name, 1)?;
    println!("talking");
    let since = Instant::now();
    report.check("the end of the other VM was reported for each of its processes", || {
        let mut left = vec![one, two];
        while !left.is_empty() {
            match survivor.next(since + 2 * LIMIT)? {
                Event::Gone { peer, why } if left.contains(&peer) => {
                    ensure!(why == PeerError::Died, "the report is: {why}");
                    left.retain(|one| *one != peer);
                }
                other => bail!("instead of a death came {other:?}"),
            }
        }
        Ok(())
    });
    Ok(())
}

/// Answers whoever writes.
fn victim(device: &Path) -> Result<()> {
    let mut survivor = Survivor::new(device)?;
    say(&format!("name {}", survivor.name()))?;
    let (send, names) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if send.send(line).is_err() {
                return;
            }
        }
    });
    // Answers that found no room.
    let mut due: Vec<(Peer, Vec<u8>)> = Vec::new();
    loop {
        match names.try_recv() {
            Ok(name) => {
                survivor.endpoint.connect(&from_hex(&name)?)?;
                say("met")?;
            }
            Err(std::sync::mpsc::TryRecvError::Empty) => (),
            Err(std::sync::mpsc::TryRecvError::Disconnected) => return Ok(()),
        }
        due.retain(|(peer, bytes)| survivor.endpoint.send(*peer, TAG, &[bytes]) == Err(SendError::Full));
        match survivor.endpoint.poll(&mut survivor.inbox) {
            Some(Event::Message { peer, len, .. }) => due.push((peer, survivor.inbox.bytes(len).to_vec())),
            Some(_) => (),
            None => std::thread::sleep(NAP),
        }
    }
}

fn say(line: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush().context("nobody listens")
}

fn hex(name: &EndpointName) -> String {
    name.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Result<EndpointName> {
    let digits = text.as_bytes().chunks(2);
    let bytes: Vec<u8> =
        digits.map(|two| Ok(u8::from_str_radix(std::str::from_utf8(two)?, 16)?)).collect::<Result<_>>()?;
    EndpointName::read_from_bytes(&bytes).map_err(|_| anyhow::anyhow!("{text} is no name"))
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
