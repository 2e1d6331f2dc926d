//! The keeper: one thread a process that shows the process's life to others and watches over theirs.
//!
//! Within one kernel, locks tell who lives, or the guest driver, which marks the dead. For the processes of its own section
//! the keeper also acts: it takes back what the dead held, and counts up the heartbeats of the living, so that a process
//! that is stopped in a debugger stays alive as long as any other of its machine runs. Of another VM the host's table says
//! when it ends, if it has a server; a VM that just stops is told by its heartbeat alone.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, park_timeout};
use std::time::{Duration, Instant};

use core::mem::offset_of;

use nix::sys::signal::{SigSet, Signal};
use vmshm_abi::EndpointId;
use vmshm_abi::section::{EndpointSlot, STATE_FREE, STATE_GONE, STATE_LIVE};

use crate::driver;
use crate::endpoint::Endpoint;
use crate::hold::Hold;
use crate::link::PeerError;
use crate::lock;
use crate::mapping::Mapping;
use crate::memory::Memory;
use crate::region::{Region, Section};
use crate::sleeper::Sleeper;
use crate::slot;
use crate::watch::Watch;

/// Time between two looks: the death of a process of the same kernel is noticed within it.
const INTERVAL: Duration = Duration::from_millis(200);

const HEARTBEAT: u64 = offset_of!(EndpointSlot, heartbeat) as u64;

/// Which kernel this is, and how the lives of its processes are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// The host's: all sections that share its boot id are of one kernel, and locks tell.
    Host,
    /// A guest's: locks tell within its section. Elsewhere boot ids can be equal by cloning a running machine.
    Guest,
    /// A guest's with the driver, which marks the slots of the dead.
    Driver,
}

/// The running thread; dropping it stops it.
#[derive(Debug)]
pub struct Keeper {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

struct Round {
    mapping: Arc<Mapping>,
    region: Region,
    section: Section,
    slot: u32,
    boot_id: [u64; 2],
    watch: Arc<Watch>,
    patience: Duration,
    kernel: Kernel,
    /// Wakes our process when there are news.
    sleeper: Option<Sleeper>,
    /// Last heartbeat seen of each watched endpoint of another kernel, and for how long we have been watching it stand.
    heartbeats: HashMap<(EndpointId, u64), (u64, Duration)>,
    last_run: Instant,
}

impl Keeper {
    /// Starts the thread for an endpoint, which declares peers of other kernels dead after `patience` without heartbeat.
    pub fn start(
        endpoint: &Endpoint<Arc<Mapping>>,
        boot_id: [u64; 2],
        patience: Duration,
        kernel: Kernel,
        sleeper: Option<Sleeper>,
    ) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let mut round = Round::new(endpoint, boot_id, patience, kernel, sleeper);
        let thread = std::thread::Builder::new().name("vmshm-keeper".into()).spawn(move || {
            if kernel == Kernel::Driver {
                // The program may have blocked it in the thread that attached, from which this one has its mask.
                let _ = SigSet::from(Signal::SIGBUS).thread_unblock();
            }
            while !stopped.load(Ordering::Acquire) {
                round.run();
                park_timeout(INTERVAL);
            }
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

impl Round {
    fn new(
        endpoint: &Endpoint<Arc<Mapping>>,
        boot_id: [u64; 2],
        patience: Duration,
        kernel: Kernel,
        sleeper: Option<Sleeper>,
    ) -> Self {
        Self {
            mapping: Arc::clone(endpoint.memory()),
            region: endpoint.region().clone(),
            section: *endpoint.section(),
            slot: endpoint.slot(),
            boot_id,
            watch: Arc::clone(endpoint.watch()),
            patience,
            kernel,
            sleeper,
            heartbeats: HashMap::new(),
            last_run: Instant::now(),
        }
    }

    fn run(&mut self) {
        if self.mapping.device().is_some_and(driver::is_gone) {
            self.mapping.lose();
        }
        Endpoint::beat(&self.mapping, &self.section, self.slot);
        // While we ourselves were stopped we watched nobody.
        let now = Instant::now();
        let step = (now - self.last_run).min(2 * INTERVAL);
        self.last_run = now;
        for slot in (0..self.section.layout.endpoints).filter(|slot| *slot != self.slot) {
            self.look_after_sibling(slot);
        }
        let watched: Vec<_> = self.watch.watched().collect();
        self.heartbeats.retain(|key, _| watched.contains(key));
        for (id, incarnation) in watched {
            if let Some(why) = self.verdict(id, incarnation, step) {
                self.watch.report(id, incarnation, why);
                if let Some(sleeper) = &self.sleeper {
                    sleeper.ring_self();
                }
            }
        }
    }

    fn look_after_sibling(&self, slot: u32) {
        let state = slot::state(&self.mapping, &self.section, slot);
        match (self.kernel, state.state) {
            (_, STATE_FREE) => return,
            (Kernel::Driver, STATE_GONE) => {
                slot::reap(&self.mapping, &self.section, slot, state, false);
            }
            // Left over from an earlier boot of this machine: its driver had no time to mark it.
            (Kernel::Driver, STATE_LIVE)
                if slot::boot_id(&self.mapping, &self.section, slot) != self.boot_id =>
            {
                slot::reap(&self.mapping, &self.section, slot, state, true);
            }
            (Kernel::Driver, _) => {}
            _ => reap_if_dead(&self.mapping, &self.section, slot),
        }
        if slot::state(&self.mapping, &self.section, slot).state == STATE_LIVE {
            Endpoint::beat(&self.mapping, &self.section, slot);
        }
    }

    fn verdict(&mut self, id: EndpointId, incarnation: u64, step: Duration) -> Option<PeerError> {
        let (section, slot) = self.region.place(id)?;
        if self.mapping.is_lost() {
            return Some(PeerError::DeviceLost);
        }
        let at = section.slot(slot);
        let is_ours = section.number == self.section.number;
        let member = if is_ours { 0 } else { self.watch.member(id) };
        let state = slot::state(&self.mapping, section, slot);
        if state.incarnation != incarnation
            || state.state != STATE_LIVE
            || section.has_changed_hands(&self.mapping, member)
        {
            return Some(slot::ending(&self.mapping, section, slot, incarnation, member));
        }
        if is_ours && self.kernel == Kernel::Driver {
            return None;
        }
        let shares_locks = is_ours || self.kernel == Kernel::Host;
        if shares_locks && slot::boot_id(&self.mapping, section, slot) == self.boot_id {
            // Where the lock can't be asked, the answer is unknown, and that is not death.
            let dead = !lock::is_held_by_another(self.mapping.file(), at).unwrap_or(true);
            // It may have left in good order just now.
            let left = slot::state(&self.mapping, section, slot) != state;
            return (dead && !left).then_some(PeerError::Died);
        }
        let beat = self.mapping.load(at + HEARTBEAT, Ordering::Relaxed);
        let last = self.heartbeats.entry((id, incarnation)).or_insert((beat, Duration::ZERO));
        *last = match last.0 == beat {
            true => (beat, last.1 + step),
            false => (beat, Duration::ZERO),
        };
        (last.1 > self.patience).then_some(PeerError::Silent)
    }
}

/// Takes back what the process of a slot of our own section held, if it is dead: if the slot's lock can be had.
fn reap_if_dead(mapping: &Mapping, section: &Section, slot: u32) {
    let hold = Hold::Locks;
    if !matches!(hold.take(mapping.file(), section, slot), Ok(true)) {
        return;
    }
    let state = slot::state(mapping, section, slot);
    if state.state != STATE_FREE {
        slot::reap(mapping, section, slot, state, true);
    }
    let _ = hold.release(mapping.file(), section, slot);
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
    use crate::event::{Event, Inbox, Peer};

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

    /// What happens to an endpoint that is sent no messages.
    fn next(endpoint: &mut Endpoint<Arc<Mapping>>) -> Option<Event> {
        let mut inbox = Inbox::new();
        (0..200).find_map(|_| endpoint.poll(&mut inbox))
    }

    fn round(endpoint: &Endpoint<Arc<Mapping>>) -> Round {
        Round::new(endpoint, BOOT, Duration::from_secs(3600), Kernel::Driver, None)
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
        // It has come back to a restarted server.
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
        // The host empties a section before it gives it away.
        let section = *b.section();
        file.write_all_at(&vec![0; section.entry.len as usize], section.entry.offset).unwrap();
        round.run();
        assert_eq!(next(&mut a), Some(Event::Gone { peer: to_b, why: PeerError::Died }));
    }

    #[test]
    fn what_the_next_vm_writes_is_no_word_of_the_one_before() {
        let file = region_file();
        let (mut a, b, to_b, mut round) = met(&file);
        // Its slot's first life has the same number, and has left.
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
        let keeper = Keeper::start(&a, BOOT, Duration::from_secs(3600), Kernel::Driver, None);
        blocked.thread_unblock().unwrap();
        let keeper = keeper.unwrap();
        file.set_len(0).unwrap();
        // Only the keeper touches the memory; with the signal blocked, that would end this program.
        while !a.memory().is_lost() {
            std::thread::sleep(Duration::from_millis(10));
        }
        drop(keeper);
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
        // What the driver does when a process is killed.
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
