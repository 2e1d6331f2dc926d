//! The beginning of a long message, which its sender copies before anyone asks for it.
//!
//! ```text
//!     sender                                              receiver
//!     register_mem: a chunk, a mark of 0
//!     send ────── Open MPI's header (where both are) ───► get
//!     piece by piece: copy, raise the mark                piece by piece: look at the mark, copy
//!     deregister_mem ◄───────────── Open MPI's FIN ────── all is there
//! ```
//!
//! A message that fits into one chunk needs no more than that, and of a longer one the rest is pulled meanwhile, see
//! [`crate::stage`]. The mark has a line of its own in the sender's section and counts the bytes that lie in the chunk. It
//! is set to 0 before the header goes, so that whoever knows the header never sees what the word was before. What neither
//! side can count on is that the other goes on: a receiver that has looked in vain for some time looks again when Open MPI
//! makes progress, and a sender keeps the chunk until Open MPI has heard that the message is there.

use std::sync::atomic::Ordering;

use vmshm_transport::abi::LINE_PAIR;
use vmshm_transport::{Fragment, Memory, Peer, PeerError, copy_to_shared};

use crate::component;
use crate::fabric::{Fabric, Refused};
use crate::nearest;
use crate::sleep;
use crate::stage::Pull;

/// Looks in vain at a mark before something else is done: some microseconds at most, in which a piece is copied.
const LOOKS: u32 = 256;

/// Pieces of the shortest lead.
const PIECES: usize = 4;

/// The shortest piece, bytes: a mark for less costs more than it gains.
const SHORTEST: usize = 4 << 10;

/// Where the lead of a message lies in its sender's section, as it travels. Without any, all are 0.
///
/// Offsets in the region count pairs of cache lines: with whole ones Open MPI's header would take another slot of the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Lead {
    data: u32,
    mark: u32,
    /// Bytes.
    len: u64,
}

impl Lead {
    /// None where the region is too large.
    fn new(data: &Fragment, mark: &Fragment, len: usize) -> Option<Self> {
        let pairs = |fragment: &Fragment| u32::try_from(fragment.offset() / LINE_PAIR).ok();
        Some(Self { data: pairs(data)?, mark: pairs(mark)?, len: len as u64 })
    }

    /// Offset of the data in the region.
    fn data(&self) -> u64 {
        u64::from(self.data) * LINE_PAIR
    }

    /// Offset of the mark in the region.
    fn mark(&self) -> u64 {
        u64::from(self.mark) * LINE_PAIR
    }

    /// Bytes of it among the `len` from `offset` on. It is no longer than the longest chunk, whatever the sender says.
    fn part(&self, offset: u64, len: usize) -> usize {
        let all = self.len.min(component::max_send_size() as u64);
        all.saturating_sub(offset).min(len as u64) as usize
    }
}

/// The sender's side of a lead.
pub struct Ahead {
    chunk: Fragment,
    mark: Fragment,
    /// What the peer must know.
    pub lead: Lead,
}

/// A pull whose lead is not all there.
pub struct Reading {
    pub peer: Peer,
    pub pull: Pull,
    /// Bytes that are.
    pub done: usize,
}

impl Reading {
    /// Whether the lead is all there.
    pub fn is_led(&self) -> bool {
        self.done >= self.part()
    }

    /// Bytes of the pull that the lead holds; the others have to be asked for.
    pub fn part(&self) -> usize {
        self.pull.lead.part(self.pull.offset, self.pull.len)
    }
}

impl Fabric {
    /// Takes a chunk and a mark for the lead of a message of `len` bytes, if there are any that others can spare.
    pub fn ahead(&mut self, peer: Peer, len: usize) -> Option<Ahead> {
        let (chunk, mark) = self.chunk_for_lead(peer, len)?;
        self.endpoint.memory().store(mark.offset(), 0, Ordering::Relaxed);
        match Lead::new(&chunk, &mark, len.min(chunk.capacity())) {
            Some(lead) => {
                self.staged(peer.index()).leads += 1;
                Some(Ahead { chunk, mark, lead })
            }
            None => {
                self.chunks.put_lead(chunk, mark);
                None
            }
        }
    }

    /// Gives a lead back whose message is there, or will never be.
    pub fn end_ahead(&mut self, peer: Peer, ahead: Ahead) {
        self.staged(peer.index()).leads -= 1;
        self.chunks.put_lead(ahead.chunk, ahead.mark);
    }

    /// Copies the leads that were promised.
    pub fn fill(&mut self) {
        while let Some(id) = self.promised.pop() {
            // It may have ended meanwhile.
            let Some((base, whole, ahead)) = self.stages.ahead(id) else { continue };
            let all = ahead.lead.len as usize;
            let piece = (all / PIECES).clamp(SHORTEST, self.cut.piece.max(SHORTEST));
            let memory = self.endpoint.memory();
            for at in (0..all).step_by(piece) {
                let len = piece.min(all - at);
                // SAFETY: Open MPI keeps the stage's memory, of which the lead is the beginning, until it is unstaged. The
                // chunk has room for it.
                unsafe { copy_to_shared(base.add(at), ahead.chunk.ptr().add(at), len) };
                // Release: who sees the mark sees what it counts.
                memory.store(ahead.mark.offset(), (at + len) as u64, Ordering::Release);
            }
            if all == whole && self.stages.count() == 1 {
                // That is all of the only message.
                nearest::leave(all);
            }
        }
    }

    /// Begins a pull: asks for what its lead does not hold, and copies what of that is there. Returns the pull if nothing is
    /// missing any more.
    ///
    /// # Errors
    /// The peer is gone, or nothing can be asked for now, or the lead is none.
    pub fn begin(&mut self, peer: Peer, pull: Pull) -> Result<Option<Pull>, Refused> {
        let mut reading = Reading { peer, pull, done: 0 };
        let (part, len) = (reading.part(), reading.pull.len);
        if part > 0 {
            let Pull { lead, offset, .. } = &reading.pull;
            let from = lead.data() + *offset;
            let is_theirs = self.endpoint.check_remote(peer, from, part as u64);
            is_theirs.and_then(|()| self.endpoint.load(peer, lead.mark())).map_err(|_| Refused::Lost)?;
        }
        if part < len {
            // The sender can begin with the rest while we copy this.
            self.ask(&reading)?;
        }
        // An error here is followed by an event, which takes the pull back.
        let _ = self.read(&mut reading, LOOKS);
        if part < len {
            self.staged(peer.index()).expect(reading);
            return Ok(None);
        }
        if reading.is_led() {
            return Ok(Some(reading.pull));
        }
        self.readings.push(reading);
        if self.sleep.is_some() {
            // Nobody rings for it: a thread that sleeps has to look anew.
            sleep::rouse();
        }
        Ok(None)
    }

    /// Copies what is there of a lead, until all of it is or nothing more comes for some time.
    pub fn read(&mut self, reading: &mut Reading, patience: u32) -> Result<(), PeerError> {
        let (peer, part) = (reading.peer, reading.part());
        let Pull { lead, offset, .. } = reading.pull;
        let local = reading.pull.local();
        let mut looks = 0;
        while reading.done < part {
            let there =
                self.endpoint.load(peer, lead.mark())?.saturating_sub(offset).min(part as u64) as usize;
            let new = there.saturating_sub(reading.done);
            if new > 0 {
                let from = lead.data() + offset + reading.done as u64;
                // SAFETY: Open MPI keeps room for all of the pull until it is called back.
                unsafe { self.endpoint.get(peer, from, local.add(reading.done), new)? };
                reading.done = there;
                self.has_read = true;
            }
            if new >= SHORTEST {
                looks = 0;
            } else if looks < patience {
                // Also after a few bytes: the others wait for us, and the sender may give them one by one.
                looks += 1;
                std::hint::spin_loop();
            } else {
                break;
            }
        }
        Ok(())
    }

    /// Goes on with the leads that were not there, and returns a pull that is complete now.
    pub fn read_on(&mut self) -> Option<Pull> {
        for index in (0..self.readings.len()).rev() {
            let mut reading = self.readings.swap_remove(index);
            // An error here is followed by an event, which takes the pull back.
            let _ = self.read(&mut reading, 0);
            if reading.is_led() {
                return Some(reading.pull);
            }
            self.readings.push(reading);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::ptr;
    use std::sync::atomic::{AtomicBool, AtomicU8};
    use std::time::{Duration, Instant};

    use vmshm_transport::{Event, Inbox, PeerError};

    use super::*;
    use crate::idle::Rest;
    use crate::sleep::Sleep;
    use crate::stage::tests::{Side, bytes};

    #[test]
    fn messages_with_and_without_leads_arrive_whole_whenever_these_are_copied() {
        let (mut a, mut b, _directory) = Side::pair(4096, 6);
        let lengths = [1, 1000, 4095, 4096, 4097, 40_000];
        let sources: Vec<_> = (0..300).map(|i| bytes(lengths[i % lengths.len()], i)).collect();
        let mut targets: Vec<_> = sources.iter().map(|source| vec![0; source.len()]).collect();
        let (mut led, mut complete, mut stages) = (0, 0, Vec::new());
        for (n, (source, target)) in sources.iter().zip(&mut targets).enumerate() {
            let stage = a.stage(source);
            led += usize::from(stage.1 != Lead::default());
            stages.push(stage.0);
            if n % 3 == 0 {
                a.fabric.fill();
            }
            b.get(stage, 0, target).unwrap();
            if n % 3 == 1 {
                a.fabric.fill();
            }
            // Some are under way together.
            while n % 5 == 4 && b.done.len() <= n {
                a.fabric.fill();
                a.progress();
                b.progress();
            }
            if n % 5 == 4 {
                complete += 5;
                stages.drain(..).for_each(|id| a.fabric.unstage(id));
            }
        }
        assert_eq!((b.done.len(), complete), (sources.len(), sources.len()));
        assert!(sources == targets);
        assert_eq!((a.refused, b.refused), (0, 0));
        assert!(led > 100 && led < 300, "{led} of 300 had a lead: there are 2 at a time for 5 messages");
    }

    #[test]
    fn a_mark_says_nothing_of_the_message_before() {
        let (mut a, mut b, _directory) = Side::pair(4096, 2);
        let (first, second) = (bytes(4096, 1), bytes(4096, 2));
        let mut target = vec![0; 4096];
        let old = a.stage(&first);
        a.fabric.fill();
        b.get(old, 0, &mut target).unwrap();
        assert!(target == first && b.done.len() == 1);
        a.fabric.unstage(old.0);
        let new = a.stage(&second);
        assert_eq!(new.1.mark, old.1.mark, "the same word is used again");
        target.fill(0);
        b.get(new, 0, &mut target).unwrap();
        b.progress();
        assert_eq!((b.done.len(), b.fabric.readings[0].done), (1, 0));
        assert!(target.iter().all(|byte| *byte == 0));
        a.fabric.fill();
        b.progress();
        assert!(target == second && b.done.len() == 2 && b.fabric.readings.is_empty());
    }

    #[test]
    fn parts_of_a_message_come_from_its_lead_and_from_chunks() {
        let (mut a, mut b, _directory) = Side::pair(4096, 4);
        let source = bytes(20_000, 3);
        for (offset, len) in
            [(0, 20_000), (0, 4096), (100, 50), (4000, 96), (4000, 1000), (4096, 10), (19_999, 1)]
        {
            let stage = a.stage(&source);
            a.fabric.fill();
            let mut target = vec![0; len];
            b.done.clear();
            b.get(stage, offset as u64, &mut target).unwrap();
            while b.done.is_empty() {
                a.progress();
                b.progress();
            }
            assert!(target == source[offset..offset + len], "{len} bytes from {offset} on");
            a.fabric.unstage(stage.0);
        }
        assert_eq!((a.refused, b.refused), (0, 0));
    }

    #[test]
    fn leads_leave_half_of_the_chunks_and_something_for_other_peers_and_come_back() {
        let (mut a, _b, _directory) = Side::pair(4096, 24);
        let others: Vec<_> = (0..4).map(|_| a.another()).collect();
        let peers: Vec<_> =
            others.iter().map(|other| a.fabric.add(&other.name(), ptr::null_mut()).unwrap()).collect();
        let source = bytes(100, 1);
        for _ in 0..3 {
            let mut stages = Vec::new();
            let mut leads = |fabric: &mut Fabric, peer| {
                let new: Vec<_> =
                    (0..10).map(|_| fabric.stage(peer, source.as_ptr(), source.len())).collect();
                stages.extend(new.iter().map(|(id, _)| *id));
                new.iter().filter(|(_, lead)| *lead != Lead::default()).count()
            };
            assert_eq!(leads(&mut a.fabric, a.peer), 9);
            let counts: Vec<_> = peers.iter().map(|peer| leads(&mut a.fabric, *peer)).collect();
            assert_eq!(counts, [3, 0, 0, 0]);
            stages.iter().for_each(|id| a.fabric.unstage(*id));
            a.fabric.fill();
        }
    }

    #[test]
    fn a_sender_that_gives_bytes_one_by_one_is_not_waited_for() {
        let (a, mut b, _directory) = Side::pair(64 << 10, 8);
        let mut a = a.fabric;
        let source = vec![1; 40_000];
        let target: Vec<_> = source.iter().map(|_| AtomicU8::new(0)).collect();
        let (id, lead) = a.stage(a.peer(0).unwrap(), source.as_ptr(), source.len());
        // SAFETY: the atomics are as good as bytes, and of these there is no other use than as atomics.
        let bytes =
            unsafe { std::slice::from_raw_parts_mut(target.as_ptr().cast_mut().cast(), target.len()) };
        a.fill();
        let memory = a.endpoint.memory();
        memory.store(lead.mark(), 0, Ordering::Release);
        b.get((id, lead), 0, bytes).unwrap();
        let mut reading = b.fabric.readings.pop().unwrap();
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for (n, byte) in (1..).zip(&target) {
                    memory.store(lead.mark(), n, Ordering::Release);
                    while byte.load(Ordering::Relaxed) == 0 && !is_over.load(Ordering::Relaxed) {
                        std::hint::spin_loop();
                    }
                    if is_over.load(Ordering::Relaxed) {
                        break;
                    }
                }
            });
            while memory.load(lead.mark(), Ordering::Relaxed) == 0 {
                std::hint::spin_loop();
            }
            b.fabric.read(&mut reading, 10_000).unwrap();
            is_over.store(true, Ordering::Relaxed);
        });
        assert!(reading.done <= 10_001, "{} bytes in 10000 looks", reading.done);
    }

    #[test]
    fn who_waits_for_a_lead_lets_others_run() {
        let (mut a, mut b, _directory) = Side::pair(4096, 4);
        let source = bytes(4096, 3);
        let mut target = vec![0; 4096];
        b.fabric.sleep = Some(Sleep::new(&b.fabric.endpoint, Duration::from_micros(10)));
        let stage = a.stage(&source);
        b.get(stage, 0, &mut target).unwrap();
        let since = Instant::now();
        while b.fabric.rest(false) == Rest::Spin {
            assert!(since.elapsed().as_secs() < 60, "it spins for ever");
            assert!(b.fabric.read_on().is_none());
        }
        a.fabric.fill();
        assert!(b.fabric.read_on().is_some());
        assert_eq!(b.fabric.rest(false), Rest::Spin);
    }

    #[test]
    fn leads_that_nobody_asks_for_starve_nobody_in_a_full_section() {
        let (mut a, mut b, _directory) = Side::pair(4096, 100);
        assert!(a.fabric.reserve(4096));
        let source = bytes(40_000, 1);
        let parked: Vec<_> = (0..10).map(|_| a.stage(&source[..4096])).collect();
        assert!(parked.iter().any(|(_, lead)| *lead != Lead::default()));
        let _whole: Vec<_> = std::iter::from_fn(|| a.fabric.endpoint.fragment(64 << 10)).collect();
        let mut taken: Vec<_> = std::iter::from_fn(|| a.fabric.endpoint.fragment(4096)).collect();
        for _ in 0..3 {
            let mut target = vec![0; source.len()];
            let (stage, _) = a.stage(&source);
            b.done.clear();
            b.get((stage, Lead::default()), 0, &mut target).unwrap();
            for _ in 0..100_000 {
                a.progress();
                b.progress();
            }
            assert_eq!(b.done.len(), 1);
            assert!(source == target);
            // What has come back must not be parked either.
            let more = a.stage(&source[..100]);
            assert!(more.1 == Lead::default());
            a.fabric.unstage(more.0);
            a.fabric.unstage(stage);
            let fragment = a.fabric.fragment(3000).expect("room for a message");
            a.fabric.endpoint.free(fragment);
        }
        // A mark is there, but only one block, which is for messages.
        a.fabric.unstage(parked[0].0);
        a.fabric.chunks.take_free().for_each(drop);
        let _spare: Vec<_> = std::iter::from_fn(|| a.fabric.endpoint.try_fragment(4096)).collect();
        a.fabric.endpoint.free(taken.swap_remove(0));
        assert!(a.stage(&source[..100]).1 == Lead::default(), "a lead took the last piece");
    }

    #[test]
    fn a_hostile_lead_harms_its_own_message_only() {
        let (mut a, mut b, _directory) = Side::pair(4096, 4);
        let source = bytes(5000, 3);
        let (id, good) = a.stage(&source);
        a.fabric.fill();
        let mut target = vec![7; 6000];
        let section = *b.fabric.endpoint.section();
        let end = a.fabric.endpoint.section().entry.offset + a.fabric.endpoint.section().entry.len;
        let pairs = |offset: u64| u32::try_from(offset / LINE_PAIR).unwrap();
        let wrong = [
            Lead { data: pairs(section.entry.offset), ..good },
            Lead { data: pairs(end) - 1, ..good },
            Lead { data: u32::MAX, ..good },
            Lead { mark: pairs(section.entry.offset), ..good },
            Lead { mark: pairs(end), ..good },
            Lead { mark: u32::MAX, ..good },
        ];
        for lead in wrong {
            assert_eq!(b.get((id, lead), 0, &mut target[..5000]), Err(Refused::Lost), "{lead:?}");
            assert!(b.get((id, lead), 4000, &mut target[..1000]).is_err());
        }
        assert!(target.iter().all(|byte| *byte == 7) && b.fabric.readings.is_empty());
        let far = Lead { len: u64::MAX, ..good };
        assert_eq!((far.part(u64::MAX - 10, 10), far.part(0, 1 << 40)), (0, component::max_send_size()));
        // It promises more than there is, and says that all of it is there.
        let mark = good.mark();
        a.fabric.endpoint.memory().store(mark, u64::MAX, Ordering::Release);
        b.get((id, Lead { len: u64::MAX, ..good }), 0, &mut target[..5000]).unwrap();
        assert_eq!(b.done.len(), 1);
        assert!(target[..4096] == source[..4096] && target[5000..].iter().all(|byte| *byte == 7));
        // It goes back on its word.
        a.fabric.endpoint.memory().store(mark, 0, Ordering::Release);
        b.get((id, good), 0, &mut target[..4096]).unwrap();
        b.progress();
        assert_eq!(b.done.len(), 1);
        assert_eq!(b.fabric.take_pulls(b.peer).len(), 1);
    }

    #[test]
    fn a_chunk_before_the_end_of_the_lead_has_no_place() {
        let (mut a, mut b, _directory) = Side::pair(4096, 4);
        let source = bytes(8192, 3);
        let mut target = vec![0; 8192];
        let stage = a.stage(&source);
        b.get(stage, 0, &mut target).unwrap();
        let chunk = crate::stage::PULL + 1;
        assert!(b.fabric.place(b.peer, chunk, 10).is_none());
        a.fabric.fill();
        assert_eq!(b.fabric.place(b.peer, chunk, 10), Some(target[4096..].as_mut_ptr()));
        assert!(target[..4096] == source[..4096]);
    }

    #[test]
    fn what_a_lost_sender_has_promised_comes_back() {
        let (mut a, mut b, _directory) = Side::pair(4096, 4);
        let source = bytes(4096, 3);
        let mut target = vec![0; 4096];
        let stage = a.stage(&source);
        b.get(stage, 0, &mut target).unwrap();
        assert!(b.fabric.loss(b.peer).is_none());
        drop(a);
        let (mut inbox, since) = (Inbox::new(), std::time::Instant::now());
        loop {
            assert!(since.elapsed().as_secs() < 60, "nobody noticed");
            assert!(b.fabric.read_on().is_none());
            if let Some(Event::Gone { peer, why }) = b.fabric.endpoint.poll(&mut inbox) {
                b.fabric.lose(peer, why);
                break;
            }
        }
        assert_eq!(b.fabric.take_pulls(b.peer).len(), 1);
        assert!(b.fabric.readings.is_empty());
        assert_eq!(b.fabric.loss(b.peer).map(|loss| loss.why), Some(PeerError::Left), "something was missed");
        assert_eq!(b.get(stage, 0, &mut target), Err(Refused::Lost));
    }
}
