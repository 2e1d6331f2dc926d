//! The monitor: a thread that shows its process alive to peers, and finds out which of them live.
//!
//! *How lives are told.* Within one kernel by locks ([`ProcessLock`]), or by the guest driver, which marks the slots of the dead.
//! The end of another VM stands in the host's table, if the host has a server; a VM that just stops is told by its heartbeats
//! alone.
//!
//! *When the monitor looks.* A verdict is of use to a process that polls. So its monitor looks at all peers every [`INTERVAL`].
//! When the process has not polled for as long, the monitor rests, and the next poll wakes it ([`Verdicts`]). While a whole
//! section rests its heartbeats must still be counted up, by which other VMs see it alive, and its dead be marked. The monitor of
//! the first slot does that once a second ([`REST`]). As that process may be stopped, or die, the second does it with four times
//! the pause, and so on: together they wake up less often than three times in two seconds, however many there are.
//!
//! *How the monitor acts.* For the processes of its own section it marks the dead, reaps them, and counts up the heartbeats of
//! the living, so that a process that is stopped in a debugger stays alive as long as any other of its machine runs. A monitor
//! makes sure that a process lives before it counts up the heartbeat. So a heartbeat that has moved since the last look saves
//! the look at the lock: each process is looked at by one monitor, not by all.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::{JoinHandle, park_timeout};
use std::time::{Duration, Instant};
use std::{io, mem, thread};

use core::mem::offset_of;

use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use vmshm_abi::EndpointId;
use vmshm_abi::section::{EndpointSlot, STATE_FREE, STATE_GONE, STATE_LIVE};

use super::super::lease::SlotLease;
use super::super::sleeper::Sleeper;
use super::process_lock::{ProcessLock, RegionFile};
use crate::endpoint::{Endpoint, Verdicts};
use crate::error::PeerError;
use crate::memory::{Mapping, Memory, driver};
use crate::region::{Region, Section, slot};

/// Time between two looks of a process that polls: it learns of a death within two of them.
const INTERVAL: Duration = Duration::from_millis(250);

/// Time between two looks of a process that does not poll, if it has the first slot that is taken.
const REST: Duration = Duration::from_secs(1);

/// The longest rest, as a power of two of [`REST`]: more than an hour.
const LONGEST: u32 = 12;

const HEARTBEAT: u64 = offset_of!(EndpointSlot, heartbeat) as u64;

/// The kernel that this process runs on, and so how the lives of its processes are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// The host's: all sections that share its boot id are of one kernel, and locks tell.
    Host,
    /// A guest's: locks tell within its section. Elsewhere boot ids can be equal by cloning a running machine.
    Guest,
    /// A guest's with the driver, which marks the slots of the dead.
    Driver,
}

/// Options of a monitor, beside its endpoint.
#[derive(Debug)]
pub struct MonitorOptions {
    /// This kernel's boot id.
    pub boot_id: [u64; 2],
    /// Longest pause of a heartbeat: then peers of other kernels are declared dead.
    pub patience: Duration,
    /// How the lives of this kernel's processes are told.
    pub kernel: Kernel,
    /// Wakes our process when there are news.
    pub sleeper: Option<Sleeper>,
}

/// The running thread; dropping it stops it, and then the process counts as dead: its endpoint has left before.
#[derive(Debug)]
pub struct Monitor {
    stop: Arc<AtomicBool>,
    begin: Option<Sender<Round>>,
    thread: Option<JoinHandle<()>>,
}

type Heartbeats = HashMap<(EndpointId, u64), (u64, Duration)>;

#[derive(Debug)]
struct Round {
    mapping: Arc<Mapping>,
    region: Region,
    section: Section,
    slot: u32,
    verdicts: Arc<Verdicts>,
    options: MonitorOptions,
    /// None with the driver, which tells of the dead itself.
    process_lock: Option<ProcessLock>,
    /// The heartbeat of each endpoint, and for how long it has stood under our eyes: at this look, and at the last.
    heartbeats: Heartbeats,
    last_heartbeats: Heartbeats,
    last_run: Instant,
}

impl Monitor {
    /// Starts the thread for slot `slot`, which this process has leased, before peers can connect to its endpoint. Where locks on
    /// the file at `path` tell of lives, the process is seen alive from now on.
    ///
    /// # Errors
    ///
    /// No thread, or the lock can't be had.
    pub fn start(mapping: &Mapping, section: Section, slot: u32, path: Option<PathBuf>) -> io::Result<Self> {
        let region_file = path.map(|path| RegionFile::new(path, mapping.file())).transpose()?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let (begin, rounds) = channel::<Round>();
        let (tell, told) = channel();
        let keep = move || {
            let process_lock = region_file.map(|file| ProcessLock::begin(&file, &section, slot)).transpose();
            let (process_lock, result) = match process_lock {
                Ok(held) => (held, Ok(())),
                Err(error) => (None, Err(error)),
            };
            if tell.send(result).is_err() {
                return;
            }
            let Ok(mut round) = rounds.recv() else { return };
            round.process_lock = process_lock;
            while !stopped.load(Ordering::Acquire) {
                round.run();
                match round.verdicts.was_polled() {
                    true => park_timeout(INTERVAL),
                    false => round.verdicts.rest(round.rest()),
                }
            }
        };
        // The program's signals are for its own threads. Signals of faults stay unblocked: the kernel ends a process whose thread
        // meets a fault with its signal blocked, and the loss of the memory is such a fault.
        let mut signals = SigSet::all();
        for fault in [Signal::SIGBUS, Signal::SIGSEGV, Signal::SIGILL, Signal::SIGFPE, Signal::SIGTRAP] {
            signals.remove(fault);
        }
        let before = signals.thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
        let thread = thread::Builder::new().name("vmshm-monitor".into()).spawn(keep);
        before.thread_set_mask()?;
        let monitor = Self { stop, begin: Some(begin), thread: Some(thread?) };
        told.recv().map_err(|_| io::Error::other("the thread that watches over peers has ended"))??;
        Ok(monitor)
    }

    /// Begins to watch over the peers of the endpoint in the slot.
    pub fn watch(&mut self, endpoint: &Endpoint<Arc<Mapping>>, options: MonitorOptions) {
        if let Some(begin) = self.begin.take() {
            let _ = begin.send(Round::new(endpoint, options));
        }
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        drop(self.begin.take());
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

impl Round {
    fn new(endpoint: &Endpoint<Arc<Mapping>>, options: MonitorOptions) -> Self {
        Self {
            mapping: Arc::clone(endpoint.memory()),
            region: endpoint.region().clone(),
            section: *endpoint.section(),
            slot: endpoint.slot(),
            verdicts: Arc::clone(endpoint.verdicts()),
            options,
            process_lock: None,
            heartbeats: Heartbeats::new(),
            last_heartbeats: Heartbeats::new(),
            last_run: Instant::now(),
        }
    }

    /// How long to rest: the longer, the more processes of the section have slots before ours.
    fn rest(&self) -> Duration {
        let before = (0..self.slot)
            .filter(|slot| slot::state(&self.mapping, &self.section, *slot).state == STATE_LIVE)
            .count() as u32;
        // Below the patience of peers, which is mostly ours.
        REST.min(self.options.patience / 4) * (1 << (2 * before).min(LONGEST))
    }

    fn run(&mut self) {
        if self.mapping.device_file().is_some_and(driver::is_gone) {
            self.mapping.lose();
        }
        Endpoint::beat(&self.mapping, &self.section, self.slot);
        // Heartbeats were not watched while this process was stopped, or the monitor rested.
        let now = Instant::now();
        let step = (now - self.last_run).min(2 * INTERVAL);
        self.last_run = now;
        mem::swap(&mut self.heartbeats, &mut self.last_heartbeats);
        self.heartbeats.clear();
        let own = self.slot;
        for slot in (0..self.section.layout.endpoints).filter(|slot| *slot != own) {
            self.look_after_sibling(slot);
        }
        let verdicts = Arc::clone(&self.verdicts);
        for (id, incarnation) in verdicts.watched() {
            if let Some(why) = self.verdict(id, incarnation, step) {
                verdicts.report(id, incarnation, why);
                if let Some(sleeper) = &self.options.sleeper {
                    sleeper.ring_self();
                }
            }
        }
    }

    fn look_after_sibling(&mut self, slot: u32) {
        let (mapping, section) = (Arc::clone(&self.mapping), self.section);
        let state = slot::state(&mapping, &section, slot);
        match (self.options.kernel, state.state) {
            (_, STATE_FREE) => {}
            (Kernel::Driver, STATE_GONE) => slot::reap(&mapping, &section, slot, state, false),
            // Left over from an earlier boot of this machine, whose driver had no time to mark the slot.
            (Kernel::Driver, STATE_LIVE)
                if slot::boot_id(&mapping, &section, slot) != self.options.boot_id =>
            {
                slot::reap(&mapping, &section, slot, state, true);
            }
            (_, STATE_LIVE) => {
                let id = self.region.endpoint(section.number, slot);
                if self.has_stood(id, state.incarnation, Duration::ZERO).is_none() {
                    // Another monitor has just looked.
                } else if self.process_lock.as_ref().is_none_or(|lock| lock.is_alive(&section, slot)) {
                    let beat = Endpoint::beat(&mapping, &section, slot);
                    self.heartbeats.insert((id, state.incarnation), (beat, Duration::ZERO));
                } else {
                    slot::mark_dead(&mapping, &section, slot, state);
                    self.reap(slot);
                }
            }
            _ => self.reap(slot),
        }
    }

    /// Reaps the process of a slot, if it is dead and no forked child of it has its memory: if the slot's lease can be had.
    fn reap(&self, slot: u32) {
        let Some(lock) = &self.process_lock else { return };
        if !matches!(SlotLease::Locks.take(lock.file(), &self.section, slot), Ok(true)) {
            return;
        }
        let state = slot::state(&self.mapping, &self.section, slot);
        if state.state != STATE_FREE {
            slot::reap(&self.mapping, &self.section, slot, state, true);
        }
        let _ = SlotLease::Locks.release(lock.file(), &self.section, slot);
    }

    /// Time that the heartbeat of an endpoint has stood, after another `step` of watching; none if it has moved.
    fn has_stood(&mut self, id: EndpointId, incarnation: u64, step: Duration) -> Option<Duration> {
        let (section, slot) = self.region.place(id)?;
        let beat = self.mapping.load(section.slot(slot) + HEARTBEAT, Ordering::Relaxed);
        let last = self.last_heartbeats.get(&(id, incarnation)).copied();
        let (last, stood) = last.unwrap_or((beat, Duration::ZERO));
        let stood = (last == beat).then_some(stood + step);
        self.heartbeats.insert((id, incarnation), (beat, stood.unwrap_or_default()));
        stood
    }

    fn verdict(&mut self, id: EndpointId, incarnation: u64, step: Duration) -> Option<PeerError> {
        let (&section, slot) = self.region.place(id)?;
        if self.mapping.is_lost() {
            return Some(PeerError::DeviceLost);
        }
        let is_ours = section.number == self.section.number;
        let owner = if is_ours { 0 } else { self.verdicts.owner(id) };
        let state = slot::state(&self.mapping, &section, slot);
        if state.incarnation != incarnation
            || state.state != STATE_LIVE
            || section.has_lost_owner(&self.mapping, owner)
        {
            return Some(slot::ending(&self.mapping, &section, slot, incarnation, owner));
        }
        if is_ours {
            // Siblings were looked after before.
            return None;
        }
        let stood = self.has_stood(id, incarnation, step)?;
        if let Some(lock) = &self.process_lock
            && self.options.kernel == Kernel::Host
            && slot::boot_id(&self.mapping, &section, slot) == self.options.boot_id
        {
            // The process may have left in good order just now.
            let is_dead =
                !lock.is_alive(&section, slot) && slot::state(&self.mapping, &section, slot) == state;
            return is_dead.then_some(PeerError::Died);
        }
        (stood > self.options.patience).then_some(PeerError::Silent)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    use vmshm_abi::driver::{DeviceInfo, VERSION, WRITE_BACK};
    use vmshm_abi::region::{RegionHeader, SECTION_ASSIGNED, SECTION_JOINED, SectionEntry};
    use vmshm_abi::section::SlotState;
    use zerocopy::IntoBytes;

    use super::*;
    use crate::endpoint::Process;
    use crate::endpoint::{Event, Inbox, Peer};

    const LEN: u64 = 8 << 20;
    const BOOT: [u64; 2] = [1, 2];

    fn header() -> RegionHeader {
        RegionHeader::new([7; 16], LEN, 4096, 2, 4)
    }

    fn write_row(file: &File, number: u32, generation: u64, state: u32, vm_id: u32) {
        let entry = SectionEntry { generation, state, vm_id, ..header().new_entry(number) };
        file.write_all_at(entry.as_bytes(), RegionHeader::entry_offset(number)).unwrap();
    }

    fn region_file() -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(LEN).unwrap();
        file.write_all_at(header().as_bytes(), 0).unwrap();
        (0..2).for_each(|number| write_row(&file, number, 1, SECTION_JOINED, number + 1));
        file
    }

    /// An endpoint as in a guest with the driver.
    fn endpoint(file: &File, section: u32, boot_id: [u64; 2]) -> Endpoint<Arc<Mapping>> {
        let device = DeviceInfo {
            version: VERSION,
            section,
            region_len: LEN,
            vectors: 0,
            memory_type: WRITE_BACK,
            reserved: [0; 5],
        };
        let entry = header().new_entry(section);
        let own = entry.offset..entry.offset + entry.len;
        let mapping = Arc::new(Mapping::of_device(file.try_clone().unwrap(), &device, own).unwrap());
        let region = Region::read(&mapping).unwrap();
        let at = region.sections()[section as usize];
        let (slot, life) = (0..4).find_map(|slot| Some((slot, slot::claim(&mapping, &at, slot)?))).unwrap();
        let process = Process { boot_id, ..Process::default() };
        Endpoint::take(mapping, region, section, slot, life, &process).unwrap()
    }

    /// Fate of an endpoint that is sent no messages.
    fn next(endpoint: &mut Endpoint<Arc<Mapping>>) -> Option<Event> {
        let mut inbox = Inbox::new();
        (0..200).find_map(|_| endpoint.poll(&mut inbox))
    }

    fn options() -> MonitorOptions {
        let patience = Duration::from_secs(3600);
        MonitorOptions { boot_id: BOOT, patience, kernel: Kernel::Driver, sleeper: None }
    }

    fn round(endpoint: &Endpoint<Arc<Mapping>>) -> Round {
        Round::new(endpoint, options())
    }

    /// Two endpoints of two VMs, the peer that the second is to the first, and the first one's rounds.
    fn met(file: &File) -> (Endpoint<Arc<Mapping>>, Endpoint<Arc<Mapping>>, Peer, Round) {
        let mut a = endpoint(file, 0, BOOT);
        let b = endpoint(file, 1, BOOT);
        let to_b = a.connect(&b.name()).unwrap();
        let round = round(&a);
        (a, b, to_b, round)
    }

    #[test]
    fn the_end_of_a_vm_is_told_by_the_table() {
        let file = region_file();
        let (mut a, _b, to_b, mut round) = met(&file);
        round.run();
        assert_eq!(next(&mut a), None);
        // The VM has come back to a restarted server.
        write_row(&file, 1, 1, SECTION_JOINED, 77);
        round.run();
        assert_eq!(next(&mut a), None);
        write_row(&file, 1, 1, SECTION_ASSIGNED, 0);
        round.run();
        assert_eq!(next(&mut a), Some(Event::Gone { peer: to_b, why: PeerError::Died }));
    }

    #[test]
    fn the_next_vm_in_a_section_is_another() {
        let file = region_file();
        let (mut a, b, to_b, mut round) = met(&file);
        write_row(&file, 1, 2, SECTION_JOINED, 4);
        // The host overwrites a section before it assigns it to the next VM.
        let section = *b.section();
        file.write_all_at(&vec![0; section.entry.len as usize], section.entry.offset).unwrap();
        round.run();
        assert_eq!(next(&mut a), Some(Event::Gone { peer: to_b, why: PeerError::Died }));
    }

    #[test]
    fn what_the_next_vm_writes_is_no_word_of_the_one_before() {
        let file = region_file();
        let (mut a, b, to_b, mut round) = met(&file);
        // The next VM's first life of the slot has the same number, and has left.
        write_row(&file, 1, 2, SECTION_JOINED, 4);
        drop(b);
        round.run();
        assert_eq!(next(&mut a), Some(Event::Gone { peer: to_b, why: PeerError::Died }));
    }

    #[test]
    fn a_program_that_blocks_sigbus_still_learns_of_the_loss() {
        let file = region_file();
        let a = endpoint(&file, 0, BOOT);
        let blocked = SigSet::from(Signal::SIGBUS);
        blocked.thread_block().unwrap();
        let monitor = Monitor::start(a.memory(), *a.section(), a.slot(), None);
        blocked.thread_unblock().unwrap();
        let mut monitor = monitor.unwrap();
        monitor.watch(&a, options());
        file.set_len(0).unwrap();
        // Only the monitor touches the memory; with the signal blocked, that would end this program.
        while !a.memory().is_lost() {
            std::thread::sleep(Duration::from_millis(10));
        }
        drop(monitor);
    }

    #[test]
    fn who_left_before_its_vm_ended_has_left() {
        let file = region_file();
        let (mut a, b, to_b, mut round) = met(&file);
        drop(b);
        write_row(&file, 1, 1, SECTION_ASSIGNED, 0);
        round.run();
        assert_eq!(next(&mut a), Some(Event::Gone { peer: to_b, why: PeerError::Left }));
    }

    #[test]
    fn slots_that_the_driver_marked_are_taken_back() {
        let file = region_file();
        let mut a = endpoint(&file, 0, BOOT);
        let b = endpoint(&file, 0, BOOT);
        let before = endpoint(&file, 0, [3, 4]);
        let mut round = round(&a);
        let to_b = a.connect(&b.name()).unwrap();
        let (section, memory) = (*a.section(), Arc::clone(a.memory()));
        let (slot, life) = (b.slot(), b.name().incarnation);
        // The driver's work when a process is killed.
        let died = section.slot(slot) + offset_of!(EndpointSlot, died) as u64;
        memory.store(died, life, Ordering::Release);
        let word = |state| SlotState { incarnation: life, state }.pack();
        memory.compare_exchange(section.slot(slot), word(STATE_LIVE), word(STATE_GONE)).unwrap();
        round.run();
        assert_eq!(slot::state(&memory, &section, slot).state, STATE_FREE);
        assert_eq!(next(&mut a), Some(Event::Gone { peer: to_b, why: PeerError::Died }));
        // A process of an earlier boot, which no driver has marked.
        assert_eq!(slot::state(&memory, &section, before.slot()).state, STATE_FREE);
        let all: u64 = (0..section.layout.chunks)
            .filter(|chunk| {
                memory.load(section.entry.offset + section.layout.owner(*chunk), Ordering::Relaxed) != 0
            })
            .count() as u64;
        assert!(all <= 2, "{all} chunks are still taken");
        assert_eq!(slot::state(&memory, &section, a.slot()).state, STATE_LIVE);
    }
}
