//! Long messages from ordinary memory, which peers cannot read.
//!
//! For Open MPI they are read by the receiver, as memory of our section is:
//!
//! ```text
//!     sender                                            receiver
//!     register_mem: a stage ──── Open MPI's header ───► get: a pull
//!     serve ◄─────────────────────────────── PULL ───── (which stage, from where, how much)
//!     feed ───── CHUNK, CHUNK, CHUNK ─────────────────► place, placed: copied to where it belongs
//! ```
//!
//! What of a message fits into one chunk is not asked for, but comes in any case where there is a chunk to spare: see
//! [`crate::lead`]. The rest of this is about what is longer, and about messages that found none.
//!
//! Both copies run at the same time, each in one call of ours and not in many of Open MPI's. The oldest pulls are served in
//! turn, a chunk each, so that a short message does not wait for a long one. Their chunks come in order, and the tag of a
//! chunk says which of them it belongs to: it needs no header.
//!
//! The memory of the chunks is used in turn, never the one that came back last: it lies in the caches of the process that
//! has just read it, from where the next copy would have to fetch it back line by line. In turn over a part of the second
//! level cache, both copies are half as fast again.

use std::collections::VecDeque;

use vmshm_transport::{Fragment, Peer, copy_to_shared};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::descriptor::Descriptor;
use crate::fabric::{Fabric, Outgoing, Posted, Refused};
use crate::lead::{Ahead, Lead, Reading};
use crate::nearest;
use crate::ompi;
use crate::rdma::Completion;

/// The tag of a request for memory that is staged.
pub const PULL: u8 = ompi::MCA_BTL_TAG_BTL as u8;

/// The tag of the next piece of the first pull; the others follow.
const CHUNK: u8 = PULL + 1;

/// Pulls that are served in turn: those of them that a peer has asked for last have to wait. It is also the number of tags
/// for chunks.
const ACTIVE: u64 = 30;

/// A peer with so many fragments under way can do without chunks of ours.
const ENOUGH: usize = 2;

/// Chunks of a process that no lead gets. A lead's chunk comes back only when Open MPI's receiver has asked for the message,
/// which may wait for what others are yet to pull.
const KEPT: usize = 2;

/// The part of the chunks that one peer's leads leave to those of others: it may be long before it asks for the messages. A
/// stream to one peer needs the rest: with an eighth of the chunks for it, 32 KiB took 1.5 times as long. Of messages beyond
/// [`LONG`] chunks a lead is so little that their other chunks need the memory more: these have no more than this part.
const OTHERS: usize = 8;

/// See [`OTHERS`].
const LONG: usize = 8;

/// A piece of a long message where the section has no room for a whole chunk, bytes.
const SMALLEST: usize = 8 << 10;

/// The fewest bytes that a request counts for. No get of Open MPI's is shorter but a message's last one.
pub const LEAST: u64 = 64;

/// The tag of the chunks of a peer's pull with this number.
fn tag_of(number: u64) -> u8 {
    CHUNK + (number % ACTIVE) as u8
}

/// Whether a tag is that of a chunk.
pub fn is_chunk(tag: u8) -> bool {
    (CHUNK..CHUNK + ACTIVE as u8).contains(&tag)
}

/// How long messages are cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Bytes of a chunk.
    pub size: usize,
    /// Bytes in the last chunks of a message that is alone on its way, and what its lead is copied in: less, since the other
    /// side has nothing else to do then. Many messages overlap anyhow, and each piece costs as much time as some kilobytes.
    pub piece: usize,
    /// Chunks for many messages.
    pub count: usize,
    /// Whole chunks for one.
    pub few: usize,
}

impl Cut {
    /// The next chunk of a message that is alone and has `rest` bytes to go: the last of them short, the others long.
    fn next_piece(&self, rest: usize) -> usize {
        (rest / 2).clamp(self.piece, self.size)
    }
}

/// The memory of the chunks.
#[derive(Default)]
pub struct Chunks {
    /// Those that are not under way; the one that came back first is the next.
    free: VecDeque<Fragment>,
    /// Those that are, but for leads.
    flying: usize,
    /// Those that hold the leads of messages.
    leading: usize,
    /// Up to [`KEPT`] for pulls and other messages that would starve.
    kept: Vec<Fragment>,
    /// Words for leads, which none uses.
    marks: Vec<Fragment>,
}

impl Chunks {
    /// A chunk comes back, or is new.
    fn add(&mut self, chunk: Fragment) {
        if self.kept.len() < KEPT {
            self.kept.push(chunk);
        } else {
            self.free.push_back(chunk);
        }
    }

    /// A chunk comes back.
    pub fn put(&mut self, chunk: Fragment) {
        self.flying -= 1;
        self.add(chunk);
    }

    /// A chunk comes back that held a lead, and its mark.
    pub fn put_lead(&mut self, chunk: Fragment, mark: Fragment) {
        self.leading -= 1;
        self.add(chunk);
        self.marks.push(mark);
    }

    /// All that is not under way, but for what is kept.
    pub fn take_free(&mut self) -> impl Iterator<Item = Fragment> + use<> {
        std::mem::take(&mut self.free).into_iter()
    }

    /// One of those that are kept: a message that is in need comes back as soon as a pull does.
    pub fn take_kept(&mut self) -> Option<Fragment> {
        self.kept.pop()
    }
}

/// Memory of this process that one peer may pull.
struct Stage {
    peer: Peer,
    base: *const u8,
    len: usize,
    /// Bytes that the peer may still ask for: each once, so that it can't fill our memory with its requests.
    unasked: u64,
    /// What of it the peer need not pull.
    ahead: Option<Ahead>,
}

/// All memory of this process that peers may pull, by its id.
#[derive(Default)]
pub struct Stages {
    /// A slot's number of uses, and what it is used for.
    slots: Vec<(u32, Option<Stage>)>,
    free: Vec<u32>,
}

impl Stages {
    fn add(&mut self, stage: Stage) -> u64 {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push((0, None));
            self.slots.len() as u32 - 1
        });
        let (uses, held) = &mut self.slots[slot as usize];
        *uses = (*uses + 1) & (u32::MAX >> 1);
        *held = Some(stage);
        u64::from(*uses) << 32 | u64::from(slot)
    }

    fn get(&self, id: u64) -> Option<&Stage> {
        let (uses, stage) = self.slots.get(id as u32 as usize)?;
        stage.as_ref().filter(|_| u64::from(*uses) == id >> 32)
    }

    /// The stage's memory and its length, and its lead, if it has one.
    pub fn ahead(&self, id: u64) -> Option<(*const u8, usize, &Ahead)> {
        let stage = self.get(id)?;
        Some((stage.base, stage.len, stage.ahead.as_ref()?))
    }

    /// Whether a peer may ask for this, now and not once more.
    fn allow(&mut self, peer: Peer, request: &Request) -> bool {
        let Some((uses, Some(stage))) = self.slots.get_mut(request.stage as u32 as usize) else {
            return false;
        };
        let end = request.offset.checked_add(request.len);
        let is_there = u64::from(*uses) == request.stage >> 32
            && stage.peer == peer
            && request.len > 0
            && end.is_some_and(|end| end <= stage.len as u64);
        match stage.unasked.checked_sub(request.len.max(LEAST)) {
            Some(rest) if is_there => {
                stage.unasked = rest;
                true
            }
            _ => false,
        }
    }

    fn remove(&mut self, id: u64) -> Option<Stage> {
        self.get(id)?;
        self.free.push(id as u32);
        self.slots[id as u32 as usize].1.take()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}

/// What a receiver asks for, as it travels.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Request {
    stage: u64,
    /// From where on, bytes.
    offset: u64,
    /// Bytes.
    len: u64,
}

/// What Open MPI's `get` wants, and how to tell that it is there.
pub struct Pull {
    /// Where it lies: which stage of the peer, and from where on, bytes.
    pub stage: u64,
    pub offset: u64,
    /// What of the stage comes without being asked for.
    pub lead: Lead,
    /// How many bytes.
    pub len: usize,
    pub completion: Completion,
}

impl Pull {
    /// Where it is wanted.
    pub fn local(&self) -> *mut u8 {
        self.completion.local.cast()
    }
}

/// Staged memory on its way to and from one peer.
#[derive(Default)]
pub struct Staged {
    /// What the peer has asked for and when, in order.
    serving: VecDeque<(u64, Request)>,
    /// Requests that have come from it.
    heard: u64,
    /// Which of the active ones comes next.
    turn: usize,
    /// What we have asked for, in order; none where all of it is there.
    pulls: VecDeque<Option<Reading>>,
    /// The number of the first of these.
    first: u64,
    /// Leads for it.
    pub leads: usize,
}

impl Staged {
    /// Whether nothing is asked for.
    pub fn is_idle(&self) -> bool {
        self.serving.is_empty() && self.pulls.is_empty()
    }

    /// Takes what will not come from a lost peer, and forgets what it wanted.
    pub fn give_up(&mut self) -> Vec<Pull> {
        self.serving.clear();
        self.pulls.drain(..).flatten().map(|reading| reading.pull).collect()
    }

    /// Notes what we have asked for.
    pub fn expect(&mut self, reading: Reading) {
        self.pulls.push_back(Some(reading));
    }

    /// Which request is to be served next. Two that share a tag are never active at a time.
    fn next(&mut self) -> Option<usize> {
        let (oldest, _) = self.serving.front()?;
        if self.serving.get(self.turn).is_none_or(|(number, _)| number - oldest >= ACTIVE) {
            self.turn = 0;
        }
        Some(self.turn)
    }

    /// So many bytes of a request were served.
    fn served(&mut self, index: usize, len: u64) {
        let (_, request) = &mut self.serving[index];
        request.offset += len;
        request.len -= len;
        if request.len == 0 {
            self.serving.remove(index);
        } else {
            self.turn += 1;
        }
    }

    /// The pull that a chunk belongs to: all chunks of one come before any of the next with that tag.
    fn position(&self, tag: u8) -> Option<usize> {
        let skip = (u64::from(tag - CHUNK) + ACTIVE - self.first % ACTIVE) % ACTIVE;
        (skip as usize..self.pulls.len()).step_by(ACTIVE as usize).find(|index| self.pulls[*index].is_some())
    }
}

impl Fabric {
    /// Lets a peer pull memory of this process; returns the stage's id, which is less than 2^63, and its lead, which
    /// [`Fabric::fill`] must copy as soon as the message with the id was sent.
    pub fn stage(&mut self, peer: Peer, base: *const u8, len: usize) -> (u64, Lead) {
        let ahead = self.ahead(peer, len);
        let lead = ahead.as_ref().map_or(Lead::default(), |ahead| ahead.lead);
        let id = self.stages.add(Stage { peer, base, len, unasked: len as u64 + LEAST, ahead });
        if lead != Lead::default() {
            self.promised.push(id);
        }
        (id, lead)
    }

    /// Ends a stage: its memory is not touched any more.
    pub fn unstage(&mut self, id: u64) {
        if let Some(Stage { peer, ahead: Some(ahead), .. }) = self.stages.remove(id) {
            self.end_ahead(peer, ahead);
        }
    }

    /// Whether a peer may still pull what we have staged for it.
    pub fn is_awaited(&self, peer: usize) -> bool {
        self.stages.slots.iter().any(|(_, stage)| stage.as_ref().is_some_and(|s| s.peer.index() == peer))
    }

    /// Asks a peer for memory that it has staged for us, but for its lead.
    ///
    /// # Errors
    /// The peer is gone.
    pub fn ask(&mut self, reading: &Reading) -> Result<(), Refused> {
        let Reading { peer, pull, .. } = reading;
        let (peer, part) = (*peer, reading.part());
        let request =
            Request { stage: pull.stage, offset: pull.offset + part as u64, len: (pull.len - part) as u64 };
        let bytes = request.as_bytes();
        let flags = ompi::MCA_BTL_DES_FLAGS_BTL_OWNERSHIP;
        let descriptor = self.descriptor(peer, bytes.len(), 0, flags).ok_or(Refused::Busy)?;
        // SAFETY: the descriptor was just handed out with room for these bytes, and belongs to us.
        let posted = unsafe {
            let (data, _) = Descriptor::payload(descriptor);
            data.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
            Descriptor::set_tag(descriptor, PULL);
            let posted = self.post(peer, Outgoing::Descriptor(descriptor));
            if posted != Posted::Later {
                self.free(descriptor);
            }
            posted
        };
        if posted == Posted::Lost { Err(Refused::Lost) } else { Ok(()) }
    }

    /// Takes a peer's request; false if there is no such memory for it, or it has asked for all of that before.
    pub fn serve(&mut self, peer: Peer, bytes: &[u8]) -> bool {
        let Ok(request) = Request::read_from_bytes(bytes) else { return false };
        let is_allowed = self.stages.allow(peer, &request);
        if is_allowed {
            let staged = self.staged(peer.index());
            staged.serving.push_back((staged.heard, request));
            staged.heard += 1;
            self.feed(peer);
        }
        is_allowed
    }

    /// The chunk that was used least lately, or a new one as long as there are fewer than wanted. A peer to which hardly
    /// anything is under way gets one in any case: others may keep theirs for as long as they like.
    pub fn chunk(&mut self, peer: Peer, wanted: usize) -> Option<Fragment> {
        let is_starved = self.chunks.free.is_empty() && self.endpoint.in_flight(peer) < ENOUGH;
        let Chunks { free, flying, .. } = &mut self.chunks;
        let count = free.len() + *flying;
        if count > wanted && free.len() > 1 {
            // One at a time: many messages may soon be under way again.
            let surplus = free.pop_front()?;
            self.endpoint.free(surplus);
        }
        let size = self.cut.size;
        let new = if count < wanted || is_starved { self.endpoint.fragment(size) } else { None };
        let mut chunk = new.or_else(|| self.chunks.free.pop_front());
        if chunk.is_none() && is_starved {
            // The section is nearly full: if need be, a smaller piece will do.
            let smallest = size.min(SMALLEST);
            chunk = self.chunks.kept.pop().or_else(|| self.endpoint.fragment(smallest));
            self.note_memory(smallest, chunk.is_some());
        }
        self.chunks.flying += usize::from(chunk.is_some());
        chunk
    }

    /// Sets memory aside for pulls, so that they go on however full the section becomes.
    pub fn keep_chunks(&mut self) {
        while self.chunks.kept.len() < KEPT
            && let Some(chunk) = self.endpoint.try_fragment(self.cut.size)
        {
            self.chunks.kept.push(chunk);
        }
    }

    /// A chunk and a mark for the lead of a message of `len` bytes to a peer. Half of the chunks stay for what is asked for,
    /// and no memory is taken that others may need meanwhile.
    pub fn chunk_for_lead(&mut self, peer: Peer, len: usize) -> Option<(Fragment, Fragment)> {
        let cut = self.cut;
        let most = if self.stages.count() == 0 {
            cut.few * cut.size / len.clamp(cut.piece, cut.size)
        } else {
            cut.count
        };
        let leads = self.staged(peer.index()).leads;
        let Chunks { free, flying, leading, marks, .. } = &mut self.chunks;
        let (all, part) = (cut.count / 2, cut.count / OTHERS);
        let mine = if len > LONG * cut.size { part } else { all - part };
        if *leading >= all.max(1) || leads >= mine.max(2) {
            return None;
        }
        let mark = marks.pop().or_else(|| self.endpoint.try_fragment(size_of::<u64>()))?;
        let taken = free.len() + *flying + *leading;
        let new = if taken < most.max(2) { self.endpoint.try_fragment(cut.size) } else { None };
        let Some(chunk) = new.or_else(|| free.pop_front()) else {
            marks.push(mark);
            return None;
        };
        *leading += 1;
        Some((chunk, mark))
    }

    /// Copies and sends what a peer has asked for, as long as there are chunks.
    pub fn feed(&mut self, peer: Peer) {
        let cut = self.cut;
        while let Some(index) = self.staged(peer.index()).next() {
            let serving = &mut self.staged(peer.index()).serving;
            let (number, request) = serving[index];
            let (piece, wanted) = match serving.len() {
                1 => (cut.next_piece(request.len as usize), cut.few),
                _ => (cut.size, cut.count),
            };
            let Some(from) = self.stages.get(request.stage).map(|stage| stage.base) else {
                // The peer has said that it has enough: what it would pull is not ours to read any more.
                self.staged(peer.index()).served(index, request.len);
                continue;
            };
            let chunk = if self.is_free(peer) { self.chunk(peer, wanted) } else { None };
            let Some(chunk) = chunk else {
                self.hungry = true;
                return;
            };
            let len = piece.min(chunk.capacity()).min(request.len as usize);
            // SAFETY: the request was checked against the stage, whose memory Open MPI keeps until it is unstaged. The
            // chunk has room for len bytes.
            unsafe { copy_to_shared(from.add(request.offset as usize), chunk.ptr(), len) };
            self.staged(peer.index()).served(index, len as u64);
            // SAFETY: there is no descriptor.
            let posted = unsafe { self.post(peer, Outgoing::Chunk(chunk, tag_of(number), len)) };
            if posted == Posted::Lost {
                // The event that follows says so.
                return;
            }
            if self.stages.count() == 1 && self.staged(peer.index()).serving.is_empty() {
                // That was the last of the only message.
                nearest::leave(cut.size);
            }
        }
    }

    /// Goes on where chunks or room was lacking. Each time another peer is the first to be fed.
    pub fn feed_hungry(&mut self) {
        self.hungry = false;
        self.first_fed += 1;
        let peers = self.peers();
        for number in 0..peers {
            let number = (number + self.first_fed) % peers;
            if let Some(peer) = self.peer(number)
                && !self.staged(number).serving.is_empty()
            {
                self.feed(peer);
            }
        }
    }

    /// Where the next chunk of a peer belongs; None if we have not asked for it.
    pub fn place(&mut self, peer: Peer, tag: u8, len: usize) -> Option<*mut u8> {
        let index = self.staged(peer.index()).position(tag)?;
        let mut reading = self.staged(peer.index()).pulls[index].take()?;
        // All of its lead is there before the first chunk is. An error here is followed by an event, which takes the pull
        // back.
        let _ = self.read(&mut reading, 0);
        let Reading { pull, done, .. } = &reading;
        // The chunk lies in the pull, so that this is inside of what Open MPI gave.
        let fits = reading.is_led() && len > 0 && len <= pull.len - done;
        let place = fits.then(|| pull.local().wrapping_add(*done));
        self.staged(peer.index()).pulls[index] = Some(reading);
        place
    }

    /// A chunk was copied to its place; returns the pull that is now complete.
    pub fn placed(&mut self, peer: Peer, tag: u8, len: usize) -> Option<Pull> {
        let staged = self.staged(peer.index());
        let index = staged.position(tag)?;
        let found = &mut staged.pulls[index];
        let reading = found.as_mut()?;
        reading.done += len;
        if reading.done < reading.pull.len {
            return None;
        }
        let complete = found.take().map(|reading| reading.pull);
        while let Some(None) = staged.pulls.front() {
            staged.pulls.pop_front();
            staged.first += 1;
        }
        complete
    }
}

#[cfg(test)]
pub mod tests {
    use std::ptr;

    use tempfile::TempDir;
    use vmshm_transport::attach::{Attached, Options, open_endpoint};
    use vmshm_transport::{Event, Inbox, copy_from_shared};

    use super::*;
    use crate::fabric;

    /// A process in a region of its own.
    pub struct Side {
        pub fabric: Fabric,
        pub peer: Peer,
        inbox: Box<Inbox>,
        /// What it has pulled whole, by the address.
        pub done: Vec<*mut u8>,
        /// Requests and chunks that were refused.
        pub refused: usize,
    }

    impl Side {
        /// Two that know each other, with `count` chunks of `size` bytes.
        pub fn pair(size: usize, count: usize) -> (Self, Self, TempDir) {
            let (sides, directory) = fabric::tests::pair();
            let [a, b] = sides.map(|(mut fabric, peer)| {
                fabric.cut = Cut { size, piece: size / 2, count, few: 2 };
                fabric.keep_chunks();
                Self { fabric, peer, inbox: Box::default(), done: Vec::new(), refused: 0 }
            });
            (a, b, directory)
        }

        /// One more endpoint in the section of the other side.
        pub fn another(&self) -> Attached {
            let device = Some(self.fabric.endpoint.source().path().display().to_string());
            open_endpoint(&Options { device, section: Some(1), ..Options::default() }).unwrap()
        }

        /// What `register_mem` does.
        pub fn stage(&mut self, from: &[u8]) -> (u64, Lead) {
            self.fabric.stage(self.peer, from.as_ptr(), from.len())
        }

        /// What `get` does for a message without a lead.
        fn pull(&mut self, stage: u64, offset: u64, to: &mut [u8]) {
            self.get((stage, Lead::default()), offset, to).unwrap();
        }

        /// What `get` does.
        pub fn get(&mut self, (stage, lead): (u64, Lead), offset: u64, to: &mut [u8]) -> Result<(), Refused> {
            let pull = Pull {
                stage,
                offset,
                lead,
                len: to.len(),
                completion: Completion {
                    endpoint: ptr::null_mut(),
                    local: to.as_mut_ptr().cast(),
                    local_handle: ptr::null_mut(),
                    callback: None,
                    context: ptr::null_mut(),
                    data: ptr::null_mut(),
                },
            };
            let complete = self.fabric.begin(self.peer, pull)?;
            self.done.extend(complete.map(|pull| pull.local()));
            Ok(())
        }

        /// What progress does, once.
        pub fn progress(&mut self) {
            let mut sent = Vec::new();
            // SAFETY: the descriptors in the queue come from `pull`.
            unsafe { self.fabric.send_queued(&mut sent) };
            for descriptor in sent {
                // SAFETY: it is in the ring, and nobody else knows it.
                unsafe { self.fabric.free(descriptor) };
            }
            if self.fabric.hungry {
                self.fabric.feed_hungry();
            }
            while let Some(pull) = self.fabric.read_on() {
                self.done.push(pull.local());
            }
            match self.fabric.endpoint.poll(&mut self.inbox) {
                Some(Event::Message { peer, tag: PULL, len }) => {
                    self.refused += usize::from(!self.fabric.serve(peer, self.inbox.bytes(len)));
                }
                Some(Event::Fragment { peer, tag, offset, len }) if is_chunk(tag) => {
                    let from = self.fabric.endpoint.address(offset, len as u64);
                    let place = self.fabric.place(peer, tag, len);
                    if let Some(to) = place {
                        // SAFETY: the transport checked the payload, and the test's memory has room for all of the pull.
                        unsafe { copy_from_shared(from, to, len) };
                    }
                    self.fabric.endpoint.consume(peer).unwrap();
                    match place {
                        Some(_) => {
                            self.done.extend(self.fabric.placed(peer, tag, len).map(|pull| pull.local()))
                        }
                        None => self.refused += 1,
                    }
                }
                Some(Event::Sent { token, .. }) => assert!(self.fabric.landed(token).is_none()),
                Some(other) => panic!("{other:?}"),
                None => {}
            }
        }
    }

    pub fn bytes(len: usize, seed: usize) -> Vec<u8> {
        (0..len).map(|i| ((i * 31 + i / 251 + seed * 7) % 256) as u8).collect()
    }

    #[test]
    fn many_pulls_of_all_lengths_arrive_whole_with_few_chunks() {
        let (mut a, mut b, _directory) = Side::pair(4096, 3);
        let lengths = [1, 4095, 4096, 4097, 40_000, 100_000];
        // More than are under way at a time, and more than the ring holds.
        let sources: Vec<_> = (0..100).map(|i| bytes(lengths[i % lengths.len()], i)).collect();
        let mut targets: Vec<_> = sources.iter().map(|source| vec![0; source.len()]).collect();
        let stages: Vec<_> = sources.iter().map(|source| a.stage(source).0).collect();
        for (stage, target) in stages.iter().zip(&mut targets) {
            b.pull(*stage, 0, target);
        }
        while b.done.len() < targets.len() {
            a.progress();
            b.progress();
        }
        assert!(sources == targets);
        assert_eq!((a.refused, b.refused), (0, 0));
        assert!(b.fabric.staged(b.peer.index()).is_idle());
        // The first three lengths fill their one chunk or less: they were not held up by the long ones.
        let first_long = b.done.iter().position(|done| *done == targets[5].as_mut_ptr()).unwrap();
        let last_short = b.done.iter().position(|done| *done == targets[14].as_mut_ptr()).unwrap();
        assert!(last_short < first_long);
        assert!(a.fabric.is_awaited(a.peer.index()));
        for stage in stages {
            a.fabric.unstage(stage);
        }
        assert!(!a.fabric.is_awaited(a.peer.index()));
    }

    #[test]
    fn one_that_does_not_read_starves_nobody() {
        let (mut a, mut b, _directory) = Side::pair(4096, 4);
        let mut fabric = Fabric::new(a.another());
        fabric.cut = a.fabric.cut;
        let to_c = a.fabric.add(&fabric.endpoint.name(), ptr::null_mut()).unwrap();
        let peer = fabric.add(&a.fabric.endpoint.name(), ptr::null_mut()).unwrap();
        let mut c = Side { fabric, peer, inbox: Box::default(), done: Vec::new(), refused: 0 };
        let source = bytes(100_000, 5);
        let (mut unread, mut target) = (vec![0; source.len()], vec![0; source.len()]);
        let (for_b, _) = a.stage(&source);
        let (for_c, _) = a.fabric.stage(to_c, source.as_ptr(), source.len());
        // It asks, and looks at nothing any more.
        b.pull(for_b, 0, &mut unread);
        (0..1000).for_each(|_| a.progress());
        assert!(a.fabric.hungry, "all chunks are with b");
        c.pull(for_c, 0, &mut target);
        for _ in 0..100_000 {
            a.progress();
            c.progress();
        }
        assert_eq!(c.done.len(), 1);
        assert!(source == target);
    }

    #[test]
    fn a_part_of_a_stage_can_be_pulled() {
        let (mut a, mut b, _directory) = Side::pair(4096, 2);
        let source = bytes(50_000, 3);
        let mut target = vec![0; 20_000];
        let (stage, _) = a.stage(&source);
        b.pull(stage, 12_345, &mut target);
        while b.done.is_empty() {
            a.progress();
            b.progress();
        }
        assert_eq!(target, source[12_345..32_345]);
    }

    #[test]
    fn nothing_but_what_is_staged_for_the_peer_can_be_pulled() {
        let (mut a, _, _directory) = Side::pair(4096, 2);
        let source = bytes(1000, 1);
        let (ended, _) = a.stage(&source);
        a.fabric.unstage(ended);
        let (stage, _) = a.stage(&source);
        assert_ne!(stage, ended, "a slot's next use has another id");
        let good = Request { stage, offset: 0, len: 1000 };
        let wrong = [
            Request { stage: ended, ..good },
            Request { stage: stage + 1, ..good },
            Request { stage: u64::MAX, ..good },
            Request { len: 1001, ..good },
            Request { len: 0, ..good },
            Request { offset: 1, ..good },
            Request { offset: u64::MAX, ..good },
            Request { offset: u64::MAX, len: u64::MAX, ..good },
        ];
        for request in wrong {
            assert!(!a.fabric.serve(a.peer, request.as_bytes()), "{request:?}");
        }
        assert!(!a.fabric.serve(a.peer, &good.as_bytes()[1..]));
        assert!(a.fabric.staged(a.peer.index()).is_idle());
        assert!(a.fabric.serve(a.peer, good.as_bytes()));
    }

    #[test]
    fn no_more_can_be_asked_for_than_is_staged() {
        let (mut a, _b, _directory) = Side::pair(4096, 2);
        let source = bytes(100_000, 1);
        let longest = |a: &mut Side, request: Request| {
            let taken = (0..10_000).take_while(|_| a.fabric.serve(a.peer, request.as_bytes())).count();
            assert!(a.fabric.staged(a.peer.index()).serving.len() <= source.len() / LEAST as usize + 1);
            a.fabric.staged(a.peer.index()).give_up();
            taken
        };
        let whole = Request { stage: a.stage(&source).0, offset: 0, len: 100_000 };
        assert_eq!(longest(&mut a, whole), 1);
        let byte = Request { stage: a.stage(&source).0, offset: 7, len: 1 };
        assert_eq!(longest(&mut a, byte), source.len() / LEAST as usize + 1);
        // As Open MPI may ask: the last part is short.
        let stage = a.stage(&source).0;
        for offset in (0..100_000).step_by(99) {
            let part = Request { stage, offset, len: (100_000 - offset).min(99) };
            assert!(a.fabric.serve(a.peer, part.as_bytes()), "{part:?}");
        }
    }

    #[test]
    fn chunks_that_nobody_has_asked_for_have_no_place() {
        let (mut a, mut b, _directory) = Side::pair(4096, 2);
        let mut target = vec![0; 100];
        assert!(b.fabric.place(b.peer, CHUNK, 10).is_none());
        let source = bytes(100, 1);
        let (stage, _) = a.stage(&source);
        b.pull(stage, 0, &mut target);
        assert!(b.fabric.place(b.peer, CHUNK, 101).is_none());
        assert!(b.fabric.place(b.peer, CHUNK, 0).is_none());
        assert!(b.fabric.place(b.peer, CHUNK + 1, 10).is_none());
        assert!(b.fabric.placed(b.peer, CHUNK, 60).is_none());
        assert!(b.fabric.place(b.peer, CHUNK, 41).is_none());
        assert_eq!(b.fabric.place(b.peer, CHUNK, 40), Some(target[60..].as_mut_ptr()));
        assert_eq!(b.fabric.staged(b.peer.index()).give_up().len(), 1);
    }
}
