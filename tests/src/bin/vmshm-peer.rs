//! One process on a region, for the tests that need several: it exchanges checked messages with all
//! peers that it is told of, and obeys the lines that it reads.
//!
//! Its first line is `name HEX`. Commands: `meet HEX` (answer `met` or `refused WHY`), `report` (a line
//! `ID INCARNATION received N wrong N gone WHY` for each peer, then `end`), `quit`. It also ends with
//! its standard input.

use std::collections::HashMap;
use std::io::{BufRead, Write};
use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Parser;
use vmshm_tests::payload::{Key, Random};
use vmshm_transport::abi::EndpointName;
use vmshm_transport::abi::ring::Descriptor;
use vmshm_transport::attach::{Attached, Options, open_endpoint};
use vmshm_transport::{Event, Fragment, Inbox, MAX_INLINE, Memory, Peer, SendError};
use zerocopy::{FromBytes, IntoBytes};

/// Talks to other processes on a region, as its standard input says.
#[derive(Debug, Parser)]
struct Arguments {
    /// The region's file
    #[arg(long)]
    device: String,
    /// The section to attach to
    #[arg(long)]
    section: u32,
    /// Determines all payloads
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

const TAG: u8 = 7;
/// The largest message.
const LIMIT: usize = 30_000;
/// Messages under way to one peer whose memory is not ours yet.
const UNDER_WAY: usize = 6;
/// Bytes of the message's number, before its content.
const NUMBER: usize = 8;

/// A peer, and what went to and came from it.
struct Friend {
    name: EndpointName,
    peer: Peer,
    next_out: u64,
    next_in: u64,
    received: u64,
    wrong: u64,
    under_way: usize,
    unsent: Option<Parcel>,
    gone: Option<String>,
}

/// A message that is ready to go.
enum Parcel {
    Inline(Vec<u8>),
    Fragment(Fragment, usize),
    Offer(Fragment, usize),
}

struct Process {
    seed: u64,
    name: EndpointName,
    endpoint: Attached,
    inbox: Inbox,
    friends: Vec<Friend>,
    /// Memory that is under way, by token, and to which friend.
    lent: HashMap<u64, (usize, Fragment)>,
    next_token: u64,
    /// Messages from peers that nobody has told us of yet.
    strangers: HashMap<Peer, Vec<Vec<u8>>>,
    /// The friend for whose message the section had no room: nobody else gets memory before it.
    hungry: Option<usize>,
    /// Offers that are pulled but not yet finished because the ring was full.
    unfinished: Vec<(Peer, u8, Descriptor)>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let options =
        Options { device: Some(arguments.device), section: Some(arguments.section), ..Options::default() };
    let endpoint = open_endpoint(&options)?;
    let name = endpoint.name();
    say(&format!("name {}", hex(name.as_bytes())))?;
    let mut process = Process {
        seed: arguments.seed,
        name,
        endpoint,
        inbox: Inbox::new(),
        friends: Vec::new(),
        lent: HashMap::new(),
        next_token: 0,
        strangers: HashMap::new(),
        hungry: None,
        unfinished: Vec::new(),
    };
    let commands = read_lines();
    loop {
        match commands.try_recv() {
            Ok(line) if line == "quit" => return Ok(()),
            Ok(line) => process.obey(&line)?,
            Err(TryRecvError::Empty) => (),
            Err(TryRecvError::Disconnected) => return Ok(()),
        }
        if !process.turn() {
            std::thread::sleep(Duration::from_micros(100));
        }
    }
}

fn read_lines() -> Receiver<String> {
    let (send, receive) = mpsc::channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let Ok(line) = line else { return };
            if send.send(line).is_err() {
                return;
            }
        }
    });
    receive
}

fn say(line: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush().context("nobody listens")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Result<Vec<u8>> {
    let digits = text.as_bytes().chunks(2);
    digits.map(|two| Ok(u8::from_str_radix(std::str::from_utf8(two)?, 16)?)).collect()
}

/// The bytes of a message: its number, then content that depends on who sends it to whom.
fn message(seed: u64, from: &EndpointName, to: &EndpointName, number: u64) -> Vec<u8> {
    let who = [from.id.into(), from.incarnation, to.id.into(), to.incarnation, number];
    let key = Key::new(seed, &who);
    let mut bytes = number.to_le_bytes().to_vec();
    bytes.extend(key.bytes(Random::new(key).size(LIMIT)));
    bytes
}

impl Process {
    fn obey(&mut self, line: &str) -> Result<()> {
        match line.split_once(' ') {
            Some(("meet", name)) => {
                let bytes = from_hex(name)?;
                let Ok(name) = EndpointName::read_from_bytes(&bytes) else { bail!("no name: {name}") };
                match self.endpoint.connect(&name) {
                    Ok(peer) => {
                        self.friends.push(Friend {
                            name,
                            peer,
                            next_out: 0,
                            next_in: 0,
                            received: 0,
                            wrong: 0,
                            under_way: 0,
                            unsent: None,
                            gone: None,
                        });
                        for bytes in self.strangers.remove(&peer).unwrap_or_default() {
                            self.check(peer, &bytes);
                        }
                        say("met")
                    }
                    Err(error) => say(&format!("refused {error}")),
                }
            }
            None if line == "report" => {
                for friend in &self.friends {
                    let Friend { name, received, wrong, .. } = friend;
                    let gone = friend.gone.as_deref().unwrap_or("-");
                    let who = format!("{} {}", name.id, name.incarnation);
                    say(&format!("{who} received {received} wrong {wrong} gone {gone}"))?;
                }
                say("end")
            }
            _ => bail!("unknown command: {line}"),
        }
    }

    /// Takes what has come and sends something to each friend; false if nothing could be done.
    fn turn(&mut self) -> bool {
        let mut busy = false;
        for _ in 0..64 {
            let Some(event) = self.endpoint.poll(&mut self.inbox) else { break };
            busy = true;
            self.handle(event);
        }
        for (peer, tag, offer) in std::mem::take(&mut self.unfinished) {
            self.finish(peer, tag, offer);
        }
        for index in 0..self.friends.len() {
            busy |= self.friends[index].gone.is_none() && self.send_one(index);
        }
        busy
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Message { peer, len, .. } => {
                let bytes = self.inbox.bytes(len).to_vec();
                self.check(peer, &bytes);
            }
            Event::Fragment { peer, offset, len, .. } => {
                let mut bytes = vec![0; len];
                self.endpoint.memory().read(offset, &mut bytes);
                self.check(peer, &bytes);
                // An error means that the peer is gone; then an event says so.
                let _ = self.endpoint.consume(peer);
            }
            Event::Offer { peer, tag, offer } => {
                // More than any message has: only somebody hostile offers that.
                let len = usize::try_from(offer.len).unwrap_or(usize::MAX).min(LIMIT + NUMBER + 1);
                let mut bytes = vec![0; len];
                // SAFETY: the vector has `len` bytes.
                let got = unsafe { self.endpoint.get(peer, offer.offset, bytes.as_mut_ptr(), len) };
                if got.is_ok() {
                    self.check(peer, &bytes);
                    self.finish(peer, tag, offer);
                }
            }
            Event::Sent { token, .. } | Event::Unsent { token, .. } => self.take_back(token, None),
            // The cookie is what a stranger says.
            Event::Done { peer, cookie, .. } => self.take_back(cookie, Some(peer)),
            Event::Gone { peer, why } => {
                if let Some(index) = self.friends.iter().position(|friend| friend.peer == peer) {
                    self.friends[index].gone = Some(why.to_string());
                    self.reclaim(index);
                }
            }
        }
    }

    fn finish(&mut self, peer: Peer, tag: u8, offer: Descriptor) {
        if self.endpoint.finish(peer, tag, &offer) == Err(SendError::Full) {
            self.unfinished.push((peer, tag, offer));
        }
    }

    fn take_back(&mut self, token: u64, only_from: Option<Peer>) {
        let Some((index, _)) = self.lent.get(&token) else { return };
        let index = *index;
        if only_from.is_some_and(|peer| peer != self.friends[index].peer) {
            return;
        }
        if let Some((_, fragment)) = self.lent.remove(&token) {
            self.endpoint.free(fragment);
            self.friends[index].under_way -= 1;
        }
    }

    /// Takes back what a friend that is gone will not: offers, and what was not sent.
    fn reclaim(&mut self, index: usize) {
        let offers = self.lent.iter().filter(|(_, (to, _))| *to == index);
        for token in offers.map(|(token, _)| *token).collect::<Vec<_>>() {
            self.take_back(token, None);
        }
        if let Some(Parcel::Fragment(fragment, _) | Parcel::Offer(fragment, _)) =
            self.friends[index].unsent.take()
        {
            self.endpoint.free(fragment);
        }
        self.hungry = self.hungry.filter(|hungry| *hungry != index);
    }

    fn check(&mut self, peer: Peer, bytes: &[u8]) {
        let Some(friend) = self.friends.iter_mut().find(|friend| friend.peer == peer) else {
            self.strangers.entry(peer).or_default().push(bytes.to_vec());
            return;
        };
        let expected = message(self.seed, &friend.name, &self.name, friend.next_in);
        friend.received += 1;
        friend.next_in += 1;
        if bytes != expected {
            friend.wrong += 1;
            let number = bytes.first_chunk().map(|number| u64::from_le_bytes(*number));
            let (wanted, from) = (friend.next_in - 1, friend.name.id);
            let (len, due) = (bytes.len(), expected.len());
            eprintln!("instead of message {wanted} from {from} ({due} bytes) came {number:?} ({len} bytes)");
        }
    }

    /// Sends the next message to a friend, if there is room.
    fn send_one(&mut self, index: usize) -> bool {
        let Some(parcel) = self.friends[index].unsent.take().or_else(|| self.pack(index)) else {
            return false;
        };
        let peer = self.friends[index].peer;
        let token = self.next_token;
        let sent = match &parcel {
            Parcel::Inline(bytes) => self.endpoint.send(peer, TAG, &[bytes]),
            Parcel::Fragment(fragment, len) => self.endpoint.send_fragment(peer, TAG, fragment, *len, token),
            Parcel::Offer(fragment, len) => {
                self.endpoint.offer(peer, TAG, fragment.offset(), *len as u64, token)
            }
        };
        match (sent, parcel) {
            (Ok(()), Parcel::Inline(_)) => true,
            (Ok(()), Parcel::Fragment(fragment, _) | Parcel::Offer(fragment, _)) => {
                self.lent.insert(token, (index, fragment));
                self.next_token += 1;
                self.friends[index].under_way += 1;
                true
            }
            (Err(SendError::Full), parcel) => {
                self.friends[index].unsent = Some(parcel);
                false
            }
            // It is gone: an event says so.
            (Err(_), Parcel::Fragment(fragment, _) | Parcel::Offer(fragment, _)) => {
                self.endpoint.free(fragment);
                false
            }
            (Err(_), Parcel::Inline(_)) => false,
        }
    }

    /// Makes the next message to a friend, unless too much is under way or the section is full.
    fn pack(&mut self, index: usize) -> Option<Parcel> {
        let friend = &self.friends[index];
        if friend.under_way >= UNDER_WAY {
            return None;
        }
        let number = friend.next_out;
        let bytes = message(self.seed, &self.name, &friend.name, number);
        let len = bytes.len();
        let parcel = if len <= MAX_INLINE {
            Parcel::Inline(bytes)
        } else {
            if self.hungry.is_some_and(|hungry| hungry != index) {
                return None;
            }
            // Blocks of one size: the memory of small ones never comes back for large ones.
            let Some(fragment) = self.endpoint.fragment(LIMIT + NUMBER) else {
                self.hungry = Some(index);
                return None;
            };
            self.hungry = None;
            self.endpoint.memory().write(fragment.offset(), &bytes);
            if number.is_multiple_of(2) {
                Parcel::Fragment(fragment, len)
            } else {
                Parcel::Offer(fragment, len)
            }
        };
        self.friends[index].next_out += 1;
        Some(parcel)
    }
}
